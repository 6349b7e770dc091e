"""A claim of the paper as a number that is tested on every seed.

A claim passes where it holds on every seed that could test it, and fails otherwise:
a claim that holds on two of three seeds has not been reproduced. What a model, a data
set or a recorded run cannot show is not applicable, with the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar


T = TypeVar("T")
"""What a claim is tested on: the runs of one seed, or what was measured with it."""

Outcome = Literal["PASS", "FAIL", "N-A"]


@dataclass(frozen=True)
class Measured:
    """One seed's number for one claim."""

    seed: int | str
    """Seed of data and training, or the name of a recorded run."""
    value: float
    holds: bool
    low: float | None = None
    """Lower limit of the 95 % interval over prompts, where there is one."""
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `claims.json`."""
        names = ("seed", "value", "low", "high", "holds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, the rule that tests it, and what was measured."""

    name: str
    """A short name, such as `dpo-rejected-falls`; unique."""
    source: str
    """Where the paper says so, such as "Section 4.2, Figure 4"."""
    says: str
    """The statement, in a plain sentence of our own."""
    rule: str
    """When it holds: quantity, direction, tolerance."""
    unit: str
    measured: tuple[Measured, ...] = ()
    figure: str = ""
    """Name of the figure that shows it."""
    note: str = ""
    """Why it is not applicable, or what the reader should know."""

    @property
    def outcome(self) -> Outcome:
        """Whether it was reproduced."""
        if not self.measured:
            return "N-A"
        return "PASS" if all(one.holds for one in self.measured) else "FAIL"

    @property
    def holding(self) -> int:
        """Seeds on which it holds, of `len(measured)`."""
        return sum(one.holds for one in self.measured)

    def to_dict(self) -> dict[str, Any]:
        """For `claims.json`."""
        return {
            "name": self.name,
            "outcome": self.outcome,
            "source": self.source,
            "says": self.says,
            "rule": self.rule,
            "unit": self.unit,
            "held": self.holding,
            "seeds": len(self.measured),
            "measured": [one.to_dict() for one in self.measured],
            "plate": self.figure,
            "note": self.note,
        }


class Absent(Exception):
    """A seed has nothing to test a statement on; the text says what is missing."""


@dataclass(frozen=True)
class Statement(Generic[T]):
    """One statement of the paper with its test; see `Claim` for the fields."""

    name: str
    source: str
    says: str
    rule: str
    measure: Callable[[T], Measured]
    """Tests one seed; raises `Absent`."""
    figure: str
    unit: str = "nats"
    note: str = ""

    def claim(self, seeds: Sequence[T], none: str) -> Claim:
        """Tested on the seeds that can test it; `none` says why there is no seed."""
        measured: list[Measured] = []
        reasons: dict[str, None] = {}
        for one in seeds:
            try:
                measured.append(self.measure(one))
            except Absent as reason:
                reasons[str(reason)] = None
        note = self.note
        if not measured:
            note = "; ".join(reasons) or none
        elif reasons:
            left_out = f"{len(seeds) - len(measured)} of {len(seeds)}"
            note += f" Not measured on {left_out}: {'; '.join(reasons)}."
        return Claim(
            self.name,
            self.source,
            self.says,
            self.rule,
            self.unit,
            tuple(measured),
            self.figure,
            note.strip(),
        )


def claims_of(
    statements: Sequence[Statement[T]],
    seeds: Sequence[T],
    none: str = "no run was made",
) -> tuple[Claim, ...]:
    """Every statement as a claim, tested on each seed that can test it."""
    return tuple(statement.claim(seeds, none) for statement in statements)
