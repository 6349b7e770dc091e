"""Faults that leave a pattern: nothing trains, labels exchanged, steps too large.

nothing trains      no watched log-probability moved by more than `STILL`
exchanged           chosen surely falls, rejected surely rises, and the margin is
                    not above zero at any observation; where intervals are not known,
                    means that do so are told as what cannot be told
steps too large     every watched answer falls and the greedy path gains nothing
                    (COLLAPSE), or loss or gradient norm jump far above all before

What preference training should not do: let the margin fall, or chosen with no cause.

margin falls    the mean margin is surely below zero, by more than delta of chosen's
                start: rejected gained on chosen
chosen falls    chosen is surely below -delta, and neither SQUEEZE nor COLLAPSE says why

Did policy and reference agree before the first update, so that margins began at 0?

Where they do not, DPO pushes on a difference that no update made. What a run keeps that
can tell, the best first:

    reference_gap in run.json      largest |log pi - log pi_ref| over all training
                                   responses; recipes check it before they begin
    the rewards of update 1        logged before any update: beta (log pi - log pi_ref)
                                   must be 0
    the first logged rewards       means over updates 1 to k, so they hold real changes
                                   too; they are held against what the probes moved
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from learndyn.diagnose.compare import is_sft
from learndyn.diagnose.findings.finding import Finding, clock, limits_of
from learndyn.diagnose.findings.squeeze import Evidence
from learndyn.diagnose.findings.state import DELTA, StateReport
from learndyn.diagnose.intervals import Interval, known
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.paths import Paths, mean_path
from learndyn.record.run_directory import TrainLog
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


WITHOUT_PAIRS = ("grpo", "ppo", "rloo")
"""Methods, as run.json names them, whose loss does not compare chosen and rejected."""


def margin_falls(
    trajectory: Trajectory, evidence: Evidence, state: StateReport
) -> Finding | None:
    """Did rejected gain on chosen? None for SFT and `WITHOUT_PAIRS`, without both
    kinds, and where a sure COLLAPSE says more."""
    margin, chosen, rejected = evidence.margin, evidence.chosen, evidence.rejected
    method = str(trajectory.run.info.get("method", "")).lower()
    if method in WITHOUT_PAIRS or margin is None or chosen is None:
        return None
    leaks = state.state == "COLLAPSE" and state.sure
    if is_sft(trajectory.run.info) or rejected is None or leaks:
        return None
    numbers = {
        "margin": limits_of(margin),
        "chosen": limits_of(chosen),
        "rejected": limits_of(rejected),
    }
    if not (margin.below_zero and _large(margin, evidence)):
        says = f"The margin ({number(margin)} nats) does not surely fall by much."
        return Finding("margin_falls", "fine", says, numbers, "kinds")
    says = (
        f"The margin falls, by {number(margin)} nats: chosen changed by "
        f"{number(chosen)} and rejected by {number(rejected)}. Preference training "
        "should raise it: look for exchanged columns, and for probes that are unlike "
        "the training data."
    )
    return Finding("margin_falls", "problem", says, numbers, "kinds")


def chosen_falls(
    trajectory: Trajectory, evidence: Evidence, state: StateReport
) -> Finding | None:
    """Does chosen surely fall although the state is FIT or NEUTRAL? None for SFT, where
    no state can be judged, and without chosen."""
    share, chosen = evidence.chosen_relative, evidence.chosen
    if is_sft(trajectory.run.info) or share is None or chosen is None:
        return None
    if state.reason is not None or state.state in ("SQUEEZE", "COLLAPSE"):
        return None
    if not share.high < -DELTA:
        return None
    numbers = {
        "chosen": limits_of(chosen),
        "chosen_relative": limits_of(share),
        "best": limits_of(state.best),
        "best_kind": state.best_kind,
    }
    says = (
        f"Chosen fell by {percent(-share.mean).lstrip('+')} of its log-probability "
        f"({number(chosen)} nats), while {state.best_kind} changed by "
        f"{percent(state.best.mean)}: neither squeezing nor a leak is surely seen."
    )
    return Finding("chosen_falls", "watch", says, numbers, "kinds")


def _large(margin: Interval, evidence: Evidence) -> bool:
    """Whether the fall is over delta of what chosen was at the start."""
    chosen, share = evidence.chosen, evidence.chosen_relative
    if chosen is None or share is None or share.mean == 0:
        return True
    return abs(margin.mean) > DELTA * abs(chosen.mean / share.mean)


TOLERANCE = 1e-2
"""Nats per response. Two bfloat16 forwards of equal weights give equal numbers; a
reference in another precision differs by more."""

LARGE = 1.0
"""Nats per response from which a disagreement is called a problem."""

REWARDS = ("rewards/chosen", "rewards/rejected")
"""TRL's keys of beta (log pi - log pi_ref), means over a batch."""


