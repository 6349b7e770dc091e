"""A panel: the same few prompts between full observations, told apart from the rest."""

import dataclasses
import json
import random
import shutil
from functools import partial

import jaxtyping
import numpy as np
import pytest
import yaml
from models import byte_tokenizer, save_tiny
from runs import data, probes, recipe
from synthetic import write_run
from test_callback import trainer
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from learndyn.cli import main
from learndyn.diagnose.changes import change_curves, kind_table
from learndyn.diagnose.intervals import standard_error
from learndyn.diagnose.paths import Paths, off_target, outside_panel
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.two_runs.compare import compare
from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.verdict import what_happened
from learndyn.errors import BadInput
from learndyn.measure.load import load_model, weights_hash
from learndyn.probes.panel import Panel
from learndyn.probes.probe import Probe, ProbeSet
from learndyn.probes.tokenize import tokenize
from learndyn.record.observation import (
    _TOKEN_COLUMNS,
    PROBE_COLUMNS,
    Observation,
)
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show.report.report import summaries, write_report
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.recipes import sft
from learndyn.train.schedule import Schedule


# --- which prompts


def probe_set(train: int, test: int = 0, kinds=("chosen", "rejected")) -> ProbeSet:
    """Prompts of two splits, in a shuffled order."""
    made = [
        Probe(f"{split}-{i}", kind, f"ask {split} {i}", kind, split)
        for split, count in (("train", train), ("test", test))
        for i in range(count)
        for kind in kinds
    ]
    random.Random(0).shuffle(made)
    return ProbeSet(tuple(made))


def test_the_panel_does_not_depend_on_the_order_of_the_probes():
    watched = probe_set(60, 20)
    first = Panel.draw(watched, 12, seed=3)
    for seed in range(5):
        order = list(watched.probes)
        random.Random(seed).shuffle(order)
        assert Panel.draw(ProbeSet(tuple(order)), 12, seed=3) == first
    assert len(set(first.prompts)) == 12
    assert set(first.prompts) <= set(watched.prompt_ids)


def test_another_seed_draws_another_panel_and_every_prompt_is_as_likely():
    watched = probe_set(40)
    drawn = [Panel.draw(watched, 10, seed=seed).prompts for seed in range(400)]
    assert len(set(drawn)) == 400
    counts = [sum(p in panel for panel in drawn) for p in watched.prompt_ids]
    # binomial(400, 1/4): mean 100, standard deviation 8.7
    assert 100 - 40 < min(counts) <= max(counts) < 100 + 40


def test_a_smaller_panel_of_a_seed_is_part_of_a_larger_one():
    watched = probe_set(50)
    small, large = (set(Panel.draw(watched, n, seed=1).prompts) for n in (5, 20))
    assert small < large


@pytest.mark.parametrize(
    ("train", "test", "size", "wanted"),
    [
        (300, 100, 40, (30, 10)),
        (90, 10, 5, (4, 1)),  # at least one of each
        (999, 1, 2, (1, 1)),
        (50, 50, 3, (1, 2)),  # the remainder to the first by name, "test"
        (7, 3, 9, (6, 3)),
    ],
)
def test_the_panel_has_its_part_of_every_split(train, test, size, wanted):
    drawn = Panel.draw(probe_set(train, test), size).prompts
    found = [sum(p.startswith(split) for p in drawn) for split in ("train", "test")]
    assert tuple(found) == wanted


@pytest.mark.parametrize("size", [6, 7, 500])
def test_a_panel_of_all_prompts_is_no_panel_and_says_so(size):
    panel = Panel.draw(probe_set(6), size)
    assert panel.prompts is None
    kept = json.loads(json.dumps(panel.to_info()))
    assert kept["asked"] == size
    assert "there are 6 prompts: all of them are scored" in kept["note"]
    assert Panel.of_run({"panel": kept}) == panel


