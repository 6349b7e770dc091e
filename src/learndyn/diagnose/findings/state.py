"""The state as a finding: squeezing, a fit, a collapse or nothing, in words.

A sentence is never more certain than its interval: "fell" needs the whole interval
below zero. Curves show a pattern, not a mechanism, so causes are called probable; only
a sure state is called one.
"""

from collections.abc import Sequence

from learndyn.diagnose.advice import (
    AGAINST_SQUEEZING,
    extend,
    look_for_faults,
    more_prompts,
    smaller_steps,
    train_longer,
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
from learndyn.diagnose.intervals import known
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.squeeze import Evidence
from learndyn.diagnose.state import DELTA, LAST, State, StateReport, matters


_SEVERITY: dict[State, Severity] = {
    "SQUEEZE": "watch",
    "FIT": "fine",
    "COLLAPSE": "problem",
    "NEUTRAL": "fine",
}


class RunState(Finding):
    """Which of four things happened; it decides where no fault and no sign does."""

    name = "state"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """Always there; it says so where nothing can be judged."""
        state = facts.state
        numbers = {
            "sx": limits_of(state.sx),
            "greedy": limits_of(state.greedy),
            "best": limits_of(state.best),
            "best_kind": state.best_kind,
            "onset_step": state.onset_step,
            "first_sure_step": state.first_sure_step,
        }
        if state.reason is not None:
            says = f"The state cannot be judged: {state.reason}"
            return cls("watch", says, numbers)
        severity = _SEVERITY[state.state]
        if severity == "problem" and not state.sure:
            severity = "watch"
        says = (
            f"{state.state}{'' if state.sure else ', but not surely'}: squeeze index "
            f"{number(state.sx, 2)}; the greedy path changed by "
            f"{percent(state.greedy.mean)} and {state.best_kind}, the kind that did "
            f"best, by {percent(state.best.mean)}."
        )
        if state.state == "SQUEEZE" and state.onset_step is not None:
            says += f" It began at {facts.unit} {state.onset_step}."
        return cls(severity, says, numbers)

    @property
    def place(self) -> Place | None:
        """After the faults, whatever the state is."""
        return STATE

    def headline(self, facts: Facts) -> str | None:
        """The answer of a run without a fault."""
        state = facts.state
        if state.reason is not None:
            return "Whether probability is squeezed cannot be judged from this run."
        if state.undecided:
            return (
                "Something moved, but these prompts cannot tell squeezing from a fit."
            )
        if not state.sure:
            return _UNSURE[state.state]
        return {
            "SQUEEZE": _squeeze,
            "FIT": _fit_headline,
            "COLLAPSE": _collapse,
            "NEUTRAL": _neutral,
        }[state.state](facts)

    def sentence(self, facts: Facts, findings: Sequence[Finding]) -> str:
        """The state with the numbers that decided it; of SFT whether it fits."""
        if facts.sft:
            return _fit(facts.evidence)
        faults = any(finding.severity == "problem" for finding in findings)
        return _state(facts, faults)

    def advice(self, facts: Facts) -> list[Advice]:
        """Remedies, the first one first; none where nothing needs one."""
        state, evidence = facts.state, facts.evidence
        if state.reason is not None:
            return []
        stop = stop_at_peak(facts)
        if not state.sure:
            return stop + more_prompts(facts)
        if state.state == "SQUEEZE" and not facts.sft:
            tried = facts.trajectory.run.info.extend
            first = [] if tried or not evidence.pushed_down else [extend(facts)]
            return stop + first + AGAINST_SQUEEZING
        if state.state == "COLLAPSE":
            return [smaller_steps(facts), look_for_faults(facts), *stop]
        if state.state == "NEUTRAL":
            return [*stop, train_longer(facts)]
        return stop


_UNSURE = {
    "SQUEEZE": "Perhaps squeezing, but not surely: these prompts cannot tell.",
    "FIT": "Perhaps a fit, but not surely: these prompts cannot tell.",
    "COLLAPSE": "Perhaps probability leaks out of every watched answer, but not "
    "surely: these prompts cannot tell.",
    "NEUTRAL": "Perhaps nothing happened yet, but not surely: these prompts cannot "
    "tell.",
}


def _squeeze(facts: Facts) -> str:
    chosen, evidence = facts.evidence.chosen, facts.evidence
    if facts.sft:
        if chosen is not None and chosen.above_zero:
            return (
                "Chosen became likelier, and the model's own favourites gained more "
                "still."
            )
        return "The model's own favourites gained more than the answers it trains on."
    if 2 * evidence.falling <= len(evidence.kinds):
        return (
            "The model's own favourites gained more than any watched answer, but most "
            "answers did not fall."
        )
    peak = facts.peak
    turned = peak is not None and peak.turned
    if chosen is not None and (chosen.below_zero or turned):
        since = (
            ""
            if chosen.below_zero or peak is None
            else f" since {peak.clock} {peak.step}"
        )
        if not evidence.pushed_down:
            return (
                f"Chosen falls{since}, and probability moves to tokens the model "
                "already favours."
            )
        return (
            f"Chosen falls{since}, probably because the push on rejected squeezes "
            "probability onto tokens the model already favours."
        )
    if chosen is not None and chosen.above_zero:
        return (
            "Probability moves to tokens the model already favours; chosen is still "
            "above its start, for now."
        )
    return "Probability moves to tokens the model already favours."


def _fit_headline(facts: Facts) -> str:
    state, chosen = facts.state, facts.evidence.chosen
    intended = (
        chosen is not None
        and chosen.above_zero
        and matters(facts.evidence.relative["chosen"])
    )
    if intended and state.best_kind == "chosen" and state.sx.below_zero:
        return (
            "Training moves the answers you want: chosen gained more than the model's "
            "own favourites."
        )
    if intended:
        return "Training moves the answers you want: chosen became likelier."
    if facts.sft and chosen is not None and chosen.below_zero:
        return "SFT made chosen less likely instead of likelier."
    best = state.best_kind
    return f"No squeezing: the answer that gained most is a watched one, {best}."


def _collapse(facts: Facts) -> str:
    greedy = facts.evidence.greedy
    if greedy is not None and greedy.below_zero:
        return (
            "Everything falls, the model's own favourites too: probability is leaking "
            "out of every watched answer."
        )
    return (
        "Every watched answer falls and the model's own favourites gain nothing: "
        "probability is leaking."
    )


def _neutral(facts: Facts) -> str:
    changes = [*facts.evidence.relative.values(), facts.evidence.greedy_relative]
    verb = "gained more than" if any(map(matters, changes)) else "moved past"
    looks = len(facts.trajectory.steps)
    return f"Nothing {verb} {100 * DELTA:.0f} % yet after {looks} observations."


def _state(facts: Facts, faults: bool) -> str:
    """The state in words, with the numbers that decided it."""
    state, evidence = facts.state, facts.evidence
    if state.reason is not None:
        return f"Squeezing cannot be judged: {state.reason}"
    over = ""
    if round(LAST * len(state.steps)) > 1:
        over = f", over the last {100 * LAST:.0f} % of the observations,"
    shares = (
        f"relative to its start{over} the greedy path changed by "
        f"{percent(state.greedy.mean)} and {state.best_kind}, the kind that did "
        f"best, by {percent(state.best.mean)}"
    )
    index = f"the squeeze index is {number(state.sx, 2)}, and the threshold is {DELTA}"
    if not state.sure:
        return f"{_perhaps(state)}: {shares}; {index}."
    if state.state == "SQUEEZE":
        if 2 * evidence.falling <= len(evidence.kinds):
            return (
                "The greedy path gained more than any kind, but most kinds did not "
                f"fall: at most mild squeezing. In numbers, {shares}."
            )
        calm = evidence.pushed_down and not faults
        return (
            f"Probability moved to tokens the model already favoured (squeezing): "
            f"{shares}.{' Probably not a bug.' if calm else ''}"
        )
    if state.state == "COLLAPSE":
        return (
            f"No squeezing: nothing watched gained; {shares}. Probability leaks out of "
            "every watched answer: steps that are too large, or a fault in template, "
            "EOS or labels."
        )
    if state.state == "FIT":
        return f"No squeezing: {shares}."
    changes = [*evidence.relative.values(), evidence.greedy_relative]
    verb = "gained more than" if any(map(matters, changes)) else "moved past"
    return f"No squeezing: nothing {verb} {100 * DELTA:.0f} %; {shares}."


def _perhaps(state: StateReport) -> str:
    """A state that is not sure, as the beginning of a sentence."""
    if state.undecided:
        return "Something moved, but squeezing cannot be told from a fit"
    called = {"SQUEEZE": "Perhaps squeezing", "COLLAPSE": "Perhaps a leak"}
    return f"{called.get(state.state, 'Probably no squeezing')}, but not surely"


def _fit(evidence: Evidence) -> str:
    chosen = evidence.chosen
    if chosen is None:
        return "The probes have no chosen answers, so the fit cannot be judged."
    share = evidence.relative["chosen"]
    if chosen.excludes_zero and not matters(share):
        return (
            f"Chosen hardly changed, by {percent(share.mean)} of its log-probability: "
            f"below {100 * DELTA:.0f} % the fit is not judged."
        )
    if chosen.above_zero:
        return (
            f"The fit is as intended: chosen is likelier than at the start, by "
            f"{percent(share.mean)} of its log-probability."
        )
    if chosen.below_zero:
        return (
            "SFT made chosen less likely instead of likelier: check the learning rate, "
            "the template, and whether these prompts are like the training data."
        )
    if not known(chosen):
        return f"Chosen changed by {percent(share.mean)}; its interval is unknown."
    return "Chosen did not clearly change: its interval includes zero."
