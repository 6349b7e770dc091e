"""Chosen's peak: planted ones are found, and noise is not called one."""

import dataclasses

import numpy as np
import pytest
from planted import planted, with_column, with_kinds, with_prompts
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.chosen_peak import ChosenPeak, stop_at_peak
from learndyn.diagnose.peak import chosen_peak
from learndyn.record.trajectory import Trajectory


KINDS = ("chosen", "rejected")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    options = {"prompts": 40, "steps": (0, 10, 20, 30, 40, 50)}
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0), **options))


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


def test_a_peak_at_the_end_is_no_reason_to_stop(base):
    run = planted(base, {"chosen": 8.0}, noise=0.1)
    assert not chosen_peak(run).inside
    assert ChosenPeak.detect(Facts(run)).severity == "fine"


def test_a_sure_but_tiny_fall_is_no_reason_to_stop(base):
    # 8 tokens: 0.08 nats per response are 0.01 per token
    bump = np.array([0.0, 0.5, 1.0, 0.5, 0.3, 0.3])
    run = planted(base, {"chosen": 0.1}, shape=bump, noise=0.0)
    peak = chosen_peak(run)
    assert peak.fall.below_zero
    assert peak.inside
    assert not peak.fell
    assert "has not surely fallen since" in ChosenPeak.detect(Facts(run)).says


def test_chosen_that_never_rose_has_fallen_from_the_start(base):
    for shape in (np.linspace(0, 1, 6), np.array([0, -0.005, 0.2, 0.4, 0.8, 1])):
        run = planted(base, {"chosen": -8.0}, shape=shape, noise=0.1)
        finding = ChosenPeak.detect(Facts(run))
        assert (finding.severity, finding.place) == ("watch", None)
        assert finding.says.startswith("Chosen never rose by 0.01 nats per token above")
        assert "(−1.0 per token)" in finding.says
        assert stop_at_peak(Facts(run)) == []
    still = ChosenPeak.detect(Facts(planted(base, {"chosen": -0.01}, noise=0.1)))
    assert still.severity == "fine"
    assert "nor did it surely fall by as much" in still.says


def test_where_tokens_are_unknown_one_nat_per_response_counts(base):
    for total, fell in ((0.6, False), (1.5, True)):
        run = planted(base, {"chosen": total}, shape=BUMP, noise=0.0)
        run = dataclasses.replace(run, n_tokens=np.zeros_like(run.n_tokens))
        peak = chosen_peak(run)
        assert (peak.tokens, peak.smallest, peak.turned) == (None, 1.0, fell)


def walks(base, seed, drift=0.0):
    """Chosen as a random walk in every prompt, with a mean drift per look."""
    steps = np.random.default_rng(seed).normal(drift, 6.0, (6, 40))
    path = -60.0 + np.vstack([np.zeros((1, 40)), np.cumsum(steps[1:], axis=0)])
    return with_column(base, "logp", "chosen", path)


def test_a_peak_of_noise_is_seldom_called_a_fall(base):
    peaks = [chosen_peak(walks(base, seed)) for seed in range(200)]
    naive = [p.inside and p.fall.mean < -1.2 for p in peaks]
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
