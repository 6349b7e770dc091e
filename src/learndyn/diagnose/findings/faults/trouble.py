"""What goes with steps that are too large: in the training log, and in the answers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import LN2, Series
from learndyn.diagnose.findings.faults.reference import Reference
from learndyn.diagnose.paths import Paths
from learndyn.record.method import as_losses
from learndyn.record.run_info import RunInfo


_JUMP = 4.0
"""A logged value is a jump above this many times what came before it: the largest of
the first rows, later the median of `_BEFORE` values, if it is also above all of the
first ones."""

_JUMP_DPO = 2.0
"""The same for the first rows of DPO, whose loss begins at ln 2 whatever the batch is:
twice that is a mean margin below -beta x 11 nats at beta 0.1."""

_BEFORE = 20
_FIRST = 5

_ROSE = 1.5
"""The loss rose where the median of its last half is above this many times its start. A
fit lowers it; unlike batches alone do not hold half of the rows there."""

_ROWS = 8
"""Rows that a rise needs."""

_LOST = 0.3
"""Nats per token: chosen's tokens are on average less than 0.75 times as likely."""

MUCH = 0.5
"""The same at any learning rate: 0.6 times as likely."""

_FIRST_PART = 0.2
"""Share of the updates that are the first ones, where the log has no epochs."""


@dataclass(frozen=True, slots=True)
class Jump:
    """One value far above those before it."""

    step: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Damage:
    """What chosen lost while all answers and the model's first favourites fell too."""

    per_token: float
    """Change of chosen, nats per token."""
    first: float
    """The same up to `step`: one pass over the data, or the first fifth of the run."""
    step: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """All signs of one run."""

    early: Jump | None
    """The loss within the first rows."""
    loss: int
    """Later jumps of the loss."""
    grad_norm: int
    rose: tuple[float, float] | None
    """The loss at the start, and its median over the last half."""
    lost: int
    """Logged values that are not finite."""
    lost_at: int
    """The update of the first of them."""
    damage: Damage | None

    @classmethod
    def of(cls, facts: Facts) -> "Trouble":
        """Look for all of them."""
        log, info = facts.trajectory.train_log, facts.trajectory.run.info
        loss, norms = Series.of(log, "loss"), Series.of(log, "grad_norm")
        sampled = info.family == "online"
        lost = list(_lost(log))
        return cls(
            early_jump(facts),
            0 if sampled else _jumps(loss.values.tolist()),
            _jumps(norms.values.tolist()),
            None if sampled else _rise(loss, _start(facts)),
            len(lost),
            lost[0] if lost else 0,
            None if sampled else _damage(facts),
        )


_AS_FIXED = 0.05
"""Share by which the first logged loss may differ from where the method fixes it."""


def early_jump(facts: Facts) -> Jump | None:
    """Where the loss jumps within the first rows of the log."""
    if facts.trajectory.run.info.family == "online":
        return None  # its loss is about 0 and says nothing of the fit
    steps, values = Series.of(facts.trajectory.train_log, "loss")
    start = _start(facts)
    first = len(steps) > 0 and steps[0] <= 1  # logged before any update
    if start is not None and first and abs(values[0] - start) > _AS_FIXED * start:
        start = None  # a loss that is scaled, or has other terms
    before = [] if start is None else [start]
    factor = _JUMP if start is None else _JUMP_DPO
    for step, value in zip(steps[:_FIRST], values[:_FIRST], strict=True):
        if before and min(before) > 0 and value > factor * max(before):
            return Jump(int(step), before[-1], float(value))
        before.append(float(value))
    return None


def _start(facts: Facts) -> float | None:
    """The loss before the first update, where the method fixes it: DPO's -log sigmoid
    begins at ln 2, unless policy and reference differ."""
    info = facts.trajectory.run.info
    plain = as_losses(info.trainer.get("loss_type")) in ((), ("sigmoid",))
    if info.method != "dpo" or not plain or info.trainer.get("label_smoothing"):
        return None
    reference = Reference.detect(facts)
    apart = reference is not None and reference.severity == "problem"
    return None if apart or _adds_a_term(info) else LN2


def _adds_a_term(info: RunInfo) -> bool:
    """Whether another term is added to the loss, such as LLaMA-Factory's pref_ftx or
    older TRL's rpo_alpha."""
    return any(info.trainer.get(name) for name in ("rpo_alpha", "pref_ftx"))


def _rise(loss: Series, start: float | None) -> tuple[float, float] | None:
    values = loss.values
    if len(values) < _ROWS:
        return None
    start = float(np.median(values[:3])) if start is None else start
    end = float(np.median(values[len(values) // 2 :]))
    return (start, end) if 0 < _ROSE * start < end else None


def _damage(facts: Facts) -> Damage | None:
    """Every kind but shuffled and random words surely fell, chosen by much, and so did
    what the first model favoured beside chosen."""
    paths, evidence = Paths.of(facts.trajectory, facts.split).common(), facts.evidence
    fell = [
        change.below_zero
        for kind, change in evidence.kinds.items()
        if not kind.startswith("random_")
    ]
    astray = evidence.off_target
    if "chosen" not in paths.logp or not all(fell):
        return None
    if astray is not None and not astray.below_zero:
        return None
    path = paths.logp["chosen"]
    known = np.isfinite(path[[0, -1]]).all(axis=0)
    tokens = float(np.nansum(paths.n_tokens["chosen"][known]))
    if tokens == 0:
        return None
    change = np.nansum((path - path[0])[:, known], axis=1) / tokens
    first = int(np.sum(paths.steps <= _first_pass(facts))) - 1
    if change[-1] > -_LOST or first < 0:
        return None
    return Damage(float(change[-1]), float(change[first]), int(paths.steps[first]))


def _first_pass(facts: Facts) -> float:
    """The update that ends the first pass over the data."""
    steps, epochs = Series.of(facts.trajectory.train_log, "epoch")
    within = steps[epochs <= 1]
    if len(within):
        return float(within.max())
    begin, end = (float(facts.trajectory.steps[i]) for i in (0, -1))
    return begin + _FIRST_PART * (end - begin)


def _lost(log: list[dict[str, Any]]) -> Iterator[int]:
    """Updates of rows with a loss that is not finite, or with a gradient norm that is
    so to the end: single ones are updates that a scaler of float16 left out. JSON has
    null for what is not finite."""
    for key in ("loss", "grad_norm"):
        rows = [row for row in log if key in row and isinstance(row.get("step"), int)]
        lost = [not _finite(row[key]) for row in rows]
        if key == "grad_norm" and not (lost and lost[-1]):
            continue
        yield from (row["step"] for row, gone in zip(rows, lost, strict=True) if gone)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _jumps(values: list[float]) -> int:
    """How many values after the first ones stand far above all that came before."""
    if len(values) <= _FIRST:
        return 0
    highest = max(values[:_FIRST])
    return sum(
        value > highest
        and value > _JUMP * float(np.median(values[max(0, i - _BEFORE) : i]))
        for i, value in enumerate(values)
        if i >= _FIRST
    )
