"""What a statement of the paper is, and how runs are asked whether it holds.

A change is judged by its 95 % interval over prompts: it is above a line where the lower
limit is. Where no interval can be had, of a recorded run whose file holds means alone,
it is judged by the mean.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import GREEDY
from learndyn.paper.claims import Claim, Measured
from learndyn.paper.finetuning.recorded import Recorded, change, difference, path_of
from learndyn.record.trajectory import Trajectory


class Absent(Exception):
    """A seed's runs do not hold what a statement is about; the text says what."""


Measure = Callable[[Recorded], Measured]
"""Asks the runs of one seed; raises `Absent`."""


@dataclass(frozen=True)
class Statement:
    """One statement of the paper with its test; see `Claim` for the fields."""

    name: str
    source: str
    says: str
    rule: str
    measure: Measure
    plate: str
    unit: str = "nats"
    note: str = ""


def tested(
    statements: Sequence[Statement], seeds: Sequence[Recorded]
) -> tuple[Claim, ...]:
    """Every statement as a claim, measured on the seeds that can test it."""
    return tuple(_tested(statement, seeds) for statement in statements)


def _tested(statement: Statement, seeds: Sequence[Recorded]) -> Claim:
    measured: list[Measured] = []
    reasons: dict[str, None] = {}
    for one in seeds:
        try:
            measured.append(statement.measure(one))
        except Absent as reason:
            reasons[str(reason)] = None
    left_out = len(seeds) - len(measured)
    note = statement.note
    if not measured:
        note = "; ".join(reasons) or "no run was made"
    elif left_out:
        note += f" Not measured on {left_out} of {len(seeds)}: {'; '.join(reasons)}."
    return Claim(
        statement.name,
        statement.source,
        statement.says,
        statement.rule,
        statement.unit,
        tuple(measured),
        statement.plate,
        note.strip(),
    )


def run_of(one: Recorded, role: str) -> Trajectory:
    """The run of a role, with at least two observations.

    Raises:
        Absent: if there is none.
    """
    if role not in one.runs:
        raise Absent(f"there is no {role} run")
    if len(one.runs[role].steps) < 2:
        raise Absent(f"the {role} run has one observation alone")
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
    """Let only a run pass whose argmax and rest are those along chosen.

    Raises:
        Absent: if it was imported from a file in which another kind overwrote them.
    """
    along = run.run.info.imported.get("greedy_path_along", "chosen")
    if along != "chosen":
        raise Absent(f"the file's greedy path is along {along}, not along chosen")


def measured(one: Recorded, found: Interval, holds: bool) -> Measured:
    """A measurement with its interval, if it has one."""
    low, high = (
        value if math.isfinite(value) else None for value in (found.low, found.high)
    )
    return Measured(one.seed, found.mean, holds, low, high)


def above(found: Interval, line: float = 0.0) -> bool:
    """Whether the interval, or the mean where there is none, is above `line`."""
    return (found.low if math.isfinite(found.low) else found.mean) > line


def below(found: Interval, line: float = 0.0) -> bool:
    """Whether the interval, or the mean where there is none, is below `line`."""
    return (found.high if math.isfinite(found.high) else found.mean) < line


def rises(role: str, kind: str, split: str = "train") -> Measure:
    """The change of a kind over a run is above zero."""

    def measure(one: Recorded) -> Measured:
        found = change(values(one, role, kind, split))
        return measured(one, found, above(found))

    return measure


def falls(role: str, kind: str, split: str = "train") -> Measure:
    """The change of a kind over a run is below zero."""

    def measure(one: Recorded) -> Measured:
        found = change(values(one, role, kind, split))
        return measured(one, found, below(found))

    return measure


def gains_over(role: str, kind: str, other: str) -> Measure:
    """The change of `kind` minus that of `other` is above zero, prompt by prompt."""

    def measure(one: Recorded) -> Measured:
        a, b = (values(one, role, name) for name in (kind, other))
        found = difference(a[-1] - a[0], b[-1] - b[0])
        return measured(one, found, above(found))

    return measure
