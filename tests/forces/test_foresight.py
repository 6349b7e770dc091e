"""Foresight: the tau test against real steps on a softmax, and what pairs are told."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from documents import blocks, commands
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from models import save_tiny, shared_model, tiny_model
from runs import data
from synthetic import write_run
from test_ches import padded, pairs_of, states_of

from learndyn.cli import main, make_parser
from learndyn.errors import BadInput
from learndyn.forces.foresight import foresight as module
from learndyn.forces.foresight.foresight import (
    _COLUMNS,
    Foreseen,
    _columns_of,
    foresee,
)
from learndyn.forces.foresight.tau import push_down, push_down_all
from learndyn.forces.gradients import TokenLogps
from learndyn.measure.forward import context_of
from learndyn.measure.load import weights_hash
from learndyn.measure.score import Scorer


LOGITS = arrays(
    np.float64,
    st.integers(2, 12),
    elements=st.floats(-8, 8, width=32),
)


def changes(logits, label, s):
    """log pi after a push down by s on the label minus before: the closed form."""
    logits = torch.from_numpy(logits)
    pi = logits.softmax(-1)
    moved = logits + s * (pi - torch.nn.functional.one_hot(label, len(pi)).double())
    return (moved.log_softmax(-1) - logits.log_softmax(-1)).numpy()


def test_of(logits, label):
    """The tau test of one position."""
    return push_down(torch.from_numpy(logits)[None], label[None])


test_of.__test__ = False  # type: ignore[attr-defined]


@settings(max_examples=200, deadline=None)
@example(np.array([0.0, 0.0, 1e-34]), 0)
@given(LOGITS, st.integers(0, 11))
def test_it_tells_who_rises_in_a_small_real_step(logits, place):
    label = torch.tensor(place % len(logits))
    found = test_of(logits, label)
    s = 1e-6
    rate = (changes(logits, label, s) - changes(logits, label, -s)) / (2 * s)
    best = int(found.favourite_id)
    others = np.delete(np.arange(len(logits)), int(label))
    assert best in others  # logits 1e-30 apart are equal as probabilities
    assert logits[best] == pytest.approx(logits[others].max(), abs=1e-12)
    assert float(found.favourite_rate) == pytest.approx(rate[best], abs=1e-8)
    assert float(found.label_rate) == pytest.approx(rate[int(label)], abs=1e-8)
    pi = torch.from_numpy(logits).softmax(-1).numpy()
    assert float(found.favourite_gain) == pytest.approx(pi[best] * rate[best], abs=1e-8)
    # tokens so near tau that a difference of two steps cannot tell are left out
    close = np.sum(np.abs(rate[others]) < 1e-7)
    assert abs(int(found.winners) - np.sum(rate[others] > 0)) <= close
    assert float(found.favourite_rate) >= 0 >= float(found.label_rate)
    assert bool(found.off_target) == bool(pi[best] > pi[int(label)])
    assert float(found.logp) == pytest.approx(np.log(pi[int(label)]), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.integers(0, 11), st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_nothing(logits, place, constant):
    label = torch.tensor(place % len(logits))
    one, other = test_of(logits, label), test_of(logits + constant, label)
    assert float(one.tau) == pytest.approx(float(other.tau), abs=1e-9)
    assert float(one.favourite_rate) == pytest.approx(
        float(other.favourite_rate), abs=1e-9
    )


def test_the_peakier_the_fewer_win():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 50, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 50, (200,), generator=generator)
    winners, share = [], []
    for spread in (0.3, 1.0, 2.0, 4.0):
        found = push_down(spread * logits, labels)
        off = found.off_target
        winners.append(float(found.winners[off].double().mean()))
        lost = -(found.label_rate * found.logp.exp())[off]
        share.append(float((found.favourite_gain[off] / lost).median()))
    assert winners == sorted(winners, reverse=True)
    assert winners[0] > 40
    assert winners[-1] < 4
    assert share == sorted(share)


def test_where_the_label_is_the_argmax_every_other_token_wins():
    logits = torch.tensor([[3.0, 0.0, -1.0, 0.5]], dtype=torch.float64)
    found = push_down(logits, torch.tensor([0]))
    assert found.winners.tolist() == [3]
    assert not found.off_target.item()
    assert float(found.tau) < 0


@pytest.mark.parametrize("scale", [60.0, 2000.0])
def test_the_favourite_wins_also_where_rounding_hides_it(scale):
    logits = scale * torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    found = push_down(logits, torch.tensor([2]))
    assert found.winners.tolist() == [1]
    assert found.favourite_id.tolist() == [0]
    assert float(found.favourite_rate) >= 0
    assert float(found.logp) == pytest.approx(-2 * scale)


def test_of_a_model_it_is_that_of_its_logits_however_they_are_cut(monkeypatch):
    model = shared_model("llama")
    _, bad = pairs_of(0, 5)
    reader = TokenLogps.of(Scorer.attach(model, bad))
    whole = push_down_all(reader)
    monkeypatch.setattr("learndyn.measure.reader._ROW_CHUNK_BYTES", 4 * 320 * 3)
    parts = push_down_all(TokenLogps.of(Scorer.attach(model, bad)))
    place = 0
    for pair in bad:
        ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
        with torch.no_grad():
            logits = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1]
        wanted = push_down(logits, torch.tensor(pair.response_ids))
        here = torch.arange(place, place + len(logits))
        for found in (whole.take(here), parts.take(here)):
            torch.testing.assert_close(found.tau, wanted.tau, rtol=1e-4, atol=1e-6)
            assert torch.equal(found.favourite_id, wanted.favourite_id)
            assert torch.equal(found.off_target, wanted.off_target)
            assert (found.winners - wanted.winners).abs().max() <= 1
        place += len(logits)


def test_the_columns_of_a_pair_do_not_depend_on_the_others():
    model = shared_model("gpt2")
    good, bad = pairs_of(1, 5)
    together = _columns_of(Scorer.attach(model, (*good, *bad)))
    assert list(together) == list(_COLUMNS)
    for i, pair in enumerate(zip(good, bad, strict=True)):
        alone = _columns_of(Scorer.attach(model, pair))
        for name in set(_COLUMNS) - {"winners"}:
            np.testing.assert_allclose(
                alone[name][0], together[name][i], rtol=2e-4, atol=1e-5, err_msg=name
            )


def test_means_over_off_target_tokens_are_of_those_alone():
    model = tiny_model("gpt2")
    _, bad = pairs_of(2, 3)
    scorer = Scorer.attach(model, (*bad, *bad))
    columns = _columns_of(scorer)
    tokens = push_down_all(TokenLogps.of(scorer).select([3, 4, 5]))
    begin = 0
    for i, pair in enumerate(bad):
        here = slice(begin, begin + len(pair.response_ids))
        off = tokens.off_target[here]
        assert columns["off_target"][i] == pytest.approx(float(off.double().mean()))
        wanted = {
            "winners": tokens.winners[here][off].double().quantile(0.5),
            "favourite_rate": tokens.favourite_rate[here][off].mean(),
            "tau": tokens.tau[here].mean(),
            "rejected_logp": tokens.logp[here].sum(),
        }
        for name, value in wanted.items():
            assert columns[name][i] == pytest.approx(float(value)), name
        begin = here.stop


def test_a_pair_without_off_target_tokens_has_no_winners():
    model = shared_model("gpt2")
    prompt, greedy = (7, 8, 9), []
    for _ in range(4):
        with torch.no_grad():
            greedy.append(
                int(model(torch.tensor([(*prompt, *greedy)])).logits[0, -1].argmax())
            )
    pair = pairs_of(0, 1)[0][0]
    favourite = type(pair)(prompt, tuple(greedy), False, False)
    columns = _columns_of(Scorer.attach(model, (pair, favourite)))
    assert columns["off_target"].tolist() == [0.0]
    assert np.isnan([columns[n][0] for n in ("winners", "favourite_rate")]).all()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny model and preference data, one row without rejected."""
    folder = tmp_path_factory.mktemp("foresight")
    save_tiny(folder / "model")
    rows = [
        {"prompt_id": row.row_id, "prompt": row.prompt, **row.responses}
        for row in data(6).rows
    ]
    rows[1]["rejected"] = None
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    return folder


