"""Forces from inside unmodified trainers: they add up, they agree with what happened,
and the training does not feel them."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import save_tiny
from runs import data
from trainers import QUIET, ended, forces_of, make_trainer, rows_of, run_of, watch
from transformers import TrainerCallback

from learndyn.measure.load import load_model, load_tokenizer, weights_hash
from learndyn.record.run_directory import RunDirectory
from learndyn.train.settings import ForceSettings


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model without dropout."""
    return save_tiny(tmp_path_factory.mktemp("forces") / "model", "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model with dropout."""
    return save_tiny(tmp_path_factory.mktemp("forces") / "model", "gpt2")


RUNS = {
    "sft": ({}, {"pull"}),
    "dpo": ({}, {"pull", "push"}),
    "dpo-lora": ({"lora": True}, {"pull", "push"}),
    "kto": ({}, {"pull", "push"}),
    "grpo": ({}, {"pull", "push"}),
    "plain": ({}, {"pull"}),
}


@pytest.mark.parametrize("case", RUNS)
def test_parts_sum_to_the_change_that_happens_in_any_trainer(llama, tmp_path, case):
    settings, signs = RUNS[case]
    recorded = [2, 4] if case == "dpo" else [2]
    more = {"max_steps": recorded[-1], **settings}
    watching = {"forces": ForceSettings(2, prompts=2)}
    run = run_of(tmp_path, case.split("-")[0], llama, watching=watching, **more)
    assert run.forces_steps == recorded
    for forces in forces_of(run):
        assert set(forces.parts) == {*signs, "history", "rounding"}
        assert forces.info["completeness"] < 1e-5
        total = np.sum(list(forces.parts.values()), axis=0)
        scale = np.linalg.norm(forces.predicted)
        assert np.linalg.norm(total - forces.predicted) < 1e-5 * scale
        layers = np.sum(list(forces.groups.values()), axis=0)
        assert np.linalg.norm(layers - forces.predicted) < 1e-5 * scale
        # The update moved them, and as it was predicted to.
        assert np.abs(forces.actual).max() > 100 * forces.noise.max()
        assert np.linalg.norm(forces.actual - forces.predicted) < 0.02 * np.linalg.norm(
            forces.actual
        )
        after, before = (
            run.read_observation(step).logp[forces.probe_ids]
            for step in (forces.step, forces.step - 1)
        )
        np.testing.assert_allclose(forces.actual, after - before, atol=1e-3)
        assert forces.info["notes"] == []
        assert forces.influence is not None


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_dpo_pulls_chosen_up_and_pushes_rejected_down(llama, tmp_path, lora):
    whole = {"per_device_train_batch_size": 12, "max_steps": 1, "optim": "sgd"}
    watching = {"forces": ForceSettings(1, layers=False, influence=False)}
    more = {"lora": lora, "learning_rate": 1e-2, **whole}
    run = run_of(tmp_path, "dpo", llama, watching=watching, **more)
    (forces,) = forces_of(run)
    table = run.read_probes()
    trained = np.array([s == "train" for s in table["split"].to_pylist()])
    kinds = np.array(table["kind"].to_pylist())
    chosen, rejected = (trained & (kinds == kind) for kind in ("chosen", "rejected"))
    assert chosen.sum() == rejected.sum() == 3
    assert (forces.parts["pull"][chosen] > 0).all()
    assert (forces.parts["push"][rejected] < 0).all()
    # Each side alone drags the other along: that is what the two parts tell apart.
    assert (forces.parts["pull"][rejected] > 0).all()
    assert (forces.parts["push"][chosen] < 0).all()
    assert set(forces.parts) == {"pull", "push", "rounding"}  # SGD remembers nothing


def test_halving_the_step_halves_the_relative_error(llama, tmp_path):
    errors = []
    for lr in (4e-2, 2e-2):
        plain = {"optim": "sgd", "max_steps": 1, "learning_rate": lr}
        run = run_of(tmp_path, "dpo", llama, **plain)
        (forces,) = forces_of(run)
        errors.append(forces.info["relative_error"])
        assert forces.info["lr"] == lr
    assert 1.7 < errors[0] / errors[1] < 2.3


class Norms(TrainerCallback):
    """The gradient's norm as the optimizer gets it."""

    def __init__(self) -> None:
        self.clipped: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        grads = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        self.clipped.append(float(torch.cat([g.flatten() for g in grads]).norm()))


@pytest.mark.parametrize("most", [0.1, 1e3], ids=["clipped", "not"])
def test_clip_is_the_share_of_the_gradient_that_clipping_left(llama, tmp_path, most):
    callback = watch(tmp_path)
    norms = Norms()
    host = make_trainer(
        "dpo", llama, tmp_path / "t", (norms, callback), max_grad_norm=most
    )
    host.train()
    raw = [row["grad_norm"] for row in host.state.log_history if "grad_norm" in row]
    found = forces_of(RunDirectory.open(tmp_path / "run"))
    assert len(found) == len(raw) == 3
    for forces, size, clipped in zip(found, raw, norms.clipped, strict=True):
        assert forces.info["clip"] == pytest.approx(min(1, most / size), rel=1e-5)
        assert forces.info["clip"] == pytest.approx(clipped / size, rel=1e-5)
        rounding, all_parts = forces.parts["rounding"], forces.predicted
        assert np.linalg.norm(rounding) < 1e-3 * np.linalg.norm(all_parts)
        assert "other" not in forces.parts


NEUTRAL = {
    "sft": {},
    "sft-bf16": {"bf16": True},
    "dpo": {"disable_dropout": False},
    "dpo-bf16": {"disable_dropout": False, "bf16": True},
    "grpo": {},  # it draws its own data
}


@pytest.mark.parametrize("case", NEUTRAL)
def test_training_is_bit_identical_with_forces(gpt2, tmp_path, case):
    settings = {**NEUTRAL[case], "learning_rate": 1e-3, "max_steps": 2}
    watchers = [(), (watch(tmp_path / "with", forces=ForceSettings(1, prompts=1)),)]
    if case in ("dpo", "grpo"):  # of the others test_callback has it
        watchers.append((watch(tmp_path / "without", forces=None),))
    ends = [
        ended(make_trainer(case.split("-")[0], gpt2, tmp_path / "t", them, **settings))
        for them in watchers
    ]
    assert ends[0][0] != weights_hash(load_model(gpt2))
    assert all(end == ends[0] for end in ends)
    run = RunDirectory.open(tmp_path / "with" / "run")
    assert run.forces_steps == [1, 2]
    for forces in forces_of(run):
        assert "other" not in forces.parts  # dropout was drawn again as it was
        assert forces.info["completeness"] < 1e-5


def test_influence_of_all_tokens_is_what_pull_and_push_do(llama, tmp_path):
    watching = {"forces": ForceSettings(1, prompts=2)}
    more = {"max_steps": 2, "gradient_accumulation_steps": 2}
    run = run_of(tmp_path, "dpo", llama, watching=watching, **more)
    table = run.read_probes()
    tokenizer = load_tokenizer(llama)
    for forces in forces_of(run):
        found = forces.influence
        assert found is not None
        kinds = np.array(table["kind"].to_pylist())[forces.probe_ids]
        both = forces.parts["pull"] + forces.parts["push"]
        for i, kind in enumerate(found.kinds):
            mean = both[kinds == kind].mean()
            assert found.change[:, i].sum() == pytest.approx(mean, rel=1e-4)
        assert set(found.kinds) == set(kinds)
        lowered = np.array([role == "rejected" for role in found.role])
        assert (found.push[lowered] > 0).all()
        assert (found.push[~lowered] < 0).all()
        assert set(found.role) == {"chosen", "rejected"}
        # every row of the batch is a row of the data, and reads as it does there
        for example in set(found.example.tolist()):
            here = found.example == example
            role = found.role[int(np.flatnonzero(here)[0])]
            text = "".join(np.array(found.token)[here])
            answers = [row.responses[role] + tokenizer.eos_token for row in data().rows]
            assert text in answers
            assert text[:20] in found.example_text[example]
        texts = np.split(np.array(forces.token_text), np.cumsum(forces.n_tokens)[:-1])
        for row, tokens in zip(forces.probe_ids, texts, strict=True):
            ids = table["response_ids"][int(row)].as_py()
            assert list(tokens) == [tokenizer.decode([i]) for i in ids]


# its trainer says of itself that it may go
@pytest.mark.filterwarnings("ignore::UserWarning:trl", "ignore::FutureWarning")
def test_simpo_hands_its_token_ids_over_without_a_name(llama, tmp_path):
    experimental = pytest.importorskip("trl.experimental.cpo")
    callback = watch(tmp_path, forces=ForceSettings(1, prompts=1))
    settings = {**QUIET, "bf16": False, "max_steps": 1}
    experimental.CPOTrainer(
        model=load_model(llama),
        args=experimental.CPOConfig(
            str(tmp_path / "t"), loss_type="simpo", cpo_alpha=0.0, **settings
        ),
        train_dataset=Dataset.from_list(rows_of("dpo")),
        processing_class=load_tokenizer(llama),
        callbacks=[callback],
    ).train()
    (forces,) = forces_of(RunDirectory.open(tmp_path / "run"))
    assert set(forces.parts) == {"pull", "push", "rounding"}
    assert forces.info["loss"] == "simpo"
    found = forces.influence
    assert found is not None
    lowered = np.array([role == "rejected" for role in found.role])
    assert (found.push[lowered] > 0).all()
    assert (found.push[~lowered] < 0).all()
    for example, text in found.example_text.items():
        role = found.role[found.example.tolist().index(example)]
        assert ("No idea" in text) == (role == "rejected")
