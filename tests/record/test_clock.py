"""What a run counts in, and which observations its schedule says should be there."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from models import byte_tokenizer
from runs import probes

from learndyn.probes.panel import Panel
from learndyn.probes.tokenize import tokenize
from learndyn.record.run_directory import RunDirectory
from learndyn.record.run_info import RunInfo
from learndyn.train.resume import reopen
from learndyn.train.schedule import Schedule


PANEL = Panel(("p000", "p001"), 2, 9, 0, None)


def panel_of(full_every):
    return Panel(PANEL.prompts, PANEL.size, PANEL.of, PANEL.seed, full_every)


@settings(max_examples=200, deadline=None)
@given(
    every=st.integers(1, 12),
    full_every=st.none() | st.integers(1, 12),
    begin=st.integers(0, 5),
    length=st.integers(1, 40),
    finished=st.booleans(),
    data=st.data(),
)
def test_what_is_missed_is_what_the_trainer_s_schedule_would_have_seen(
    every, full_every, begin, length, finished, data
):
    """The oracle is the schedule that trains: every step that is due, the first and the
    last. Some of what it saw is taken away; exactly the due ones of that are missed."""
    panel, end = panel_of(full_every), begin + length
    plan = Schedule(every, panel=2, full_every=full_every)
    seen = [s for s in range(begin, end + 1) if s in (begin, end)]
    seen += [s for s in range(begin + 1, end) if plan.is_due(s, panel)]
    taken = data.draw(st.sets(st.sampled_from(sorted(seen))))
    left = sorted(set(seen) - (taken - {begin}))
    info = {"every": every, "panel": panel.to_info(), "finished": finished}
    if finished:
        info["final_step"] = end
    reach = end if finished else max(left)
    expected = [
        s for s in sorted(taken) if begin < s <= reach and plan.is_due(s, panel)
    ]
    assert list(RunInfo.of(info).missing_steps(left)) == expected


@pytest.mark.parametrize(
    "every",
    ["log", None, 0, -5, True, 2.5],
    ids=["log", "null", "0", "-5", "true", "f"],
)
def test_a_schedule_that_is_not_regular_or_not_known_misses_nothing(every):
    assert RunInfo.of({"every": every}).missing_steps([0, 25, 100]) == ()
    assert RunInfo.of({}).missing_steps([0, 25, 100]) == ()
    assert RunInfo.of({"every": 25}).missing_steps([]) == ()


def test_a_run_that_goes_on_misses_nothing_after_its_last_observation():
    going = {"every": 25, "finished": False, "final_step": 100}
    assert RunInfo.of(going).missing_steps([0, 50]) == (25,)
    assert RunInfo.of({**going, "finished": True}).missing_steps([0, 50]) == (
        25,
        75,
        100,
    )


def test_steps_are_updates_unless_run_json_says_otherwise():
    assert RunInfo.of({}).step_unit == "update"
    assert RunInfo.of({"step_unit": None}).step_unit == "update"
    assert RunInfo.of({"step_unit": "evaluation"}).step_unit == "evaluation"


@pytest.mark.parametrize(("now", "kept"), [(2, 2), (3, None), ("log", None)])
def test_a_run_that_is_resumed_with_another_schedule_has_none(tmp_path, now, kept):
    watched = tokenize(probes(), byte_tokenizer(262))
    info = {
        "every": 2,
        "probe_fingerprint": watched.probes.fingerprint,
        "tokenizer_sha256": watched.tokenizer_hash,
    }
    RunDirectory.create(tmp_path / "run", watched.to_table(), info)
    limits = {"max_length": None, "max_prompt_length": None}
    reopen(tmp_path / "run", watched, limits, Schedule(now))
    found = RunDirectory.open(tmp_path / "run").info
    assert found["every"] == kept
    missed = found.missing_steps(np.array([0, 2, 3, 6]).tolist())
    assert missed == (() if kept is None else (4,))
