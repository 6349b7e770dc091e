"""Which of four things happened in a run: squeezing, fitting, collapse, or nothing.

With relative changes g (below), as means over the last 20 % of the observations, and
delta = 0.02:

    SQUEEZE   g* > delta, SX > delta         the greedy path rises, beyond every kind
    FIT       max g(k) > delta, SX <= delta  a kind rises, as much as the greedy path
    COLLAPSE  g* <= delta, max g(k) < -delta every kind falls, the greedy path not up
    NEUTRAL   else

The state is a rule about a pattern, on the means themselves, but for one thing: where
the intervals of g* and SX are known, SQUEEZE also needs both above zero. On means alone
noise of few prompts would raise the alarm too often (docs/diagnosis.md has the rates).
Where only SX is not surely above zero and a kind rises by more than delta, something
moved that is squeezing or a fit: FIT, not sure and `undecided`; else NEUTRAL. Whether
other prompts would show a state too is `sure`.

The squeeze index: does the greedy path gain more than the best of all kinds?

    g(k) = mean change of k / |mean of k at the start|         relative change, no unit
    SX   = g(greedy path) - max over kinds k of g(k)  =  min over k of [g* - g(k)]

A maximum is not smooth: where kinds tie, the largest of several noisy means lies too
high in the run, and higher still in each resample, so percentiles of the resampled
maximum miss the truth too often. Each end of the interval of min_k h(k) has its own
rule, of the intersection bounds of Chernozhukov, Lee & Rosen (2013):

    low   the lowest of all lows: each h(k) is cleared, so the least of them is
    high  min_k h(k) + quantile of max over k in V of [resampled h(k) - h(k)]

V are the kinds that may be the least, as far as the resamples tell. With one clear best
kind this is the bootstrap's interval of that kind; where kinds tie, the low end is
cautious. So an index that is called positive is so against every kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.diagnose.intervals import (
    Band,
    Interval,
    band,
    ratio_of_sums,
    resample_weights,
    widening,
)
from learndyn.diagnose.paths import GREEDY, NO_GREEDY, Paths
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


State = Literal["SQUEEZE", "FIT", "COLLAPSE", "NEUTRAL"]

DELTA = 0.02
"""Smallest relative change that counts: 2 % of the log-probability at the start."""

LAST = 0.2
"""Share of the observations, from the end, that the state is about."""

_IN_A_ROW = 3
"""Observations in a row over delta that make an onset."""


def matters(share: Interval | None) -> bool:
    """Whether a relative change is large enough to count as one."""
    return share is not None and abs(share.mean) > DELTA


@dataclass(frozen=True, eq=False)
class StateReport:
    """The state of a run and what it rests on; relative changes, no unit."""

    state: State
    """NEUTRAL also where nothing can be judged; `reason` then says why."""
    sure: bool
    """Whether the 95 % intervals put the state beyond doubt. The whole intervals:

        SQUEEZE   g* and SX are above delta
        FIT       max g(k) is above delta, SX is not
        COLLAPSE  g* is not above delta, max g(k) is below -delta
        NEUTRAL   max g(k) is within -delta .. delta, and g* or SX is not above delta

    Other prompts may then differ in numbers, hardly in the state. Other seeds may.
    """
    sx: Interval
    """g* - max g(k): mean over the last 20 % of the observations, at least one."""
    greedy: Interval
    """g* of the same observations, on the same resamples."""
    best: Interval
    """max g(k), likewise. No limits where the best kind has one prompt only."""
    best_kind: str
    """The kind with the largest g; empty text where nothing can be judged."""
    steps: Float[np.ndarray, " step"]
    """Optimizer updates at each observation that the index is given for."""
    index: Band
    """SX at each of `steps`, each with its own interval. Zero at the first."""
    onset_step: int | None
    """Updates at the first of three observations in a row at which both g* and SX are
    over delta (of fewer, where the run has fewer after its start). None where never."""
    first_sure_step: int | None
    """Updates at the first observation at which the whole intervals of g* and of SX are
    over delta. None where never."""
    kinds: int
    """Kinds that have a value in the last observations."""
    prompts: int
    """Prompts that g* is a mean over."""
    fixed: tuple[str, ...] = ()
    """Kinds of one prompt only, such as a recorded mean over prompts: the intervals
    hold them fixed and leave their spread out."""
    undecided: bool = False
    """FIT with SX over delta, whose interval holds zero: squeezing cannot be told from
    a fit."""
    reason: str | None = None
    """Why nothing can be judged; None where it can."""


def state_of(
    trajectory: Trajectory,
    *,
    split: str | None = None,
    delta: float = DELTA,
    seed: int = 0,
) -> StateReport:
    """Judge one run, over the same prompts at every observation.

    Where the run has a panel these are the panel's. Values that are not finite (the
    model had diverged) are left out of their observation, and of the start.
    """
    paths = Paths.of(trajectory, split).common()
    if paths.greedy is None:
        return _unjudged(paths, NO_GREEDY)
    values = paths.with_greedy()
    last = _last(len(paths.steps))
    changes = {kind: _with_end(path - path[0], last) for kind, path in values.items()}
    starts = {kind: np.abs(path[0]) for kind, path in values.items()}
    index = _squeeze_index(changes, starts, seed=seed)
    assert index is not None  # chosen is a kind, and has a greedy path
    reason = _reason(paths, index)
    if reason is not None:
        return _unjudged(paths, reason, index)
    greedy, best, sx = (b.at(-1) for b in (index.greedy, index.best, index.sx))
    state, sure = _judge(greedy, best, sx, delta)
    ends = {k: int(np.isfinite(v[-1]).sum()) for k, v in changes.items() if k != GREEDY}
    over = (index.greedy.mean[:-1] > delta) & (index.sx.mean[:-1] > delta)
    surely = (index.greedy.low[:-1] > delta) & (index.sx.low[:-1] > delta)
    return StateReport(
        state,
        sure,
        sx,
        greedy,
        best,
        index.best_kind[-1] or "",
        paths.steps,
        _without_end(index.sx),
        _first(paths.steps, over, min(_IN_A_ROW, len(over) - 1)),
        _first(paths.steps, surely, 1),
        kinds=sum(n > 0 for n in ends.values()),
        prompts=greedy.n,
        fixed=tuple(kind for kind, n in ends.items() if n == 1),
        undecided=state == "FIT" and sx.mean > delta,
    )


def _judge(
    greedy: Interval, best: Interval, sx: Interval, delta: float = DELTA
) -> tuple[State, bool]:
    """The state by its rule, and whether the intervals put it beyond doubt."""
    if greedy.mean > delta and sx.mean > delta:
        noise = greedy.low <= 0 or sx.low <= 0  # false where the limits are not known
        if not noise:
            return "SQUEEZE", greedy.low > delta and sx.low > delta
        moved = best.mean > delta and greedy.low > 0
        return "FIT" if moved else "NEUTRAL", False
    if best.mean > delta and sx.mean <= delta:
        return "FIT", best.low > delta and sx.high <= delta
    if greedy.mean <= delta and best.mean < -delta:
        return "COLLAPSE", greedy.high <= delta and best.high < -delta
    still = best.low >= -delta and best.high <= delta
    return "NEUTRAL", still and (greedy.high <= delta or sx.high <= delta)


def _last(observations: int) -> int:
    """How many observations from the end the state is about; never the first one."""
    return max(1, min(round(LAST * observations), observations - 1))


def _with_end(
    change: Float[np.ndarray, "step prompt"], last: int
) -> Float[np.ndarray, "row prompt"]:
    """The changes, and below them each prompt's mean over its last finite values."""
    end = change[-last:]
    known = np.isfinite(end)
    count = known.sum(axis=0)
    mean = np.where(known, end, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.vstack([change, np.where(count > 0, mean, np.nan)])


def _without_end(rows: Band) -> Band:
    return Band(rows.mean[:-1], rows.low[:-1], rows.high[:-1], rows.n[:-1])


def _reason(paths: Paths, index: _Index) -> str | None:
    if len(paths.steps) < 2:
        return "one observation: nothing to compare it with."
    if not np.isfinite(index.sx.mean[-1]):
        if any(np.isfinite(path[-1]).any() for path in paths.logp.values()):
            return (
                "no change relative to the first observation is finite: its "
                "log-probabilities are zero or not finite."
            )
        return "no finite value in the last observations: the model had diverged."
    return None


def _first(
    steps: Float[np.ndarray, " step"], over: Bool[np.ndarray, " step"], run: int
) -> int | None:
    """Updates at the first of `run` observations in a row that are over."""
    if run < 1 or len(over) < run:
        return None
    together = np.lib.stride_tricks.sliding_window_view(over, run).all(axis=1)
    starts = np.flatnonzero(together)
    return int(steps[starts[0]]) if len(starts) else None


def _unjudged(paths: Paths, reason: str, index: _Index | None = None) -> StateReport:
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    empty = np.full(len(paths.steps), np.nan)
    none = Band(empty, empty, empty, np.zeros(len(empty), dtype=np.int64))
    return StateReport(
        "NEUTRAL",
        False,
        nothing,
        nothing,
        nothing,
        "",
        paths.steps,
        none if index is None else _without_end(index.sx),
        None,
        None,
        kinds=len(paths.logp),
        prompts=0,
        reason=reason,
    )
