"""How sure a mean is: 95 % bootstrap intervals over prompts.

A resample draws prompts with replacement. It is the same resample for every row of
`values`, so that the difference of two rows keeps its pairing. Resamples are stored as
counts: row r of the weights says how often resample r drew each prompt. Then

    draw = (weights @ numerator) / (weights @ denominator)

is a mean over prompts where the denominator is 1, and a pooled ratio (sum of nats /
sum of tokens) where it counts tokens. A mean of ratios is never shown: a response of
one token would weigh as much as one of a hundred; `state.py` has it as a second test.

The percentiles of the draws are too narrow for few prompts: a resample's spread is that
of n prompts without Bessel's correction, and their tails are normal where Student's are
due. Both ends are moved out for both, after the wider percentiles of Hesterberg (2015,
"What Teachers Should Know About the Bootstrap"). Measured on 1,000 samples of 10 normal
values, 95 % intervals then cover 94 % instead of 90 %. With 100 prompts they are 2 %
wider.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int, UInt


_RESAMPLES = 2000


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


def resample_weights(
    prompts: int, seed: int = 0
) -> Float[np.ndarray, "resample prompt"]:
    """How often each resample draws each prompt. The same call gives the same draws."""
    return _counts(prompts, seed).astype(np.float64)


@lru_cache(maxsize=4)
def _counts(prompts: int, seed: int) -> UInt[np.ndarray, "resample prompt"]:
    """The draws in small numbers: as float64 they would fill 80 MB for 5,000
    prompts, and a run is asked for several splits of its prompts in turn."""
    generator = np.random.default_rng(seed)
    share = np.full(prompts, 1 / prompts)
    drawn = generator.multinomial(prompts, share, size=_RESAMPLES)
    return drawn.astype(np.min_scalar_type(prompts))  # none is above `prompts`


def paired_bootstrap(
    values: Float[np.ndarray, "*rows prompt"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Percentile intervals of the mean over prompts, the last axis of `values`.

    Values that are not finite are left out of their own row, and `n` counts the rest.
    """
    return pooled_bootstrap(values, np.ones_like(values), level=level, seed=seed)


def pooled_bootstrap(
    numerator: Float[np.ndarray, "*rows prompt"],
    denominator: Float[np.ndarray, "*rows prompt"],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Percentile intervals of sum(numerator) / sum(denominator) over prompts."""
    weights = resample_weights(numerator.shape[-1], seed)
    draws = ratio_of_sums(numerator, denominator, weights)
    ones = np.ones((1, numerator.shape[-1]))
    mean = ratio_of_sums(numerator, denominator, ones)[..., 0]
    n = np.isfinite(numerator + denominator).sum(axis=-1)
    return band(mean, draws, np.asarray(n), level)


def rate_difference(
    one: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]],
    other: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]],
    *,
    seed: int = 0,
) -> Interval:
    """Difference of two pooled ratios, numerator and denominator each, paired over the
    prompts that have both: nats per token of two kinds of unlike lengths."""
    both = np.all([np.isfinite(values) for values in (*one, *other)], axis=0)
    n = int(both.sum())

    def differ(weights: Float[np.ndarray, "draw prompt"]) -> np.ndarray:
        rates = [ratio_of_sums(a[both], b[both], weights) for a, b in (one, other)]
        return rates[0] - rates[1]

    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = differ(np.ones((1, n)))[0]
    return band(np.array(mean), differ(resample_weights(n, seed)), np.array(n)).at()


def group_difference(
    one: tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]],
    other: tuple[Float[np.ndarray, " _"], Float[np.ndarray, " _"]],
    *,
    seed: int = 0,
) -> Interval:
    """Difference of two pooled ratios, numerator and denominator each, of two groups of
    prompts. Each group is drawn by itself; `n` is that of the smaller one."""
    draws, means, counts = [], [], []
    for index, (above, below) in enumerate((one, other)):
        known = np.isfinite(above) & np.isfinite(below)
        n = int(known.sum())
        # another seed for each group: equal draws would tie groups of one size together
        weights = np.vstack([np.ones((1, n)), resample_weights(n, seed + index)])
        rates = ratio_of_sums(above[known], below[known], weights)
        means.append(rates[0])
        draws.append(rates[1:])
        counts.append(n)
    n = np.array(min(counts))
    return band(np.array(means[0] - means[1]), draws[0] - draws[1], n).at()


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
    """Intervals of bootstrap `draws` around the point values `mean`: percentiles,
    moved out for few prompts.

    One prompt tells nothing about other prompts: below two the limits are NaN.
    """
    tail = (1 - level) / 2
    usable = np.isfinite(draws).any(axis=-1) & (n >= 2) & np.isfinite(mean)
    safe = np.where(usable[..., None], draws, 0.0)
    # nanquantile goes row by row: ten times slower, so only where it must
    quantile = np.nanquantile if np.isnan(safe).any() else np.quantile
    low, high = quantile(safe, [tail, 1 - tail], axis=-1)
    out = widening(n, level)
    return Band(
        np.asarray(mean),
        np.where(usable, mean + out * (low - mean), np.nan),
        np.where(usable, mean + out * (high - mean), np.nan),
        np.asarray(n),
    )


def widening(
    n: Int[np.ndarray, "*rows"], level: float = 0.95
) -> Float[np.ndarray, "*rows"]:
    """How far percentiles of a bootstrap of `n` prompts are to be moved out:

    sqrt(n / (n - 1))  t quantile with n - 1 degrees of freedom / normal quantile

    NaN below two prompts.
    """
    normal = NormalDist().inv_cdf((1 + level) / 2)
    counts, place = np.unique(n, return_inverse=True)
    factors = [
        math.sqrt(k / (k - 1)) * student_quantile(k - 1, level) / normal
        if k >= 2
        else math.nan
        for k in counts.tolist()
    ]
    return np.asarray(np.array(factors)[place]).reshape(np.shape(n))


@lru_cache(maxsize=1024)
def student_quantile(freedom: int, level: float = 0.95) -> float:
    """The t of Student's distribution with P(|T| < t) = `level`.

    By bisection of the closed form for whole degrees of freedom, Abramowitz & Stegun
    26.7.3 and 26.7.4.
    """
    low, high = 0.0, 2.0
    while _within(high, freedom) < level:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        if _within(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's distribution."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share


def share_interval(count: int, n: int) -> Interval:
    """The share `count` of `n` prompts with Wilson's score interval (1927).

    A bootstrap of a share that is 0 or 1 has no width; this one has. NaN limits below
    two prompts.
    """
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    share, z = count / n, NormalDist().inv_cdf(0.975)
    if n < 2:
        return Interval(share, math.nan, math.nan, n)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) * z / (1 + z * z / n)
    low = middle - half if count > 0 else 0.0  # not a rounding error above it
    high = middle + half if count < n else 1.0
    return Interval(share, low, high, n)


def known(interval: Interval | None) -> bool:
    """Whether there is an interval and it has limits."""
    return interval is not None and math.isfinite(interval.low)


def spearman(a: Float[np.ndarray, " _"], b: Float[np.ndarray, " _"]) -> float:
    """Spearman's correlation, ties at their mean rank; NaN where all of one are equal.

    -1 to 1; 1 is the same order.
    """
    left, right = (_ranks(values) for values in (a, b))
    left, right = left - left.mean(), right - right.mean()
    size = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / size) if size else float("nan")


def _ranks(values: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place.reshape(-1)]
