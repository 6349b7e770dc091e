"""Recording forces goes on where it can, and training goes on in any case."""

import numpy as np
import pytest
import torch
from models import save_tiny
from trainers import LIGHT, ended, forces_of, make_trainer, run_of, watch
from transformers import TrainerCallback, TrainingArguments

from learndyn.errors import BadInput
from learndyn.record.run_directory import RunDirectory
from learndyn.train import (
    batch_watch,
    recorder as train_forces,
)
from learndyn.train.recorder import why_no_forces
from learndyn.train.settings import ForceSettings


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A model without dropout."""
    return save_tiny(tmp_path_factory.mktemp("forces") / "model", "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A model with dropout."""
    return save_tiny(tmp_path_factory.mktemp("forces") / "model", "gpt2")


class StopAt(TrainerCallback):
    """Ends a training after one update, in good order or not."""

    def __init__(self, step: int, error: Exception | None = None) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True


def test_a_resumed_run_has_the_forces_of_the_whole_run(llama, tmp_path):
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    more = {"watching": {"every": 1, "forces": LIGHT}, **steps}
    whole = forces_of(run_of(tmp_path / "whole", "sft", llama, **more))
    assert [forces.step for forces in whole] == [1, 2, 3, 4]

    callbacks = (watch(tmp_path), StopAt(3, RuntimeError("power cut")))
    host = make_trainer("sft", llama, tmp_path / "t", callbacks, **steps)
    with pytest.raises(RuntimeError, match="power cut"):
        host.train()
    run = RunDirectory.open(tmp_path / "run")
    assert run.forces_steps == [1, 2, 3]

    rewound = []

    class Rewound(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:  # what came after the checkpoint is gone
                assert run.forces_steps == [1, 2]
                rewound.append(2)

    callbacks = (watch(tmp_path, overwrite=False), Rewound())
    host = make_trainer("sft", llama, tmp_path / "t", callbacks, **steps)
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    again = forces_of(run)
    assert rewound == [2]
    assert [forces.step for forces in again] == [1, 2, 3, 4]
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_allclose(one.predicted, other.predicted, rtol=1e-4)
        assert one.parts.keys() == other.parts.keys()
        assert one.token_text == other.token_text


SCHEDULES = {
    "log": ({"every": "log"}, 2, [2, 4, 7]),  # of 1, 2, 3, 4, 6, 7, 8
    "every": ({"every": 2}, 3, [6]),
    "panel": ({"every": 2, "panel": 2, "full_every": 5}, 1, [2, 4, 5, 6, 8]),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_every_kth_observation_has_forces(llama, tmp_path, case):
    schedule, every, expected = SCHEDULES[case]
    forces = ForceSettings(every, prompts=1, layers=False, influence=False)
    watching = {"forces": forces, **schedule}
    run = run_of(tmp_path, "sft", llama, watching=watching, max_steps=8)
    assert run.forces_steps == expected
    assert set(expected) < set(run.steps)


class TwoProcesses(TrainingArguments):
    world_size = 2


def test_runs_whose_steps_cannot_be_seen_are_refused_with_the_reason(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    assert why_no_forces(args) is None
    for name in ("deepspeed", "deepspeed_plugin"):
        setattr(args, name, "zero3.json")
        assert "DeepSpeed takes its step within" in str(why_no_forces(args))
        setattr(args, name, None)
    two = TwoProcesses(str(tmp_path), use_cpu=True)
    assert "2 processes" in str(why_no_forces(two))


def test_where_forces_are_refused_probing_goes_on(llama, tmp_path):
    host = make_trainer("sft", llama, tmp_path / "t", (watch(tmp_path),))
    host.args.deepspeed_plugin = "as the launcher sets it"
    with pytest.warns(UserWarning, match="not recorded: DeepSpeed") as told:
        host.train()
    assert len(told) == 1
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3]
    assert run.forces_steps == []


class OwnStep(torch.optim.SGD):
    """A subclass that steps in another way."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad.sign(), alpha=-group["lr"])


@pytest.mark.parametrize("kind", ["own", "adafactor"])
def test_an_unknown_optimizers_update_is_one_part(llama, tmp_path, kind):
    callback = watch(tmp_path, forces=ForceSettings(1, prompts=1))
    more = {"max_steps": 1}
    if kind == "adafactor":
        more["optim"] = "adafactor"
    host = make_trainer("dpo", llama, tmp_path / "t", (callback,), **more)
    if kind == "own":
        host.optimizer = OwnStep(host.model.parameters(), lr=1e-5)
    host.train()
    (forces,) = forces_of(RunDirectory.open(tmp_path / "run"))
    assert list(forces.parts) == ["update"]
    np.testing.assert_array_equal(forces.parts["update"], forces.predicted)
    assert any("not split: it is another class" in n for n in forces.info["notes"])
    assert forces.info["relative_error"] < 0.05
    assert forces.influence is None


def test_an_update_of_no_length_is_left_out_and_the_run_goes_on(llama, tmp_path):
    with pytest.warns(UserWarning, match=r"update 1: the update moved none .* lr 0 to"):
        run = run_of(tmp_path, "sft", llama, warmup_steps=2, optim="sgd")
    assert run.steps == [0, 1, 2, 3]
    assert run.forces_steps == [2, 3]


class Spoil(TrainerCallback):
    """Makes the gradient of the last update NaN."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == args.max_steps - 1:
            next(kwargs["model"].parameters()).grad[0] = float("nan")


@pytest.mark.filterwarnings("ignore:observation at step 2 is not sound")
def test_an_update_that_is_not_finite_is_left_out(llama, tmp_path):
    with pytest.warns(UserWarning, match="update 2: 1 of 21 gradients are not finite"):
        run = run_of(tmp_path, "sft", llama, before=(Spoil(),), max_steps=2)
    assert run.steps == [0, 1, 2]
    assert run.forces_steps == [1]


def test_packed_rows_have_pull_and_no_influence(gpt2, tmp_path):
    watching = {"forces": ForceSettings(1, prompts=1)}
    packed = {"packing": True, "max_length": 64, "max_steps": 1}
    run = run_of(tmp_path, "sft", gpt2, watching=watching, **packed)
    (forces,) = forces_of(run)
    assert set(forces.parts) == {"pull", "rounding"}
    assert forces.influence is None
    assert "packed" in forces.info["notes"][0]


def test_a_loss_of_ones_own_has_its_rest_in_other(llama, tmp_path):
    callback = watch(tmp_path, forces=ForceSettings(1, prompts=2, influence=False))
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 1}
    host = make_trainer("sft", llama, tmp_path / "t", (callback,), **settings)
    own = host.compute_loss

    def smaller(model, inputs, *args, **kwargs):
        loss = own(model, inputs, *args, **kwargs)
        return loss + sum(p.square().sum() for p in model.parameters()) / 100

    host.compute_loss = smaller
    host.train()
    (forces,) = forces_of(RunDirectory.open(tmp_path / "run"))
    assert set(forces.parts) == {"pull", "other", "rounding"}
    assert forces.info["completeness"] < 1e-5
    assert any("did not come through log-prob" in n for n in forces.info["notes"])


def test_a_loss_that_reads_something_else_is_one_gradient(llama, tmp_path):
    callback = watch(tmp_path, forces=ForceSettings(1, prompts=1))
    host = make_trainer("plain", llama, tmp_path / "t", (callback,), max_steps=1)

    def elsewhere(model, inputs, *args, **kwargs):
        states = model.model(inputs["input_ids"]).last_hidden_state
        return states.square().mean()

    host.compute_loss = elsewhere
    host.train()
    (forces,) = forces_of(RunDirectory.open(tmp_path / "run"))
    assert set(forces.parts) == {"gradient", "rounding"}
    assert "does not read the log-probabilities" in forces.info["notes"][0]


def test_what_fails_in_explaining_never_fails_the_training(
    llama, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    settings = {"max_steps": 2}
    plain = ended(make_trainer("dpo", llama, tmp_path / "t", **settings))
    for place, why in (
        ((train_forces, "explain_update"), "update 1: RuntimeError: out of memory"),
        ((train_forces.StepRecording, "begin"), "RuntimeError: out of memory"),
    ):
        callback = watch(tmp_path, forces=ForceSettings(2, prompts=1), every=1)
        host = make_trainer("dpo", llama, tmp_path / "t", (callback,), **settings)
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            with pytest.warns(UserWarning, match=why.replace("update 1", "update 2")):
                assert ended(host) == plain
        run = RunDirectory.open(tmp_path / "run")
        assert run.steps == [0, 1, 2]
        assert run.forces_steps == []
    with monkeypatch.context() as patch:
        patch.setattr(batch_watch, "_logp_of", fail)
        callback = watch(tmp_path)
        host = make_trainer("dpo", llama, tmp_path / "t", (callback,), **settings)
        assert ended(host) == plain
    forces = forces_of(RunDirectory.open(tmp_path / "run"))
    for one in forces:
        assert "gradient" in one.parts
        assert "out of memory" in one.info["notes"][0]


def hooks_on(host) -> int:
    """Hooks on the model and on its optimizer."""
    model = host.model
    inner = host.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    held = [model._forward_hooks, model._forward_pre_hooks]
    if inner is not None:
        held += [inner._optimizer_step_pre_hooks, inner._optimizer_step_post_hooks]
    return sum(map(len, held))


def test_no_hook_stays_after_training_nor_after_one_that_failed(llama, tmp_path):
    class Fail(TrainerCallback):
        armed = True

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if self.armed and state.global_step == 1:
                raise RuntimeError("stopped by hand")

    fail, callback = Fail(), watch(tmp_path)
    host = make_trainer("dpo", llama, tmp_path / "t", (fail, callback), max_steps=2)
    with pytest.raises(RuntimeError, match="stopped by hand"):
        host.train()
    fail.armed = False
    host.train()  # a second run with the same callback
    assert hooks_on(host) == 0
    run = RunDirectory.open(tmp_path / "run")
    assert run.forces_steps == [1, 2]
    host.train()
    assert hooks_on(host) == 0


@pytest.mark.parametrize("name", ["every", "prompts"])
def test_settings_of_nothing_are_refused(name):
    with pytest.raises(BadInput, match=f"{name} of ForceSettings is 0: give 1 or more"):
        ForceSettings(**{"every": 1, name: 0})


def test_forces_that_were_never_due_are_told(llama, tmp_path):
    with pytest.warns(
        UserWarning, match=r"This run of 3 updates ended before the first"
    ):
        run = run_of(
            tmp_path, "sft", llama, watching={"forces": 9, "every": 1}, max_steps=3
        )
    assert run.forces_steps == []


def test_what_is_no_number_of_observations_is_refused(tmp_path):
    # of what is no int either, the tests' type checker would complain first
    with pytest.raises(BadInput, match="give a whole number K"):
        watch(tmp_path, forces=True)
