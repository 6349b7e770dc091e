"""What the recorded updates add up to: exact where all are recorded, and never surer
than they are."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic import make_forces, write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.recorded_updates import RecordedUpdates
from learndyn.diagnose.headline import answer
from learndyn.diagnose.updates.why import _added_up, _Updates, why_of
from learndyn.diagnose.verdict import diagnose
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show.explain.explain import explain_run
from learndyn.show.report.report import write_report


STEPS = (0, 25, 50, 75, 100)
PUSHED = {"pull": -0.8, "push": 1.8}
"""Of each update's change: most is the push, and the pull takes some of it back."""


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=STEPS)


def changes(path, noise=1.0, seed=0):
    """Change of every probe by each of 100 updates, unlike from update to update, which
    add up to the observed changes."""
    logp = Trajectory.of(path).columns["logp"]
    generator = np.random.default_rng(seed)
    between = np.repeat(np.diff(logp, axis=0) / 25, 25, axis=0)
    own = noise * np.abs(between).mean() * generator.standard_normal((4, 25, 1))
    own -= own.mean(axis=1, keepdims=True)
    return between + own.reshape(100, 1)


def record(path, updates, steps, parts=PUSHED, sign=1.0, beyond=0.0):
    """Write the forces of these updates; `beyond` is what they miss of each change."""
    run = RunDirectory.open(path)
    probes = run.read_probes()
    for step in steps:
        actual = sign * updates[step - 1]
        change = (1 - beyond) * actual
        made = make_forces(probes, step, influence=False, layers=1)
        run.write_forces(
            dataclasses.replace(
                made,
                actual=actual,
                predicted=change,
                parts={name: share * change for name, share in parts.items()},
                token_parts={},
            )
        )
    return path


def finding(path):
    return next(f for f in diagnose(path).findings if isinstance(f, RecordedUpdates))


def test_all_updates_add_up_to_the_whole_change(run):
    record(run, changes(run), range(1, 101))
    facts = Facts(Trajectory.of(run))
    why, chosen = facts.why, facts.state.chosen
    assert (why.recorded, why.updates, why.prompts) == (100, 100, 24)
    assert why.actual.low == chosen.nats.low
    assert why.actual.mean == pytest.approx(chosen.nats.mean)
    assert why.estimate.mean == pytest.approx(chosen.nats.mean, rel=1e-6)
    assert why.share.mean == pytest.approx(1, rel=1e-6)
    assert why.share.low == pytest.approx(why.share.high, rel=1e-6)
    for name, share in PUSHED.items():
        assert why.parts[name].mean == pytest.approx(share * chosen.nats.mean, rel=1e-6)


def test_the_end_is_the_mean_that_the_state_takes(tmp_path):
    steps = range(0, 101, 10)  # the state's end: the mean of 90 and 100
    run = write_run(tmp_path / "run", steps=steps)
    between = np.diff(Trajectory.of(run).columns["logp"], axis=0) / 10
    record(run, np.repeat(between, 10, axis=0), range(1, 101))
    facts = Facts(Trajectory.of(run))
    assert facts.why.share.mean == pytest.approx(1, rel=1e-6)
    assert facts.why.actual.low == facts.state.chosen.nats.low


def test_updates_that_carry_the_fall_make_the_sentence_sure(run):
    assert "probably because the push on rejected" in answer(Facts(Trajectory.of(run)))
    record(run, changes(run, noise=0.1), range(5, 101, 5))
    facts = Facts(Trajectory.of(run))
    assert facts.why.carries
    assert facts.why.by_push
    assert ", because the push on rejected" in answer(facts)
    assert finding(run).severity == "fine"
    said = " ".join(diagnose(run).sentences)
    assert "The recorded updates carry this change: 20 of 100 updates" in said
    assert "by part: push " in said
    assert "chosen fell because rejected was pushed down" in said


@pytest.mark.parametrize(
    "parts",
    [
        {"pull": 1.2, "push": -0.2},
        {"pull": 0.6, "push": 0.3, "decay": 0.1},
        {"pull": -0.1, "push": 0.3, "decay": 0.8},
        {"gradient": 1.0},
    ],
)
def test_a_fall_by_something_else_is_not_called_the_push(run, parts):
    record(run, changes(run, noise=0.1), range(5, 101, 5), parts)
    facts = Facts(Trajectory.of(run))
    assert facts.why.carries
    assert not facts.why.by_push
    assert "because" not in answer(facts)
    assert "pushed down" not in finding(run).says


def test_memory_is_judged_by_the_batches_that_it_remembers(run):
    parts = {"pull": -0.1, "push": 0.3, "history": 0.8}
    record(run, changes(run, noise=0.1), range(5, 101, 5), parts)
    assert Facts(Trajectory.of(run)).why.because_of_push


def test_updates_that_contradict_the_change_do_not_carry_it(run):
    record(run, changes(run, noise=0.1), range(5, 101, 5), sign=-1)
    facts = Facts(Trajectory.of(run))
    assert not facts.why.carries
    assert facts.why.share.high < 0
    assert "probably because" in answer(facts)
    said = finding(run).says
    assert "do not carry chosen's change: 20 of 100 updates explain none of" in said
    assert said in diagnose(run).sentences


def test_a_few_updates_that_differ_are_too_few(run):
    record(run, changes(run, noise=6), (50, 100))
    why = Facts(Trajectory.of(run)).why
    assert why.share.low < 0
    assert why.share.high > 1
    assert "2 of 100 updates are too few" in finding(run).says


