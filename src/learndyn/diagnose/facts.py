"""All that is known of one run before anything is said about it."""

from dataclasses import dataclass
from typing import Any

from learndyn.diagnose.compare import is_sft
from learndyn.diagnose.findings.cautions import above_zero, cautions
from learndyn.diagnose.findings.faults import (
    chosen_falls,
    exchanged,
    margin_falls,
    not_training,
    reference_mismatch,
    steps_too_large,
    unread_log,
)
from learndyn.diagnose.findings.finding import (
    Finding,
    Severity,
    clock,
    defects,
    limits_of,
)
from learndyn.diagnose.findings.hallucination import hallucination
from learndyn.diagnose.findings.overfit import overfit
from learndyn.diagnose.findings.peak import Peak, chosen_peak
from learndyn.diagnose.findings.peakiness import COLUMNS as PEAKINESS, peakiness
from learndyn.diagnose.findings.squeeze import (
    Evidence,
    PerToken,
    per_token,
    squeeze_evidence,
)
from learndyn.diagnose.findings.state import State, StateReport, state_of
from learndyn.diagnose.numbers import number, percent
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True)
class Facts:
    """One run's evidence, its state, and everything that was looked for."""

    trajectory: Trajectory
    split: str | None
    evidence: Evidence
    state: StateReport
    peak: Peak | None
    findings: list[Finding]

    @classmethod
    def of(cls, trajectory: Trajectory, split: str | None = None) -> "Facts":
        """Collect them from a run with two observations or more.

        Raises:
            BadInput: if no probe is of `split`.
        """
        evidence = squeeze_evidence(trajectory, split=split)
        state = state_of(trajectory, split=split)
        peak = chosen_peak(trajectory, split)
        odd = defects(trajectory)
        tokens = None if "argmax_logp" in odd else per_token(trajectory, split)
        swapped = exchanged(trajectory, evidence, split)
        faulty = swapped is not None and swapped.severity == "problem"
        looked_for = [
            above_zero(trajectory),
            not_training(trajectory, split),
            reference_mismatch(trajectory),
            swapped,
            None if faulty else margin_falls(trajectory, evidence, state),
            chosen_falls(trajectory, evidence, state),
            _of_state(state, clock(trajectory)),
            None if tokens is None else _of_tokens(tokens),
            steps_too_large(trajectory, state),
            unread_log(trajectory),
            None if peak is None else peak.finding(),
            _found(hallucination(trajectory, split)),
            _found(overfit(trajectory)) if split is None else None,
            None if PEAKINESS & set(odd) else _found(peakiness(trajectory, split)),
            *cautions(trajectory, evidence),
        ]
        return cls(
            trajectory,
            split,
            evidence,
            state,
            peak,
            [finding for finding in looked_for if finding is not None],
        )

    @property
    def sft(self) -> bool:
        """Whether the run only pushes answers up."""
        return is_sft(self.trajectory.run.info)

    @property
    def problems(self) -> list[Finding]:
        """Findings that are faults."""
        return [f for f in self.findings if f.severity == "problem"]

    def found(self, name: str) -> Finding | None:
        """One finding by its name."""
        return next((f for f in self.findings if f.name == name), None)


_SEVERITY: dict[State, Severity] = {
    "SQUEEZE": "watch",
    "FIT": "fine",
    "COLLAPSE": "problem",
    "NEUTRAL": "fine",
}


def _of_state(state: StateReport, unit: str) -> Finding:
    """The state as a finding of its own."""
    numbers: dict[str, Any] = {
        "sx": limits_of(state.sx),
        "greedy": limits_of(state.greedy),
        "best": limits_of(state.best),
        "best_kind": state.best_kind,
        "onset_step": state.onset_step,
        "first_sure_step": state.first_sure_step,
    }
    if state.reason is not None:
        says = f"The state cannot be judged: {state.reason}"
        return Finding("state", "watch", says, numbers, "verdict")
    severity = _SEVERITY[state.state]
    if severity == "problem" and not state.sure:
        severity = "watch"
    says = (
        f"{state.state}{'' if state.sure else ', but not surely'}: squeeze index "
        f"{number(state.sx, 2)}; the greedy path changed by "
        f"{percent(state.greedy.mean)}, the best kind, {state.best_kind}, by "
        f"{percent(state.best.mean)}."
    )
    if state.state == "SQUEEZE" and state.onset_step is not None:
        says += f" It began at {unit} {state.onset_step}."
    return Finding("state", severity, says, numbers, "verdict")


def _of_tokens(tokens: PerToken) -> Finding:
    """Squeezing at the same positions, token by token."""
    gain, ahead = tokens.favourite.at(-1), tokens.squeeze["chosen"].at(-1)
    numbers = {
        "favourite": limits_of(gain),
        "beyond_label": limits_of(ahead),
        "off_target": limits_of(tokens.off_target),
        "off_target_tokens": tokens.off_target_tokens,
    }
    astray = "none of the first favourites was wrong"
    if tokens.off_target is not None:
        astray = f"wrong first favourites by {number(tokens.off_target, 2)}"
    shows = "does not show" if not tokens.fires else "shows"
    sure = "" if tokens.sure or not tokens.fires else ", but not surely"
    says = (
        f"Token by token squeezing {shows}{sure}: along chosen the favourites changed "
        f"by {number(gain, 2)} nats per token, {number(ahead, 2)} beyond the labels; "
        f"{astray}."
    )
    severity = "watch" if tokens.sure else "fine"
    return Finding("per_token", severity, says, numbers, "verdict")


def _found(result: Any) -> Finding | None:
    return None if result is None else result.finding()