def asked(world, **changes):
    return Foreseen(str(world / "model"), str(world / "pairs.jsonl"), **changes)


def test_pairs_are_ranked_and_told(world, tmp_path):
    out = tmp_path / "new" / "pairs.parquet"
    found = foresee(asked(world, out=out))
    assert len(found) == 5
    assert found.left_out == 1
    assert "train-001" not in found.row_ids
    told = found.to_dict()
    json.dumps(told)
    ranks = [pair["ln_ches"] for pair in told["pairs"]]
    assert ranks == sorted(ranks, reverse=True)
    text = found.to_text()
    assert told["pairs"][0]["row_id"] in text
    assert "1 rows lack chosen or rejected" in text
    assert "Only 5 pairs" in text
    assert "2410.08847" in text
    assert f"{told['median']['winners']:g} of 320 tokens" in text
    table = pq.read_table(out)
    assert table["row_id"].to_pylist() == list(found.row_ids)
    for name in _COLUMNS:
        np.testing.assert_array_equal(table[name].to_numpy(), found.columns[name])
    assert b"median" in table.schema.field("winners").metadata[b"about"]


def test_only_the_first_pairs_are_looked_at(world):
    all_of, few = foresee(asked(world)), foresee(asked(world, pairs=2))
    assert few.row_ids == all_of.row_ids[:2]
    np.testing.assert_allclose(
        few.columns["ln_ches"], all_of.columns["ln_ches"][:2], rtol=1e-3
    )


