"""docs/forces.md: its examples run, and its commands are understood."""

from pathlib import Path

import pytest
import torch
from documents import blocks, commands
from models import byte_tokenizer, tiny_model
from runs import data, probes

from learndyn.cli import make_parser
from learndyn.probes.tokenize import PairTokenizer, tokenize


PAGE = (Path(__file__).parents[2] / "docs" / "forces.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_every_command_is_understood(words):
    known, unknown = make_parser().parse_known_args(words)
    assert known.job is not None
    assert unknown == [] or words[0] == "run"


def test_the_examples_run_in_order(capsys):
    encode = PairTokenizer(byte_tokenizer())
    first = data().rows[:2]
    tokenized = tokenize(probes(1), byte_tokenizer())
    names = {
        # the vocabulary is small because A, K and G are written out
        "model": tiny_model("gpt2", torch.float64, n_embd=8, n_layer=1),
        "tokenized_probes": tokenized.select([0, 1]),
        "chosen": [encode(row.prompt, " Yes.") for row in first],
        "rejected": [encode(row.prompt, " No.") for row in first],
    }
    update, more = blocks(PAGE, "python")
    exec(update, names)
    method, error = capsys.readouterr().out.rsplit(maxsplit=1)
    assert method == "forward-mode"
    assert float(error) < 0.02
    small = tokenized.pairs[0].__class__((5, 6), (7, 8), False, False)
    names["tokenized_probes"] = tokenized.__class__(
        tokenized.probes, (small, *tokenized.pairs[1:]), tokenized.tokenizer_hash
    )
    exec(more.replace("2**34", "2**33"), names)
    assert "torch.Size([2, 320, 320])" in capsys.readouterr().out
