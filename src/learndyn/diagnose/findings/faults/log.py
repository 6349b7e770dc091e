"""The training log as series: what a trainer wrote at which update."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.numbers import figures


LN2 = math.log(2)
"""Where the loss of DPO begins: -log sigmoid(0)."""


class Series(NamedTuple):
    """Finite values of one key of a training log, in order."""

    steps: Float[np.ndarray, " row"]
    """Updates at which they were logged; 0 where a row has none."""
    values: Float[np.ndarray, " row"]

    @classmethod
    def of(cls, log: Sequence[dict[str, Any]], key: str) -> "Series":
        """The values of `key`; none where no row has it."""
        rows = [
            (float(row["step"]) if _is_number(row.get("step")) else 0.0, row[key])
            for row in log
            if _is_number(row.get(key)) and math.isfinite(row[key])
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def all_zero(self) -> bool:
        """Whether at least two rows have a value and each is exactly 0."""
        return len(self) >= 2 and not self.values.any()

    @property
    def largest(self) -> float:
        """The largest size; 0 where there is no value."""
        return float(np.abs(self.values).max(initial=0.0))

    def at(self, step: int | float) -> float | None:
        """The value logged at an update, or None."""
        there = self.values[self.steps == step]
        return float(there[0]) if len(there) else None


def logged(log: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Finite values of one key of a training log, in order."""
    return Series.of(log, key).values.tolist()


def short(value: float) -> str:
    """A number to three figures, exponents without zeros: 0.693, 5e−7."""
    mantissa, mark, exponent = figures(value).partition("e")
    if not mark:
        return mantissa
    return f"{mantissa}e{exponent[0].strip('+')}{exponent[1:].lstrip('0')}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
