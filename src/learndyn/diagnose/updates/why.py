"""How much of chosen's change the recorded updates carry, over the whole run.

A record explains one update: it predicts the change of each watched response, along
the update's real displacement, as a sum of parts (pull, push, history ...). Between
records the change per update is interpolated linearly, before the first and after the
last one it is held:

    estimate  =  sum over updates u of  c(u) g(u)  =  sum over records i of  w_i g_i
    share     =  estimate / actual change, of the same prompts

where c(u) is the share of the last 20 % of the observations that come after u, so that
the estimate is of the same mean as the state's change of chosen.

The intervals are 95 %, of two errors, their squares added. Prompts: the bootstrap that
all intervals here are from, estimate and actual change paired. Updates: one batch moves
chosen otherwise than the next, so which updates were recorded matters. How far g_i is
from what its neighbours a and b on both sides interpolate to tells by how much (Gasser,
Sroka & Jennen-Steinmetz 1986, equation 2.4):

    r_i      =  g_i - a g_a - b g_b            a + b = 1
    error^2  =  (1 - m / updates)  sum over i of  w_i^2 r_i^2 / (1 + a^2 + b^2)

Its interval takes Student's t with m - 1 degrees of freedom for m records. It is zero
where every update is recorded. Not covered: a rate that changes between two records
without either showing it, such as a warm-up before the first one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.intervals import (
    Band,
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
    student_quantile,
)
from learndyn.diagnose.paths import last_observations
from learndyn.errors import BadInput
from learndyn.record.forces import ForceSums
from learndyn.record.trajectory import Trajectory


_LOW, _HIGH = 0.5, 1.5
"""The whole interval of the share lies between these where records carry a change."""

_MOST_READ = 200
"""Records that are read, evenly spaced, where there are more: a quarter of a second."""

_DUST = 1e-3
"""Share of all parts' sizes below which a part is left out."""

_BEYOND = "beyond first order"
"""What was measured and not predicted; stands among the parts while they are added."""

_DIRECT = ("pull", "push", "other")
"""Parts of an update that its own batch makes."""


_UNKNOWN = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Why:
    """The recorded updates of a run, added up over all its updates."""

    recorded: int
    """Updates whose records were read."""
    updates: int
    """Updates from the first observation to the last."""
    prompts: int
    """Prompts whose chosen answer every record watched."""
    estimate: Interval
    """Chosen's change by the records, nats per response, over prompts and updates; NaN
    limits where one record of many is all there is."""
    actual: Interval
    """Chosen's change of the same prompts; its interval is over prompts."""
    share: Interval
    """estimate / actual; NaN where the actual change is not surely another than 0."""
    parts: Mapping[str, Interval] = field(default_factory=dict)
    """What each part of the updates adds to the estimate, nats per response."""
    beyond: Interval = _UNKNOWN
    """What the measured changes of the recorded updates add to the estimate: of steps
    too large for a first-order account. NaN where they were not measured."""
    missing: float = float("nan")
    """Times as many records as there are would narrow the share's interval enough."""

    @property
    def carries(self) -> bool:
        """Whether the records explain the change: the share's whole interval lies
        between 0.5 and 1.5."""
        return self.share.low >= _LOW and self.share.high <= _HIGH

    @property
    def too_large(self) -> bool:
        """Whether a first-order account surely misses half of the change, since single
        updates are too large for it: more records would not explain more."""
        large = abs(self.beyond.mean) >= abs(self.actual.mean) / 2
        return self.beyond.excludes_zero and large

    @property
    def by_push(self) -> bool:
        """Whether the push on lowered answers makes most of a fall.

        The push of the batch surely lowers chosen, by at least half of what is left of
        all parts of the batch together, and these lower it too; memory repeats what
        earlier batches did, so it is judged by these. Neither decay nor rounding makes
        half of the estimate.
        """
        push = self.parts.get("push")
        if push is None or not push.below_zero or not self.actual.below_zero:
            return False
        means = {name: part.mean for name, part in self.parts.items()}
        direct = sum(means.get(name, 0.0) for name in _DIRECT)
        beside = sum(means.get(name, 0.0) for name in ("decay", "rounding"))
        mostly = push.mean <= direct / 2 and beside > self.estimate.mean / 2
        return direct < 0 and mostly

    @property
    def because_of_push(self) -> bool:
        """Whether a sentence may say that chosen fell because rejected was pushed."""
        return self.carries and self.by_push


