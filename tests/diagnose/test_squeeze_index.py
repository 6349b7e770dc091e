"""The squeeze index: its definition, its intervals, and that it decides nothing."""

import numpy as np
import pytest
from simulated import drifting, simulated

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import GREEDY
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.squeeze_index import _squeeze_index, squeeze_index
from learndyn.diagnose.state import state_of


def oracle(trajectory):
    """SX over the last 20 %, by plain sums."""
    steps = len(trajectory.steps)
    last = range(steps - max(1, round(0.2 * steps)), steps)
    paths = {k: trajectory.values("logp", k) for k in trajectory.kinds}
    paths["greedy"] = trajectory.values("argmax_logp", "chosen")
    share = {}
    for kind, path in paths.items():
        begin = sum(path[0]) / len(path[0])
        each = [(sum(path[t]) / len(path[t]) - begin) / abs(begin) for t in last]
        share[kind] = sum(each) / len(each)
    greedy = share.pop("greedy")
    return greedy - max(share.values())


@pytest.mark.parametrize("steps", [2, 4, 5, 7, 12, 50])
def test_the_means_are_those_of_the_definition(steps):
    generator = np.random.default_rng(steps)
    begin = -30 - 40 * generator.random((1, 25))

    def walk():
        moves = generator.normal(size=(steps, 25)).cumsum(axis=0)
        return begin + moves - moves[0]

    run = simulated({k: walk() for k in ("chosen", "rejected", "random_words")}, walk())
    assert squeeze_index(run).end.mean == pytest.approx(oracle(run))


def test_the_curve_is_zero_at_the_start_and_agrees_with_the_evidence_at_the_end():
    run = drifting({"chosen": -0.1, "rejected": -0.4}, 0.2)
    found = squeeze_index(run)
    assert found.path.at(0) == Interval(0.0, 0.0, 0.0, 40)
    end = squeeze_evidence(run)
    best = max(share.mean for share in end.relative.values())
    assert found.path.mean[-1] == pytest.approx(end.greedy_relative.mean - best)
    assert found.steps.tolist() == list(range(0, 110, 10))


def test_scaling_all_log_probabilities_changes_nothing():
    small = squeeze_index(drifting({"chosen": -0.1, "rejected": -0.4}, 0.2))
    large = squeeze_index(
        drifting(
            {"chosen": -0.1, "rejected": -0.4}, 0.2, start=-600.0, greedy_start=-200.0
        )
    )
    one, other = small.end, large.end
    assert [one.mean, one.low, one.high] == pytest.approx(
        [other.mean, other.low, other.high]
    )


def test_a_kind_of_one_row_is_the_same_in_every_resample():
    shape = (5, 30)
    generator = np.random.default_rng(0)
    end = 0.3 + 0.2 * generator.standard_normal(30)
    greedy = -20 + 20 * np.linspace(0, 1, 5)[:, None] * end
    chosen = np.full(shape, -60.0) - 30 * np.linspace(0, 1, 5)[:, None]
    mean = (-50 + 5 * np.linspace(0, 1, 5))[:, None]  # best kind, rises by 10 %
    run = simulated({"chosen": chosen, "rejected": mean}, greedy)
    # the recorded mean is of a prompt of its own, the first by name
    alone, others = np.full((1, 31), np.nan), np.full((1, 31), np.nan)
    alone[0, 0], others[0, 1:] = 5.0, greedy[-1] - greedy[0]
    starts = {GREEDY: np.full(31, 20.0), "rejected": np.full(31, 50.0)}
    index = _squeeze_index({GREEDY: others, "rejected": alone}, starts)
    sx, path = squeeze_index(run).end, index.greedy.at(0)
    assert sx.mean == pytest.approx(path.mean - 0.1)
    assert sx.low == pytest.approx(path.low - 0.1)
    assert sx.high == pytest.approx(path.high - 0.1)


def test_a_probability_of_zero_is_left_out_like_any_value_that_is_not_finite():
    run = drifting({"chosen": -0.2, "rejected": -0.6}, 0.3)
    expected = drifting({"chosen": -0.2, "rejected": -0.6}, 0.3)
    gone = run.prompt_of == "p0003"
    run.columns["logp"][:, gone] = -np.inf
    expected.columns["logp"][:, gone] = np.nan
    assert squeeze_index(run).end == squeeze_index(expected).end


def test_an_index_above_zero_names_nothing():
    # an SFT that fits: chosen gains 84 % of its start, the greedy path 88 %
    run = drifting({"chosen": 0.84, "rejected": 0.5}, 0.88)
    assert squeeze_index(run).end.above_zero
    assert state_of(run).state == "FIT"
