"""What is looked for in a run: planted signs are found, and noise is not called one."""

import dataclasses

import numpy as np
import pytest
from planted import planted, with_column, with_info, with_splits
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.chosen_peak import ChosenPeak
from learndyn.diagnose.findings.signs.hallucination import (
    Hallucination,
    _excess_over_unseen,
)
from learndyn.diagnose.findings.signs.overfit import Overfit, _split_gap
from learndyn.diagnose.findings.signs.peakiness import Peakiness, _sharpening
from learndyn.diagnose.peak import chosen_peak
from learndyn.record.trajectory import Trajectory


KINDS = (
    *("chosen", "rejected", "irrelevant_train"),
    *("irrelevant_test", "irrelevant_human"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    options = {"prompts": 40, "steps": (0, 10, 20, 30, 40, 50)}
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0), **options))


# --- hallucination


def test_answers_of_other_training_prompts_that_rise_alone_are_found(base):
    drift = {"irrelevant_train": 6.0, "irrelevant_test": 1.0, "irrelevant_human": 2.0}
    run = planted(base, drift)
    found = _excess_over_unseen(run)
    assert found.sure
    finding = Hallucination.detect(Facts(run))
    assert (finding.severity, finding.at) == ("watch", "kinds")
    assert "sign of hallucination" in finding.says
    ends = {
        kind: np.diff(run.values("logp", kind)[[0, -1]], axis=0)[0] for kind in drift
    }
    unseen = (ends["irrelevant_test"] + ends["irrelevant_human"]) / 2
    assert found.excess.mean == pytest.approx(
        (ends["irrelevant_train"] - unseen).mean()
    )


@pytest.mark.parametrize(
    "drift",
    [
        {"irrelevant_train": 6.0, "irrelevant_test": 6.0, "irrelevant_human": 6.0},
        {"irrelevant_train": -6.0, "irrelevant_test": -9.0, "irrelevant_human": -9.0},
        {"irrelevant_train": 0.3, "irrelevant_test": -9.0, "irrelevant_human": -9.0},
    ],
    ids=["all-rise-alike", "all-fall", "rises-by-less-than-two-percent"],
)
def test_a_rise_that_all_share_or_no_rise_is_no_hallucination(base, drift):
    run = planted(base, drift, seed=3)
    assert not _excess_over_unseen(run).sure
    assert Hallucination.detect(Facts(run)).severity == "fine"


def test_an_excess_in_nats_alone_is_not_enough(base):
    # The unseen answers are five times shorter: the same share is fewer nats.
    drift = {"irrelevant_train": 6.0, "irrelevant_test": 1.2, "irrelevant_human": 1.2}
    run = planted(base, drift)
    for kind in ("irrelevant_test", "irrelevant_human"):
        path = run.values("logp", kind)
        run = with_column(run, "logp", kind, path + 48.0)
    found = _excess_over_unseen(run)
    assert found.excess.above_zero
    assert not found.excess_share.above_zero
    assert not found.sure


def test_an_excess_relative_to_the_start_alone_is_not_enough(base):
    # The unseen answers are five times longer: more nats are a smaller share.
    drift = {"irrelevant_train": 3.0, "irrelevant_test": 6.0, "irrelevant_human": 6.0}
    run = planted(base, drift)
    for kind in ("irrelevant_test", "irrelevant_human"):
        run = with_column(run, "logp", kind, run.values("logp", kind) - 240.0)
    found = _excess_over_unseen(run)
    assert found.excess_share.above_zero
    assert not found.excess.above_zero
    assert not found.sure


def test_without_unseen_answers_a_rise_is_told_with_what_it_cannot_tell(base):
    few = with_kinds(base, ("chosen", "rejected", "irrelevant_train"))
    run = planted(few, {"irrelevant_train": 6.0})
    found = _excess_over_unseen(run)
    assert found.excess is None
    assert not found.sure
    assert (
        "cannot be told from a change of style" in Hallucination.detect(Facts(run)).says
    )
    assert _excess_over_unseen(with_kinds(base, ("chosen", "rejected"))) is None


ODD = {"column": "irrelevant_test", "what": "irrelevant_test is training text."}