def why_of(trajectory: Trajectory, split: str | None = None) -> Why | None:
    """Add up a run's recorded updates; None without a record that can be read, or one
    of chosen answers that were scored at the first and the last observations."""
    if trajectory.unit != "update" or len(trajectory.steps) < 2:
        return None
    records = _read(trajectory)
    if not records:
        return None
    rows = _watched(trajectory, records, split)
    if not len(rows):
        return None
    steps = np.array([record.step for record in records])
    at = [np.searchsorted(record.probe_ids, rows) for record in records]
    whole = np.stack([r.predicted[i] for r, i in zip(records, at, strict=True)])
    parts = {
        name: np.stack([_part(r, name)[i] for r, i in zip(records, at, strict=True)])
        for name in dict.fromkeys(name for r in records for name in r.parts)
    }
    actual = _actual(trajectory, rows)
    usable = np.all([np.isfinite(v).all(axis=0) for v in (whole, *parts.values())], 0)
    usable &= np.isfinite(actual)
    if not usable.any():
        return None
    parts = _named(parts, whole)
    measured = np.stack([r.actual[i] for r, i in zip(records, at, strict=True)])
    if np.isfinite(measured[:, usable]).all():
        parts[_BEYOND] = measured - whole
    of_prompts = {name: values[:, usable] for name, values in parts.items()}
    run = _Updates.of(trajectory, steps)
    return _added_up(run, whole[:, usable], of_prompts, actual[usable])


def _read(trajectory: Trajectory) -> list[ForceSums]:
    """Records of updates between the first and the last observation; those that cannot
    be read are left out."""
    first, last = trajectory.steps[0], trajectory.steps[-1]
    steps = [s for s in trajectory.run.forces_steps if first < s <= last]
    if len(steps) > _MOST_READ:
        even = np.linspace(0, len(steps) - 1, _MOST_READ).round().astype(int)
        steps = [steps[i] for i in even]
    records = []
    for step in steps:
        try:
            records.append(trajectory.run.read_force_sums(step))
        except BadInput:  # the page of forces names it
            continue
    return [r for r in records if np.isfinite(r.predicted).any()]


def _watched(
    trajectory: Trajectory, records: Sequence[ForceSums], split: str | None
) -> Int[np.ndarray, " prompt"]:
    """Rows of chosen answers that every record is of."""
    of = trajectory.kind_of == "chosen"
    if split is not None:
        of &= trajectory.split_of == split
    rows = np.flatnonzero(of)
    for record in records:
        if (np.diff(record.probe_ids) <= 0).any():
            return rows[:0]
        rows = np.intersect1d(rows, record.probe_ids)
    return rows


def _part(record: ForceSums, name: str) -> Float[np.ndarray, " probe"]:
    return record.parts.get(name, np.zeros_like(record.predicted))


def _named(
    parts: Mapping[str, np.ndarray], whole: np.ndarray
) -> dict[str, Float[np.ndarray, "record prompt"]]:
    """The parts that are large enough to name, and as "not split" what they miss of the
    whole: of an update whose gradient is not known."""
    rest = whole - sum(parts.values(), np.zeros_like(whole))
    named = {**parts, "not split": rest}
    sizes = {name: float(np.nansum(np.abs(v))) for name, v in named.items()}
    least = _DUST * sum(sizes.values())
    return {name: values for name, values in named.items() if sizes[name] > least}


def _actual(
    trajectory: Trajectory, rows: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, " prompt"]:
    """Each prompt's mean change over the last observations, as the state takes it; NaN
    where it was not scored at one of them."""
    logp = trajectory.columns["logp"][:, rows]
    change: np.ndarray = logp[-last_observations(len(logp)) :] - logp[0]
    return change.mean(axis=0)


