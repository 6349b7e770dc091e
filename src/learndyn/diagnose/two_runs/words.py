"""How two runs differ, in plain sentences that carry their numbers."""

import numpy as np

from learndyn.diagnose.numbers import nats, number, rounded_by
from learndyn.diagnose.two_runs.compare import By, Comparison, Difference, compare
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
    """Sentences about run `b` against run `a`, over the probes of `split`, or all;
    `comparisons` is what `compare_all` gave for them.
    """
    comparisons = compare_all(a, b, split) if comparisons is None else comparisons
    one, other = names(a, b)
    unit = a.unit
    sentences = [
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
    if comparisons["margin"].at is not None:
        sentences.append(
            "At a matched point rejected differs by as much as chosen, by "
            "construction. The margin starts at zero in each run; the gap does not. "
            "Where the two disagree, part of the difference is where the runs started."
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


def _at_updates(result: Comparison, one: str, other: str, unit: str) -> str:
    updates = f"At equal {unit}s ({result.at:g})"
    chosen = result.kinds.get("chosen")
    if chosen is None:
        return f"{updates} chosen cannot be compared: no probe is of kind chosen."
    return f"{updates} {_difference(chosen, one, other)}{_others(result)}"


def _at_match(result: Comparison, one: str, other: str, unit: str) -> str:
    what = "absolute gap" if result.by == "gap" else "DPO margin"
    if result.at is None:
        return f"No comparison at matched {what}: {result.reason}"
    text = (
        f"At matched {what} ({result.at:.1f} nats; {unit} {result.step_a:.0f} of "
        f"{one}, {result.step_b:.0f} of {other}) "
        f"{_difference(result.kinds['chosen'], one, other, result.by == 'gap')}"
        f"{_others(result)}"
    )
    if result.lost_share > 0:
        text += (
            f" {100 * result.lost_share:.1f} % of resamples start beyond this point or "
            "never reach it; the intervals leave them out."
        )
    return text


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
        f"{what} is {nats(change.b)} nats in {other} and {nats(change.a)} in {one}: "
        f"a difference of {number(change.difference)}"
    )
    return text + ("." if change.difference.excludes_zero else ", not distinguishable.")


def _others(result: Comparison) -> str:
    text = ""
    if result.greedy is not None:
        text += f" Greedy path: {number(result.greedy.difference)}."
    if result.off_target is not None:
        text += f" Off-target: {number(result.off_target.difference, 2)} per token."
    return text
