"""What happened, in plain sentences that carry their numbers.

A sentence is never more certain than its interval: "fell" needs the whole interval
below zero. Curves show a pattern, not a mechanism, so causes are called probable.
"""

import math

import numpy as np

from learndyn.diagnose.changes import kind_table
from learndyn.diagnose.comparable import is_sft
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats, number, percent, rounded_by
from learndyn.diagnose.squeeze import Evidence, squeeze_evidence
from learndyn.diagnose.two_runs import compare_in_words
from learndyn.record.trajectory import Trajectory


THRESHOLD = 0.02
"""Relative change below which nothing is said to have moved."""

FEW_PROMPTS = 10
"""Percentile intervals over fewer prompts are too narrow; a sentence says so."""


def what_happened(
    trajectory: Trajectory,
    baseline: Trajectory | None = None,
    split: str | None = None,
) -> list[str]:
    """Sentences about one run; with `baseline`, also about its difference to that.

    Raises:
        BadInput: if `baseline` watched other answers, or no probe is of `split`.
    """
    if len(trajectory.steps) < 2:
        return [
            f"One observation so far, at update {trajectory.steps[0]}: no change can "
            "be shown yet."
        ]
    if trajectory.lost[-1].sum() > 0.5 * trajectory.covered[-1].sum():
        return [_diverged(trajectory)]
    evidence = squeeze_evidence(trajectory, split=split)
    if evidence.step == trajectory.steps[0]:
        return [
            f"One observation of all prompts so far, at update {evidence.step:g}, and "
            f"no prompt of split {split} is in the panel: no change can be shown yet."
        ]
    sft = is_sft(trajectory.run.info)
    said = [_what_moved(trajectory, evidence, sft)]
    said += _greedy(evidence)
    said.append(_how_many(evidence))
    said.append(_fit(evidence) if sft else _squeezing(evidence))
    said += _off_target(evidence) if not sft else []
    said += _turned_back(trajectory, split) + _hallucination(evidence)
    said += _cautions(trajectory, evidence)
    if baseline is not None:
        said += compare_in_words(baseline, trajectory)
    return said


def outside_panel(trajectory: Trajectory, split: str | None = None) -> list[str]:
    """Kinds that no prompt of the panel has: they are followed over all prompts, at the
    full observations alone. None of them without a panel."""
    always = trajectory.covered.all(axis=0)
    start = np.isfinite(trajectory.columns["logp"][0])
    here = True if split is None else trajectory.split_of == split
    inside = set(trajectory.kind_of[always & start & here])
    wanted = set(trajectory.kind_of[~always & here])
    return [kind for kind in trajectory.kinds if kind in wanted - inside]


def _what_moved(trajectory: Trajectory, evidence: Evidence, sft: bool) -> str:
    method = "SFT" if sft else str(trajectory.run.info.get("method") or "training")
    method = method.upper() if len(method) <= 4 else method
    moved = []
    if evidence.chosen is not None:
        moved.append(f"chosen by {number(evidence.chosen)} nats")
    if evidence.rejected is not None:
        moved.append(f"rejected by {number(evidence.rejected)} nats")
    if not moved:
        return f"{method} ran for {trajectory.steps[-1]} updates; no probe is chosen."
    text = f"{method} moved {' and '.join(moved)} in {evidence.step:g} updates"
    if evidence.margin is None or sft:
        return text + "."
    return text + f": the margin changed by {number(evidence.margin)} nats."


def _greedy(evidence: Evidence) -> list[str]:
    path = evidence.greedy
    if path is None:
        return []
    verb = "did not clearly move"
    if path.excludes_zero and not _counts(evidence.greedy_relative):
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
    unsure = total - evidence.falling - evidence.rising
    text = f"{evidence.falling} of {total} kinds fell and {evidence.rising} rose"
    return text + (f"; for {unsure} the interval includes zero." if unsure else ".")


