"""The callback watches and changes nothing."""

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import byte_tokenizer, save_tiny, tiny_model
from runs import data, probes, recipe
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from learndyn.errors import BadInput
from learndyn.measure.load import load_model, load_tokenizer, weights_hash
from learndyn.measure.score import score
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedProbes, tokenize
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.recipes import sft


QUIET = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "activation_checkpointing": False,
}


def trainer(method: str, folder: str, out: Path, bf16: bool, callbacks=(), **more):
    """An unmodified TRL trainer with dropout on."""
    rows = data().rows
    model = load_model(folder)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    tokenizer = load_tokenizer(folder)
    if method == "sft":
        dataset = Dataset.from_list(
            [{"prompt": r.prompt, "completion": r.responses["chosen"]} for r in rows]
        )
        return SFTTrainer(
            model=model,
            args=SFTConfig(str(out), bf16=bf16, **{**QUIET, **more}),
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    dataset = Dataset.from_list(
        [
            {
                "prompt": r.prompt,
                "chosen": r.responses["chosen"],
                "rejected": r.responses["rejected"],
            }
            for r in rows
        ]
    )
    return DPOTrainer(
        model=model,
        ref_model=load_model(folder),
        args=DPOConfig(str(out), bf16=bf16, disable_dropout=False, **QUIET),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16-autocast"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_training_is_bit_identical_with_and_without_it(tmp_path, method, bf16):
    folder = save_tiny(tmp_path / "model")
    plain = trainer(method, folder, tmp_path / "a", bf16)
    plain.train()
    watched = trainer(method, folder, tmp_path / "b", bf16)
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=1)
    callback.attach(watched)
    watched.train()

    start = weights_hash(load_model(folder))
    assert weights_hash(plain.model) != start
    assert weights_hash(watched.model) == weights_hash(plain.model)
    skip = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    logs = [
        [{k: v for k, v in row.items() if k not in skip} for row in t.state.log_history]
        for t in (plain, watched)
    ]
    assert logs[0] == logs[1]  # the host's own log is untouched too
    assert RunDirectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16-autocast"])
def test_online_equals_offline_scoring_of_the_saved_checkpoint(tmp_path, bf16):
    folder = save_tiny(tmp_path / "model", "gpt_neox")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=2)
    host = trainer("dpo", folder, tmp_path / "t", bf16, [callback])
    host.train()
    host.save_model(str(tmp_path / "end"))
    run = RunDirectory.open(tmp_path / "run")
    frozen = TokenizedProbes.from_table(run.read_probes(), run.info["tokenizer_sha256"])
    online = run.read_observation(4)
    offline = score(load_model(tmp_path / "end"), frozen, batch_size=3)
    per_token = np.abs(online.logp - offline.logp) / online.n_tokens
    assert per_token.max() < 2e-5


def test_every_observation_of_a_run_is_sound(tmp_path):
    settings = recipe(tmp_path, trainer={"learning_rate": 1e-2})
    run = sft(settings, data(), probes())
    assert run.steps == [0, 3, 6, 8]  # the final step is observed though not due
    table = run.read_probes()
    columns = (table[name].to_pylist() for name in ("prompt_id", "kind"))
    keys = set(zip(*columns, strict=True))
    assert len(keys) == len(table) == len(probes())
    for step in run.steps:
        observation = run.read_observation(step)
        assert observation.violations() == []
        assert len(observation.logp) == len(table)
        assert observation.n_tokens.tolist() == table["n_tokens"].to_pylist()


def test_log_spacing_observes_early_steps_densely(tmp_path):
    settings = recipe(tmp_path, every="log")
    assert sft(settings, data(), probes()).steps == [0, 1, 2, 3, 4, 6, 7, 8]


def test_the_start_tokens_are_those_of_the_first_observation(tmp_path):
    settings = recipe(tmp_path, trainer={"learning_rate": 1e-1, "max_steps": 3})
    run = sft(settings, data(), probes())
    first, last = run.read_observation(0), run.read_observation(3)
    changed = first.token_argmax_id != last.token_argmax_id
    assert changed.any()
    assert (last.token_start_logp[changed] < last.token_argmax_logp[changed]).all()


