# pyright: strict
"""A user's script, for a type checker alone: it is never run.

Every name comes from `learndyn`; strict checking of it reports nothing.
"""

from pathlib import Path
from typing import assert_type

import torch
from transformers import Trainer

import learndyn
from learndyn import (
    LearningDynamicsCallback,
    Observation,
    ProbeSet,
    RunDirectory,
    Trajectory,
    build_probes,
    read_data,
    tokenize,
)


def watch(trainer: Trainer) -> None:
    data = read_data("train.jsonl")
    probes = build_probes(data, prompts=100)
    assert_type(probes, ProbeSet)
    probes.save("probes.parquet")
    callback = LearningDynamicsCallback("probes.parquet", out="runs/dpo", every=25)
    trainer.add_callback(callback)


def read() -> None:
    diagnosis = learndyn.diagnose("runs/dpo", baseline="runs/sft")
    assert_type(diagnosis, learndyn.Diagnosis)
    print(diagnosis, diagnosis.to_dict()["state"])
    print(learndyn.compare("runs/dpo", Path("runs/extend/dpo")))
    run = Trajectory.load("runs/dpo")
    assert_type(run.report(), Path)
    assert_type(RunDirectory.open("runs/dpo").report(), Path)
    assert_type(learndyn.write_report([run, "runs/sft"], out="runs/both"), Path)
    print(run.values("logp", "chosen").mean(axis=1))
    print(learndyn.__version__, learndyn.change_curves(run)["chosen"].mean[-1])


def explain(optimizer: torch.optim.Optimizer) -> None:
    model = learndyn.load_model("runs/dpo/model")
    tokenizer = learndyn.load_tokenizer("runs/dpo/model")
    probes = tokenize("probes.parquet", tokenizer)
    assert_type(learndyn.score(model, probes), Observation)
    with learndyn.capture_step(optimizer, model) as captured:
        optimizer.step()
    change = learndyn.predict_change(model, probes, captured.step.direction)
    print(change.logp)
    try:
        learndyn.loss_named("dpo", beta=0.1)
    except learndyn.BadInput as error:
        print(error)
