"""The LM that ships with the package is the one that its provenance describes."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learndyn.errors import BadInput
from learndyn.world.stages import embedded_model_path
from learndyn.world.words import ALL_WORDS
from learndyn.world.world import _asked, make_rows


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded_model_path()


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def test_weights_are_those_of_the_provenance(folder: Path) -> None:
    said = json.loads((folder / "provenance.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == said["sha256"]
    assert len(weights) == said["bytes"]


def test_all_shipped_files_take_at_most_4_megabytes(folder: Path) -> None:
    files = [p for p in folder.parent.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 4e6


def test_model_has_at_most_2_million_parameters(folder: Path, model) -> None:
    said = json.loads((folder / "provenance.json").read_text())
    assert model.num_parameters() == said["parameters"] <= 2_000_000


def test_rounding_cost_less_than_a_thousandth_of_a_nat_per_token(folder: Path) -> None:
    said = json.loads((folder / "provenance.json").read_text())
    assert said["held_out_loss_rounded"] == pytest.approx(
        said["held_out_loss"], abs=1e-3
    )


def test_tokenizer_closes_and_pads_but_opens_nothing(tokenizer) -> None:
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.bos_token is None
    assert tokenizer("You can").input_ids == tokenizer.encode(
        "You can", add_special_tokens=False
    )


def test_every_word_of_the_world_is_one_token(tokenizer) -> None:
    assert all(len(tokenizer(f" {word}").input_ids) == 1 for word in ALL_WORDS)


def test_prompt_and_response_are_tokenized_alike_apart_and_together(tokenizer) -> None:
    for row in make_rows(0, 20, 20)[0]:
        apart = tokenizer(row["prompt"]).input_ids + tokenizer(row["chosen"]).input_ids
        assert tokenizer(row["prompt"] + row["chosen"]).input_ids == apart
        assert tokenizer.decode(apart) == row["prompt"] + row["chosen"]


def test_model_answers_a_forum_question_with_the_facts_of_an_unseen_pair(
    model, tokenizer
) -> None:
    right = 0
    rows = make_rows(0, 2, 20)[1]
    for row in rows:
        question = row["prompt"].split("Human: ")[1].split("\n")[0]
        thread = tokenizer(f"Q: {question}\nReply: You can", return_tensors="pt")
        ids = model.generate(**thread, max_new_tokens=24, do_sample=False)[0]
        answer = tokenizer.decode(ids[thread.input_ids.shape[1] :]).split(".")[0]
        right += set(_asked(row["prompt"]).facts) <= set(answer.split())
    assert right >= len(rows) / 2  # three of four replies in its text were right


def test_a_seed_that_does_not_ship_is_refused_with_the_way_to_make_it() -> None:
    with pytest.raises(BadInput, match=r"learndyn\.paper\.world\.pretrain --seed 9"):
        embedded_model_path(9)