def reference_mismatch(trajectory: Trajectory) -> Finding | None:
    """Hold the start of a preference run against its reference; None for SFT, and
    where neither run.json nor the training log can tell."""
    info = trajectory.run.info
    if is_sft(info):
        return None
    gap = info.get("reference_gap")
    if isinstance(gap, int | float) and np.isfinite(gap):
        return _found(
            float(gap),
            f"the largest gap over all training responses is {gap:.2g} nats",
            {"reference_gap": float(gap)},
        )
    row = next(_rewarded(trajectory.train_log), None)
    beta = info.get("beta") or (info.get("trainer") or {}).get("beta")
    if row is None or not isinstance(beta, int | float) or beta <= 0:
        return None
    step = int(row["step"])
    gap = max(abs(float(row[key])) for key in REWARDS if key in row) / beta
    numbers = {"first_logged_step": step, "first_logged_gap": gap}
    if step <= 1:
        return _found(gap, f"at update 1 they are {gap:.2g} nats apart", numbers)
    moved = _moved_by(trajectory, step)
    if not np.isfinite(moved) or gap <= LARGE + 3 * moved:
        says = (
            f"Policy and reference were not compared before the first update: the "
            f"first logged rewards are means over updates 1 to {step} "
            f"({gap:.2g} nats). Log every update, or use `learndyn run`, which checks."
        )
        return Finding("reference", "fine", says, numbers, "training")
    says = (
        f"Policy and reference probably differ before the first update: the first "
        f"logged rewards, over updates 1 to {step}, say {gap:.1f} nats, but the probes "
        f"had moved by {moved:.1f} at most. The margin does not start at 0."
    )
    numbers["probes_moved"] = moved
    return Finding("reference", "problem", says, numbers, "training")


def _found(gap: float, how: str, numbers: dict[str, Any]) -> Finding:
    if gap <= TOLERANCE:
        says = f"Policy and reference agreed before the first update: {how}."
        return Finding("reference", "fine", says, numbers, "training")
    says = (
        f"Policy and reference differ before the first update: {how}. The margin does "
        "not start at 0, and the loss pushes on a difference that no update made."
    )
    severity = "problem" if gap > LARGE else "watch"
    return Finding("reference", severity, says, numbers, "training")


def _rewarded(log: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the training log that hold finite rewards."""
    for row in log:
        values = [row[key] for key in REWARDS if key in row]
        numeric = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
        if values and numeric and isinstance(row.get("step"), int | float):
            yield row


def _moved_by(trajectory: Trajectory, step: int) -> float:
    """Largest mean change of chosen or rejected up to the observation at or after
    `step`, nats; NaN where there is none."""
    paths = Paths.of(trajectory).common()
    later = np.flatnonzero(paths.steps >= step)
    kinds = [kind for kind in ("chosen", "rejected") if kind in paths.logp]
    if not len(later) or not kinds:
        return float("nan")
    until = slice(0, int(later[0]) + 1)
    changes = [
        mean_path((path - path[0])[until])
        for path in map(paths.logp.get, kinds)
        if path is not None
    ]
    return float(np.max(np.abs(np.concatenate(changes))))