def test_means_go_to_the_trainers_own_trackers(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(
        TensorBoardCallback, "__init__", lambda self, tb_writer=None: None
    )
    for event in ("on_train_begin", "on_train_end"):
        monkeypatch.setattr(TensorBoardCallback, event, lambda *a, **k: None)
    monkeypatch.setattr(
        TensorBoardCallback,
        "on_log",
        lambda self, args, state, control, logs=None, **k: sent.append(
            (state.global_step, dict(logs))
        ),
    )
    host = trainer("sft", save_tiny(tmp_path / "m"), tmp_path / "t", False)
    host.add_callback(TensorBoardCallback())
    LearningDynamicsCallback(probes(), out=tmp_path / "run", every=2).attach(host)
    host.train()
    ours = {s: row for s, row in sent if "probes/chosen/logp_mean" in row}
    assert sorted(ours) == [0, 2, 4]
    trajectory = Trajectory.load(tmp_path / "run")
    mean = trajectory.values("logp", "chosen").mean(1)
    assert ours[2]["probes/chosen/logp_mean"] == pytest.approx(mean[1])
    assert all("probes" not in key for row in host.state.log_history for key in row)


def test_it_runs_in_a_plain_transformers_trainer(tmp_path):
    tokenizer = byte_tokenizer()
    ids = [tokenizer(r.prompt)["input_ids"] for r in data().rows]
    Trainer(
        model=tiny_model("gpt2"),
        args=TrainingArguments(str(tmp_path / "t"), **QUIET),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[LearningDynamicsCallback(probes(), out=tmp_path / "r", every=2)],
    ).train()
    run = RunDirectory.open(tmp_path / "r")
    assert run.steps == [0, 2, 4]
    assert [row["step"] for row in run.read_log() if "loss" in row] == [1, 2, 3, 4]


def test_one_observation_per_update_with_gradient_accumulation(tmp_path):
    trainer = {"gradient_accumulation_steps": 3, "max_steps": 2}
    settings = recipe(tmp_path, trainer=trainer, every=1)
    assert sft(settings, data(), probes()).steps == [0, 1, 2]


def test_a_taken_run_directory_is_refused_and_stays_as_it_was(tmp_path):
    folder = save_tiny(tmp_path / "m")
    watch = {"out": tmp_path / "run", "every": 2}
    first = LearningDynamicsCallback(probes(), **watch)
    trainer("sft", folder, tmp_path / "t", False, [first]).train()
    before = sorted((tmp_path / "run").rglob("*"))
    second = LearningDynamicsCallback(probes(), **watch)
    with pytest.raises(BadInput, match=r"holds a run already \(3 observations\)"):
        trainer("sft", folder, tmp_path / "t", False, [second]).train()
    assert sorted((tmp_path / "run").rglob("*")) == before
    third = LearningDynamicsCallback(probes(), **watch, overwrite=True)
    trainer("sft", folder, tmp_path / "t", False, [third]).train()


def test_probes_of_another_tokenizer_are_refused(tmp_path):
    frozen = tokenize(probes(), byte_tokenizer(262))
    callback = LearningDynamicsCallback(frozen, out=tmp_path / "run")
    host = trainer("sft", save_tiny(tmp_path / "m"), tmp_path / "t", False, [callback])
    with pytest.raises(BadInput, match="tokenized by another tokenizer"):
        host.train()


def test_resuming_with_other_probes_is_refused(tmp_path):
    settings = recipe(tmp_path, trainer={"max_steps": 2, "save_steps": 1})
    sft(settings, data(), probes())
    again = dataclasses.replace(settings, resume=True)
    with pytest.raises(BadInput, match="probes: it watched others"):
        sft(again, data(), probes(2))


def test_a_resumed_run_goes_on_in_its_own_order_of_probes(tmp_path):
    settings = recipe(tmp_path, trainer={"max_steps": 4, "save_steps": 2}, every=2)
    whole = sft(settings, data(), probes())
    other = dataclasses.replace(settings, out=tmp_path / "other")
    run = sft(other, data(), probes())
    (other.out / "model").rename(tmp_path / "kept")
    shutil.rmtree(other.out / "checkpoints" / "checkpoint-4")
    reverse = ProbeSet(probes().probes[::-1])
    run = sft(dataclasses.replace(other, resume=True), data(), reverse)
    assert run.steps == [0, 2, 4]
    for step in run.steps:
        np.testing.assert_allclose(
            run.read_observation(step).logp,
            whole.read_observation(step).logp,
            rtol=1e-5,
        )


def resumable(tmp_path, began=None, **more):
    """A watched run of four updates with a checkpoint at two."""
    folder = save_tiny(tmp_path / "m")
    steps = {"save_strategy": "steps", "save_steps": 2}
    watch = {"out": tmp_path / "run", "every": 2}
    first = LearningDynamicsCallback(probes(), **watch, **(began or {}))
    trainer("sft", folder, tmp_path / "t", False, [first], **steps).train()
    second = LearningDynamicsCallback(probes(), **watch, **more)
    return trainer("sft", folder, tmp_path / "t", False, [second], **steps)


def test_probes_cut_otherwise_are_refused_when_a_run_is_resumed(tmp_path):
    host = resumable(tmp_path, max_length=40)
    with pytest.raises(BadInput, match="its probes were cut to max_length 1024"):
        host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))


