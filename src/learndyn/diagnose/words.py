"""What happened, in at most ten plain sentences that carry their numbers.

A sentence is never more certain than its interval: "fell" needs the whole interval
below zero. Curves show a pattern, not a mechanism, so causes are called probable. These
are the only sentences about a run: the command line, the report and the demo take them
from here.

The answer in one sentence of at most twenty words: what happened, is it a bug.

Only a sure state is told as one. "Probably" stands where curves suggest a cause; that
chosen falls is said only where its whole interval is below zero.
"""

import re

import numpy as np

from learndyn.diagnose.compare_words import compare_in_words
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.cautions import diverged, no_start
from learndyn.diagnose.findings.finding import Finding, clock
from learndyn.diagnose.findings.squeeze import Evidence
from learndyn.diagnose.findings.state import DELTA as THRESHOLD, LAST, StateReport
from learndyn.diagnose.intervals import Interval, known
from learndyn.diagnose.numbers import nats, number, percent
from learndyn.diagnose.paths import outside_panel
from learndyn.record.trajectory import Trajectory


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
        "FIT": _fit_headline,
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


def _fit_headline(facts: Facts) -> str:
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


MOST = 10
"""Sentences of a verdict; what matters least is left out."""


def what_happened(
    trajectory: Trajectory,
    baseline: Trajectory | None = None,
    split: str | None = None,
) -> list[str]:
    """The verdict on one run; with `baseline`, then its difference to that, both over
    the probes of `split`.

    Raises:
        BadInput: if `baseline` watched other answers, or no probe is of `split`.
    """
    alone = nothing_to_judge(trajectory, split)
    said = [alone.says] if alone else sentences_of(Facts.of(trajectory, split))
    if baseline is not None and alone is None:
        said += compare_in_words(baseline, trajectory, split=split)
    return said


def nothing_to_judge(
    trajectory: Trajectory, split: str | None = None
) -> Finding | None:
    """Why nothing but one thing can be said of a run, if so."""
    unit = clock(trajectory)
    if len(trajectory.steps) < 2:
        says = (
            f"One observation so far, at {unit} {trajectory.steps[0]}: no change can "
            "be shown yet."
        )
        return Finding("one_observation", "watch", says, at="data")
    found = no_start(trajectory) or diverged(trajectory)
    if found is not None or trajectory.covered[-1].all() or split is None:
        return found
    covered = trajectory.covered[:, trajectory.split_of == split]
    full = np.asarray(covered.all(axis=1))
    if covered.all(axis=0).any() or full[1:].any():
        return None
    says = (
        f"One observation of all prompts so far, at {unit} {trajectory.steps[0]}, and "
        f"no prompt of split {split} is in the panel: no change can be shown yet."
    )
    return Finding("one_observation", "watch", says, at="data")


def sentences_of(facts: Facts) -> list[str]:
    """The verdict: the answer first, then what moved, then what to watch.

    At most `MOST` sentences. Each is given with its rank: the lower, the more it
    matters; what has no room is left out, and the order stays.
    """
    said = [(0, headline(facts)), (1, _what_moved(facts))]
    said += [(2, f.says) for f in facts.problems if f.name not in _SAID_ELSEWHERE]
    said.append((1, _fit(facts.evidence) if facts.sft else _state(facts)))
    said += [(6, text) for text in _greedy(facts.evidence)]
    said.append((5, _how_many(facts.evidence)))
    said += [(8, text) for text in ([] if facts.sft else _off_target(facts.evidence))]
    said += [(4, text) for text in _turned_back(facts)]
    watched = [f for f in facts.findings if f.severity == "watch"]
    said += [(5, f.says) for f in watched if f.name in _SIGNS]
    said += [(3, f.says) for f in watched if f.at == "data"]
    kept: set[int] = set()
    room = MOST
    for place in sorted(range(len(said)), key=lambda i: said[i][0]):
        if (size := sentence_count(said[place][1])) <= room:
            kept.add(place)
            room -= size
    return [text for place, (_, text) in enumerate(said) if place in kept]


_SAID_ELSEWHERE = ("state", "steps_too_large")
"""Findings whose sentence is the state's own."""

_SIGNS = (
    *("chosen_falls", "exchanged", "hallucination", "overfit", "peakiness"),
    *("reference", "steps_too_large"),
)


def sentence_count(text: str) -> int:
    """How many sentences a text has."""
    return len(re.findall(r"[.!?](?=\s|$)", text))


def _what_moved(facts: Facts) -> str:
    trajectory, evidence = facts.trajectory, facts.evidence
    method = (
        "SFT" if facts.sft else str(trajectory.run.info.get("method") or "training")
    )
    method = method.upper() if len(method) <= 4 else method
    unit = clock(trajectory)
    moved = []
    if evidence.chosen is not None:
        moved.append(f"chosen by {number(evidence.chosen)} nats")
    if evidence.rejected is not None:
        moved.append(f"rejected by {number(evidence.rejected)} nats")
    if not moved:
        return f"{method} ran for {trajectory.steps[-1]} {unit}s; no probe is chosen."
    text = f"{method} moved {' and '.join(moved)} in {evidence.step:g} {unit}s"
    if evidence.margin is None or facts.sft:
        return text + "."
    return text + f": the margin changed by {number(evidence.margin)} nats."


