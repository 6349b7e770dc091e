"""The trainer tells the method: by its classes, its loss and its columns."""

import pytest
import torch
from datasets import Dataset
from models import save_tiny
from runs import data, probes, recipe
from trainers import QUIET, make_trainer
from transformers import Trainer, TrainingArguments, default_data_collator

from learndyn.measure.load import load_model, load_tokenizer
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.recipes import dpo, sft


ROW = {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]}


class TorchRows(torch.utils.data.Dataset):
    """Rows that are drawn, with no column names."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        torch.rand(1)
        return ROW


class CustomDPOTrainer(Trainer):
    """As LLaMA-Factory's: by its name a DPO trainer, with a loss of its own."""

    loss_type = "simpo"


def info_of(tmp_path, kind, dataset):
    """What a run records whose callback was handed to the trainer in a list."""
    folder = save_tiny(tmp_path / "model")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=5)
    trainer = kind(
        model=load_model(folder),
        args=TrainingArguments(str(tmp_path / "t"), **{**QUIET, "max_steps": 1}),
        train_dataset=dataset,
        data_collator=default_data_collator,
        processing_class=load_tokenizer(folder),
        callbacks=[callback],
    )
    trainer.train()
    return RunDirectory.open(tmp_path / "run").info


@pytest.mark.parametrize(
    ("kind", "dataset", "expected"),
    [
        (Trainer, Dataset.from_list([ROW] * 4), ("sft", "sft", False)),
        (Trainer, [ROW] * 4, ("sft", "sft", False)),
        (Trainer, TorchRows(), ("sft", "sft", False)),
        (
            CustomDPOTrainer,
            Dataset.from_list([ROW] * 4),
            ("simpo", "preference", False),
        ),
    ],
)
def test_plain_settings_leave_it_to_the_trainer(tmp_path, kind, dataset, expected):
    info = info_of(tmp_path, kind, dataset)
    assert (info.method, info.family, info.has_reference) == expected
    assert (info["method"], info["family"], info["has_reference"]) == expected


@pytest.mark.parametrize(
    ("method", "expected", "by", "kinds"),
    [
        ("sft", ("sft", "sft", False), "text", ({"chosen"}, set())),
        ("dpo", ("dpo", "preference", True), "text", ({"chosen"}, {"rejected"})),
        ("kto", ("kto", "unpaired", True), "text", ({"chosen"}, {"rejected"})),
        ("grpo", ("grpo", "online", False), "text", (set(), set())),
        ("plain", ("sft", "sft", False), None, None),  # its rows are prompts alone
    ],
)
def test_trainers_of_transformers_and_trl(tmp_path, method, expected, by, kinds):
    folder = save_tiny(tmp_path / "model")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=5)
    make_trainer(method, folder, tmp_path / "t", (callback,), max_steps=1).train()
    trajectory = Trajectory.load(tmp_path / "run")
    info, training = trajectory.run.info, trajectory.training
    assert (info.method, info.family, info.has_reference) == expected
    assert info.train_rows == 12
    assert info.trained is not None
    assert info.trained.matched_by == by
    if kinds is None:
        return
    assert ((trajectory.split_of == "train") == trajectory.trained_prompts).all()
    assert (training.absent, training.leaked) == ((), ())
    for mask, names in zip((training.raised, training.lowered), kinds, strict=True):
        assert mask is not None
        assert set(trajectory.kind_of[mask]) == names


@pytest.mark.parametrize(
    ("strategy", "by"), [("bfd", "ids"), ("wrapped", None)], ids=["whole", "cut"]
)
def test_packed_rows_are_read_where_they_hold_whole_examples(tmp_path, strategy, by):
    folder = save_tiny(tmp_path / "model")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=5)
    packed = {"packing": True, "packing_strategy": strategy, "max_length": 160}
    make_trainer(
        "sft", folder, tmp_path / "t", (callback,), max_steps=1, **packed
    ).train()
    trajectory = Trajectory.load(tmp_path / "run")
    assert trajectory.run.info.trained is not None
    assert trajectory.run.info.trained.matched_by == by
    if by == "ids":
        assert ((trajectory.split_of == "train") == trajectory.trained_prompts).all()
        assert trajectory.training.rows == 12


def test_a_data_set_that_cannot_be_read_does_not_fail_a_run(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr("learndyn.train.provenance.trained_on", fail)
    info = info_of(tmp_path, Trainer, [ROW] * 4)
    assert info.trained is not None
    assert "no room" in info.trained.why_unknown
    assert info.method == "sft"


@pytest.mark.parametrize(("method", "rows"), [("sft", 24), ("dpo", 12)])
def test_recipes_know_what_they_train_on(tmp_path, method, rows):
    config = recipe(tmp_path, every=8, trainer={"max_steps": 1})
    if method == "sft":
        sft(config, data(), probes(), kinds=["chosen", "rejected"])
    else:
        dpo(config, data(), probes())
    trajectory = Trajectory.load(tmp_path / "run")
    training = trajectory.training
    assert training.rows == rows
    assert ((trajectory.split_of == "train") == training.prompts).all()
    raised, lowered = (
        set(trajectory.kind_of[mask])
        for mask in (training.raised, training.lowered)
        if mask is not None
    )
    both = {"chosen", "rejected"}
    assert (raised, lowered) == (
        (both, set()) if method == "sft" else ({"chosen"}, {"rejected"})
    )
