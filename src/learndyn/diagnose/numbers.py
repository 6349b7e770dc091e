"""How a number is written: its sign, a true minus, and its interval beside it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from learndyn.diagnose.intervals import Interval


def nats(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus and no negative zero."""
    if not math.isfinite(value):
        return "unknown"
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else "−") + text


def figures(value: float, count: int = 3) -> str:
    """A number to so many figures, with a true minus."""
    return f"{value:.{count}g}".replace("-", "\N{MINUS SIGN}")


def bracket(interval: Interval, digits: int = 1) -> str:
    """The limits of an interval, in brackets."""
    if not math.isfinite(interval.low):
        return "[interval unknown]"
    return f"[{nats(interval.low, digits)}, {nats(interval.high, digits)}]"


def number(interval: Interval, digits: int | None = None) -> str:
    """Mean and limits, with the decimals that the largest of them needs."""
    if digits is None:
        digits = decimals(interval.mean, interval.low, interval.high)
    return f"{nats(interval.mean, digits)} {bracket(interval, digits)}"


def signed(value: float) -> str:
    """A number with its sign and the decimals that it needs."""
    return nats(value, decimals(value))


def decimals(*values: float) -> int:
    """Decimals that show the largest of the values: one from 1 on, so that nothing
    which moved is written as 0.0; six at most, and one where six show nothing."""
    largest = _largest(values)
    if largest < 5e-7 or largest >= 1:
        return 1
    return min(6, 1 - math.floor(math.log10(largest)))


def counted(count: int | float, noun: str) -> str:
    """So many of something: "1 update", "25 updates"."""
    size = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{size} {noun}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """A sentence that begins with a capital letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def rounded_by(label: str) -> str:
    """How a run was scored whose numbers are not exact, for a sentence."""
    return f"{'with' if label.endswith('weights') else 'in'} {label}"


@dataclass(frozen=True, slots=True)
class Scale:
    """One unit for all numbers of a page, so that they can be compared at a glance."""

    factor: float
    """Nats times this are numbers in the unit."""
    unit: str
    words: str
    """The unit spelled out; empty for the nat itself."""
    digits: int
    """Decimals, the same for all numbers."""

    @classmethod
    def of(cls, values: Iterable[float]) -> "Scale":
        """The unit in which the largest of these nats is 1 or more, if there is one."""
        largest = _largest(values)
        for factor, unit, words in _UNITS:
            if largest * factor >= 1:
                return cls(factor, unit, words, 1 if largest * factor >= 10 else 2)
        if largest == 0:
            return cls(1.0, "nats", "", 1)
        return cls(*_UNITS[-1], digits=2).finer([largest])

    def finer(self, values: Iterable[float]) -> "Scale":
        """The same unit with decimals enough for two figures of the largest value."""
        largest = _largest(values) * self.factor
        if largest == 0:
            return self
        digits = min(12, 1 - math.floor(math.log10(largest)))
        return replace(self, digits=max(self.digits, digits))

    def value(self, value: float) -> str:
        """Nats, written in the unit; without its name."""
        return nats(value * self.factor, self.digits)

    def limits(self, interval: Interval) -> str:
        """An interval's limits in the unit, in brackets."""
        return bracket(self.of_interval(interval), self.digits)

    def of_interval(self, interval: Interval) -> Interval:
        """The same interval in the unit."""
        mean, low, high = (
            value * self.factor
            for value in (interval.mean, interval.low, interval.high)
        )
        return Interval(mean, low, high, interval.n)


def _largest(values: Iterable[float]) -> float:
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


_UNITS = (
    (1.0, "nats", ""),
    (1e3, "mnat", "thousandths of a nat"),
    (1e6, "µnat", "millionths of a nat"),
)