@dataclass(frozen=True)
class _Updates:
    """Which updates there are, how much each counts, and which are recorded."""

    every: Int[np.ndarray, " update"]
    counts: Float[np.ndarray, " update"]
    """c(u): 1 up to the first of the last observations, then falling."""
    recorded: Int[np.ndarray, " record"]

    @classmethod
    def of(cls, trajectory: Trajectory, recorded: np.ndarray) -> "_Updates":
        steps = trajectory.steps
        every = np.arange(steps[0] + 1, steps[-1] + 1)
        last = steps[-last_observations(len(steps)) :]
        before = np.searchsorted(last, every, side="left")
        return cls(every, 1 - before / len(last), recorded)

    @property
    def weights(self) -> Float[np.ndarray, " record"]:
        """w_i of each record."""
        place = np.interp(self.every, self.recorded, np.arange(len(self.recorded)))
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, len(self.recorded) - 1)
        later = np.bincount(high, self.counts * (place - low), len(self.recorded))
        return later + np.bincount(
            low, self.counts * (1 - place + low), len(self.recorded)
        )

    def error(self, values: Float[np.ndarray, " record"]) -> float:
        """Standard error of the sum of w_i g_i, by which updates were recorded."""
        if self.whole:
            return 0.0
        steps, index = self.recorded.astype(np.float64), np.arange(len(values))
        if len(index) < 2:
            return float("nan")
        # the nearest records on both sides; of the first and the last, the one there is
        below = np.where(index > 0, index - 1, 1)
        above = np.where(index < index[-1], index + 1, index[-1] - 1)
        gap = steps[above] - steps[below]
        end = gap == 0 if len(index) == 2 else (index == 0) | (index == index[-1])
        a = np.where(end, 1.0, (steps[above] - steps) / np.where(end, 1.0, gap))
        residual = values - a * values[below] - (1 - a) * values[above]
        variance = residual**2 / (1 + a**2 + (1 - a) ** 2)
        left = 1 - len(index) / len(self.every)
        return float(np.sqrt(left * np.sum(self.weights**2 * variance)))

    @property
    def whole(self) -> bool:
        """Whether every update is recorded."""
        return len(self.recorded) == len(self.every)


def _added_up(
    run: _Updates,
    whole: Float[np.ndarray, "record prompt"],
    parts: Mapping[str, Float[np.ndarray, "record prompt"]],
    actual: Float[np.ndarray, " prompt"],
) -> Why:
    weights, student = run.weights, 1.0
    if len(run.recorded) > 1:
        student = student_quantile(len(run.recorded) - 1)

    def error(values: Float[np.ndarray, "record prompt"]) -> float:
        """Half of the 95 % interval by which updates were recorded."""
        return student * run.error(values.mean(axis=1))

    columns = {"": whole, **parts}
    sums = np.stack([actual, *(weights @ values for values in columns.values())])
    band = paired_bootstrap(sums)
    moved = band.at(0)
    estimates = {
        name: _wider(band, i, error(values))
        for i, (name, values) in enumerate(columns.items(), start=1)
    }
    share, missing = _UNKNOWN, float("nan")
    if moved.excludes_zero:
        ratio = pooled_bootstrap(sums[1:2], sums[:1])
        by_updates = error(whole) / abs(moved.mean)
        share = _wider(ratio, 0, by_updates)
        missing = (by_updates / _NARROW) ** 2
    return Why(
        recorded=len(run.recorded),
        updates=len(run.every),
        prompts=len(actual),
        estimate=estimates.pop(""),
        actual=moved,
        share=share,
        beyond=estimates.pop(_BEYOND, _UNKNOWN),
        parts=estimates,
        missing=missing,
    )


_NARROW = 0.35
"""Half of the share's interval over updates that leaves room for that over prompts."""


def _wider(band: Band, index: int, error: float) -> Interval:
    """An interval over prompts with another error beside it, their squares added."""
    one = band.at(index)
    return Interval(
        one.mean,
        one.mean - float(np.hypot(one.mean - one.low, error)),
        one.mean + float(np.hypot(one.high - one.mean, error)),
        one.n,
    )
