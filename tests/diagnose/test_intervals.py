"""Intervals: they cover as often as they say, keep pairs, and count honestly."""

import numpy as np
import pytest

from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
    resample_weights,
)


def test_a_95_percent_interval_covers_the_truth_in_93_to_97_percent_of_samples():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(1000, 120))
    band = paired_bootstrap(values)
    covered = np.mean((band.low < 3.0) & (band.high > 3.0))
    assert 0.93 <= covered <= 0.97


def test_a_90_percent_interval_covers_less_often_than_a_95_percent_one():
    values = np.random.default_rng(1).normal(size=(1000, 120))
    band = paired_bootstrap(values, level=0.9)
    assert 0.87 <= np.mean((band.low < 0) & (band.high > 0)) <= 0.93


def test_a_pooled_ratio_covers_the_ratio_of_expectations():
    generator = np.random.default_rng(2)
    tokens = generator.integers(1, 60, size=(600, 150)).astype(float)
    nats = -0.5 * tokens + generator.normal(size=tokens.shape)
    band = pooled_bootstrap(nats, tokens)
    assert 0.92 <= np.mean((band.low < -0.5) & (band.high > -0.5)) <= 0.98


def test_a_pooled_ratio_is_sum_over_sum_and_not_the_mean_of_ratios():
    nats, tokens = np.array([-19.0, -10.0]), np.array([1.0, 99.0])
    assert pooled_bootstrap(nats, tokens).at().mean == pytest.approx(-29 / 100)
    assert np.mean(nats / tokens) < -9  # one empty response would rule the mean


def test_resamples_are_the_same_for_every_row_so_that_differences_stay_paired():
    noise = np.random.default_rng(3).normal(scale=100, size=50)
    band = paired_bootstrap(np.stack([noise, noise + 1]))
    assert band.low[1] - band.low[0] == pytest.approx(1)
    assert band.high[1] - band.high[0] == pytest.approx(1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(4).normal(size=40)
    assert paired_bootstrap(values).at() == paired_bootstrap(values).at()
    assert paired_bootstrap(values).at() != paired_bootstrap(values, seed=1).at()


def test_every_resample_draws_as_many_prompts_as_there_are():
    assert (resample_weights(17).sum(axis=1) == 17).all()


def test_values_that_are_not_finite_are_left_out_and_not_counted():
    values = np.array([[1.0, 2.0, np.nan, 3.0], [1.0, 2.0, 3.0, 4.0]])
    band = paired_bootstrap(values)
    assert band.n.tolist() == [3, 4]
    assert band.mean.tolist() == [2.0, 2.5]
    assert np.isfinite(band.low).all()
    assert paired_bootstrap(np.array([np.inf, 1.0, 2.0])).at().n == 2


def test_nan_in_one_row_leaves_the_other_rows_as_they_are():
    clean = np.random.default_rng(5).normal(size=30)
    broken = clean.copy()
    broken[3] = np.nan
    together = paired_bootstrap(np.stack([clean, broken]))
    assert together.at(0).low == pytest.approx(paired_bootstrap(clean).at().low)


@pytest.mark.parametrize("values", [[5.0], [5.0, np.nan], [np.nan, np.nan]])
def test_fewer_than_two_prompts_give_no_limits_and_exclude_nothing(values):
    interval = paired_bootstrap(np.array(values)).at()
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)
    assert not interval.excludes_zero


def test_an_interval_excludes_zero_only_if_it_lies_on_one_side():
    assert Interval(1.0, 0.5, 2.0).excludes_zero
    assert Interval(-1.0, -2.0, -0.5).excludes_zero
    assert not Interval(1.0, -0.1, 2.0).excludes_zero
    assert not Interval(0.0, 0.0, 0.0).excludes_zero