@pytest.mark.parametrize(
    ("kinds", "rise", "severity"),
    [(KINDS, 6.0, "watch"), (KINDS, -6.0, "fine"), (KINDS[:4], 6.0, "watch")],
    ids=["rises", "falls", "nothing-else-unseen"],
)
def test_answers_that_are_training_text_are_not_called_unseen(
    base, kinds, rise, severity
):
    drift = {"irrelevant_train": rise, "irrelevant_test": 6.0, "irrelevant_human": 1.0}
    run = planted(with_kinds(base, kinds), drift)
    odd = with_info(run, defects=[ODD])
    found = _excess_over_unseen(odd)
    assert found.unseen == tuple({"irrelevant_human"} & set(kinds))
    finding = Hallucination.detect(Facts(odd))
    assert finding.severity == severity
    assert finding.says.endswith("not unseen: irrelevant_test is training text.")
    if found.unseen:
        train, human = (
            np.diff(run.values("logp", kind)[[0, -1]], axis=0)[0]
            for kind in ("irrelevant_train", "irrelevant_human")
        )
        assert found.excess.mean == pytest.approx((train - human).mean())
    plain = _excess_over_unseen(run)
    assert "irrelevant_test" in plain.unseen
    assert "Left out" not in Hallucination.detect(Facts(run)).says


def test_equal_rises_are_seldom_called_hallucination(base):
    drift = {"irrelevant_train": 3.0, "irrelevant_test": 3.0, "irrelevant_human": 3.0}
    runs = [planted(base, drift, spread=4.0, seed=s) for s in range(200)]
    assert np.mean([_excess_over_unseen(run).sure for run in runs]) < 0.05


# --- training prompts against others


def half_test(run):
    """The same with every second prompt in the split "test"."""
    odd = np.array([int(prompt[1:]) % 2 for prompt in run.prompt_of])
    return with_splits(run, np.where(odd, "test", "train"))


