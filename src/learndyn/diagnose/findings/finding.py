"""What a finding is: one class that looks for one thing in a run and speaks of it.

    detect      looks for it: a finding, "fine" where it is not there, or None where it
                does not apply
    says        the numbers in a sentence or two, for the list of all findings
    headline    the verdict's first sentence, where this finding decides it
    sentence    its sentence in the verdict, at its `place`
    advice      what may be done about it

`FINDINGS` in `diagnose/catalogue.py` lists all of them, in the order of asking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.intervals import Interval


Severity = Literal["fine", "watch", "problem"]
"""fine: looked for and not there. watch: there, and expected of some trainings.
problem: a fault, or a run that cannot be used as it is."""

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that may be done, and why anybody should believe it helps."""

    do: str
    because: str
    evidence: Literal["own", "cited"] = "own"
    """own: the numbers of this very run. cited: what others measured."""
    source: str | None = None
    """Where it was measured, with the arXiv id; None where it is this run's own."""
    limits: str | None = None
    """What speaks against it, or was not measured."""
    command: str | None = None
    """A command of ours that does it."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


class Place(NamedTuple):
    """Where a sentence stands in the verdict, and how much it matters there."""

    order: int
    """Sentences stand in this order."""
    rank: int
    """Where there are too many, those of the highest rank are left out."""


ANSWER = Place(0, 0)
BUG = Place(1, 0)
_FAULT = Place(2, 1)
CHOSEN = Place(3, 1)
MOVED = Place(4, 2)
GREEDY = Place(6, 4)
KINDS = Place(7, 6)
STATE = Place(8, 1)
SHARE = Place(9, 2)
PEAK = Place(9, 4)
SIGN = Place(10, 5)
CAUTION = Place(11, 3)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for in a run, and what came of it."""

    severity: Severity
    says: str
    """One or two plain sentences with the numbers that carry them."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The same numbers by name; an interval is [mean, low, high]."""

    name: ClassVar[str]
    """A short name, unique within a diagnosis, such as "hallucination"."""
    section: ClassVar[str] = "curves"
    """Section of the report page that shows it."""
    alone: ClassVar[bool] = False
    """Whether a run that has it is judged no further."""
    fault: ClassVar[str | None] = None
    """The headline where it is a problem that matters more than any state."""
    doubt: ClassVar[str | None] = None
    """What to look at where it is only to be watched and may yet be a fault."""
    mend: ClassVar[Advice | None] = None
    """What to do first where it is a problem."""

    @classmethod
    def detect(cls, facts: Facts) -> "Finding | None":
        """Look for it; None where the run cannot have it."""
        raise NotImplementedError

    def headline(self, facts: Facts) -> str | None:
        """The verdict's first sentence; None leaves it to the findings after this."""
        return self.fault if self.severity == "problem" else None

    def bug(self, facts: Facts) -> str:
        """Whether it is a bug, where it is the problem that matters most."""
        return "This is probably a fault: fix it first."

    def is_first(self, findings: Sequence["Finding"]) -> bool:
        """Whether it is the first problem: its headline is the verdict's."""
        problems = (one for one in findings if one.severity == "problem")
        return next(problems, None) is self

    @property
    def place(self) -> Place | None:
        """Where the verdict says it; None: nowhere."""
        return {"problem": _FAULT, "watch": SIGN}.get(self.severity)

    def sentence(self, facts: Facts, findings: Sequence["Finding"]) -> str:
        """What the verdict says of it, beside all other findings."""
        return self.says

    def advice(self, facts: Facts) -> list[Advice]:
        """What may be done about it, the first thing first."""
        return [self.mend] if self.mend and self.severity == "problem" else []

    @property
    def at(self) -> str:
        """Section of the report page that shows it."""
        return self.section

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


def limits_of(interval: Interval | None) -> list[float] | None:
    """An interval as [mean, low, high]."""
    if interval is None:
        return None
    return [interval.mean, interval.low, interval.high]
