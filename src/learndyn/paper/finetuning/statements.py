"""How the runs of one seed are asked whether a statement of the paper holds.

A change is judged by its 95 % interval over prompts: it is above a line where the lower
limit is. Where no interval can be had, of a recorded run whose file holds means alone,
it is judged by the mean.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import GREEDY
from learndyn.paper.claims import Absent, Measured
from learndyn.paper.finetuning.recorded import Recorded, change, difference, path_of
from learndyn.record.trajectory import Trajectory


Measure = Callable[[Recorded], Measured]
"""Asks the runs of one seed; raises `Absent`."""


def run_of(one: Recorded, role: str) -> Trajectory:
    """The run of a role, with at least two observations.

    Raises:
        Absent: if there is none.
    """
    if role not in one.runs:
        raise Absent(f"the {role} run is missing")
    if len(one.runs[role].steps) < 2:
        raise Absent(f"the {role} run has only one observation")
    return one.runs[role]


def values(
    one: Recorded, role: str, kind: str, split: str = "train"
) -> Float[np.ndarray, "step prompt"]:
    """A kind's path in the run of a role, in nats.

    Raises:
        Absent: if there is no such run or kind.
    """
    run = run_of(one, role)
    if kind == GREEDY:
        along_chosen(run)
    try:
        return path_of(run, kind, split)
    except KeyError:
        raise Absent(f"the {role} run has no {kind} probes") from None


def along_chosen(run: Trajectory) -> None:
    """Refuse a run whose argmax and rest are those along another kind than chosen.

    Raises:
        Absent: if an imported file says so.
    """
    along = run.run.info.imported.get("greedy_path_along", "chosen")
    if along != "chosen":
        raise Absent(f"the file's greedy path is along {along}, not along chosen")


def measured(one: Recorded, change: Interval, holds: bool) -> Measured:
    """A measurement with its interval, if it has one."""
    low, high = (
        value if math.isfinite(value) else None for value in (change.low, change.high)
    )
    return Measured(one.seed, change.mean, holds, low, high)


def above(change: Interval, line: float = 0.0) -> bool:
    """Whether the interval, or the mean where there is none, is above `line`."""
    return (change.low if math.isfinite(change.low) else change.mean) > line


def below(change: Interval, line: float = 0.0) -> bool:
    """Whether the interval, or the mean where there is none, is below `line`."""
    return (change.high if math.isfinite(change.high) else change.mean) < line


def rises(role: str, kind: str, split: str = "train") -> Measure:
    """The change of a kind over a run is above zero."""

    def measure(one: Recorded) -> Measured:
        moved = change(values(one, role, kind, split))
        return measured(one, moved, above(moved))

    return measure


def falls(role: str, kind: str, split: str = "train") -> Measure:
    """The change of a kind over a run is below zero."""

    def measure(one: Recorded) -> Measured:
        moved = change(values(one, role, kind, split))
        return measured(one, moved, below(moved))

    return measure


def gains_over(role: str, kind: str, other: str) -> Measure:
    """The change of `kind` minus that of `other` is above zero, prompt by prompt."""

    def measure(one: Recorded) -> Measured:
        a, b = (values(one, role, name) for name in (kind, other))
        moved = difference(a[-1] - a[0], b[-1] - b[0])
        return measured(one, moved, above(moved))

    return measure
