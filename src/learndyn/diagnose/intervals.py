"""How sure a mean is: 95 % bootstrap intervals over prompts.

A resample draws prompts with replacement. It is the same resample for every row of
`values`, so that the difference of two rows keeps its pairing. Resamples are stored as
counts: row r of the weights says how often resample r drew each prompt. Then

    draw = (weights @ numerator) / (weights @ denominator)

is a mean over prompts where the denominator is 1, and a pooled ratio (sum of nats /
sum of tokens) where it counts tokens. A mean of ratios is never taken: a response of
one token would weigh as much as one of a hundred.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over prompts with its interval, in the unit of the values."""

    mean: float
    low: float
    """NaN, like `high`, where fewer than two prompts have a value."""
    high: float
    n: int = 0
    """Prompts with a finite value: those that the mean is over."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.above_zero or self.below_zero

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.high < 0


@dataclass(frozen=True, eq=False)
class Band:
    """Intervals of many means at once, one per leading index of the values."""

    mean: Float[np.ndarray, "*rows"]
    low: Float[np.ndarray, "*rows"]
    high: Float[np.ndarray, "*rows"]
    n: Int[np.ndarray, "*rows"]
    """Prompts with a finite value."""

    def at(self, *index: int) -> Interval:
        """The interval of one mean; no index where the values had one axis only."""
        return Interval(
            float(self.mean[index]),
            float(self.low[index]),
            float(self.high[index]),
            int(self.n[index]),
        )


@lru_cache(maxsize=8)
def resample_weights(
    prompts: int, resamples: int = 2000, seed: int = 0
) -> Float[np.ndarray, "resample prompt"]:
    """How often each resample draws each prompt. The same call gives the same draws."""
    generator = np.random.default_rng(seed)
    share = np.full(prompts, 1 / prompts)
    weights = generator.multinomial(prompts, share, size=resamples).astype(np.float64)
    weights.setflags(write=False)  # the cache hands the same array to every caller
    return weights


def paired_bootstrap(
    values: Float[np.ndarray, "*rows prompt"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Percentile intervals of the mean over prompts, the last axis of `values`.

    Values that are not finite are left out of their own row, and `n` counts the rest.
    """
    return pooled_bootstrap(
        values, np.ones_like(values), resamples=resamples, level=level, seed=seed
    )


def pooled_bootstrap(
    numerator: Float[np.ndarray, "*rows prompt"],
    denominator: Float[np.ndarray, "*rows prompt"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Percentile intervals of sum(numerator) / sum(denominator) over prompts."""
    weights = resample_weights(numerator.shape[-1], resamples, seed)
    draws = ratio_of_sums(numerator, denominator, weights)
    ones = np.ones((1, numerator.shape[-1]))
    mean = ratio_of_sums(numerator, denominator, ones)[..., 0]
    n = np.isfinite(numerator + denominator).sum(axis=-1)
    return band(mean, draws, np.asarray(n), level)


def ratio_of_sums(
    numerator: Float[np.ndarray, "*rows prompt"],
    denominator: Float[np.ndarray, "*rows prompt"],
    weights: Float[np.ndarray, "resample prompt"],
) -> Float[np.ndarray, "*rows resample"]:
    """Weighted sum over weighted sum; prompts without a finite value count in neither.

    NaN where a resample drew no prompt that has a value.
    """
    known = np.isfinite(numerator) & np.isfinite(denominator)
    above = np.where(known, numerator, 0.0) @ weights.T
    counted = np.where(known, denominator, 0.0)
    if counted.ndim > 1 and (counted == counted[:1]).all():
        counted = counted[:1]  # one product instead of one per row
    below = np.broadcast_to(counted @ weights.T, above.shape)
    empty = below == 0
    return np.where(empty, np.nan, above / np.where(empty, 1.0, below))


def standard_error(
    numerator: Float[np.ndarray, "*rows prompt"],
    denominator: Float[np.ndarray, "*rows prompt"],
) -> Float[np.ndarray, "*rows"]:
    """Standard error over prompts of sum(numerator) / sum(denominator) = r:

        sqrt( n / (n - 1)  sum of (numerator - r denominator)^2 ) / sum(denominator)

    Where the denominator is 1 this is the sample's standard deviation / sqrt(n).
    Prompts without a finite value are left out; NaN below two.
    """
    known = np.isfinite(numerator) & np.isfinite(denominator)
    above = np.where(known, numerator, 0.0)
    below = np.where(known, denominator, 0.0)
    n, total = known.sum(axis=-1), below.sum(axis=-1)
    usable = (n >= 2) & (total != 0)
    total = np.where(usable, total, 1.0)
    ratio = above.sum(axis=-1) / total
    squares = ((above - ratio[..., None] * below) ** 2).sum(axis=-1)
    error = np.sqrt(squares * n / np.maximum(n - 1, 1)) / total
    return np.where(usable, error, np.nan)


def band(
    mean: Float[np.ndarray, "*rows"],
    draws: Float[np.ndarray, "*rows resample"],
    n: Int[np.ndarray, "*rows"],
    level: float = 0.95,
) -> Band:
    """Percentile intervals of bootstrap `draws` around the point values `mean`.

    One prompt tells nothing about other prompts: below two the limits are NaN.
    """
    tail = (1 - level) / 2
    usable = np.isfinite(draws).any(axis=-1) & (n >= 2)
    safe = np.where(usable[..., None], draws, 0.0)
    low, high = np.nanquantile(safe, [tail, 1 - tail], axis=-1)
    return Band(
        np.asarray(mean),
        np.where(usable, low, np.nan),
        np.where(usable, high, np.nan),
        np.asarray(n),
    )


def known(interval: Interval | None) -> bool:
    """Whether there is an interval and it has limits."""
    return interval is not None and math.isfinite(interval.low)
