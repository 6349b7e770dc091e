"""What contradicts the verdict is said beside it, with its likely reason."""

import json

import numpy as np
import pytest
from simulated import drifting, simulated

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.consistency import Consistency
from learndyn.diagnose.verdict import diagnose
from learndyn.record.run_directory import RunDirectory


DPO = {"method": "dpo", "trainer": {"beta": 0.1}}
FELL = {"chosen": -0.2, "rejected": -0.6}


def with_log(tmp_path, rewards, ends=FELL):
    """A run whose log has these rewards/chosen, one row an update."""
    run = drifting(ends, 0.3, info=DPO)
    rows = [{"step": i + 1, "rewards/chosen": r} for i, r in enumerate(rewards)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train.jsonl").write_text(text)
    object.__setattr__(run, "run", RunDirectory(tmp_path, DPO))
    return run


def test_a_log_that_rises_where_the_probes_fall_is_a_contradiction(tmp_path):
    run = with_log(tmp_path, np.linspace(0, 1.9, 20))
    found = Consistency.detect(Facts(run))
    assert found.severity == "watch"
    assert "The log says that chosen changed by +17.5 [+16.2, +18.8]" in found.says
    assert "the probes say −11.4 [−12.9, −10.0]" in found.says
    assert found.says in diagnose(run).sentences


@pytest.mark.parametrize("rewards", [np.linspace(0, -1.2, 20), [0.0] * 20, [1.9] * 5])
def test_a_log_that_agrees_or_is_short_or_silent_is_none(tmp_path, rewards):
    assert Consistency.detect(Facts(with_log(tmp_path, rewards))).severity == "fine"


def run_of(chosen, greedy):
    """Two observations, with these changes of each prompt."""
    ends = [np.zeros(len(chosen)), np.array(chosen)]
    rises = [np.zeros(len(greedy)), np.array(greedy)]
    logp = {"chosen": -60 + np.stack(ends), "rejected": -60 + 9 * np.stack(ends)}
    return simulated(logp, -20 + np.stack(rises), info=DPO)


def test_a_squeeze_that_few_prompts_carry_says_so():
    noise = np.linspace(0.9, 1.1, 40)
    chosen = np.where(np.arange(40) < 12, -30.0, 0.1) * noise
    found = Consistency.detect(Facts(run_of(chosen, 2 * noise)))
    assert "12 of 40 were squeezed" in found.says


def test_most_prompts_squeezed_beside_a_fit_are_said():
    noise = np.linspace(0.9, 1.1, 40)
    chosen = np.where(np.arange(40) < 34, -0.02, 60.0) * noise
    found = Consistency.detect(Facts(run_of(chosen, 0.01 * noise)))
    assert "34 of 40 were squeezed" in found.says


def test_a_turn_within_the_last_fifth_is_said():
    path = np.concatenate([np.linspace(0, -9, 14), [-9, -9, -9, 2.0]])
    chosen = -60 + np.outer(path, np.linspace(0.9, 1.1, 30))
    run = simulated({"chosen": chosen}, np.full_like(chosen, -20.0), info=DPO)
    found = Consistency.detect(Facts(run))
    assert "At the last observation chosen stood at +2.0" in found.says


def test_a_run_in_which_all_agrees_is_fine():
    found = Consistency.detect(Facts(drifting(FELL, 0.3, spread=0.01, info=DPO)))
    assert (found.severity, found.numbers) == ("fine", {})
