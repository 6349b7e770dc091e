"""What the trainer's own log shows: steps that are too large, lines that are lost."""

import math
from typing import Any

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import (
    CAUTION,
    SIGN,
    Finding,
    Place,
    limits_of,
)
from learndyn.diagnose.numbers import percent
from learndyn.record.run_directory import TrainLog


_JUMP = 4.0
"""A logged value is a jump above this many times the median of `_BEFORE` values before
it, if it is also above all of the first ones."""

_BEFORE = 20
_FIRST = 5


class StepsTooLarge(Finding):
    """Probability leaks out of every answer (a sure COLLAPSE), or loss or gradient norm
    jump far above all before."""

    name = "steps_too_large"
    section = "training"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without a training log, unless the state is COLLAPSE."""
        state, log = facts.state, facts.trajectory.train_log
        jumps = {key: _jumps(logged(log, key)) for key in ("loss", "grad_norm")}
        lost = sum(
            not math.isfinite(value)
            for row in log
            for key in ("loss", "grad_norm")
            if isinstance(value := row.get(key), float)
        )
        numbers = {
            "greedy": limits_of(state.greedy),
            "best_kind": limits_of(state.best),
            "loss_jumps": jumps["loss"],
            "grad_norm_jumps": jumps["grad_norm"],
            "not_finite": lost,
        }
        logs = _of_the_log(jumps, lost)
        if state.reason is None and state.state == "COLLAPSE" and state.sure:
            says = (
                f"Probability leaks: {state.best_kind}, the kind that did best, "
                f"changed by {percent(state.best.mean)} and the greedy path by "
                f"{percent(state.greedy.mean)}. Steps are probably too large, or "
                f"template, EOS or labels are faulty{logs}."
            )
            return cls("problem", says, numbers)
        if lost or any(jumps.values()):
            says = f"The training log shows trouble{logs}: the steps may be too large."
            return cls("problem" if lost else "watch", says, numbers)
        if not log:
            return None
        return cls("fine", "Loss and gradient norm do not jump.", numbers)

    @property
    def place(self) -> Place | None:
        """The state's own sentence says it where it is a problem."""
        return SIGN if self.severity == "watch" else None


class UnreadLog(Finding):
    """Lines of train.jsonl in which nothing was looked for."""

    name = "train_log"
    section = "data"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all of it was read, and for runs that no trainer logged."""
        run = facts.trajectory.run
        path = run.path / "train.jsonl"
        if facts.unit != "update" or run.info.method == "explain":
            return None
        log = TrainLog.read(path)
        unlooked = "so loss and gradient norm were not checked for jumps"
        if log.unread:
            lines = f"{log.unread} line{'s' if log.unread > 1 else ''} of train.jsonl"
            there = " there" if log.rows else ""
            says = f"{lines} cannot be read, {unlooked}{there}."
            return cls("watch", says, {"unread": log.unread})
        if log.rows:
            return None
        lacks = "holds nothing that can be read" if path.exists() else "is absent"
        return cls("fine", f"train.jsonl {lacks}, {unlooked}.")

    @property
    def place(self) -> Place | None:
        """Among what a reader must know before believing the numbers."""
        return CAUTION if self.severity == "watch" else None


def logged(log: list[dict[str, Any]], key: str) -> list[float]:
    """Finite values of one key of a training log, in order."""
    values = [row[key] for row in log if isinstance(row.get(key), int | float)]
    return [float(value) for value in values if math.isfinite(value)]


def _of_the_log(jumps: dict[str, int], lost: int) -> str:
    """What the log adds, as the end of a sentence."""
    parts = [
        f"{key} jumps {'once' if count == 1 else f'{count} times'}"
        for key, count in jumps.items()
        if count
    ]
    if lost:
        parts.append(f"{lost} logged value{'s are' if lost > 1 else ' is'} not finite")
    return f" ({', '.join(parts)})" if parts else ""


def _jumps(values: list[float]) -> int:
    """How many values stand far above all that came before them."""
    if len(values) <= _FIRST:
        return 0
    highest = max(values[:_FIRST])
    return sum(
        value > highest
        and value > _JUMP * float(np.median(values[max(0, i - _BEFORE) : i]))
        for i, value in enumerate(values)
        if i >= _FIRST
    )
