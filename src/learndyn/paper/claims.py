"""A claim of the paper as a number that is tested on every seed.

A claim passes where it holds on every seed that could test it, and fails otherwise:
a claim that holds on two of three seeds has not been reproduced. What a model, a data
set or a recorded run cannot show is not applicable, with the reason.
"""

from dataclasses import dataclass
from typing import Any, Literal


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
    plate: str = ""
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
    def held(self) -> int:
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
            "held": self.held,
            "seeds": len(self.measured),
            "measured": [vars_of(one) for one in self.measured],
            "plate": self.plate,
            "note": self.note,
        }


def vars_of(one: Measured) -> dict[str, Any]:
    """The fields of one measurement."""
    return {
        "seed": one.seed,
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "holds": one.holds,
    }
