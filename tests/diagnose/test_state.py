"""The state of a run: planted states are found, and sureness means what it says."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st
from simulated import drifting, simulated

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.state import DELTA, _judge, _squeeze_index, state_of
from learndyn.errors import BadInput


PLANTED = {
    "SQUEEZE": ({"chosen": -0.2, "rejected": -0.6}, 0.3),
    "FIT": ({"chosen": 0.4, "rejected": 0.1, "irrelevant_train": -0.3}, 0.2),
    "COLLAPSE": ({"chosen": -0.2, "rejected": -0.5}, -0.1),
    "NEUTRAL": ({"chosen": 0.005, "rejected": -0.01}, 0.004),
}


@pytest.mark.parametrize("state", PLANTED)
def test_a_planted_state_is_found_and_sure_where_prompts_agree(state):
    ends, greedy = PLANTED[state]
    found = state_of(drifting(ends, greedy, spread=0.01))
    assert (found.state, found.sure, found.reason) == (state, True, None)


@pytest.mark.parametrize("state", PLANTED)
def test_a_planted_state_is_not_sure_where_prompts_differ_widely(state):
    ends, greedy = PLANTED[state]
    found = state_of(drifting(ends, greedy, spread=3.0))
    assert not found.sure
    # the alarm needs intervals above zero; the other states are told by their means
    assert found.state == ("NEUTRAL" if state == "SQUEEZE" else state)


def test_a_squeeze_is_not_sure_where_an_interval_holds_the_threshold():
    path, best, sx = (Interval(m, m - 0.02, m + 0.02, 9) for m in (0.03, -0.1, 0.13))
    assert _judge(path, best, sx) == ("SQUEEZE", False)
    assert _judge(Interval(0.03, -0.01, 0.07, 9), best, sx) == ("NEUTRAL", False)
    unknown = Interval(0.03, float("nan"), float("nan"), 1)
    assert _judge(unknown, best, sx) == ("SQUEEZE", False)


def test_what_surely_moved_is_a_fit_that_is_not_sure_where_only_the_index_is_not():
    path, best = Interval(0.32, 0.28, 0.36, 9), Interval(0.285, 0.25, 0.32, 9)
    sx = Interval(0.038, -0.013, 0.092, 9)
    assert _judge(path, best, sx) == ("FIT", False)
    weak = Interval(0.32, -0.01, 0.65, 9)
    assert _judge(weak, best, sx) == ("NEUTRAL", False)
    still = Interval(0.015, 0.01, 0.02, 9)  # no kind rises by more than delta
    assert _judge(path, still, sx) == ("NEUTRAL", False)
    clear = Interval(0.038, 0.001, 0.092, 9)
    assert _judge(path, best, clear) == ("SQUEEZE", False)


def test_chosen_that_rises_a_little_below_the_greedy_path_is_still_a_squeeze():
    found = state_of(drifting({"chosen": 0.021, "rejected": -0.3}, 0.123))
    assert found.state == "SQUEEZE"
    assert found.best_kind == "chosen"


def test_most_kinds_fall_in_extended_finetuning_and_yet_it_fits():
    ends = {"chosen": 0.3, "rejected": 0.35} | dict.fromkeys(
        ["irrelevant_train", "irrelevant_test", "random_words", "random_permuted"], -0.2
    )
    found = state_of(drifting(ends, 0.2))
    assert (found.state, found.best_kind, found.kinds) == ("FIT", "rejected", 6)


def oracle(trajectory):
    """g of every path and SX over the last 20 %, by plain sums."""
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
    return greedy, max(share.values()), greedy - max(share.values())


@pytest.mark.parametrize("steps", [2, 4, 5, 7, 12, 50])
def test_the_means_are_those_of_the_definition(steps):
    generator = np.random.default_rng(steps)
    begin = -30 - 40 * generator.random((1, 25))

    def walk():
        moves = generator.normal(size=(steps, 25)).cumsum(axis=0)
        return begin + moves - moves[0]

    run = simulated({k: walk() for k in ("chosen", "rejected", "random_words")}, walk())
    found = state_of(run)
    assert [found.greedy.mean, found.best.mean, found.sx.mean] == pytest.approx(
        oracle(run)
    )


def test_the_curve_is_zero_at_the_start_and_agrees_with_the_evidence_at_the_end():
    run = drifting({"chosen": -0.1, "rejected": -0.4}, 0.2)
    found = state_of(run)
    assert found.index.at(0) == Interval(0.0, 0.0, 0.0, 40)
    end = squeeze_evidence(run)
    best = max(share.mean for share in end.relative.values())
    assert found.index.mean[-1] == pytest.approx(end.greedy_relative.mean - best)
    assert found.steps.tolist() == list(range(0, 110, 10))


def test_scaling_all_log_probabilities_changes_nothing():
    small = state_of(drifting({"chosen": -0.1, "rejected": -0.4}, 0.2))
    large = state_of(
        drifting(
            {"chosen": -0.1, "rejected": -0.4}, 0.2, start=-600.0, greedy_start=-200.0
        )
    )
    for name in ("sx", "greedy", "best"):
        one, other = getattr(small, name), getattr(large, name)
        assert [one.mean, one.low, one.high] == pytest.approx(
            [other.mean, other.low, other.high]
        )


@pytest.mark.parametrize("delta", [0.0, 0.02, 0.19, 0.21, 0.5])
def test_a_squeeze_needs_a_path_that_rises_by_more_than_delta(delta):
    run = drifting({"chosen": -0.1, "rejected": -0.4}, 0.2, observations=3)
    assert (state_of(run, delta=delta).state == "SQUEEZE") == (delta < 0.2)


def test_a_sure_state_holds_anywhere_within_the_intervals():
    ends = list(itertools.combinations_with_replacement((-0.03, 0.0, 0.03), 3))
    sure_ones = set()
    for triple in itertools.product(ends, repeat=3):
        intervals = [Interval(mean, low, high, 9) for low, mean, high in triple]
        state, sure = _judge(*intervals)
        if sure:
            sure_ones.add(state)
            for point in itertools.product(*map(set, triple)):
                assert _judge(*(Interval(x, x, x, 9) for x in point))[0] == state
    assert sure_ones == set(PLANTED)


@given(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_the_state_of_exact_values_is_sure_and_follows_its_rule(greedy, best):
    sx = greedy - best
    state, sure = _judge(*(Interval(x, x, x, 9) for x in (greedy, best, sx)))
    assert sure
    assert (state == "SQUEEZE") == (greedy > DELTA and sx > DELTA)
    assert (state == "FIT") == (best > DELTA and sx <= DELTA)
    assert (state == "COLLAPSE") == (greedy <= DELTA and best < -DELTA)


def test_intervals_without_limits_are_never_sure():
    unknown = Interval(0.5, float("nan"), float("nan"), 1)
    for means in [(0.5, 0.0, 0.5), (0.5, 0.5, 0.0), (0.0, -0.5, 0.5), (0.0, 0.0, 0.0)]:
        given_ = [Interval(m, unknown.low, unknown.high, 1) for m in means]
        assert not _judge(*given_)[1]


def flat(shares, prompts=6):
    """A path that starts at -10 and has these relative changes, for all prompts."""
    return -10.0 + 10.0 * np.outer(shares, np.ones(prompts))


@pytest.mark.parametrize(
    ("greedy", "chosen", "onset"),
    [
        ([0, 0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0, 0], 10),
        ([0, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1], [0] * 7, 40),  # two in a row are too few
        ([0, 0.1, 0.1, 0.0, 0.1, 0.1], [0] * 6, None),
        ([0, 0.1, 0.1], [0, 0, 0], 10),  # no more than two after the start
        ([0, 0.1], [0, 0], 10),
        ([0, 0.0, 0.1], [0, 0, 0], None),
        ([0, 0.01, 0.01, 0.01], [0, -0.2, -0.2, -0.2], None),  # the path must rise too
        ([0, 0.1, 0.1, 0.1, 0.1], [0, 0.1, 0, 0, 0], 20),
    ],
)
def test_the_onset_is_the_first_of_three_observations_in_a_row(greedy, chosen, onset):
    assert (
        state_of(simulated({"chosen": flat(chosen)}, flat(greedy))).onset_step == onset
    )


def test_the_first_sure_observation_waits_for_the_whole_interval():
    run = drifting({"chosen": 0.0}, 0.1, observations=51, spread=0.05, prompts=10)
    found = state_of(run)
    assert found.onset_step is not None
    assert found.first_sure_step is not None
    assert found.first_sure_step > found.onset_step
    at = found.steps.tolist().index(found.first_sure_step)
    values = Paths.of(run).with_greedy()
    changes = {kind: path - path[0] for kind, path in values.items()}
    starts = {kind: np.abs(path[0]) for kind, path in values.items()}
    low = np.minimum(found.index.low, _squeeze_index(changes, starts).greedy.low)
    assert low[at] > DELTA
    assert not (low[:at] > DELTA).any()


def test_a_kind_of_one_row_is_the_same_in_every_resample():
    shape = (5, 30)
    generator = np.random.default_rng(0)
    end = 0.3 + 0.2 * generator.standard_normal(30)
    greedy = -20 + 20 * np.linspace(0, 1, 5)[:, None] * end
    chosen = np.full(shape, -60.0) - 30 * np.linspace(0, 1, 5)[:, None]
    mean = (-50 + 5 * np.linspace(0, 1, 5))[:, None]  # best kind, rises by 10 %
    found = state_of(simulated({"chosen": chosen, "rejected": mean}, greedy))
    assert (found.best_kind, found.fixed) == ("rejected", ("rejected",))
    assert found.sx.mean == pytest.approx(found.greedy.mean - 0.1)
    assert found.sx.low == pytest.approx(found.greedy.low - 0.1)
    assert found.sx.high == pytest.approx(found.greedy.high - 0.1)
    assert found.greedy.n == found.prompts == 30
    assert np.isnan(found.best.low)  # its spread over prompts is not known


def test_a_run_of_means_only_has_a_state_that_is_not_sure():
    def path(share):
        return (-50 + 50 * share * np.linspace(0, 1, 6))[:, None]

    found = state_of(
        simulated({"chosen": path(-0.2), "rejected": path(-0.5)}, path(0.3))
    )
    assert (found.state, found.sure, found.reason) == ("SQUEEZE", False, None)
    assert np.isnan(found.sx.low)
    assert found.onset_step == 10
    assert found.first_sure_step is None


def test_values_that_are_not_finite_are_left_out_of_their_prompt_alone():
    run = drifting({"chosen": -0.2, "rejected": -0.6}, 0.3)
    part = simulated(
        {k: run.values("logp", k)[:, 1:] for k in run.kinds},
        run.values("argmax_logp", "chosen")[:, 1:],
    )
    for column in ("logp", "argmax_logp"):
        run.columns[column][:, run.prompt_of == "p0000"] = np.nan
    broken, expected = state_of(run), state_of(part)
    assert broken.prompts == 39
    assert broken.sx.mean == pytest.approx(expected.sx.mean)
    assert broken.state == "SQUEEZE"


def test_a_probability_of_zero_is_left_out_like_any_value_that_is_not_finite():
    run = drifting({"chosen": -0.2, "rejected": -0.6}, 0.3)
    expected = drifting({"chosen": -0.2, "rejected": -0.6}, 0.3)
    gone = run.prompt_of == "p0003"
    run.columns["logp"][:, gone] = -np.inf
    expected.columns["logp"][:, gone] = np.nan
    assert state_of(run).sx == state_of(expected).sx


def test_a_run_that_diverged_at_its_end_has_no_state_and_says_why():
    run = drifting({"chosen": -0.2}, 0.3)
    run.columns["logp"][-3:] = np.nan
    run.columns["argmax_logp"][-3:] = np.nan
    found = state_of(run)
    assert (found.state, found.sure) == ("NEUTRAL", False)
    assert "diverged" in found.reason
    assert found.index.mean[5] > DELTA  # what came before is still shown


def test_a_last_observation_that_diverged_leaves_the_state_of_those_before_it():
    run = drifting({"chosen": -0.2}, 0.3)
    run.columns["logp"][-1] = np.nan
    run.columns["argmax_logp"][-1] = np.nan
    found = state_of(run)
    assert (found.state, found.reason) == ("SQUEEZE", None)


def test_probes_without_chosen_have_no_greedy_path_and_no_state():
    found = state_of(drifting({"rejected": -0.2}, None))
    assert (found.state, found.sure, found.onset_step) == ("NEUTRAL", False, None)
    assert "so no greedy path" in found.reason


def test_one_observation_has_nothing_to_be_compared_with():
    found = state_of(drifting({"chosen": -0.2}, 0.3, observations=1))
    assert (found.state, found.sure) == ("NEUTRAL", False)
    assert "one observation" in found.reason


def test_one_prompt_has_a_state_that_is_not_sure():
    found = state_of(drifting({"chosen": -0.2}, 0.3, prompts=1))
    assert (found.state, found.sure, found.prompts) == ("SQUEEZE", False, 1)


def test_between_full_observations_only_the_panel_is_judged():
    ends, options = {"chosen": -0.2, "rejected": -0.6}, {"spread": 0.5, "seed": 3}
    whole = drifting(ends, 0.3, **options)
    panel = state_of(drifting(ends, 0.3, panel=range(10), **options))
    alone = state_of(
        simulated(
            {k: whole.values("logp", k)[:, :10] for k in whole.kinds},
            whole.values("argmax_logp", "chosen")[:, :10],
        )
    )
    assert panel.prompts == 10
    assert panel.sx == alone.sx
    assert (panel.index.mean == alone.index.mean).all()


def test_a_split_is_judged_alone():
    splits = ["train"] * 20 + ["test"] * 20
    run = drifting({"chosen": -0.2}, 0.3, spread=0.5, splits=splits)
    assert state_of(run, split="test").prompts == 20
    assert state_of(run, split="test").sx != state_of(run, split="train").sx
    with pytest.raises(BadInput, match="no probe of split dev"):
        state_of(run, split="dev")


def test_500_prompts_of_13_kinds_at_200_observations_take_two_seconds_at_most():
    generator = np.random.default_rng(0)
    names = ["chosen", *(f"kind_{i}" for i in range(12))]
    logp = {k: -60 + generator.normal(size=(200, 500)).cumsum(0) for k in names}
    run = simulated(logp, -20 + generator.normal(size=(200, 500)).cumsum(0))
    before = time.process_time()
    state_of(run)
    assert time.process_time() - before < 2
    tracemalloc.start()
    state_of(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6