def test_training_prompts_that_gain_more_are_found_with_where_they_part(base):
    run = planted(base, {"chosen": 3.0}, noise=0.1)
    shape = np.array([0, 1, 0, 1, 1, 1])  # apart, together again, apart for good
    path = run.values("logp", "chosen")
    train = np.array([int(p[1:]) % 2 == 0 for p in run.prompt_of[run.rows("chosen")]])
    path = path + 6.0 * shape[:, None] * train
    run = half_test(with_column(run, "logp", "chosen", path))
    found = _split_gap(run)
    assert found.sure
    assert found.parted == 30
    assert Overfit.detect(Facts(run)).severity == "watch"
    ends = path[-1] - path[0]
    expected = ends[train].mean() - ends[~train].mean()
    assert found.difference.mean == pytest.approx(expected)
    errors = [ends[group].std(ddof=1) / np.sqrt(20) for group in (train, ~train)]
    half = (found.difference.high - found.difference.low) / 2
    assert half == pytest.approx(2.09 * np.hypot(*errors), rel=0.12)  # t of 19


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [(-1.0, -5.0, "fall less"), (5.0, 1.0, "gain more"), (0.0, -5.0, "fare better")],
)
def test_training_prompts_that_fall_less_are_not_said_to_gain(base, train, test, says):
    run = planted(base, {"chosen": 3.0}, noise=0.1)
    own = np.array([int(p[1:]) % 2 == 0 for p in run.prompt_of[run.rows("chosen")]])
    path = run.values("logp", "chosen")
    wobble = 0.01 * (path - path[0]) * (-1) ** (np.arange(40) // 2)
    path = path[0] + (path - path[0]) * np.where(own, train, test)
    run = half_test(with_column(run, "logp", "chosen", path + wobble))
    finding = Overfit.detect(Facts(run))
    assert finding.severity == "watch"
    assert finding.says.startswith(f"Training prompts {says} than others")


def test_test_prompts_that_fall_while_training_prompts_rise_are_a_problem(base):
    run = planted(base, {"chosen": 4.0}, noise=0.1)
    train = np.array([int(p[1:]) % 2 == 0 for p in run.prompt_of[run.rows("chosen")]])
    path = run.values("logp", "chosen")
    path = path[0] + (path - path[0]) * np.where(train, 1.0, -1.0)
    run = half_test(with_column(run, "logp", "chosen", path))
    finding = Overfit.detect(Facts(run))
    assert finding.severity == "problem"
    assert finding.says.startswith("Overfitting: chosen changed by +")


def test_longer_test_prompts_may_gain_a_smaller_share(base):
    # More nats on test prompts, which are five times longer: that is no overfitting.
    run = planted(base, {"chosen": 3.0}, noise=0.1)
    train = np.array([int(p[1:]) % 2 == 0 for p in run.prompt_of[run.rows("chosen")]])
    path = run.values("logp", "chosen")
    path = path[0] + (path - path[0]) * np.where(train, 1.0, 2.0) - 240.0 * ~train
    found = _split_gap(half_test(with_column(run, "logp", "chosen", path)))
    assert found.relative.above_zero
    assert not found.difference.above_zero
    assert not found.sure


def test_two_groups_of_equal_numbers_are_drawn_independently(base):
    # Drawn alike, twins would differ by nothing in every resample.
    run = planted(base, {"chosen": 3.0})
    path = run.values("logp", "chosen").copy()
    path[:, 1::2] = path[:, 0::2]
    found = _split_gap(half_test(with_column(run, "logp", "chosen", path)))
    assert found.difference.mean == pytest.approx(0)
    assert found.difference.low < -0.1 < 0.1 < found.difference.high


def test_one_split_has_nothing_to_compare(base):
    assert _split_gap(planted(base, {"chosen": 3.0})) is None


def test_groups_that_gain_alike_are_seldom_called_overfitting(base):
    runs = [
        half_test(planted(base, {"chosen": 4.0}, spread=6.0, seed=seed))
        for seed in range(200)
    ]
    assert np.mean([_split_gap(run).sure for run in runs]) < 0.06
    assert "No sign of overfitting" in Overfit.detect(Facts(runs[0])).says


# --- chosen's peak


BUMP = np.array([0.0, 0.5, 1.0, 0.5, 0.0, -0.5])


def test_a_peak_is_found_with_the_fall_since_and_the_margin_there(base):
    run = planted(base, {"chosen": 8.0, "rejected": -8.0}, shape=BUMP, noise=0.1)
    peak = chosen_peak(run)
    assert (peak.step, peak.low, peak.high) == (20, 20, 20)
    assert peak.inside
    assert peak.fell
    path, rejected = run.values("logp", "chosen"), run.values("logp", "rejected")
    assert peak.fall.mean == pytest.approx((path[-1] - path[2]).mean())
    assert peak.fall.low < peak.fall.mean < peak.fall.high < 0
    gap = path - rejected
    assert peak.margin == pytest.approx((gap[2] - gap[0]).mean())
    assert peak.margin_end == pytest.approx((gap[-1] - gap[0]).mean())
    finding = ChosenPeak.detect(Facts(run))
    assert finding.says.startswith("Stop at about update 20 (in 95 %")


def test_the_peak_is_picked_anew_in_every_resample(base):
    # Half of the prompts peak at 10, half at 40: resamples of the mean go either way.
    run = planted(base, {}, noise=0.0)
    early = np.arange(40) % 2 == 0
    path = np.full((6, 40), -60.0)
    path[1, early] += 8.0
    path[4, ~early] += 8.0
    peak = chosen_peak(with_column(run, "logp", "chosen", path))
    assert (peak.low, peak.high) == (10, 40)
    assert "95 %: 10 to 40" in peak.others


@pytest.mark.parametrize("total", [8.0, -8.0])
def test_a_peak_at_either_end_is_no_reason_to_stop(base, total):
    run = planted(base, {"chosen": total}, noise=0.1)
    assert not chosen_peak(run).inside
    assert ChosenPeak.detect(Facts(run)).severity == "fine"


def test_a_sure_but_tiny_fall_is_no_reason_to_stop(base):
    run = planted(base, {"chosen": 0.4}, shape=BUMP, noise=0.0)
    peak = chosen_peak(run)
    assert peak.fall.below_zero
    assert not peak.fell
    assert "by less than +2.0" in ChosenPeak.detect(Facts(run)).says


def walks(base, seed, drift=0.0):
    """Chosen as a random walk in every prompt, with a mean drift per look."""
    steps = np.random.default_rng(seed).normal(drift, 6.0, (6, 40))
    path = -60.0 + np.vstack([np.zeros((1, 40)), np.cumsum(steps[1:], axis=0)])
    return with_column(base, "logp", "chosen", path)


def test_a_peak_of_noise_is_seldom_called_a_fall(base):
    peaks = [chosen_peak(walks(base, seed)) for seed in range(200)]
    naive = [p.inside and p.fall.mean < -0.02 * 60 for p in peaks]
    assert np.mean(naive) > 0.15  # picked after the fact, it looks like one
    assert np.mean([p.fell for p in peaks]) < 0.05


def test_the_interval_of_the_fall_holds_although_the_peak_was_picked(base):
    # Expected fall from a peak picked at look k: the walk has no drift, so zero.
    falls = [chosen_peak(walks(base, seed)).fall for seed in range(200)]
    known = [fall for fall in falls if np.isfinite(fall.low)]
    assert np.mean([fall.low <= 0 <= fall.high for fall in known]) > 0.93


def test_the_interval_of_the_fall_is_wider_than_that_of_one_look(base):
    path = -60.0 + np.random.default_rng(0).normal(0, 3.0, (6, 40))
    peak = chosen_peak(with_column(base, "logp", "chosen", path))
    change = path[-1] - path[base.steps.tolist().index(peak.step)]
    half = (peak.fall.high - peak.fall.low) / 2
    error = change.std(ddof=1) / np.sqrt(40)
    assert half / error > 2.25  # one look alone: 1.96, and 2.03 with 40 prompts


def test_no_peak_is_looked_for_without_chosen_or_prompts(base):
    assert chosen_peak(with_kinds(base, ("rejected",))) is None
    assert chosen_peak(with_prompts(base, 1)) is None


def test_lost_values_do_not_move_the_peak(base):
    run = planted(base, {"chosen": 8.0}, shape=BUMP, noise=0.1)
    path = run.values("logp", "chosen").copy()
    path[3, 5] = np.nan
    assert chosen_peak(with_column(run, "logp", "chosen", path)).step == 20
    path[-1] = np.nan
    assert chosen_peak(with_column(run, "logp", "chosen", path)) is None


# --- peakiness


def surer(base, p_norm2, right, chosen):
    """A run whose ||pi||^2 and pi(y) along chosen change by so much, and chosen."""
    run = planted(base, {"chosen": chosen})
    rise = np.linspace(0, 1, 6)[:, None] * (1 + 0.2 * np.sin(np.arange(40)))
    run = with_column(run, "p_norm2", "chosen", 0.3 + p_norm2 * rise)
    return with_column(run, "energy", "chosen", 0.6 - right * rise)


def test_a_model_that_is_surer_of_other_tokens_is_found(base):
    finding = Peakiness.detect(Facts(surer(base, 0.10, -0.02, -4.0)))
    assert (finding.name, finding.severity) == ("peakiness", "watch")
    assert "repetition itself is not known" in finding.says
    assert finding.numbers["beyond_chosen"][0] == pytest.approx(0.12, rel=0.05)


@pytest.mark.parametrize(
    ("p_norm2", "right", "chosen"),
    [(0.10, 0.15, -4.0), (0.10, -0.02, 4.0), (0.005, -0.02, -4.0), (-0.1, -0.2, -4.0)],
    ids=["surer-of-chosen", "chosen-rises", "too-little", "less-sure"],
)
def test_each_sign_of_peakiness_is_needed(base, p_norm2, right, chosen):
    run = surer(base, p_norm2, right, chosen)
    assert Peakiness.detect(Facts(run)).severity == "fine"


def test_the_norm_of_a_is_told_where_the_number_of_logits_is_known(base):
    run = surer(base, 0.10, -0.02, -4.0)
    assert _sharpening(run).a_norm is None
    first, last = _sharpening(with_info(run, vocabulary=1000)).a_norm
    assert first == pytest.approx(np.sqrt(1000 - 2 + 1000 * 0.3))
    assert last > first


def test_columns_that_are_not_known_give_no_finding(base):
    run = with_column(base, "energy", "chosen", np.full((6, 40), np.nan))
    assert _sharpening(run) is None
    assert _sharpening(with_kinds(base, ("rejected",))) is None


def with_kinds(run, kinds):
    """Only the probes of these kinds."""
    return _only(run, np.isin(run.kind_of, kinds))


def with_prompts(run, count):
    """Only the first prompts."""
    return _only(run, np.isin(run.prompt_of, np.unique(run.prompt_of)[:count]))


def _only(run, keep):
    rows = np.flatnonzero(keep)
    columns = {name: values[:, rows] for name, values in run.columns.items()}
    return dataclasses.replace(
        run,
        probes=run.probes.take(rows),
        n_tokens=run.n_tokens[rows],
        columns=columns,
        scored=None,
    )
