"""The trainer tells the method: by its classes, its loss and its columns."""

import pytest
import torch
from datasets import Dataset
from models import save_tiny
from runs import probes
from trainers import QUIET, make_trainer
from transformers import Trainer, TrainingArguments, default_data_collator

from learndyn.measure.load import load_model, load_tokenizer
from learndyn.record.run_directory import RunDirectory
from learndyn.train.callback import LearningDynamicsCallback


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
    ("method", "expected"),
    [
        ("plain", ("sft", "sft", False)),
        ("kto", ("kto", "unpaired", True)),
        ("grpo", ("grpo", "online", False)),
    ],
)
def test_trainers_of_transformers_and_trl(tmp_path, method, expected):
    folder = save_tiny(tmp_path / "model")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=5)
    make_trainer(method, folder, tmp_path / "t", (callback,), max_steps=1).train()
    info = RunDirectory.open(tmp_path / "run").info
    assert (info.method, info.family, info.has_reference) == expected
