"""The answer in one sentence of at most twenty words: what happened, is it a bug.

Only a sure state is told as one. "Probably" stands where curves suggest a cause; that
chosen falls is said only where its whole interval is below zero.
"""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.state import DELTA as THRESHOLD


def headline(facts: Facts) -> str:
    """One sentence, the most important thing first."""
    for finding in facts.problems:
        if finding.name in _FAULTS:
            return _FAULTS[finding.name]
    state = facts.state
    if state.reason is not None:
        return "Whether probability is squeezed cannot be judged from this run."
    if facts.found("chosen_falls") is not None:
        return _chosen_falls(facts)
    if state.undecided:
        return "Something moved; squeezing or a fit cannot be told from these prompts."
    if not state.sure:
        return _UNSURE[state.state]
    return {
        "SQUEEZE": _squeeze,
        "FIT": _fit,
        "COLLAPSE": _collapse,
        "NEUTRAL": _neutral,
    }[state.state](facts)


def moves(share: Interval | None) -> bool:
    """Whether a relative change is large enough to be told as one."""
    return share is not None and abs(share.mean) > THRESHOLD


_FAULTS = {
    "above_zero": "Nothing here can be believed: log-probabilities are above zero.",
    "not_training": "Nothing trains: no watched answer moved.",
    "reference": "Policy and reference differ before the first update, so the margin "
    "does not start at zero.",
    "exchanged": "Chosen and rejected are probably exchanged: chosen falls and "
    "rejected rises.",
    "margin_falls": "The margin falls: rejected gains on chosen, the opposite of what "
    "preference training is for.",
}
"""Faults that matter more than any state."""

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
    turned = peak is not None and peak.inside and peak.fell
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


def _fit(facts: Facts) -> str:
    state, chosen = facts.state, facts.evidence.chosen
    wanted = (
        chosen is not None
        and chosen.above_zero
        and moves(facts.evidence.relative["chosen"])
    )
    if wanted and state.best_kind == "chosen" and state.sx.below_zero:
        return (
            "Training moves the answers you want: chosen gained more than the model's "
            "own favourites."
        )
    if wanted:
        return "Training moves the answers you want: chosen became likelier."
    if facts.sft and chosen is not None and chosen.below_zero:
        return "SFT made chosen less likely, which it should not."
    best = state.best_kind
    return f"No squeezing: the answer that gained most is a watched one, {best}."


def _chosen_falls(facts: Facts) -> str:
    best = facts.state.best_kind
    return (
        "Chosen falls, and neither squeezing nor a leak is surely seen; the best kind "
        f"is {best}."
    )


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
    verb = "gained more than" if any(map(moves, changes)) else "moved past"
    looks = len(facts.trajectory.steps)
    return f"Nothing {verb} {100 * THRESHOLD:.0f} % yet after {looks} observations."