def test_run_json_brings_the_panel_back():
    panel = Panel.draw(probe_set(20, 4), 6, seed=5, full_every=100)
    kept = json.loads(json.dumps(panel.to_info()))
    assert set(kept) == {"prompts", "seed", "of", "full_every"}
    assert Panel.of_run({"panel": kept}) == panel
    assert Panel.of_run({}) is None
    for broken in ([], {"prompts": 3}, {"seed": 0}, "all"):
        with pytest.raises(
            BadInput, match=r"entry `panel` of run\.json cannot be read"
        ):
            Panel.of_run({"panel": broken})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"full_every": 10}, "full_every=10 needs panel=N"),
        ({"panel_seed": 1}, "panel_seed=1 needs panel=N"),
        ({"panel": 1}, "panel=1: give 2 prompts or more"),
        ({"panel": -3}, "panel=-3"),
        ({"panel": 4, "full_every": 0}, "full_every=0: give a number of updates"),
        ({"every": 0}, "every=0: give a number of updates >= 1"),
    ],
)
def test_a_schedule_that_is_none_is_refused(tmp_path, settings, words):
    with pytest.raises(BadInput, match=words):
        LearningDynamicsCallback(probes(), out=tmp_path / "r", **settings)
    with pytest.raises(BadInput, match=words):
        recipe(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 2.5}, "every=2.5: give a number of updates >= 1, or 'log'"),
        ({"every": True}, "every=True: give a number"),
        ({"every": "LOG"}, "every='LOG': give a number"),
        ({"every": None}, "every=None: give a number"),
        ({"panel": 100.5}, "panel=100.5: give 2 prompts or more"),
        ({"panel": True}, "panel=True: give 2"),
        ({"panel": 4, "full_every": 1.5}, "full_every=1.5: give a number of updates"),
        ({"panel": 4, "full_every": True}, "full_every=True: give a number"),
    ],
)
def test_a_number_of_updates_or_prompts_is_a_whole_one(tmp_path, settings, words):
    jaxtyping.config.update("jaxtyping_disable", True)  # as it is outside of tests
    try:
        for make in (Schedule, partial(recipe, tmp_path)):
            with pytest.raises(BadInput, match=words):
                make(**settings)
        with pytest.raises(BadInput, match=words):
            LearningDynamicsCallback(probes(), out=tmp_path / "r", **settings)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_full_observations_are_due_even_where_no_other_is():
    panel = Panel.draw(probe_set(9), 3, full_every=10)
    schedule = Schedule(4, 3, 10)
    due = [step for step in range(1, 25) if schedule.is_due(step, panel)]
    assert due == [4, 8, 10, 12, 16, 20, 24]
    everyone = Panel.draw(probe_set(3), 3, full_every=10)
    assert everyone.prompts is None
    assert [s for s in range(1, 25) if schedule.is_due(s, everyone)] == due
    never = Panel.draw(probe_set(3), 3)
    assert not Schedule(4, 3).is_due(10, never)


# --- a subset of the probes


def test_a_subset_of_tokenized_probes_keeps_ids_and_hash():
    whole = tokenize(probes(), byte_tokenizer())
    part = whole.select([4, 1])
    assert part.pairs == (whole.pairs[4], whole.pairs[1])
    assert [p.prompt_id for p in part.probes] == [
        whole.probes[4].prompt_id,
        whole.probes[1].prompt_id,
    ]
    assert part.tokenizer_hash == whole.tokenizer_hash


def part_of(observation: Observation, rows) -> Observation:
    """Only some rows of an observation."""
    rows = np.asarray(rows)
    tokens = np.concatenate(
        [np.arange(*observation.offsets[i : i + 2]) for i in rows]
    ).astype(int)
    single = {name: getattr(observation, name)[rows] for name in PROBE_COLUMNS}
    flat = {name: getattr(observation, name)[tokens] for name in _TOKEN_COLUMNS}
    return Observation(
        observation.step,
        observation.n_tokens[rows],
        **single,
        **flat,
        probe_ids=rows.astype(np.int32),
    )


def test_an_observation_of_some_probes_comes_back_exactly(tmp_path):
    whole = RunDirectory.open(write_run(tmp_path / "run")).read_observation(50)
    part = part_of(whole, [3, 5, 40])
    again = Observation.from_table(50, part.to_table())
    assert again.ids.tolist() == [3, 5, 40]
    assert again.violations() == []
    for name in (*PROBE_COLUMNS, *_TOKEN_COLUMNS, "n_tokens"):
        np.testing.assert_array_equal(getattr(again, name), getattr(part, name))
    wrong = dataclasses.replace(part, probe_ids=np.array([5, 3, 40]))
    assert wrong.violations() == ["probe_ids: not ascending, or below zero"]
    assert Observation.from_table(50, whole.to_table()).probe_ids is None


# --- real runs