def test_one_update_of_many_has_no_interval(run):
    record(run, changes(run, noise=0), (100,))
    why = Facts(Trajectory.of(run)).why
    assert np.isnan(why.share.low)
    assert not why.carries
    assert "[interval unknown]" in finding(run).says


def test_steps_too_large_for_their_forces_are_not_asked_for_more_records(run):
    record(run, changes(run, noise=0.1), range(5, 101, 5), beyond=0.7)
    facts = Facts(Trajectory.of(run))
    assert facts.why.too_large
    assert not facts.why.carries
    assert facts.why.beyond.mean == pytest.approx(0.7 * facts.why.actual.mean, rel=0.1)
    says = finding(run).says
    assert "single updates are too large" in says
    assert "record more" not in says


def test_without_records_nothing_is_said(run):
    facts = Facts(Trajectory.of(run))
    assert facts.why is None
    assert RecordedUpdates.detect(facts) is None


def test_chosen_that_did_not_change_needs_no_updates(tmp_path):
    run = write_run(tmp_path / "run", drift={"chosen": 0.0, "rejected": -40.0})
    rows = Trajectory.of(run).columns["logp"].shape[1]
    noise = 1e-3 * np.random.default_rng(0).standard_normal((100, rows))
    record(run, noise, range(10, 101, 10))
    assert finding(run).severity == "fine"
    assert finding(run).place is None


def test_a_record_that_cannot_be_read_is_left_out(run):
    record(run, changes(run, noise=0.1), range(5, 101, 5))
    (run / "forces" / "step-00000050.parquet").write_bytes(b"cut")
    assert Facts(Trajectory.of(run)).why.recorded == 19


def test_records_of_some_prompts_are_held_against_the_same_ones(run):
    record(run, changes(run, noise=0), range(5, 101, 5))
    opened = RunDirectory.open(run)
    prompts = np.array(opened.read_probes()["prompt_id"].to_pylist())
    rows = np.flatnonzero(prompts < "p008")
    for step in opened.forces_steps:
        one = opened.read_forces(step, influence=False)
        cut = {"probe_ids": rows, "n_tokens": one.n_tokens[rows]}
        for name in ("actual", "predicted", "noise"):
            cut[name] = getattr(one, name)[rows]
        tokens = int(cut["n_tokens"].sum())
        for name in ("token_actual", "token_predicted", "token_text"):
            cut[name] = getattr(one, name)[:tokens]
        for name in ("parts", "groups"):
            cut[name] = {k: v[rows] for k, v in getattr(one, name).items()}
        opened.write_forces(dataclasses.replace(one, **cut))
    facts = Facts(Trajectory.of(run))
    assert facts.why.prompts == 8
    assert facts.why.actual.mean != facts.state.chosen.nats.mean
    assert facts.why.share.mean == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "flags", "typed"),
    [
        ((50, 100), True, "--forces 1."),
        ((50, 100), False, "forces=1."),
        ((25, 50, 75, 100), True, "--forces 1 --every 12."),
        ((100,), True, "--forces 2."),
    ],
)
def test_what_to_type_for_more_records(run, steps, flags, typed):
    if flags:
        (run / "config.yaml").write_text("method: dpo\n")
    record(run, changes(run, noise=6), steps)
    assert finding(run).says.endswith(f"record more with {typed}")


def test_the_spread_of_many_records_says_how_many_more_it_takes(run):
    record(run, changes(run, noise=4), range(5, 101, 5))
    why = Facts(Trajectory.of(run)).why
    assert why.missing > 2
    every = int(max(1, 5 // why.missing))
    assert finding(run).says.endswith(f"record more with forces=1, every={every}.")


@pytest.mark.parametrize("every", [25, 10, 5])
def test_the_interval_holds_the_truth_of_updates_that_were_not_recorded(every):
    held, runs = 0, 300
    generator = np.random.default_rng(1)
    trend = np.linspace(1.5, 0.5, 100)[:, None]
    steps = np.arange(every, 101, every)
    which = _Updates(np.arange(1, 101), np.ones(100), steps)
    for _ in range(runs):
        updates = trend * generator.normal(-0.06, 0.01, 12)
        updates = updates + 0.12 * generator.standard_normal((100, 1))
        truth = updates.sum(axis=0)
        why = _added_up(which, updates[steps - 1], {}, truth)
        held += why.estimate.low <= truth.mean() <= why.estimate.high
    assert 0.9 <= held / runs <= 0.98


def test_only_records_of_the_split_count(run):
    record(run, changes(run), (50, 100))
    assert why_of(Trajectory.of(run), "train") is not None
    table = RunDirectory.open(run).read_probes()
    split = [["train"] * 48 + ["test"] * (len(table) - 48)]
    place = table.column_names.index("split")
    pq.write_table(table.set_column(place, "split", split), run / "probes.parquet")
    assert 0 < why_of(Trajectory.of(run), "test").prompts < 24


def test_the_page_says_that_one_update_is_not_the_run(run):
    record(run, changes(run, noise=6), (50, 100))
    page = write_report(run).read_text("utf-8")
    assert "Why: the recorded updates over the run" in page
    assert "Update 100: which forces moved what" in page
    assert "Why: the forces of the update" not in page
    assert page.count("are too few") == 3  # verdict, list of findings, forces
    assert finding(run).says in explain_run(run).to_text()
