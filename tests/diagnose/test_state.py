"""The state of a run: planted states are found, and sureness means what it says."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
from simulated import TOKENS, drifting, simulated

from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
)
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.state import Move, StateReport, _named, state_of
from learndyn.errors import BadInput


# relative changes of -60 (kinds) and -20 (greedy path): 8 tokens a response
PLANTED = {
    "SQUEEZE": ({"chosen": -0.2, "rejected": -0.6}, 0.3),
    "FIT": ({"chosen": 0.4, "rejected": 0.1, "irrelevant_train": -0.3}, 0.2),
    "DISPLACED": ({"chosen": -0.2, "rejected": -0.5, "irrelevant_train": 0.2}, -0.1),
    "COLLAPSE": ({"chosen": -0.2, "rejected": -0.5}, -0.1),
    "STILL": ({"chosen": 0.0005, "rejected": -0.0005}, 0.0005),
}


@pytest.mark.parametrize("state", PLANTED)
def test_a_planted_state_is_found_and_sure_where_prompts_agree(state):
    ends, greedy = PLANTED[state]
    report = state_of(drifting(ends, greedy, spread=0.0005))
    assert (report.state, report.sure, report.reason) == (state, True, None)


@pytest.mark.parametrize("state", PLANTED)
def test_nothing_is_named_where_prompts_differ_widely(state):
    ends, greedy = PLANTED[state]
    report = state_of(drifting(ends, greedy, spread=3.0))
    assert (report.state, report.sure) == ("UNDECIDED", False)


def interval(low, high):
    return Interval((low + high) / 2, low, high, 24)


def moved(low, high):
    """A move of nats per token, 8 tokens a response."""
    size = interval(low, high)
    return Move(interval(8 * low, 8 * high), size, size, size)


UP, DOWN, UNSURE, SLIGHT = (0.2, 0.4), (-0.4, -0.2), (-0.2, 0.3), (-0.001, 0.002)
DEEP = (-3.0, -2.0)
SMALL = (0.001, 0.009)  # surely above zero, and smaller than what counts

TRUTH_TABLE = [
    # chosen, greedy, SQ, off-target, other kind, pushes down -> state, new peaks
    (SLIGHT, SLIGHT, SLIGHT, None, SLIGHT, True, "STILL", False),
    (SMALL, SMALL, SLIGHT, None, SLIGHT, True, "STILL", False),
    (SLIGHT, SLIGHT, SLIGHT, None, DOWN, True, "UNDECIDED", False),
    (DOWN, UP, UP, UP, DOWN, True, "SQUEEZE", False),
    (DOWN, UP, UP, UNSURE, DOWN, True, "SQUEEZE", False),
    (DOWN, UP, UP, None, DOWN, True, "SQUEEZE", False),
    (UNSURE, UP, UP, UP, DOWN, True, "SQUEEZE", False),
    (UP, UP, UP, UP, DOWN, True, "SQUEEZE", False),
    (DOWN, UP, UP, DEEP, DOWN, True, "COLLAPSE", True),
    (DOWN, UP, UP, DOWN, DOWN, True, "DISPLACED", False),  # peaks are new, not deep
    (DOWN, DOWN, UP, UNSURE, DOWN, True, "COLLAPSE", False),
    (DOWN, DOWN, UP, UNSURE, UNSURE, True, "DISPLACED", False),
    (DOWN, SLIGHT, UP, UNSURE, DOWN, True, "DISPLACED", False),
    (DOWN, UNSURE, UP, None, DOWN, True, "DISPLACED", False),
    (UP, UP, DOWN, DEEP, UNSURE, True, "FIT", False),
    (UP, DOWN, DOWN, DEEP, UNSURE, True, "FIT", False),
    (UP, UP, UP, UP, UNSURE, False, "FIT", False),  # SFT squeezes nothing
    (DOWN, UP, UP, UP, UNSURE, False, "DISPLACED", False),
    (UNSURE, DOWN, UNSURE, None, DOWN, True, "UNDECIDED", False),
    (UNSURE, UP, UNSURE, None, DOWN, True, "UNDECIDED", False),
]


def report_of(chosen, greedy, sq, off, other, start=-100.0):
    return StateReport(
        "UNDECIDED",
        False,
        chosen=moved(*chosen),
        greedy=moved(*greedy),
        sq=moved(*sq),
        off_target=None if off is None else moved(*off),
        kinds={"chosen": moved(*chosen), "rejected": moved(*other)},
        start=start,
    )


@pytest.mark.parametrize("row", TRUTH_TABLE)
def test_the_rule_is_its_truth_table(row):
    *moves, pushes, state, new_peaks = row
    report = _named(report_of(*moves), pushes_down=pushes)
    assert (report.state, report.new_peaks) == (state, new_peaks)
    assert report.sure == (state != "UNDECIDED")


def test_a_margin_that_grows_while_chosen_stays_is_a_fit():
    report = report_of(SLIGHT, SLIGHT, SLIGHT, None, DOWN)
    grown = StateReport(**{**vars(report), "margin": moved(*UP)})
    assert _named(grown).state == "FIT"


def test_sums_alone_tell_new_peaks_by_the_size_of_the_fall_and_never_surely():
    small = report_of(DOWN, UP, UP, None, DOWN, start=-100.0)
    whole = report_of(DOWN, UP, UP, None, DOWN, start=-1.0)
    assert (_named(small).state, _named(small).sure) == ("SQUEEZE", True)
    assert (_named(whole).state, _named(whole).sure) == ("COLLAPSE", False)


def test_every_combination_has_one_state_that_its_means_alone_do_not_contradict():
    ends = [UP, DOWN, UNSURE, SLIGHT]
    for chosen, greedy, sq, off in itertools.product(ends, ends, ends, [*ends, None]):
        report = _named(report_of(chosen, greedy, sq, off, UNSURE))
        if report.state == "SQUEEZE":
            assert greedy == sq == UP
        if report.state == "DISPLACED":
            assert chosen == DOWN
        if report.state == "FIT":
            assert chosen == UP


@pytest.mark.parametrize("steps", [2, 4, 5, 7, 12, 50])
def test_the_means_are_those_of_the_definition(steps):
    generator = np.random.default_rng(steps)
    begin = -30 - 40 * generator.random((1, 25))

    def walk():
        moves = generator.normal(size=(steps, 25)).cumsum(axis=0)
        return begin + moves - moves[0]

    run = simulated({k: walk() for k in ("chosen", "rejected", "random_words")}, walk())
    report = state_of(run)
    last = max(1, min(round(0.2 * steps), steps - 1))

    def change(path):
        ends = [sum(row) / len(row) for row in path[-last:]]
        return sum(ends) / last - sum(path[0]) / len(path[0])

    chosen = change(run.values("logp", "chosen"))
    greedy = change(run.values("argmax_logp", "chosen"))
    assert report.chosen.nats.mean == pytest.approx(chosen)
    assert report.greedy.nats.mean == pytest.approx(greedy)
    assert report.sq.nats.mean == pytest.approx(greedy - chosen)
    assert report.sq.per_token.mean == pytest.approx((greedy - chosen) / TOKENS)
    margin = chosen - change(run.values("logp", "rejected"))
    assert report.margin.nats.mean == pytest.approx(margin)


def test_the_level_of_all_log_probabilities_decides_nothing():
    run = drifting({"chosen": -0.1, "rejected": -0.4}, 0.2)
    lower = simulated(
        {kind: run.values("logp", kind) - 500 for kind in run.kinds},
        run.values("argmax_logp", "chosen") - 90,
    )
    one, other = state_of(run), state_of(lower)
    assert one.state == other.state == "SQUEEZE"
    assert one.sq.nats.mean == pytest.approx(other.sq.nats.mean)


def test_sft_that_fits_is_a_fit_at_any_level_and_length_of_its_answers():
    for start, greedy in itertools.product((-5.0, -60.0, -900.0), (0.1, 0.5, 0.99)):
        run = drifting(
            {"chosen": 0.5, "rejected": 0.2},
            greedy,
            start=start,
            info={"method": "sft"},
        )
        assert state_of(run).state == "FIT"


def test_columns_that_hold_labels_do_not_decide():
    run = drifting({"chosen": -0.2, "rejected": -0.5, "lang": 0.5}, -0.1, spread=0.01)
    texts = [f"{k} {i}" if k != "lang" else "en" for i, k in enumerate(run.kind_of)]
    probes = run.probes.append_column("response", [texts])
    report = state_of(dataclasses.replace(run, probes=probes))
    assert (report.state, report.labels) == ("COLLAPSE", ("lang",))
    assert set(report.kinds) == {"chosen", "rejected"}


def flat(nats, prompts=6):
    """A path that starts at -10 and has these changes, for all prompts."""
    return -10.0 + np.outer(nats, np.ones(prompts))


@pytest.mark.parametrize(
    ("greedy", "chosen", "onset"),
    [
        ([0, 1, 1, 1, 1], [0, 0, 0, 0, 0], 10),
        ([0, 1, 1, 0, 1, 1, 1], [0] * 7, 40),  # two in a row are too few
        ([0, 1, 1, 0, 1, 1], [0] * 6, None),
        ([0, 1, 1], [0, 0, 0], 10),  # no more than two after the start
        ([0, 1], [0, 0], 10),
        ([0, 1, 1, 1, 1], [0, 1, 0, 0, 0], 20),
        ([0, 0, 0, 0, 0], [0, 0, -1, -1, -1], 20),  # COLLAPSE, DISPLACED: chosen falls
    ],
)
def test_the_onset_is_the_first_of_three_observations_in_a_row(greedy, chosen, onset):
    run = simulated({"chosen": flat(chosen), "custom": flat(greedy)}, flat(greedy))
    assert state_of(run).onset_step == onset


def test_the_first_sure_observation_waits_for_the_whole_interval():
    noise = np.random.default_rng(0).normal(size=(1, 10))
    trend = 0.1 * np.arange(51)[:, None]
    greedy = -20 + trend + np.where(trend > 0, noise - noise.mean(), 0.0)
    run = simulated({"chosen": np.full((51, 10), -60.0)}, greedy)
    report = state_of(run)
    assert report.onset_step is not None
    assert report.first_sure_step is not None
    assert report.first_sure_step > report.onset_step


def test_a_run_of_means_only_has_a_state_that_is_not_sure():
    def path(share):
        return (-50 + 50 * share * np.linspace(0, 1, 6))[:, None]

    run = simulated({"chosen": path(-0.2), "rejected": path(-0.5)}, path(0.3))
    report = state_of(run)
    assert (report.state, report.sure, report.reason) == ("SQUEEZE", False, None)
    assert np.isnan(report.sq.nats.low)
    assert report.first_sure_step is None


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
    assert broken.sq.nats.mean == pytest.approx(expected.sq.nats.mean)
    assert broken.state == "SQUEEZE"


def test_a_run_that_diverged_at_its_end_has_no_state_and_says_why():
    run = drifting({"chosen": -0.2}, 0.3)
    for column in ("logp", "argmax_logp"):
        run.columns[column][-3:] = np.nan
    report = state_of(run)
    assert (report.state, report.sure) == ("UNDECIDED", False)
    assert "diverged" in report.reason


def test_a_last_observation_that_diverged_leaves_the_state_of_those_before_it():
    run = drifting({"chosen": -0.2}, 0.3)
    run.columns["logp"][-1] = np.nan
    run.columns["argmax_logp"][-1] = np.nan
    report = state_of(run)
    assert (report.state, report.reason) == ("SQUEEZE", None)


def test_probes_without_chosen_have_no_state():
    report = state_of(drifting({"rejected": -0.2}, None))
    assert (report.state, report.sure, report.onset_step) == ("UNDECIDED", False, None)
    assert "so no greedy path" in report.reason


def test_one_observation_has_nothing_to_be_compared_with():
    report = state_of(drifting({"chosen": -0.2}, 0.3, observations=1))
    assert (report.state, report.sure) == ("UNDECIDED", False)
    assert "one observation" in report.reason


def test_one_prompt_has_a_state_that_is_not_sure():
    report = state_of(drifting({"chosen": -0.2}, 0.3, prompts=1))
    assert (report.state, report.sure, report.prompts) == ("SQUEEZE", False, 1)


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
    assert panel.sq == alone.sq


def test_a_split_is_judged_alone():
    splits = ["train"] * 20 + ["test"] * 20
    run = drifting({"chosen": -0.2}, 0.3, spread=0.5, splits=splits)
    assert state_of(run, split="test").prompts == 20
    assert state_of(run, split="test").sq != state_of(run, split="train").sq
    with pytest.raises(BadInput, match="no probe of split dev"):
        state_of(run, split="dev")


# how often the rule is wrong, over simulated runs with a known truth

RUNS = 400


def rates(prompts, truth, *, spread, tails="normal", pushes_down=True):
    """Share of `RUNS` runs given each state. `truth` are nats per token; lengths differ
    by a factor of 20, prompts by `spread`, kinds of one prompt correlate by 0.5."""
    generator = np.random.default_rng(prompts)
    tokens = lengths(prompts)

    def drawn():
        shape = (RUNS, prompts)
        if tails == "heavy":
            return generator.standard_t(5, shape) / np.sqrt(5 / 3)
        return generator.standard_normal(shape)

    common = drawn()
    change = {
        name: (value + spread * np.sqrt(0.5) * (common + drawn())) * tokens
        for name, value in truth.items()
    }
    greedy, off = change.pop("greedy"), change.pop("off", None)
    sq, margin = greedy - change["chosen"], change["chosen"] - change["rejected"]
    every = {**change, "greedy": greedy, "sq": sq, "margin": margin}
    if off is not None:
        every["off"] = off
    moves = {name: many(values, tokens) for name, values in every.items()}
    states = [
        _named(
            StateReport(
                "UNDECIDED",
                False,
                chosen=moves["chosen"][i],
                rejected=moves["rejected"][i],
                margin=moves["margin"][i],
                greedy=moves["greedy"][i],
                sq=moves["sq"][i],
                off_target=moves["off"][i] if off is not None else None,
                kinds={kind: moves[kind][i] for kind in change},
                start=-200.0,
            ),
            pushes_down=pushes_down,
        ).state
        for i in range(RUNS)
    ]
    return {state: states.count(state) / RUNS for state in set(states)}


def lengths(prompts):
    return np.maximum(
        1, np.round(np.exp(np.random.default_rng(0).normal(4, 0.8, prompts)))
    )


def many(change, tokens):
    """`move` of many runs at once."""
    wide = np.broadcast_to(tokens, change.shape)
    usual = pooled_bootstrap(change, wide)
    sure = pooled_bootstrap(change, wide, level=0.99)
    rates = paired_bootstrap(change / wide, level=0.99)
    return [
        Move(usual.at(i), usual.at(i), sure.at(i), rates.at(i)) for i in range(RUNS)
    ]


NOTHING = dict.fromkeys(("chosen", "rejected", "irrelevant_train", "greedy"), 0.0)


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("prompts", [10, 24, 50, 500])
def test_no_change_is_almost_never_called_a_squeeze_or_displaced(prompts, tails):
    found = rates(prompts, NOTHING, spread=0.3, tails=tails)
    assert found.get("SQUEEZE", 0) + found.get("DISPLACED", 0) < 0.0125


EFFECTS = {
    "SQUEEZE": {"chosen": -1.0, "rejected": -3.0, "greedy": 1.0, "off": 1.0},
    "DISPLACED": {"chosen": -1.0, "rejected": 1.0, "greedy": 0.0},
    "COLLAPSE": {"chosen": -1.0, "rejected": -1.0, "greedy": -1.0},
    "FIT": {"chosen": 1.0, "rejected": 0.0, "greedy": 0.0},
}


@pytest.mark.parametrize("state", EFFECTS)
@pytest.mark.parametrize("prompts", [10, 24, 50, 500])
def test_an_effect_of_twice_the_interval_is_found_in_nine_runs_of_ten(prompts, state):
    spread = 0.3
    tokens = lengths(prompts)
    noise = spread * np.random.default_rng(1).normal(size=(RUNS, prompts)) * tokens
    intervals = [move.surely for move in many(noise, tokens)]
    size = 2 * float(np.mean([(i.high - i.low) / 2 for i in intervals]))
    truth = {name: size * value for name, value in EFFECTS[state].items()}
    assert rates(prompts, truth, spread=spread).get(state, 0) >= 0.9


@pytest.mark.parametrize("prompts", [10, 50])
def test_sft_that_fits_is_never_called_a_squeeze(prompts):
    truth = {"chosen": 0.1, "rejected": 0.05, "greedy": 0.6, "off": 0.5}
    found = rates(prompts, truth, spread=0.3, pushes_down=False)
    assert "SQUEEZE" not in found


def test_500_prompts_of_13_kinds_at_200_observations_take_two_seconds_at_most():
    generator = np.random.default_rng(0)
    names = ["chosen", *(f"kind_{i}" for i in range(12))]
    logp = {k: -60 + generator.normal(size=(200, 500)).cumsum(0) for k in names}
    run = simulated(logp, -20 + generator.normal(size=(200, 500)).cumsum(0))
    Paths.of(run)
    before = time.process_time()
    state_of(run)
    assert time.process_time() - before < 2