def _greedy(evidence: Evidence) -> list[str]:
    path = evidence.greedy
    if path is None:
        return []
    verb = "did not clearly move" if known(path) else "changed"
    if path.excludes_zero and not moves(evidence.greedy_relative):
        verb = f"moved by less than {100 * THRESHOLD:.0f} %"
    elif path.above_zero:
        verb = "gained probability"
    elif path.below_zero:
        verb = "lost probability"
    return [
        f"The greedy path, the model's own favourite tokens along chosen, {verb}: "
        f"{number(path)} nats."
    ]


def _how_many(evidence: Evidence) -> str:
    total = len(evidence.kinds)
    unknown = sum(not known(change) for change in evidence.kinds.values())
    unsure = total - evidence.falling - evidence.rising - unknown
    text = f"{evidence.falling} of {total} kinds fell and {evidence.rising} rose"
    text += f"; for {unsure} the interval includes zero" if unsure else ""
    return text + (f"; for {unknown} there is no interval." if unknown else ".")


def _state(facts: Facts) -> str:
    """The state in words, with the numbers that decided it."""
    state, evidence = facts.state, facts.evidence
    if state.reason is not None:
        return f"Squeezing cannot be judged: {state.reason}"
    over = ""
    if round(LAST * len(state.steps)) > 1:
        over = f", over the last {100 * LAST:.0f} % of the observations,"
    shares = (
        f"relative to its start{over} the greedy path changed by "
        f"{percent(state.greedy.mean)}, the best kind, {state.best_kind}, by "
        f"{percent(state.best.mean)}"
    )
    index = (
        f"the squeeze index is {number(state.sx, 2)}, and the threshold is {THRESHOLD}"
    )
    if not state.sure:
        return f"{_perhaps(state)}: {shares}; {index}."
    if state.state == "SQUEEZE":
        if 2 * evidence.falling <= len(evidence.kinds):
            return (
                "The greedy path gained more than any kind, but most kinds did not "
                f"fall: at most mild squeezing. In numbers, {shares}."
            )
        calm = evidence.pushed_down and not facts.problems
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
    verb = "gained more than" if any(map(moves, changes)) else "moved past"
    return f"No squeezing: nothing {verb} {100 * THRESHOLD:.0f} %; {shares}."


def _perhaps(state: StateReport) -> str:
    """A state that is not sure, as the beginning of a sentence."""
    if state.undecided:
        return "Something moved; squeezing or a fit cannot be told"
    called = {"SQUEEZE": "Perhaps squeezing", "COLLAPSE": "Perhaps a leak"}
    return f"{called.get(state.state, 'Probably no squeezing')}, but not surely"


def _fit(evidence: Evidence) -> str:
    chosen = evidence.chosen
    if chosen is None:
        return "No probe is chosen, so the fit cannot be judged."
    share = evidence.relative["chosen"]
    if chosen.excludes_zero and not moves(share):
        return (
            f"Chosen hardly changed, by {percent(share.mean)} of its log-probability: "
            f"below {100 * THRESHOLD:.0f} % the fit is not judged."
        )
    if chosen.above_zero:
        return (
            f"The fit is as intended: chosen is likelier than at the start, by "
            f"{percent(share.mean)} of its log-probability."
        )
    if chosen.below_zero:
        return (
            "SFT made chosen less likely, which it should not: check the learning "
            "rate, the template and that these prompts are like the training data."
        )
    if not known(chosen):
        return f"Chosen changed by {percent(share.mean)}; how surely is not known."
    return "Chosen did not clearly change: its interval includes zero."


def _off_target(evidence: Evidence) -> list[str]:
    moved: Interval | None = evidence.off_target
    if moved is None:
        return []
    direction = "did not clearly move" if known(moved) else "changed"
    if moved.excludes_zero:
        direction = "gained" if moved.above_zero else "lost"
    return [
        "Where the first model's favourite was not chosen's token, that favourite "
        f"{direction}: {number(moved, 2)} nats per token over "
        f"{evidence.off_target_tokens} tokens."
    ]


def _turned_back(facts: Facts) -> list[str]:
    peak = facts.peak
    if peak is None or not (peak.inside and peak.fell):
        return []
    among = ""
    if facts.trajectory.panel is not None:
        outside = outside_panel(facts.trajectory, facts.split)
        full = "full " if "chosen" in outside else ""
        among = f", among {peak.fall.n} prompts scored at every {full}observation"
    text = (
        f"Chosen was highest at {peak.clock} {peak.step}, {nats(peak.rise)} nats above "
        f"its start, and ended {number(peak.fall)} nats from there"
    )
    return [f"{text} (the limits allow for the peak's being picked{among})."]
