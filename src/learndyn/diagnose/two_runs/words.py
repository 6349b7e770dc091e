"""How two runs differ, in plain sentences that carry their numbers.

The first sentence answers which run is better for chosen, and whether that is only less
progress. A run that has moved less keeps chosen nearer to its start whatever it does,
so higher at equal updates is not yet better: it must be so at a matched margin too. All
is about the change of chosen since each run's own start.
"""

import numpy as np

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats, number, rounded_by, signed
from learndyn.diagnose.two_runs.compare import (
    LOST,
    By,
    Comparison,
    Difference,
    compare,
)
from learndyn.record.trajectory import Trajectory


def compare_all(
    a: Trajectory, b: Trajectory, split: str | None = None
) -> dict[By, Comparison]:
    """Run `b` against run `a` at equal updates and, for preference runs with chosen and
    rejected probes, at matched margin and gap; over the probes of `split`, or all.
    """
    comparisons: dict[By, Comparison] = {
        "updates": compare(a, b, "updates", split=split)
    }
    both = all({"chosen", "rejected"} <= _kinds(t, split) for t in (a, b))
    if both and not a.run.info.sft and not b.run.info.sft:
        comparisons["margin"] = compare(a, b, "margin", split=split)
        comparisons["gap"] = compare(a, b, "gap", split=split)
    return comparisons


def compare_in_words(
    a: Trajectory,
    b: Trajectory,
    comparisons: dict[By, Comparison] | None = None,
    split: str | None = None,
) -> list[str]:
    """Sentences about run `b` against run `a`, over the probes of `split`, or all:
    which is better for chosen, then one for each way to match them.

    `comparisons` is what `compare_all` gave for them.
    """
    comparisons = compare_all(a, b, split) if comparisons is None else comparisons
    one, other = names(a, b)
    unit = a.unit
    sentences = [
        _which_is_better(comparisons, a, b),
        _at_updates(comparisons["updates"], one, other, unit),
        *_prompts(comparisons, unit),
    ]
    if a.run.info.sft != b.run.info.sft:
        alone, pair = (one, other) if a.run.info.sft else (other, one)
        sentences.append(
            f"{alone} is supervised finetuning and {pair} trains on preferences: their "
            "updates are unlike, and there is no margin or gap at which to match them."
        )
    sentences += [
        f"{name} was scored approximately, {rounded_by(run.approximate)}: a small "
        "difference may be its rounding."
        for run, name in ((a, one), (b, other))
        if run.approximate is not None
    ]
    if "margin" not in comparisons:
        return sentences
    sentences.append(_at_match(comparisons["margin"], one, other, unit))
    sentences.append(_at_match(comparisons["gap"], one, other, unit))
    margin, gap = comparisons["margin"], comparisons["gap"]
    if margin.at is not None and gap.at is not None:
        sentences.append(
            "Where margin and gap disagree, the difference is where the runs started: "
            "the margin is zero at each run's own start, the gap is not."
        )
    return sentences


def _kinds(trajectory: Trajectory, split: str | None) -> set[str]:
    of = np.ones(len(trajectory.kind_of), dtype=bool)
    if split is not None:
        of = trajectory.split_of == split
    return set(trajectory.kind_of[of].tolist())


def names(a: Trajectory, b: Trajectory) -> tuple[str, str]:
    """Names of two runs: their folders', with the folder above where it is needed to
    tell them apart, or (1) and (2) where that does not help."""
    paths = [t.run.path.resolve() for t in (a, b)]
    one, other = (path.name for path in paths)
    if one == other:
        one, other = (f"{path.parent.name}/{path.name}" for path in paths)
    return (one, other) if one != other else (f"{one} (1)", f"{other} (2)")


