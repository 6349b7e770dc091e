"""What may be done about it, where there is evidence that it helps.

The evidence is this run's own, such as the observation where chosen was highest, or
what others measured, with its source and with what speaks against it.
"""

import math
import shlex

from learndyn.diagnose import remedies
from learndyn.diagnose.commands import UNKNOWN_BASE, again, base_of, check_probes
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.finding import Advice, clock
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats, number, percent
from learndyn.diagnose.state import DELTA


MOST_PROMPTS = 20_000
"""Prompts beyond which watching more is not advised: the effect is then too small to
matter."""


def advice(facts: Facts) -> list[Advice]:
    """Remedies, the first one first; none where nothing needs one."""
    if facts.problems and facts.problems[0].name in _FIRST_MEND:
        fault = facts.problems[0].name
        # a margin may have fallen since chosen's peak alone
        stop = _peak(facts) if fault == "margin_falls" else []
        return [*stop, _FIRST_MEND[fault]]
    state = facts.state
    if state.reason is not None:
        return []
    given = _peak(facts)
    if not state.sure:
        return given + _more_prompts(facts)
    if state.state == "SQUEEZE" and not facts.sft:
        tried = bool(facts.trajectory.run.info.get("extend"))
        first = [] if tried or not facts.evidence.pushed_down else [_extend(facts)]
        return given + first + remedies.AGAINST_SQUEEZING
    if state.state == "COLLAPSE":
        return [_smaller_steps(facts), _look_for_faults(facts), *given]
    if state.state == "NEUTRAL":
        return [*given, _wait(facts)]
    return given


_FIRST_MEND = {
    "not_training": Advice(
        "Check that the learning rate is above 0 and that parameters train "
        "(requires_grad, adapters, a warm-up longer than the run).",
        "No watched log-probability moved.",
        "own",
    ),
    "reference": Advice(
        "Load the reference from the very weights that training starts from, in the "
        "same precision, and give it to the trainer as ref_model.",
        "The logged rewards are not 0 where training begins. `learndyn run dpo` checks "
        "this on every training pair before the first update.",
        "own",
    ),
    "exchanged": Advice(
        "Read a few training rows and look which column is chosen.",
        "Chosen falls and rejected rises from the start.",
        "own",
        limits="If only the probes are exchanged, training is right and the names on "
        "this page are wrong.",
    ),
    "margin_falls": Advice(
        "Read a few training rows and look which column is chosen; then hold the "
        "probes against the training data.",
        "Rejected gained on chosen, which the loss pushes the other way.",
        "own",
        limits="Probes unlike the training data may fall behind without a fault.",
    ),
}
"""Where a fault was found, only that is worth mending."""


def _peak(facts: Facts) -> list[Advice]:
    """Stop where chosen was highest, if it has surely fallen since."""
    peak = facts.peak
    if peak is None or not (peak.inside and peak.fell):
        return []
    because = (
        f"Chosen was {nats(peak.rise)} nats above its start there and changed by "
        f"{number(peak.fall)} since"
    )
    if peak.margin is not None and peak.margin_end is not None:
        because += (
            f"; the margin was {nats(peak.margin)} nats there and is "
            f"{nats(peak.margin_end)} at the end"
        )
    method = "sft" if facts.sft else "dpo"
    steps = ("--max_steps", str(peak.step))
    command = again(facts.trajectory, f"until-{peak.step}", method, *steps)
    return [
        Advice(
            f"Stop at about {peak.clock} {peak.step} ({peak.others}), or take the "
            "checkpoint nearest to it.",
            f"{because}.",
            "own",
            limits="It is the peak of chosen's log-probability on these prompts; "
            "answers were not graded. A schedule that decays ends elsewhere.",
            command=command,
        )
    ]


def _extend(facts: Facts) -> Advice:
    # extend does its own SFT, so it starts from the model before this run's
    base = base_of(facts.trajectory)
    command = again(facts.trajectory, "extend", "extend", "--model", base)
    if command is None:
        given = f"--model {shlex.quote(base)} --data PAIRS --probes PROBES --out RUN"
        command = f"learndyn run extend {given}"
    limits = remedies.EXTEND.limits
    if base == UNKNOWN_BASE:
        limits = f"{limits} {base} is the model before its SFT."
    return Advice(
        remedies.EXTEND.do,
        remedies.EXTEND.because,
        "cited",
        remedies.EXTEND.source,
        limits,
        command,
    )


def _smaller_steps(facts: Facts) -> Advice:
    rate = (facts.trajectory.run.info.get("trainer") or {}).get("learning_rate")
    command = None
    if isinstance(rate, float | int) and rate > 0:
        method = "sft" if facts.sft else "dpo"
        changes = ("--learning_rate", f"{rate / 10:.3g}")
        command = again(facts.trajectory, "smaller-steps", method, *changes)
    base = remedies.SMALLER_STEPS
    return Advice(base.do, base.because, "cited", base.source, base.limits, command)


def _look_for_faults(facts: Facts) -> Advice:
    return Advice(
        "If that does not help, look for a fault: is the template the one the model "
        "was trained with, does every answer end in EOS, are the columns right?",
        f"The best kind, {facts.state.best_kind}, changed by "
        f"{percent(facts.state.best.mean)}: no training that fits does that.",
        "own",
        command=check_probes(facts.trajectory),
    )


def _wait(facts: Facts) -> Advice:
    name, largest = max(
        facts.evidence.relative.items(), key=lambda item: _size(item[1])
    )
    return Advice(
        "Train longer before judging.",
        f"After {facts.trajectory.steps[-1]} {clock(facts.trajectory)}s the largest "
        f"change is that of {name}, {percent(largest.mean)} of its log-probability.",
        "own",
        limits="That longer training helps was not measured.",
    )


def _more_prompts(facts: Facts) -> list[Advice]:
    """How many prompts would do, as intervals shrink with the root of their number."""
    ends = {
        "squeeze index": facts.state.sx,
        "relative change of the greedy path": facts.state.greedy,
        "relative change of the best kind": facts.state.best,
    }
    unsure = {k: end for k, end in ends.items() if end.low <= DELTA <= end.high}
    name = max(unsure, key=lambda key: _needed(unsure[key]), default="")
    if not name or (wanted := _needed(unsure[name])) > MOST_PROMPTS:
        return []
    return [
        Advice(
            f"Watch more prompts: about {round(wanted, -1):.0f} would do.",
            f"Over {facts.state.prompts} prompts the {name} is "
            f"{number(unsure[name], 3)}, and the threshold is {DELTA}. Intervals "
            "shrink with the root of the number of prompts.",
            "own",
            limits="If the effect stays as large as it looks now.",
        )
    ]


def _needed(end: Interval) -> float:
    """Prompts at which this interval would end at the threshold; infinite where its
    mean lies on it."""
    distance = abs(end.mean - DELTA)
    half = (end.high - end.low) / 2
    return math.inf if distance == 0 else end.n * (half / distance) ** 2


def _size(share: Interval) -> float:
    return abs(share.mean) if math.isfinite(share.mean) else -1.0