def test_overwrite_never_erases_a_run_that_the_trainer_resumes(tmp_path):
    host = resumable(tmp_path, overwrite=True)
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    assert RunDirectory.open(tmp_path / "run").steps == [0, 2, 4]


def test_files_of_others_in_a_run_directory_are_never_removed(tmp_path):
    folder, out = save_tiny(tmp_path / "m"), tmp_path / "run"
    watch = {"out": out, "every": 2}
    callback = LearningDynamicsCallback(probes(), **watch)
    trainer("sft", folder, tmp_path / "t", False, [callback]).train()
    (out / "notes.md").write_text("mine")
    again = LearningDynamicsCallback(probes(), **watch, overwrite=True)
    with pytest.raises(BadInput, match=r"notes\.md, which learndyn did not write"):
        trainer("sft", folder, tmp_path / "t", False, [again]).train()
    assert RunDirectory.open(out).steps == [0, 2, 4]


def test_a_second_training_with_one_callback_does_not_erase_the_first(tmp_path):
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=2)
    folder = save_tiny(tmp_path / "m")
    host = trainer("sft", folder, tmp_path / "t", False, [callback])
    host.train()
    with pytest.raises(BadInput, match="holds a run already"):
        host.train()
    assert RunDirectory.open(tmp_path / "run").steps == [0, 2, 4]


