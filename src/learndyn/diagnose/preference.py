"""What preference training should not do: let the margin fall, or chosen with no cause.

margin falls    the mean margin is surely below zero, by more than delta of chosen's
                start: rejected gained on chosen
chosen falls    chosen is surely below -delta, and neither SQUEEZE nor COLLAPSE says why
"""

from learndyn.diagnose.comparable import is_sft
from learndyn.diagnose.finding import Finding, limits_of
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.squeeze import Evidence
from learndyn.diagnose.state import DELTA, StateReport
from learndyn.record.trajectory import Trajectory


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