def test_a_cut_is_told(world):
    found = foresee(asked(world, max_length=24, max_prompt_length=8))
    assert found.truncated == 5
    assert "5 of 5 pairs are longer than the limit and were cut" in found.to_text()
    assert foresee(asked(world)).truncated == 0


@pytest.mark.parametrize("cut", ["chosen", "rejected"])
def test_a_pair_is_cut_if_either_answer_is(world, tmp_path, cut):
    row = {"prompt": "ask", "chosen": " no", "rejected": " no", cut: " yes" * 30}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert foresee(Foreseen(str(world / "model"), str(path), max_length=24)).truncated


def test_eos_counts_in_ches_unless_it_is_left_out(world):
    with_it, without = foresee(asked(world)), foresee(asked(world, eos="exclude"))
    for name in ("n_chosen", "n_rejected"):
        np.testing.assert_array_equal(without.columns[name], with_it.columns[name] - 1)
    np.testing.assert_array_equal(
        without.columns["rejected_tokens"], with_it.columns["rejected_tokens"]
    )


@pytest.mark.parametrize(
    ("says", "reads"),
    [(64, 64), (4096, 1024), (None, 1024)],
    ids=["64", "4096", "none"],
)
def test_a_model_reads_what_it_says_and_at_most_1024_tokens(says, reads):
    config = SimpleNamespace(max_position_embeddings=says)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert context_of(model) == reads


def test_neither_model_nor_file_is_touched(world, tmp_path, monkeypatch):
    loaded = []
    real = module.load_model
    monkeypatch.setattr(
        module, "load_model", lambda *a, **k: loaded.append(real(*a, **k)) or loaded[0]
    )
    out = tmp_path / "pairs.parquet"
    out.write_text("mine")
    with pytest.raises(BadInput, match="exists"):
        foresee(asked(world, out=out))
    assert (loaded, out.read_text()) == ([], "mine")
    foresee(asked(world, out=out), overwrite=True)
    assert weights_hash(loaded[0]) == weights_hash(real(str(world / "model")))
    assert pq.read_table(out).num_rows == 5
    with pytest.raises(BadInput, match="is a folder"):
        foresee(asked(world, out=tmp_path), overwrite=True)


def test_bad_settings_and_data_are_named(world, tmp_path):
    with pytest.raises(BadInput, match="pairs is 0"):
        asked(world, pairs=0)
    with pytest.raises(BadInput, match="dtype is 'int8'"):
        asked(world, dtype="int8")
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"prompt": "ask", "chosen": "say"}) + "\n")
    with pytest.raises(BadInput, match=r"no row of .* has chosen and rejected"):
        foresee(Foreseen(str(world / "model"), str(path)))


def test_the_command_line_answers_in_json(world, capsys):
    given = ["--model", str(world / "model"), "--data", str(world / "pairs.jsonl")]
    assert main(["diagnose", *given, "--pairs", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == 3
    assert main(["diagnose", *given[:2]]) == 2
    assert "--data" in capsys.readouterr().err


PAGE = (Path(__file__).parents[2] / "docs" / "foresight.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_every_command_of_the_page_is_understood(words):
    known, unknown = make_parser().parse_known_args(words)
    assert known.job is not None
    assert unknown == []


def test_the_examples_of_the_page_run(world):
    good, bad = pairs_of(3, 2)
    states, mask = padded(states_of((5, 7), 8, 0), "right")
    logits = torch.zeros(2, 9)
    names = {
        **{"model": shared_model("gpt2"), "chosen_pairs": good, "rejected_pairs": bad},
        **{"chosen": states, "chosen_mask": mask, "rejected": -states},
        **{"rejected_mask": mask, "logits": logits, "labels": torch.tensor([1, 2])},
    }
    first, last = blocks(PAGE, "python")
    first = first.replace('"MODEL"', repr(str(world / "model")))
    exec(first.replace('"PAIRS"', repr(str(world / "pairs.jsonl"))), names)
    assert names["tested"].winners.tolist() == [8, 8]
    assert len(names["found"].worst) == 5
    kinds = {"chosen": -6.0, "rejected": -40.0}
    run = write_run(world / "run", drift=kinds, prompts=5)
    exec(last.replace('"runs/dpo"', repr(str(run))), names)
    assert len(names["drop"]) == 5
    assert min(names["drop"].values()) > 0