PANEL = {"every": 1, "panel": 3, "full_every": 4, "panel_seed": 7}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training observed in full, and on a panel."""
    folder = tmp_path_factory.mktemp("panel")
    steps = {"learning_rate": 1e-2, "max_steps": 6, "save_steps": 3}
    whole = recipe(folder, every=1, out=folder / "whole", trainer=steps)
    part = dataclasses.replace(whole, out=folder / "part", **PANEL)
    for settings in (whole, part):
        sft(settings, data(), probes(6))
    return whole, part


def test_panel_values_are_those_of_a_run_that_scores_everything(runs):
    whole, part = (Trajectory.load(settings.out) for settings in runs)
    assert part.steps.tolist() == whole.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    full = part.covered.all(axis=1)
    assert full.tolist() == [True, False, False, False, True, False, True]
    inside = np.isin(part.prompt_of, part.panel.prompts)
    assert inside.sum() == 3 * len(part.kinds)
    for step in np.flatnonzero(~full):
        assert part.covered[step].tolist() == inside.tolist()
    for name, values in part.columns.items():
        assert np.isnan(values[~part.covered]).all()
        gap = np.abs(values - whole.columns[name]) / part.n_tokens
        assert gap[part.covered].max() < 1e-5
    for step in (1, 5):
        some, every = part.observation(step), whole.observation(step)
        assert some.violations() == []
        expected = part_of(every, some.ids)
        np.testing.assert_allclose(
            some.token_start_logp, expected.token_start_logp, rtol=1e-4, atol=1e-5
        )
    moved = whole.columns["logp"][-1] - whole.columns["logp"][0]
    assert np.abs(moved).max() > 1  # there is something to agree on


def test_a_panel_changes_nothing_of_the_training(runs):
    whole, part = (weights_hash(load_model(s.out / "model")) for s in runs)
    assert whole == part


def test_run_json_and_config_record_the_panel(runs):
    run = RunDirectory.open(runs[1].out)
    expected = Panel.draw(probes(6), 3, seed=7, full_every=4)
    assert run.info["panel"] == expected.to_info()
    assert "panel" not in RunDirectory.open(runs[0].out).info
    config = yaml.safe_load((runs[1].out / "config.yaml").read_text())
    assert {name: config[name] for name in PANEL} == PANEL
    plain = yaml.safe_load((runs[0].out / "config.yaml").read_text())
    assert not set(plain) & {"panel", "full_every", "panel_seed"}


def test_a_panel_as_large_as_the_set_scores_everything(tmp_path):
    settings = recipe(
        tmp_path, panel=50, full_every=2, every=25, trainer={"max_steps": 3}
    )
    run = sft(settings, data(), probes())
    trajectory = Trajectory.load(run.path)
    assert trajectory.steps.tolist() == [0, 2, 3]
    assert trajectory.covered.all()
    assert trajectory.panel is None
    assert run.info["panel"]["prompts"] is None
    assert "all of them are scored" in run.info["panel"]["note"]


class Stops(TrainerCallback):
    """Ends or breaks a training after an update, once all others have seen it."""

    def __init__(self, at: int, error: bool = False) -> None:
        self.at, self.error = at, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at and self.error:
            raise RuntimeError("pulled the plug")
        control.should_training_stop |= state.global_step == self.at


def test_a_run_that_is_stopped_at_a_panel_observation_ends_in_a_full_one(tmp_path):
    watch = LearningDynamicsCallback(probes(6), out=tmp_path / "r", every=1, panel=2)
    folder = save_tiny(tmp_path / "m")
    host = trainer("sft", folder, tmp_path / "t", False, [watch, Stops(2)])
    host.train()
    trajectory = Trajectory.load(tmp_path / "r")
    assert trajectory.steps.tolist() == [0, 1, 2]
    assert trajectory.covered.all(axis=1).tolist() == [True, False, True]
    assert trajectory.run.info["finished"]


def test_a_best_model_that_came_before_the_full_observation_is_warned_of(tmp_path):
    watch = LearningDynamicsCallback(probes(6), out=tmp_path / "r", every=1, panel=2)
    best = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }
    folder, ends = save_tiny(tmp_path / "m"), [watch, Stops(2)]
    host = trainer("sft", folder, tmp_path / "t", False, ends, **best)
    with pytest.warns(UserWarning, match="update 2 was not observed in full, only its"):
        host.train()
    trajectory = Trajectory.load(tmp_path / "r")
    assert trajectory.covered.all(axis=1).tolist() == [True, False, False]
    assert "is of the panel, 2 of 12 prompts" in " ".join(what_happened(trajectory))


def broken_at(tmp_path, step, **watching):
    """A run that dies at an update, with a checkpoint at two; returns its trainer."""
    saving = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    watch = {"out": tmp_path / "run", "every": 1, **watching}
    first = LearningDynamicsCallback(probes(6), **watch)
    again = [first, Stops(step, error=True)]
    folder = save_tiny(tmp_path / "m")
    host = trainer("sft", folder, tmp_path / "t", False, again, **saving)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        host.train()

    def resumed(given=None, **more):
        options = {"out": tmp_path / "run", "every": 1, **more}
        second = LearningDynamicsCallback(given or probes(6), **options)
        return trainer("sft", folder, tmp_path / "t", False, [second], **saving)

    return resumed, str(tmp_path / "t" / "checkpoint-2")


@pytest.mark.parametrize("named", [True, False])
def test_a_broken_run_goes_on_with_its_own_panel(tmp_path, named):
    asked = {"panel": 2, "panel_seed": 4}
    resumed, checkpoint = broken_at(tmp_path, 3, **asked)
    before = RunDirectory.open(tmp_path / "run").info["panel"]
    reverse = ProbeSet(probes(6).probes[::-1])
    resumed(reverse, **(asked if named else {})).train(
        resume_from_checkpoint=checkpoint
    )
    trajectory = Trajectory.load(tmp_path / "run")
    assert trajectory.run.info["panel"] == before
    assert trajectory.steps.tolist() == [0, 1, 2, 3, 4]
    full = trajectory.covered.all(axis=1)
    assert full.tolist() == [True, False, False, False, True]
    assert set(trajectory.prompt_of[trajectory.covered[3]]) == set(before["prompts"])


def test_a_run_killed_before_its_last_full_observation_makes_it_when_resumed(tmp_path):
    folder = save_tiny(tmp_path / "m")
    whole_epoch = {"max_steps": 6, "save_strategy": "steps", "save_steps": 6}
    watch = {"out": tmp_path / "run", "every": 1, "panel": 2}
    callback = LearningDynamicsCallback(probes(6), **watch)
    trainer("sft", folder, tmp_path / "t", False, [callback], **whole_epoch).train()
    run = RunDirectory.open(tmp_path / "run")
    last, few = run.read_observation(6), run.read_observation(5).ids
    run.write_observation(part_of(last, few))  # as if it was killed in between
    run.update_info(finished=False)
    callback = LearningDynamicsCallback(probes(6), **watch)
    host = trainer("sft", folder, tmp_path / "t", False, [callback], **whole_epoch)
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-6"))
    again = RunDirectory.open(tmp_path / "run")
    assert again.steps == [0, 1, 2, 3, 4, 5, 6]
    assert again.info["finished"]
    np.testing.assert_allclose(again.read_observation(6).logp, last.logp, rtol=1e-5)


@pytest.mark.parametrize(
    ("began", "asked", "words"),
    [
        ({"panel": 2}, {"panel": 3}, "with panel=3, panel_seed=0.*began with panel=2"),
        ({"panel": 2}, {"panel": 2, "panel_seed": 9}, "panel_seed=9.*panel_seed=0"),
        ({"panel": 2}, {"panel": 2, "full_every": 2}, "full_every=2.*full_every=None"),
        ({}, {"panel": 2}, "with panel=2: it scores all prompts"),
        ({"panel": 70}, {"panel": 2}, "with panel=2.*began with panel=70"),
    ],
)
def test_another_panel_is_refused_when_a_run_is_resumed(tmp_path, began, asked, words):
    resumed, checkpoint = broken_at(tmp_path, 3, **began)
    files = sorted(p.name for p in (tmp_path / "run" / "observations").iterdir())
    with pytest.raises(BadInput, match=f"cannot continue.*{words}.*out="):
        resumed(**asked).train(resume_from_checkpoint=checkpoint)
    after = sorted(p.name for p in (tmp_path / "run" / "observations").iterdir())
    assert after == files


def test_a_recipe_resumes_to_the_same_numbers_and_names_another_panel(runs):
    _, settings = runs
    whole = Trajectory.load(settings.out)
    out = settings.out.with_name("again")
    shutil.copytree(settings.out, out)
    (out / "model").rename(settings.out.with_name("kept"))
    shutil.rmtree(out / "checkpoints" / "checkpoint-6")
    again = dataclasses.replace(settings, out=out, resume=True)
    text = (out / "config.yaml").read_text().replace("/part", "/again")
    (out / "config.yaml").write_text(text)
    with pytest.raises(BadInput, match="panel: began with 3, now 4"):
        sft(dataclasses.replace(again, panel=4), data(), probes(6))
    sft(again, data(), probes(6))
    resumed = Trajectory.load(out)
    np.testing.assert_array_equal(resumed.covered, whole.covered)
    np.testing.assert_allclose(
        resumed.columns["logp"], whole.columns["logp"], rtol=1e-5
    )


def test_trackers_get_paired_changes_and_never_means_of_other_prompts(
    tmp_path, monkeypatch
):
    sent, times = {}, []
    for event in ("__init__", "on_train_begin", "on_train_end"):
        monkeypatch.setattr(TensorBoardCallback, event, lambda *a, **k: None)
    monkeypatch.setattr(
        TensorBoardCallback,
        "on_log",
        lambda self, args, state, control, logs=None, **k: keep(state, logs),
    )

    def keep(state, logs):
        if any(name.startswith("probes/") for name in logs):
            times.append(state.global_step)
            sent[state.global_step] = logs

    more = {"learning_rate": 1e-2}
    host = trainer("sft", save_tiny(tmp_path / "m"), tmp_path / "t", False, **more)
    host.add_callback(TensorBoardCallback())
    watch = LearningDynamicsCallback(probes(6), out=tmp_path / "r", every=1, panel=3)
    watch.attach(host)
    host.train()
    trajectory = Trajectory.load(tmp_path / "r")
    assert times == [0, 1, 2, 3, 4]  # the last one is not scored twice
    assert [s for s in sent if "probes/chosen/logp_mean" in sent[s]] == [0, 4]
    curve = change_curves(trajectory)["chosen"]
    for index, step in enumerate(trajectory.steps):
        row = sent[int(step)]
        name = "probes/chosen/logp_panel_change"
        assert row[f"{name}_mean"] == pytest.approx(curve.mean[index])
        assert row[f"{name}_se"] == pytest.approx(curve.se[index])


# --- what is on disk


def thin(path, panel, full=(0, 100), **entry):
    """Turn a full run into what a run with this panel would have left."""
    run = RunDirectory.open(path)
    prompt_of = run.read_probes()["prompt_id"].to_pylist()
    rows = [i for i, prompt in enumerate(prompt_of) if prompt in panel]
    for step in run.steps:
        if step not in full:
            run.write_observation(part_of(run.read_observation(step), rows))
    of = len(set(prompt_of))
    kept = {"prompts": sorted(panel), "seed": 0, "of": of, "full_every": None}
    run.update_info(panel=kept | entry)
    return path


FEW = [f"p{i:03d}" for i in (1, 4, 9, 11, 12, 17, 18, 22)]
"""Eight of the 24 prompts that `write_run` makes: with `WIDE`, those whose chosen is
lowest, by 244 nats below the mean."""


def test_what_was_not_scored_is_nan_and_no_divergence(tmp_path):
    trajectory = Trajectory.load(thin(write_run(tmp_path / "run"), FEW))
    covered = trajectory.covered
    assert covered.all(axis=1).tolist() == [True, False, False, False, True]
    assert covered[1].sum() == 8 * 3
    assert np.isnan(trajectory.columns["logp"][~covered]).all()
    assert not trajectory.lost.any()
    text = " ".join(what_happened(trajectory))
    assert "diverged" not in text
    assert "not finite" not in text
    frame = trajectory.to_pandas()
    assert len(frame) == covered.sum()
    assert frame.logp.notna().all()
    assert set(frame[frame.panel].prompt_id) == set(FEW)
    assert (frame[frame.panel].groupby("step").size() == 24).all()


def test_a_panel_that_diverges_is_said_to_diverge(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW, full=(0,))
    run = RunDirectory.open(path)
    for step in (75, 100):
        seen = run.read_observation(step)
        lost = np.full_like(seen.logp, np.nan)
        run.write_observation(dataclasses.replace(seen, logp=lost))
    (only,) = what_happened(Trajectory.load(path))
    assert "at update 100, 24 of 24 log-probabilities are not finite" in only
    assert "first seen at update 75" in only


def test_probes_that_the_run_does_not_have_are_left_out(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW)
    run = RunDirectory.open(path)
    seen = run.read_observation(50)
    ids = seen.ids.copy()
    ids[-1] = 99
    run.write_observation(dataclasses.replace(seen, probe_ids=ids))
    with pytest.warns(UserWarning, match=r"at update 50 is left out.*1 of 24 rows"):
        assert 50 not in Trajectory.load(path).steps


def test_another_panel_on_the_way_is_left_out(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW)
    run = RunDirectory.open(path)
    seen = run.read_observation(50)
    run.write_observation(dataclasses.replace(seen, probe_ids=seen.ids - 3))
    with pytest.warns(UserWarning, match=r"at update 50 is left out.*24 of 24 rows"):
        assert 50 not in Trajectory.load(path).steps


def test_some_probes_in_a_run_without_a_panel_are_left_out(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW)
    RunDirectory.open(path).update_info(panel=None)
    with pytest.warns(
        UserWarning, match=r"has 24 probes.*has 72.*run.json has no panel"
    ):
        loaded = Trajectory.load(path)
    assert loaded.covered.all()


def test_a_panel_of_prompts_that_are_not_there_is_refused(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW, prompts=["p001", "stranger"])
    with pytest.raises(BadInput, match=r"1 of 2 prompts of the panel.*\n  stranger"):
        Trajectory.load(path)


def test_a_run_whose_first_full_observation_is_gone_is_refused(tmp_path):
    path = thin(write_run(tmp_path / "run"), FEW)
    RunDirectory.open(path).observation_path(0).unlink()
    with pytest.raises(BadInput, match="missing: its earliest file is from update 25"):
        Trajectory.load(path)


def test_a_run_whose_first_full_observation_is_gone_is_not_continued(tmp_path):
    resumed, checkpoint = broken_at(tmp_path, 3, panel=2)
    RunDirectory.open(tmp_path / "run").observation_path(0).unlink()
    with pytest.raises(BadInput, match="at update 1, holds only its panel"):
        resumed().train(resume_from_checkpoint=checkpoint)


def test_a_panel_of_the_first_prompts_is_told_from_all_of_them(tmp_path):
    first = [f"p{i:03d}" for i in range(5)]
    trajectory = Trajectory.load(thin(write_run(tmp_path / "run"), first))
    assert trajectory.covered[1].tolist() == [True] * 15 + [False] * 57


# --- statistics


WIDE = {"levels": 200.0, "prompts": 24}
"""Prompts of such different levels that a mean over others jumps by 244 nats."""


@pytest.fixture
def pair(tmp_path):
    """One run in full and as a panel run would have left it."""
    whole = write_run(tmp_path / "whole", **WIDE)
    part = thin(write_run(tmp_path / "part", **WIDE), FEW)
    return Trajectory.load(whole), Trajectory.load(part)


def test_curves_are_of_the_panel_at_every_step_and_do_not_jump(pair):
    whole, part = pair
    for kind, curve in change_curves(part).items():
        assert curve.n.tolist() == [8] * 5
        # linear drift: so is every curve of one set of prompts, and no mixture is
        np.testing.assert_allclose(np.diff(curve.mean, 2), 0, atol=1e-9)
        assert np.isfinite(curve.low).all()
        everyone = change_curves(whole)[kind]
        assert abs(curve.mean[-1] - everyone.mean[-1]) < 5 * curve.se[-1]
    raw = np.nanmean(part.values("logp", "chosen"), axis=1)
    assert np.abs(np.diff(raw, 2)).max() > 200  # what a raw mean would have shown


def test_the_standard_error_is_that_of_paired_changes(pair):
    _, part = pair
    change = part.values("logp", "rejected") - part.values("logp", "rejected")[0]
    kept = change[:, np.isin(np.unique(part.prompt_of), FEW)]
    expected = kept.std(axis=1, ddof=1) / np.sqrt(8)
    curve = change_curves(part)["rejected"]
    np.testing.assert_allclose(curve.se, expected)
    np.testing.assert_allclose(
        (curve.high - curve.low)[1:] / (2 * 1.96 * expected[1:]), 1, atol=0.2
    )
    per_token = change_curves(part, per="token")["rejected"]
    np.testing.assert_allclose(per_token.se, expected / 8)
    row = next(row for row in kind_table(part) if row.kind == "rejected")
    assert row.se == pytest.approx(change[-1].std(ddof=1) / np.sqrt(24))


def test_the_standard_error_of_a_ratio_is_the_spread_of_resampled_ratios():
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, 40, 300).astype(float)
    nats = -0.3 * tokens + draw.standard_normal(300) * np.sqrt(tokens)
    picks = draw.integers(0, 300, (4000, 300))
    ratios = nats[picks].sum(1) / tokens[picks].sum(1)
    assert standard_error(nats, tokens) == pytest.approx(ratios.std(), rel=0.05)
    assert np.isnan(standard_error(np.array([1.0, np.nan]), np.ones(2)))


def test_other_columns_are_of_the_panel_too(pair):
    _, part = pair
    curve = change_curves(part, "entropy")["chosen"]
    assert curve.n.tolist() == [8] * 5
    assert (curve.mean == 0).all()


def test_the_interval_of_a_panel_holds_the_change_of_all_prompts(tmp_path):
    path = write_run(tmp_path / "run", prompts=400, noise=1.0, steps=(0, 50, 100))
    whole = Trajectory.load(path)
    watched = ProbeSet.from_rows(whole.probes.to_pylist())
    true = change_curves(whole)
    held, errors = [], []
    for seed in range(150):
        panel = Panel.draw(watched, 40, seed=seed)
        scored = np.ones_like(whole.covered)
        scored[1] = np.isin(whole.prompt_of, panel.prompts)
        columns = {k: np.where(scored, v, np.nan) for k, v in whole.columns.items()}
        part = dataclasses.replace(whole, columns=columns, scored=scored)
        for kind, curve in change_curves(part).items():
            mean = true[kind].mean[1]
            held.append(curve.low[1] <= mean <= curve.high[1])
            errors.append((curve.mean[1] - mean) / curve.se[1])
    # 600 intervals of four kinds; a percentile interval over 40 holds a little less
    assert 0.91 < np.mean(held) < 0.985
    # a tenth of the prompts is known: the error is that much smaller
    assert np.std(errors) == pytest.approx(np.sqrt(0.9), abs=0.1)
    assert abs(np.mean(errors)) < 0.15


def test_first_last_and_change_are_of_all_prompts_where_both_ends_are_full(pair):
    whole, part = (kind_table(t) for t in pair)
    for one, other in zip(whole, part, strict=True):
        assert (one.first, one.last, one.change) == (
            other.first,
            other.last,
            other.change,
        )
        assert (one.fell, one.prompts, one.se) == (other.fell, other.prompts, other.se)


def test_a_run_that_stands_at_a_panel_observation_is_told_of_its_panel(tmp_path):
    path = thin(write_run(tmp_path / "run", **WIDE), FEW, full=(0,))
    trajectory = Trajectory.load(path)
    inside = np.isin(np.unique(trajectory.prompt_of), FEW)
    for row in kind_table(trajectory)[:-1]:
        values = trajectory.values("logp", row.kind)[:, inside]
        assert row.prompts == 8
        assert row.first == pytest.approx(values[0].mean())
        assert row.last == pytest.approx(values[-1].mean())
        assert row.change.mean == pytest.approx(row.last - row.first)
        assert row.peak == max(row.first, row.last)
    evidence = squeeze_evidence(trajectory)
    assert evidence.chosen.n == 8
    assert evidence.off_target_tokens == 8 * 4
    assert "is of the panel, 8 of 24 prompts" in " ".join(what_happened(trajectory))


def bent(path, at=50, by=9.0):
    """Lift chosen of every prompt at one observation."""
    run = RunDirectory.open(path)
    seen = run.read_observation(at)
    lift = np.where(np.arange(len(seen.logp)) % 3 == 0, by, 0.0)
    run.write_observation(dataclasses.replace(seen, logp=seen.logp + lift))
    return path


def test_the_peak_is_found_on_the_panel_and_told_on_the_level_of_all(tmp_path):
    whole = Trajectory.load(bent(write_run(tmp_path / "whole", **WIDE)))
    path = thin(bent(write_run(tmp_path / "part", **WIDE)), FEW)
    part = Trajectory.load(path)
    one, other = (kind_table(t)[0] for t in (whole, part))
    assert one.peak_step == other.peak_step == 50
    assert (one.peak_prompts, other.peak_prompts) == (24, 8)
    assert other.peak == pytest.approx(other.first + other.rise)
    assert other.peak == pytest.approx(one.peak, abs=1)
    inside = np.isin(np.unique(part.prompt_of), FEW)
    line = (part.values("logp", "chosen") - part.values("logp", "chosen")[0])[:, inside]
    assert other.rise == pytest.approx(line[2].mean())
    assert other.turn == pytest.approx(line[-1].mean() - line[2].mean())
    # the panel's prompts are far below the others, so a raw mean has its peak elsewhere
    raw = np.nanmean(part.values("logp", "chosen"), axis=1)
    assert np.argmax(raw) == 0
    said = " ".join(what_happened(part))
    assert "Chosen was highest at update 50" in said
    assert "among 8 prompts scored at every observation" in said


def test_no_kind_has_a_peak_because_of_who_was_scored(pair):
    _, part = pair
    for row in kind_table(part):
        falls = row.change.mean < 0
        assert row.peak_step == (0 if falls else 100)
        assert row.peak == (row.first if falls else row.last)


def test_the_evidence_at_a_margin_is_of_the_panel(pair):
    whole, part = pair
    one, other = (squeeze_evidence(t, at_margin=15.0) for t in (whole, part))
    assert other.margin.n == 8
    assert other.margin.mean == pytest.approx(15)
    assert other.off_target_tokens == 8 * 4
    assert other.off_target.mean == pytest.approx(0.5 * other.step / 100, rel=1e-5)
    assert other.step == pytest.approx(one.step, rel=0.3)
    end, whole_end = (squeeze_evidence(t) for t in (part, whole))
    assert (end.chosen, end.off_target) == (whole_end.chosen, whole_end.off_target)
    assert end.chosen.n == 24


def test_off_target_is_unknown_where_a_prompt_was_not_scored(pair):
    whole, part = pair
    points = [1, 4]
    (all_, counts), (some, again) = (
        off_target(t, Paths.of(t), points) for t in (whole, part)
    )
    inside = np.isin(np.unique(part.prompt_of), FEW)
    np.testing.assert_array_equal(some[0, inside], all_[0, inside])
    assert np.isnan(some[0, ~inside]).all()
    np.testing.assert_array_equal(some[1], all_[1])
    np.testing.assert_array_equal(counts, again)
    # nor is the change of a response without such positions 0 where it was not scored
    ids = [[9, 7] * 4 if p == "p000" else [7] * 8 for p in part.prompt_of]
    index = part.probes.column_names.index("response_ids")
    probes = part.probes.set_column(index, "response_ids", [ids])
    some, counts = off_target(
        dataclasses.replace(part, probes=probes), Paths.of(part), points
    )
    assert counts[0] == some[1, 0] == 0
    assert np.isnan(some[0, 0])


FASTER = {"chosen": -2.0, "rejected": -22.0, "irrelevant_train": -2.0}


@pytest.mark.parametrize("by", ["updates", "margin", "gap"])
def test_runs_with_panels_differ_by_what_runs_in_full_differ(tmp_path, by):
    exact = {"noise": 0.0, **WIDE}
    a = Trajectory.load(write_run(tmp_path / "a", **exact))
    b = Trajectory.load(write_run(tmp_path / "b", drift=FASTER, **exact))
    expected = compare(a, b, by)
    thin(tmp_path / "a", FEW)
    thin(tmp_path / "b", [*FEW, "p000", "p002"])
    found = compare(*(Trajectory.load(tmp_path / name) for name in "ab"), by)
    assert found.of == 24
    assert found.prompts == (24 if by == "updates" else 8)
    if by == "gap":  # levels of the panel's prompts: too few to be sure of a point
        assert (found.at, found.kinds) == (None, {})
        assert found.lost_share > 0.2
        return
    for kind, difference in expected.kinds.items():
        mean = found.kinds[kind].difference.mean
        assert mean == pytest.approx(difference.difference.mean)
    assert found.greedy.difference.mean == pytest.approx(
        expected.greedy.difference.mean, abs=1e-9
    )
    assert found.off_target.difference.mean == pytest.approx(
        expected.off_target.difference.mean, abs=1e-6
    )
    assert found.kinds["chosen"].difference.n == found.prompts


def test_a_run_in_full_is_compared_with_a_panel_run_on_the_panel(tmp_path):
    a = Trajectory.load(write_run(tmp_path / "a", **WIDE))
    b = Trajectory.load(thin(write_run(tmp_path / "b", **WIDE), FEW))
    for by in ("updates", "margin"):
        found = compare(a, b, by)
        assert found.kinds["chosen"].difference.mean == pytest.approx(0, abs=1e-9)
    text = " ".join(compare_in_words(a, b))
    assert "of 24: 8 at matched margin" in text
    assert "equal updates and" not in text
    # at an update where one of them has its panel alone
    between = compare(a, b, "updates", at=40.0)
    assert between.prompts == 8
    assert between.kinds["chosen"].difference.mean == pytest.approx(0, abs=1e-9)
    assert between.kinds["chosen"].difference.n == 8


def test_a_run_that_goes_on_is_compared_over_all_prompts_where_it_was_full(tmp_path):
    full = write_run(tmp_path / "a", steps=(0, 25, 50), shape=0.5, **WIDE)
    a = Trajectory.load(full)
    b = Trajectory.load(thin(write_run(tmp_path / "b", **WIDE), FEW, full=(0, 50)))
    found = compare(a, b, "updates")
    assert (found.at, found.prompts, found.kinds["chosen"].difference.n) == (50, 24, 24)
    other = b.values("logp", "chosen")
    assert found.kinds["chosen"].b == pytest.approx((other[2] - other[0]).mean())


def test_panels_that_share_no_prompt_are_compared_at_full_observations(tmp_path):
    others = [f"p{i:03d}" for i in (0, 2, 3, 5, 6, 7, 8, 10)]
    a = Trajectory.load(thin(write_run(tmp_path / "a", **WIDE), FEW))
    b = Trajectory.load(thin(write_run(tmp_path / "b", **WIDE), others))
    found = compare(a, b, "margin")
    assert found.prompts == 24
    assert found.kinds["chosen"].difference.mean == pytest.approx(0, abs=1e-9)


def test_a_kind_that_no_prompt_of_the_panel_has_keeps_its_full_observations(tmp_path):
    path = write_run(tmp_path / "run", drift={"chosen": -6.0, "rare": 3.0}, noise=0.0)
    table = RunDirectory.open(path).read_probes().to_pylist()
    rare = [row["kind"] == "rare" and row["prompt_id"] in FEW for row in table]
    for row, gone in zip(table, rare, strict=True):
        row["kind"] = "common" if gone else row["kind"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(table), path / "probes.parquet")
    trajectory = Trajectory.load(thin(path, FEW))
    curves = change_curves(trajectory)
    assert curves["rare"].steps.tolist() == [0, 100]
    assert curves["rare"].n.tolist() == [16, 16]
    assert curves["common"].steps.tolist() == [0, 25, 50, 75, 100]
    rows = {row.kind: row for row in kind_table(trajectory)}
    assert (rows["rare"].peak_step, rows["rare"].peak_prompts) == (100, 16)
    assert rows["rare"].peak == rows["rare"].last
    difference = compare(trajectory, trajectory, "updates").kinds["rare"]
    assert (difference.a, difference.difference.n) == (pytest.approx(3), 16)
    assert outside_panel(trajectory) == ["rare"]
    page = write_report([path]).read_text(encoding="utf-8")
    assert "Curves and peaks are of those 8 where they have that kind;" in page
    assert "None of those 8 has rare: there curve and peak are of all" in page
    svg = (path / "figures" / "curves.svg").read_text()
    assert "8 of 24 prompts where they have that kind, standard error" in svg


def test_a_peak_outside_the_panel_is_not_told_as_scored_every_time(tmp_path):
    path = bent(write_run(tmp_path / "run"))
    table = RunDirectory.open(path).read_probes().to_pylist()
    for row in table:
        if row["kind"] == "chosen" and row["prompt_id"] in FEW:
            row["kind"] = "other"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(table), path / "probes.parquet")
    trajectory = Trajectory.load(thin(path, FEW, full=(0, 50, 100)))
    said = " ".join(what_happened(trajectory))
    assert "among 16 prompts scored at every full observation)" in said


# --- what people see


def test_the_page_says_in_a_sentence_what_was_scored(tmp_path):
    path = thin(write_run(tmp_path / "run", **WIDE), FEW, seed=7)
    html = write_report([path]).read_text(encoding="utf-8")
    assert (
        "Between full observations 8 of 24 prompts were scored, the same ones "
        "throughout (a fixed panel, seed 7)." in html
    )
    assert "Curves and peaks are of those 8; first, last" in html
    assert "None of those" not in html
    assert "first, last and change are of all 24" in html
    assert "Only 8 prompts in the panel" in html
    assert "5 observations, 2 of all prompts" in html
    assert "not finite" not in html
    curves = change_curves(Trajectory.load(path))
    largest = max(curve.se[-1] for curve in curves.values())
    svg = (path / "figures" / "curves.svg").read_text()
    assert f"8 of 24 prompts, standard error at the end ≤ {largest:.1f}" in svg


def test_the_numbers_of_the_page_have_their_standard_error(tmp_path, capsys):
    path = thin(write_run(tmp_path / "run", **WIDE), FEW)
    assert main(["report", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["panel"]["prompts"] == FEW
    assert found["full_steps"] == [0, 100]
    curve = change_curves(Trajectory.load(path))["chosen"]
    assert found["curves"]["chosen"]["se"] == curve.se.tolist()
    assert found["curves"]["chosen"]["n"] == [8] * 5
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert kinds["chosen"]["prompts"] == 24
    assert kinds["chosen"]["change"]["n"] == 24
    (plain,) = summaries([write_run(tmp_path / "plain")])
    assert plain["panel"] is None


@pytest.mark.usefixtures("no_page")
def test_the_command_line_and_a_config_ask_for_a_panel(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model")
    rows = [{"prompt": row.prompt, **row.responses} for row in data(6).rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data.jsonl").write_text(text)
    out = tmp_path / "run"
    asked = ["--panel", "2", "--full-every", "2", "--panel-seed", "5", "--every", "1"]
    quick = ["--max_steps", "3", "--use_cpu", "true", "--disable_tqdm", "true"]
    where = ["--model", str(folder), "--data", str(tmp_path / "data.jsonl")]
    run = ["run", "sft", *where, "--out", str(out), "--prompts", "5", "--json"]
    assert main([*run, *asked, *quick]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert [config[name] for name in ("panel", "full_every", "panel_seed")] == [2, 2, 5]
    first = Trajectory.load(out)
    assert first.covered.all(axis=1).tolist() == [True, False, True, True]
    replayed = ["run", "--config", str(out / "config.yaml")]
    assert main([*replayed, "--out", str(tmp_path / "again"), "--json"]) == 0
    again = Trajectory.load(tmp_path / "again")
    assert again.panel == first.panel
    np.testing.assert_array_equal(again.covered, first.covered)
    capsys.readouterr()
    assert main([*run, "--overwrite", "--full-every", "2", *quick]) == 2
    assert "--full-every 2 needs --panel N" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("panel: many\n")
    assert main([*run, "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "panel must be" in capsys.readouterr().err
