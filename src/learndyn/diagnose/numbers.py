"""How a number is written: its sign, a true minus, and its interval beside it."""

import math

from learndyn.diagnose.intervals import Interval


def nats(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus and no negative zero."""
    if not math.isfinite(value):
        return "unknown"
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else "−") + text


def bracket(interval: Interval, digits: int = 1) -> str:
    """The limits of an interval, in brackets."""
    if not math.isfinite(interval.low):
        return "[interval unknown]"
    return f"[{nats(interval.low, digits)}, {nats(interval.high, digits)}]"


def number(interval: Interval, digits: int = 1) -> str:
    """Mean and limits."""
    return f"{nats(interval.mean, digits)} {bracket(interval, digits)}"


def percent(share: float) -> str:
    """A share as a signed percentage."""
    return f"{nats(100 * share)}\N{NO-BREAK SPACE}%"


def rounded_by(label: str) -> str:
    """How a run was scored whose numbers are not exact, for a sentence."""
    return f"{'with' if label.endswith('weights') else 'in'} {label}"
