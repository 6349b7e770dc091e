"""Faults that leave a pattern: nothing trains, labels exchanged, steps too large.

nothing trains      no watched log-probability moved by more than `STILL`
exchanged           chosen surely falls, rejected surely rises, and the margin is
                    not above zero at any observation; where intervals are not known,
                    means that do so are told as what cannot be told
steps too large     every watched answer falls and the greedy path gains nothing
                    (COLLAPSE), or loss or gradient norm jump far above all before
"""

import math
from typing import Any

import numpy as np

from learndyn.diagnose.comparable import is_sft
from learndyn.diagnose.finding import Finding, clock, limits_of
from learndyn.diagnose.intervals import known
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.paths import Paths, mean_path
from learndyn.diagnose.squeeze import Evidence
from learndyn.diagnose.state import StateReport
from learndyn.record.train_log import TrainLog
from learndyn.record.trajectory import Trajectory


STILL = 1e-3
"""Nats per response: about ten times what rounding does to a float32 sum of 100
tokens."""

JUMP = 4.0
"""A logged value is a jump above this many times the median of `BEFORE` values before
it, if it is also above all of the first ones."""

BEFORE = 20
FIRST = 5


def not_training(trajectory: Trajectory, split: str | None = None) -> Finding | None:
    """Did any watched answer move at all? None below two observations."""
    paths = Paths.of(trajectory, split).common()
    if len(paths.steps) < 2:
        return None
    moved = [np.abs(path - path[0]) for path in paths.logp.values()]
    finite = np.concatenate([values[np.isfinite(values)] for values in moved])
    if not len(finite):
        return None
    largest = float(finite.max())
    rates = _logged(trajectory.train_log, "learning_rate")
    numbers = {"largest_change": largest}
    if largest > STILL:
        size = f"{largest:.1f}" if largest >= 1 else f"{largest:.1g}"
        says = f"The model trains: the largest change is {size} nats."
        return Finding("not_training", "fine", says, numbers)
    why = "Check that the learning rate is above 0 and that some parameters train"
    if rates and max(rates) == 0:
        why = "The logged learning rate is 0 throughout"
    says = (
        f"Nothing trains: in {trajectory.steps[-1]} {clock(trajectory)}s no watched "
        f"answer moved by more than {largest:.1g} nats. {why}."
    )
    return Finding("not_training", "problem", says, numbers, "training")


def exchanged(
    trajectory: Trajectory, evidence: Evidence, split: str | None = None
) -> Finding | None:
    """Do chosen and rejected move as if their columns were exchanged? None for SFT, and
    without both kinds."""
    chosen, rejected = evidence.chosen, evidence.rejected
    if is_sft(trajectory.run.info) or chosen is None or rejected is None:
        return None
    margin = Paths.of(trajectory, split).common().margin
    assert margin is not None
    path = mean_path(margin)
    path = path[np.isfinite(path)]
    numbers = {
        "chosen": limits_of(chosen),
        "rejected": limits_of(rejected),
        "margin": limits_of(evidence.margin),
    }
    never_above = bool((path <= 0).all())
    wrong = chosen.below_zero and rejected.above_zero and never_above
    unknown = not (known(chosen) and known(rejected))
    if unknown and chosen.mean < 0 < rejected.mean and never_above:
        says = (
            f"Whether chosen and rejected are exchanged cannot be told: chosen "
            f"({number(chosen)} nats) and rejected ({number(rejected)}) move so, and "
            "how surely is not known."
        )
        return Finding("exchanged", "watch", says, numbers, "kinds")
    if not wrong:
        says = (
            f"Chosen ({number(chosen)} nats) and rejected ({number(rejected)}) do not "
            "move as if they were exchanged."
        )
        return Finding("exchanged", "fine", says, numbers, "kinds")
    says = (
        f"Chosen and rejected are probably exchanged, in the training data or in the "
        f"probes: chosen fell ({number(chosen)} nats), rejected rose "
        f"({number(rejected)}), and the margin was never above its start."
    )
    return Finding("exchanged", "problem", says, numbers, "kinds")


def steps_too_large(trajectory: Trajectory, state: StateReport) -> Finding | None:
    """Does probability leak out of everything, or does the training log jump?"""
    jumps = {
        key: _jumps(_logged(trajectory.train_log, key)) for key in ("loss", "grad_norm")
    }
    lost = sum(
        not math.isfinite(value)
        for row in trajectory.train_log
        for key in ("loss", "grad_norm")
        if isinstance(value := row.get(key), float)
    )
    jumped = sum(jumps.values())
    numbers = {
        "greedy": limits_of(state.greedy),
        "best_kind": limits_of(state.best),
        "loss_jumps": jumps["loss"],
        "grad_norm_jumps": jumps["grad_norm"],
        "not_finite": lost,
    }
    log = _of_the_log(jumps, lost)
    if state.reason is None and state.state == "COLLAPSE" and state.sure:
        says = (
            f"Probability leaks: the best kind, {state.best_kind}, changed by "
            f"{percent(state.best.mean)} and the greedy path by "
            f"{percent(state.greedy.mean)}. Steps are probably too large, or template, "
            f"EOS or labels are faulty{log}."
        )
        return Finding("steps_too_large", "problem", says, numbers, "training")
    if lost or jumped:
        says = f"The training log is not calm{log}: perhaps steps are too large."
        severity = "problem" if lost else "watch"
        return Finding("steps_too_large", severity, says, numbers, "training")
    if not trajectory.train_log:
        return None
    says = "Loss and gradient norm do not jump."
    return Finding("steps_too_large", "fine", says, numbers, "training")


def unread_log(trajectory: Trajectory) -> Finding | None:
    """What of the training log was not looked at; None where all of it was, and for
    runs that no trainer logged."""
    info, path = trajectory.run.info, trajectory.run.path / "train.jsonl"
    if clock(trajectory) != "update" or info.get("method") == "explain":
        return None
    log = TrainLog.read(path)
    unlooked = "so jumps of loss and gradient norm were not looked for"
    if log.unread:
        lines = f"{log.unread} line{'s' if log.unread > 1 else ''} of train.jsonl"
        says = f"{lines} cannot be read, {unlooked}{' there' if log.rows else ''}."
        return Finding("train_log", "watch", says, {"unread": log.unread}, "data")
    if log.rows:
        return None
    lacks = "holds nothing that can be read" if path.exists() else "is absent"
    return Finding("train_log", "fine", f"train.jsonl {lacks}, {unlooked}.", {}, "data")


def _of_the_log(jumps: dict[str, int], lost: int) -> str:
    """What the log adds, as the end of a sentence."""
    said = [f"{key} jumps {count} times" for key, count in jumps.items() if count]
    if lost:
        said.append(f"{lost} logged values are not finite")
    return f" ({', '.join(said)})" if said else ""


def _logged(log: list[dict[str, Any]], key: str) -> list[float]:
    """Finite values of one key, in order."""
    values = [row[key] for row in log if isinstance(row.get(key), int | float)]
    return [float(value) for value in values if math.isfinite(value)]


def _jumps(values: list[float]) -> int:
    """How many values stand far above all that came before them."""
    if len(values) <= FIRST:
        return 0
    highest = max(values[:FIRST])
    return sum(
        value > highest
        and value > JUMP * float(np.median(values[max(0, i - BEFORE) : i]))
        for i, value in enumerate(values)
        if i >= FIRST
    )
