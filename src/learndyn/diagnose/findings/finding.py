"""What is found in a run, what may be done about it, and what carries either."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from learndyn.diagnose.intervals import Interval
from learndyn.record.run_info import step_unit
from learndyn.record.trajectory import Trajectory


Severity = Literal["fine", "watch", "problem"]
"""fine: looked for and not there. watch: there, and expected of some trainings.
problem: a fault, or a run that cannot be used as it is."""

Evidence = Literal["own", "cited"]
"""own: the numbers of this very run. cited: what others measured, with the source."""

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    name: str
    """A short name, unique within a diagnosis, such as "hallucination"."""
    severity: Severity
    says: str
    """One or two plain sentences with the numbers that carry them."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The same numbers by name; an interval is [mean, low, high]."""
    at: str = "curves"
    """Section of the report page that shows it."""

    @property
    def figure(self) -> str:
        """Where the page shows it."""
        return f"{PAGE}#{self.at}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "severity": self.severity,
            "says": self.says,
            "numbers": dict(self.numbers),
            "figure": self.figure,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that may be done, and why anybody should believe it helps."""

    do: str
    because: str
    evidence: Evidence
    source: str | None = None
    """Where it was measured, with the arXiv id; None where it is this run's own."""
    limits: str | None = None
    """What speaks against it, or was not measured."""
    command: str | None = None
    """A command of ours that does it."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def clock(trajectory: Trajectory) -> str:
    """What a run counts its steps in: updates, unless run.json says otherwise."""
    return step_unit(trajectory.run.info)


def defects(trajectory: Trajectory) -> dict[str, str]:
    """Columns and kinds that run.json says are not what their names say, and why."""
    listed = trajectory.run.info.get("defects") or []
    found = [item for item in listed if isinstance(item, dict)]
    return {
        name: str(item.get("what", "not what its name says")).rstrip(".")
        for item in found
        for name in str(item.get("column")).split(", ")
    }


def means_only(trajectory: Trajectory) -> set[str]:
    """Kinds of which run.json says that a mean over prompts is all that is known."""
    named = trajectory.run.info.get("means_only") or []
    return {kind for kind in trajectory.kinds if kind in named}


def limits_of(interval: Interval | None) -> list[float] | None:
    """An interval as [mean, low, high]."""
    if interval is None:
        return None
    return [interval.mean, interval.low, interval.high]
