"""The state as a finding: what happened to chosen, and where its probability went."""

from collections.abc import Sequence
from typing import Any

from learndyn.diagnose.advice import (
    extend,
    filter_pairs,
    keep_chosen_up,
    look_for_faults,
    more_prompts,
    nothing_yet,
    smaller_steps,
)
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import (
    STATE,
    Advice,
    Finding,
    Place,
    Severity,
    limits_of,
)
from learndyn.diagnose.findings.signs.chosen_peak import stop_at_peak
from learndyn.diagnose.headline import answer, called, degenerate
from learndyn.diagnose.numbers import number
from learndyn.diagnose.state import Move, StateReport


class RunState(Finding):
    """Which of six things happened. It gives the headline where no fault does."""

    name = "state"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """Always there; it says so where nothing can be judged."""
        state = facts.state
        numbers = _numbers(facts)
        if state.reason is not None:
            return cls("watch", f"The state cannot be judged: {state.reason}", numbers)
        calm = state.state == "FIT"
        if state.state == "SQUEEZE":
            calm = not _chosen_fell(state)
        severity: Severity = "fine" if calm else "watch"
        if degenerate(state) or _sft_that_lowers(facts):
            severity = "problem"
        return cls(severity, _says(state), numbers)

    @property
    def place(self) -> Place | None:
        """After what moved, whatever the state is."""
        return STATE

    def headline(self, facts: Facts) -> str | None:
        """The answer of a run without a fault before this."""
        return answer(facts)

    def bug(self, facts: Facts) -> str:
        """Steps that are too large for a collapse, set-up for an SFT that lowers."""
        if _sft_that_lowers(facts) and not degenerate(facts.state):
            return (
                "Probably a fault: SFT raises the answers that it trains on. Look at "
                "the learning rate, the template, and whether these prompts are like "
                "the training data."
            )
        rate = facts.trajectory.run.info.learning_rate
        logged = "" if rate is None else f" (learning rate {rate:g})"
        return (
            f"Probably a fault: steps that are far too large{logged}, or a wrong "
            "template, end of text or label."
        )

    def sentence(self, facts: Facts, findings: Sequence[Finding]) -> str:
        """The name of the state, how sure, since when."""
        return called(facts)

    def advice(self, facts: Facts) -> list[Advice]:
        """Remedies, the first one first; none where nothing needs one."""
        state = facts.state
        if state.reason is not None:
            return []
        if degenerate(state):
            return [smaller_steps(facts), look_for_faults(facts)]
        if _sft_that_lowers(facts):
            return [look_for_faults(facts), smaller_steps(facts)]
        stop = stop_at_peak(facts)
        if state.state == "UNDECIDED":
            return stop + more_prompts(facts)
        return stop if not _chosen_fell(state) else _against_a_fall(facts, stop)


def _against_a_fall(facts: Facts, stop: list[Advice]) -> list[Advice]:
    """What may keep chosen up, by the state; to wait, where it lost little."""
    state, info = facts.state, facts.trajectory.run.info
    smaller = [smaller_steps(facts)]
    given = nothing_yet(facts) + stop
    if state.state == "COLLAPSE":
        given = given + smaller
    if info.family == "preference":
        given = given + keep_chosen_up(facts)
    if state.state == "DISPLACED":
        given = given + smaller
    if info.family != "preference":
        return given
    first = state.state == "SQUEEZE" and not info.extend
    return given + (extend(facts) if first else []) + filter_pairs(facts)


def _chosen_fell(state: StateReport) -> bool:
    chosen = state.chosen
    return chosen is not None and chosen.matters and chosen.nats.below_zero


def _sft_that_lowers(facts: Facts) -> bool:
    chosen = facts.state.chosen
    return bool(facts.sft and chosen is not None and chosen.down)


def _says(state: StateReport) -> str:
    """The name with the numbers that decided it."""
    chosen, greedy, sq = state.chosen, state.greedy, state.sq
    assert chosen is not None
    assert greedy is not None
    assert sq is not None
    unit = "nats per token" if chosen.counted else "nats"
    moves = {"chosen": chosen, "greedy path": greedy, "greedy path − chosen": sq}
    if state.off_target is not None:
        moves["former favourites off the labels"] = state.off_target
    text = ", ".join(f"{name} {number(m.size)}" for name, m in moves.items())
    sure = "sure" if state.sure else "not sure"
    return f"{state.state} ({sure}): {text} {unit}."


def _numbers(facts: Facts) -> dict[str, Any]:
    """Every change that decides, in nats per response and per token, and SX."""
    state, sx = facts.state, facts.sx
    names = ("chosen", "rejected", "margin", "greedy", "sq", "off_target")
    numbers: dict[str, Any] = {name: _both(getattr(state, name)) for name in names}
    numbers["onset_step"] = state.onset_step
    numbers["first_sure_step"] = state.first_sure_step
    numbers["new_peaks"] = state.new_peaks
    numbers["labels"] = list(state.labels)
    end = None if sx is None else sx.end
    numbers["sx"] = None if end is None else [end.mean, end.low, end.high]
    return numbers


def _both(move: Move | None) -> dict[str, Any] | None:
    if move is None:
        return None
    return {"nats": limits_of(move.nats), "per_token": limits_of(move.per_token)}
