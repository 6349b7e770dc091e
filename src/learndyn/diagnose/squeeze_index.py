"""The squeeze index SX: does the greedy path gain more than the best of all kinds?

    g(k) = mean change of k / |mean of k at the start|         relative change, no unit
    SX   = g(greedy path) - max over kinds k of g(k)  =  min over k of [g* - g(k)]

It is recorded for comparison with earlier reports and with the paper's runs, and
decides nothing: relative changes of sums of unlike length and level saturate. An SFT
whose chosen gains 84 % of its start and whose greedy path 88 % has SX above zero and is
a fit (docs/diagnosis.md). `state.py` has the rule that names a run.

A maximum is not smooth: where kinds tie, the largest of several noisy means lies too
high in the run, and higher still in each resample, so percentiles of the resampled
maximum miss the truth too often. Each end of the interval of min_k h(k) has its own
rule, of the intersection bounds of Chernozhukov, Lee & Rosen (2013):

    low   the lowest of all lows: each h(k) is cleared, so the least of them is
    high  min_k h(k) + quantile of max over k in V of [resampled h(k) - h(k)]

V are the kinds that may be the least, as far as the resamples tell. With one clear best
kind this is the bootstrap's interval of that kind; where kinds tie, the low end is
cautious.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.intervals import (
    Band,
    Interval,
    band,
    ratio_of_sums,
    resample_weights,
    widening,
)
from learndyn.diagnose.paths import GREEDY, Paths, last_observations, with_end
from learndyn.record.trajectory import Trajectory


_TAIL = (1 - 0.95) / 2

_TIED = 3.0
"""Kinds whose value lies within so many of its standard errors may be the best one."""


@dataclass(frozen=True, eq=False)
class _Index:
    """Relative changes and the squeeze index, one per row, on the same resamples."""

    greedy: Band
    """g of the greedy path."""
    best: Band
    """The largest g of all kinds; no limits where that kind has one prompt only."""
    sx: Band
    """g of the greedy path - the largest g."""
    best_kind: tuple[str | None, ...]
    """Which kind has the largest g in each row; None where none has a value."""


def _squeeze_index(
    changes: Mapping[str, Float[np.ndarray, "row prompt"]],
    starts: Mapping[str, Float[np.ndarray, "... prompt"]],
    *,
    seed: int = 0,
) -> _Index | None:
    """The index of each row of `changes`, with `starts` the size of each start in nats,
    one for all rows or one for each.

    Values that are not finite are left out. A resample that draws none of a kind's
    prompts keeps the kind's own value, so a kind of one prompt (a mean over prompts,
    where no more is known) is the same in every resample, and the intervals leave its
    spread out. Each kind is widened for its own number of prompts. None without the
    greedy path, or without a kind.
    """
    kinds = [kind for kind in changes if kind != GREEDY]
    if GREEDY not in changes or not kinds:
        return None
    path = _resampled(changes[GREEDY], starts[GREEDY], seed)
    shares = [_resampled(changes[kind], starts[kind], seed) for kind in kinds]
    points = np.stack([share.point for share in shares])
    best = np.argmax(np.where(np.isfinite(points), points, -np.inf), axis=0)
    rows = np.arange(len(best))
    n = np.stack([share.n for share in shares])[best, rows]
    fall = _least([share.negative() for share in shares], n)
    lead = _least([path.minus(share) for share in shares], path.n)
    return _Index(
        band(path.point, path.draws, path.n),
        Band(-fall.mean, -fall.high, -fall.low, n),
        lead,
        tuple(
            kinds[k] if np.isfinite(points[k, row]) else None
            for row, k in enumerate(best)
        ),
    )


@dataclass(frozen=True, eq=False)
class _Resampled:
    """One value per row, and what it is in each resample."""

    point: Float[np.ndarray, " row"]
    draws: Float[np.ndarray, "row resample"]
    n: Int[np.ndarray, " row"]
    """Prompts whose spread is in the draws."""

    def negative(self) -> "_Resampled":
        return _Resampled(-self.point, -self.draws, self.n)

    def minus(self, other: "_Resampled") -> "_Resampled":
        # a kind of one prompt is held fixed: nothing of it is there to be widened
        fewer = np.where(other.n >= 2, np.minimum(self.n, other.n), self.n)
        return _Resampled(self.point - other.point, self.draws - other.draws, fewer)

    def off(self) -> Float[np.ndarray, "row resample"]:
        """How far each resample lies from the value, widened for few prompts."""
        out = np.where(self.n >= 2, widening(self.n), 1.0)
        return out[:, None] * (self.draws - self.point[:, None])


def _resampled(
    change: Float[np.ndarray, "row prompt"],
    start: Float[np.ndarray, "... prompt"],
    seed: int,
) -> _Resampled:
    """A kind's relative change."""
    prompts = change.shape[-1]
    sizes = np.broadcast_to(start, change.shape)
    point = ratio_of_sums(change, sizes, np.ones((1, prompts)))
    draws = ratio_of_sums(change, sizes, resample_weights(prompts, seed=seed))
    return _Resampled(
        point[:, 0],
        np.where(np.isfinite(draws), draws, point),
        np.isfinite(change + sizes).sum(axis=-1),
    )


def _least(values: Sequence[_Resampled], n: Int[np.ndarray, " row"]) -> Band:
    """The least of the values in each row, with its interval; NaN is no candidate.

    `n` goes with it; no limits where it is below two.
    """
    points = np.stack([value.point for value in values])
    known = np.isfinite(points)
    errors = np.stack([value.draws.std(axis=-1) for value in values])
    least = np.min(np.where(known, points, np.inf), axis=0)
    reach = np.min(np.where(known, points + _TIED * errors, np.inf), axis=0)
    above = np.full(values[0].draws.shape, -np.inf)
    lows = np.empty_like(points)
    for row, (value, may) in enumerate(zip(values, points <= reach, strict=True)):
        off = value.off()
        lows[row] = value.point + np.quantile(off, _TAIL, axis=-1)
        above = np.where(may[:, None], np.maximum(above, off), above)
    some = np.isfinite(least)
    safe = np.where(some[:, None], above, 0.0)
    low = np.min(np.where(known, lows, np.inf), axis=0)
    high = least + np.quantile(safe, 1 - _TAIL, axis=-1)
    usable = some & (n >= 2)
    return Band(
        np.where(some, least, np.nan),
        np.where(usable, low, np.nan),
        np.where(usable, high, np.nan),
        n,
    )


@dataclass(frozen=True, eq=False)
class SqueezeIndex:
    """SX of one run; relative changes, no unit."""

    steps: Float[np.ndarray, " step"]
    """Optimizer updates at each observation."""
    path: Band
    """SX at each of `steps`, each with its own interval. Zero at the first."""
    end: Interval
    """Mean over the last 20 % of the observations, at least one."""


def squeeze_index(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> SqueezeIndex | None:
    """SX over the same prompts at every observation; None without chosen."""
    paths = Paths.of(trajectory, split).common()
    if paths.greedy is None:
        return None
    values = paths.with_greedy()
    last = last_observations(len(paths.steps))
    changes = {kind: with_end(path - path[0], last) for kind, path in values.items()}
    starts = {kind: np.abs(path[0]) for kind, path in values.items()}
    index = _squeeze_index(changes, starts, seed=seed)
    assert index is not None  # chosen is a kind, and has a greedy path
    sx = index.sx
    path = Band(sx.mean[:-1], sx.low[:-1], sx.high[:-1], sx.n[:-1])
    return SqueezeIndex(paths.steps, path, sx.at(-1))