def _which_is_better(
    comparisons: dict[By, Comparison], a: Trajectory, b: Trajectory
) -> str:
    """Which run is better for chosen, and whether it only has made less progress."""
    equal = comparisons["updates"].kinds.get("chosen")
    if equal is None:
        return (
            "Which run is better for chosen cannot be told: no probe is of kind chosen."
        )
    one, other = names(a, b)
    high, low, sign = (other, one, 1) if equal.difference.mean > 0 else (one, other, -1)
    after = f"{_size(equal, sign, a, b)} after as many {a.unit}s"
    sure = equal.difference.excludes_zero
    apart = f"The runs cannot be told apart for chosen: {high} minus {low} is {after}"
    higher = f"{high} is higher for chosen than {low}"
    matched = comparisons.get("margin")
    same = None if matched is None else matched.kinds.get("chosen")
    if matched is None or same is None:
        why = _unmatched(matched, a, b)
        if not sure:
            return f"{apart}; {why}"
        what = "more" if a.run.info.sft and b.run.info.sft else "less"
        return (
            f"{higher}, by {after}; whether that is only {what} progress cannot be "
            f"told: {why}"
        )
    then = f"{_size(same, sign, a, b)} at the same margin"
    if same.difference.excludes_zero:
        best = other if same.difference.above_zero else one
        if best == high and sure:
            return (
                f"{high} is better for chosen than {low}, and not only by less "
                f"progress: {after}, {then}."
            )
        surely = "" if sure else ", not surely"
        return (
            f"{best} is better for chosen where both have made the same progress: "
            f"{high} minus {low} is {then}, but {after}{surely}."
        )
    if not sure:
        return f"{apart} and {then}."
    quicker = one if matched.step_a < matched.step_b else other
    if quicker == high:
        return (
            f"{higher}, by {after}, though it is further; the difference is {then}, "
            "not distinguishable."
        )
    return f"{higher} only by less progress: {after}, but {then}, not distinguishable."


def _unmatched(matched: Comparison | None, a: Trajectory, b: Trajectory) -> str:
    """Why the runs are not compared at a matched margin."""
    if matched is not None and matched.reason is not None:
        return matched.reason
    if a.run.info.sft and b.run.info.sft:
        return "supervised finetuning has no margin at which to match runs."
    if a.run.info.sft or b.run.info.sft:
        return "one of them is supervised finetuning, which has no margin to match."
    return "without chosen and rejected there is no margin at which to match them."


def _size(change: Difference, sign: int, a: Trajectory, b: Trajectory) -> str:
    """How much higher one run is, in nats and as rewards/chosen where both have it."""
    value = change.difference
    if sign < 0:
        value = Interval(-value.mean, -value.high, -value.low, value.n)
    text = f"{number(value)} nats"
    betas = {t.run.info.reward_beta for t in (a, b)}
    beta = betas.pop()
    if betas or beta is None:
        return text
    return f"{text} (rewards/chosen {signed(beta * value.mean)})"


def _at_updates(result: Comparison, one: str, other: str, unit: str) -> str:
    if result.at is None:
        return f"No comparison at equal {unit}s: {result.reason}"
    updates = f"At equal {unit}s ({result.at:g})"
    chosen = result.kinds.get("chosen")
    if chosen is None:
        return f"{updates} chosen cannot be compared: no probe is of kind chosen."
    return f"{updates} {_difference(chosen, one, other)}{_others(result)}."


def _at_match(result: Comparison, one: str, other: str, unit: str) -> str:
    by = result.by
    what = "absolute gap" if by == "gap" else "DPO margin"
    if result.at is None:
        return f"No comparison at matched {what}: {result.reason}"
    first = ""
    if result.reason is not None:
        kept = f"{100 * (1 - LOST):.0f} %"
        first = f", the largest that both reach in {kept} of the resamples"
    text = (
        f"At matched {what} ({result.at:.1f} nats{first}; {unit} {result.step_a:.0f} "
        f"of {one}, {result.step_b:.0f} of {other}) "
        f"{_difference(result.kinds['chosen'], one, other, by == 'gap')}"
        f"{_others(result)}"
    )
    if result.lost_share > 0:
        text += (
            f"; left out are {100 * result.lost_share:.1f} % of resamples, which start "
            "beyond this point or never reach it"
        )
    return text + "."


def _prompts(comparisons: dict[By, Comparison], unit: str) -> list[str]:
    """Where not all prompts are compared: how many, and which."""
    where = {"updates": f"equal {unit}s", "margin": "matched margin"}
    fewer = [
        f"{result.prompts} at {where.get(by, 'matched gap')}"
        for by, result in comparisons.items()
        if result.prompts < result.of
    ]
    if not fewer:
        return []
    return [
        f"Compared are the prompts that both runs scored at the points compared, of "
        f"{comparisons['updates'].of}: {' and '.join(fewer)}."
    ]


def _difference(change: Difference, one: str, other: str, level: bool = False) -> str:
    what = "logp of chosen" if level else "the change of chosen"
    text = (
        f"{what} is {nats(change.b)} nats in {other} and {nats(change.a)} in {one}, "
        f"a difference of {number(change.difference)}"
    )
    return text + ("" if change.difference.excludes_zero else ", not distinguishable")


def _others(result: Comparison) -> str:
    text = ""
    if result.greedy is not None:
        text += f"; greedy path {number(result.greedy.difference)}"
    if result.off_target is not None:
        text += f"; off-target {number(result.off_target.difference, 2)} per token"
    return text