class Breaks(TrainerCallback):
    """Raises after an update, once; watches come before it and see the update."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error

    def on_step_end(self, args, state, control, **kwargs):
        error, step = self.error, state.global_step
        if error is not None and step == self.at:
            self.error = None
            raise error


def interrupted(tmp_path, **more):
    """A trainer whose training was stopped by hand after update 3 of 4."""
    watch = {"out": tmp_path / "run", "every": 1, **more}
    callback = LearningDynamicsCallback(probes(), **watch)
    steps = {"save_strategy": "steps", "save_steps": 2}
    both, folder = [callback, Breaks(3, KeyboardInterrupt())], save_tiny(tmp_path / "m")
    host = trainer("sft", folder, tmp_path / "t", False, both, **steps)
    with pytest.raises(KeyboardInterrupt):
        host.train()
    return host


def test_a_training_after_an_interrupted_one_is_not_mixed_into_its_run(tmp_path):
    host = interrupted(tmp_path)
    run = RunDirectory.open(tmp_path / "run")
    before = [run.read_observation(step).logp for step in run.steps]
    assert run.steps == [0, 1, 2, 3]
    host.args.max_steps = 2
    with pytest.raises(BadInput, match=r"holds a run already \(4 observations\)"):
        host.train()
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3]
    assert run.info["finished"] is False
    for step, logp in zip(run.steps, before, strict=True):
        np.testing.assert_array_equal(run.read_observation(step).logp, logp)


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path):
    host = interrupted(tmp_path)
    files = tmp_path / "run" / "observations"
    kept = [(files / f"step-{step:08d}.parquet").read_bytes() for step in (0, 1, 2)]
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3, 4]
    assert run.info["finished"] is True
    assert kept == [
        (files / f"step-{step:08d}.parquet").read_bytes() for step in (0, 1, 2)
    ]
    assert [row["step"] for row in run.read_log() if "loss" in row] == [1, 2, 3, 4]


def test_a_run_resumed_from_trained_weights_is_observed_anew_at_its_start(tmp_path):
    host = interrupted(tmp_path, resume=True)
    run = RunDirectory.open(tmp_path / "run")
    first = run.read_observation(0)
    moved = run.read_observation(3)
    host.train()  # without a checkpoint: from the weights of update 3
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0, 1, 2, 3, 4]
    again = run.read_observation(0)
    np.testing.assert_allclose(again.logp, moved.logp, rtol=1e-5)
    assert np.abs(again.logp - first.logp).max() > 1e-3
    np.testing.assert_array_equal(again.token_start_logp, again.token_argmax_logp)


@pytest.mark.parametrize("at", [1, 3])
def test_a_training_that_begins_again_in_a_smaller_batch_is_one_run(tmp_path, at):
    error = RuntimeError("CUDA out of memory.")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=1)
    folder, more = save_tiny(tmp_path / "m"), {"auto_find_batch_size": True}
    both = [callback, Breaks(at, error)]
    host = trainer("sft", folder, tmp_path / "t", False, both, **more)
    host.train()
    run = RunDirectory.open(tmp_path / "run")
    assert host._train_batch_size == 1
    assert run.steps == [0, 1, 2, 3, 4]
    assert run.info["finished"] is True
    assert [row["step"] for row in run.read_log() if "loss" in row] == [1, 2, 3, 4]
    # the first attempt moved the weights, which the trainer does not put back
    started = score(
        load_model(folder), TokenizedProbes.from_table(run.read_probes(), "")
    )
    first = run.read_observation(0)
    assert np.abs(first.logp - started.logp).max() > 1e-3
    np.testing.assert_array_equal(first.token_start_logp, first.token_argmax_logp)
    with pytest.raises(BadInput, match="holds a run already"):
        host.train()
    assert RunDirectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]


def test_an_interrupted_training_that_looked_for_its_batch_size_is_not_erased(tmp_path):
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=1)
    both = [callback, Breaks(2, KeyboardInterrupt())]
    more = {"auto_find_batch_size": True}
    folder = save_tiny(tmp_path / "m")
    host = trainer("sft", folder, tmp_path / "t", False, both, **more)
    with pytest.raises(KeyboardInterrupt):
        host.train()
    with pytest.raises(BadInput, match="holds a run already"):
        host.train()
    assert RunDirectory.open(tmp_path / "run").steps == [0, 1, 2]


@pytest.mark.parametrize(
    ("began", "now", "words"),
    [
        (
            None,
            "bfloat16",
            r"precision='bfloat16', so approximately.* so far \(3\) were "
            "scored exactly.*Leave precision= out",
        ),
        (
            "bfloat16",
            None,
            r"precision=None, so exactly.* so far \(3\) were scored "
            "approximately, in bfloat16.*Give precision='bfloat16'",
        ),
    ],
)
def test_exact_and_approximate_observations_are_not_mixed(tmp_path, began, now, words):
    host = resumable(tmp_path, began={"precision": began}, precision=now)
    with pytest.raises(BadInput, match=f"cannot continue.*{words}.*out="):
        host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    assert RunDirectory.open(tmp_path / "run").steps == [0, 2, 4]


@pytest.mark.parametrize("route", [None, {"name": "padded"}])
def test_a_run_from_before_there_were_routes_goes_on_exactly(tmp_path, route):
    host = resumable(tmp_path)
    RunDirectory.open(tmp_path / "run").update_info(route=route)
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0, 2, 4]
    assert run.info["route"]["approximate"] is None


def test_the_last_observation_is_of_the_last_update_not_of_the_best(tmp_path):
    folder = save_tiny(tmp_path / "m")
    best = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "learning_rate": 1.0,  # every update makes it worse
    }
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=3)
    host = trainer("sft", folder, tmp_path / "t", False, [callback], **best)
    host.train()
    run = RunDirectory.open(tmp_path / "run")
    frozen = TokenizedProbes.from_table(run.read_probes(), "")
    last = score(load_model(tmp_path / "t" / "checkpoint-4"), frozen)
    np.testing.assert_allclose(run.read_observation(4).logp, last.logp, rtol=1e-5)
    ended = score(host.model, frozen)
    assert np.abs(ended.logp - last.logp).max() > 1


def test_a_schedule_below_one_update_is_refused():
    with pytest.raises(BadInput, match="every=0: give a number of updates >= 1"):
        LearningDynamicsCallback(probes(), out="x", every=0)


def test_a_diverged_model_is_recorded_and_warned_about(tmp_path):
    folder = save_tiny(tmp_path / "m")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=4)
    host = trainer("sft", folder, tmp_path / "t", False, [callback])
    with torch.no_grad():
        host.model.transformer.wte.weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match="not sound: logp: .* values are not finite"):
        host.train()
    assert RunDirectory.open(tmp_path / "run").steps == [0, 4]


def test_a_full_disk_stops_with_what_is_lost_and_what_to_do(tmp_path, monkeypatch):
    import errno

    import pyarrow.parquet as pq

    from learndyn.record.files import StorageFull

    folder = save_tiny(tmp_path / "m")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run", every=2)
    host = trainer("sft", folder, tmp_path / "t", False, [callback])
    write = copy.copy(pq.write_table)

    def fail_at_two(table, path, **more):
        if "00000002" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path, **more)

    monkeypatch.setattr(pq, "write_table", fail_at_two)
    with pytest.raises(StorageFull, match=r"step-00000002.parquet.*resume=True"):
        host.train()
    run = RunDirectory.open(tmp_path / "run")
    assert run.steps == [0]
    assert not list((tmp_path / "run").rglob("*.tmp"))