def _squeezing(evidence: Evidence) -> str:
    index, path = evidence.squeeze_index, evidence.greedy_relative
    if index is None or path is None:
        return "Squeezing cannot be judged without the greedy path along chosen."
    best = max(evidence.relative, key=lambda k: _rank(evidence.relative[k].mean))
    shares = (
        f"relative to its start the greedy path changed by {percent(path.mean)}, "
        f"the best kind, {best}, by {percent(evidence.relative[best].mean)}"
    )
    if path.mean > THRESHOLD and index.mean > THRESHOLD:
        if not (path.low > THRESHOLD and index.low > THRESHOLD):
            return (
                f"Perhaps squeezing, but not surely: {shares}; the squeeze index is "
                f"{number(index, 2)}, and the threshold is {THRESHOLD}."
            )
        if 2 * evidence.falling > len(evidence.kinds):
            return (
                f"Probability moved to tokens the model already favoured (squeezing): "
                f"{shares}. Probably not a bug."
            )
        return (
            "The greedy path gained more than any kind, but most kinds did not fall: "
            f"at most mild squeezing. In numbers, {shares}."
        )
    top = evidence.relative[best]
    if path.mean <= THRESHOLD and top.mean < -THRESHOLD:
        sure = path.high <= THRESHOLD and top.high < 0
        return (
            f"No squeezing{'' if sure else ', as far as the intervals tell'}: nothing "
            f"watched gained; {shares}. Probability leaks out of every watched answer: "
            "steps that are too large, or a fault in template, EOS or labels."
        )
    if top.mean > THRESHOLD:
        return f"No squeezing: {shares}."
    return f"No squeezing: nothing moved past {100 * THRESHOLD:.0f} %; {shares}."


def _fit(evidence: Evidence) -> str:
    chosen = evidence.chosen
    if chosen is None:
        return "No probe is chosen, so the fit cannot be judged."
    share = evidence.relative["chosen"]
    if chosen.excludes_zero and not _counts(share):
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
    return "Chosen did not clearly change: its interval includes zero."


def _off_target(evidence: Evidence) -> list[str]:
    moved = evidence.off_target
    if moved is None:
        return []
    direction = "did not clearly move"
    if moved.excludes_zero:
        direction = "gained" if moved.above_zero else "lost"
    return [
        "Where the first model's favourite was not chosen's token, that favourite "
        f"{direction}: {number(moved, 2)} nats per token over "
        f"{evidence.off_target_tokens} tokens."
    ]


def _turned_back(trajectory: Trajectory, split: str | None) -> list[str]:
    rows = {row.kind: row for row in kind_table(trajectory, split)}
    chosen = rows.get("chosen")
    inside = chosen and trajectory.steps[0] < chosen.peak_step < trajectory.steps[-1]
    if not chosen or not inside:
        return []
    among = ""
    if trajectory.panel is not None:
        full = "full " if "chosen" in outside_panel(trajectory, split) else ""
        among = (
            f" among {chosen.peak_prompts} prompts scored at every {full}observation"
        )
    return [
        f"Chosen was highest at update {chosen.peak_step}, {nats(chosen.rise)} nats "
        f"above its start, and ended {nats(chosen.turn)} nats from there (peak picked "
        f"after the fact{among})."
    ]


def _hallucination(evidence: Evidence) -> list[str]:
    other = evidence.kinds.get("irrelevant_train")
    share = evidence.relative.get("irrelevant_train")
    if other is None or not (other.above_zero and _counts(share)):
        return []
    return [
        f"Watch irrelevant_train, {number(other)} nats: answers of other training "
        "prompts became likelier (a sign of hallucination)."
    ]


def _cautions(trajectory: Trajectory, evidence: Evidence) -> list[str]:
    prompts = max((i.n for i in evidence.kinds.values()), default=0)
    said = []
    if trajectory.approximate is not None:
        said.append(
            f"Scored approximately, {rounded_by(trajectory.approximate)}: all numbers "
            "carry its rounding, and small changes may be nothing else."
        )
    if prompts < FEW_PROMPTS:
        said.append(f"Only {prompts} prompts: the intervals are too narrow.")
    lost, scored = trajectory.lost[-1], trajectory.covered[-1]
    if lost.any():
        said.append(
            f"{lost.sum()} of {scored.sum()} last log-probabilities are not finite; "
            "they are left out."
        )
    panel = trajectory.panel
    if panel is not None and not scored.all():
        said.append(
            f"The last observation is of the panel, {panel.size} of {panel.of} prompts:"
            " all numbers are of those."
        )
    elif panel is not None and panel.size < FEW_PROMPTS <= prompts:
        said.append(
            f"Only {panel.size} prompts in the panel: the curves' bands are too narrow."
        )
    return said


def _diverged(trajectory: Trajectory) -> str:
    """The one thing to say of a model whose log-probabilities are not numbers."""
    lost = trajectory.lost
    first = int(trajectory.steps[np.argmax(lost.any(axis=1))])
    return (
        f"The model diverged: at update {trajectory.steps[-1]}, "
        f"{lost[-1].sum()} of {trajectory.covered[-1].sum()} log-probabilities are not "
        f"finite (first seen at update {first}). Nothing else can be said. Lower the "
        "learning rate, or start from a checkpoint before that."
    )


def _counts(share: Interval | None) -> bool:
    """Whether a relative change is large enough to be told as one."""
    return share is not None and abs(share.mean) > THRESHOLD


def _rank(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
