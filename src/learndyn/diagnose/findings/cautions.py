"""What a reader must know before believing a run's numbers."""

from typing import Any

import numpy as np

from learndyn.diagnose.findings.finding import Finding, clock, means_only
from learndyn.diagnose.findings.squeeze import Evidence
from learndyn.diagnose.numbers import rounded_by
from learndyn.record.trajectory import Trajectory


FEW_PROMPTS = 10
"""Intervals over fewer prompts are rough; a sentence says so."""

ABOVE = 1e-3
"""Nats: a log-probability above this is no rounding of zero."""

SHOWN = 5
"""Observations that a sentence names; of more it says how many."""


def cautions(trajectory: Trajectory, evidence: Evidence) -> list[Finding]:
    """Defects that are known, files that cannot be read or are missing, approximate
    scoring, few prompts or means alone, lost values, a panel."""
    means = means_only(trajectory)
    known = [found.n for kind, found in evidence.kinds.items() if kind not in means]
    prompts = max(known, default=0)
    said = _defects(trajectory.run.info.get("defects") or [])
    if trajectory.unreadable:
        first, *more = trajectory.unreadable
        says = f"{first} {len(more)} more cannot be read." if more else first
        said.append(_caution("unreadable", says, len(more) + 1))
    gaps = missing_in_words(trajectory)
    if gaps is not None:
        said.append(_caution("missing", gaps, len(trajectory.missing)))
    said += _late_start(trajectory)
    if trajectory.approximate is not None:
        said.append(
            _caution(
                "approximate",
                f"Scored approximately, {rounded_by(trajectory.approximate)}: all "
                "numbers carry its rounding, and small changes may be nothing else.",
            )
        )
    if means:
        which = f" of {', '.join(sorted(means))}" if known else ""
        says = f"Only means over prompts are recorded{which}: they have no intervals."
        said.append(_caution("means_only", says, len(means)))
    if prompts < FEW_PROMPTS and (known or not means):
        says = f"Only {prompts} prompts: the intervals are rough."
        if prompts < 2:
            says = "Fewer than two prompts: there are no intervals."
        said.append(_caution("few_prompts", says, prompts))
    scored = trajectory.covered[-1]
    lost = int(trajectory.lost.sum())
    if lost:
        says = f"{_lost_in_words(trajectory)}; they are left out."
        said.append(_caution("not_finite", says, lost))
    panel = trajectory.panel
    if panel is not None and not scored.all():
        says = (
            f"The last observation is of the panel, {panel.size} of {panel.of} prompts:"
            " all numbers are of those."
        )
        said.append(_caution("panel", says, panel.size))
    elif panel is not None and panel.size < FEW_PROMPTS <= prompts:
        says = f"Only {panel.size} prompts in the panel: the curves' bands are rough."
        said.append(_caution("panel", says, panel.size))
    return said


def _lost_in_words(trajectory: Trajectory) -> str:
    """How many log-probabilities are not finite, in which observations."""
    lost, scored = trajectory.lost.sum(axis=1), trajectory.covered.sum(axis=1)
    unit = clock(trajectory)
    where = [
        f"{lost[i]} of {scored[i]} log-probabilities at {unit} {trajectory.steps[i]}"
        for i in np.flatnonzero(lost[:-1])
    ]
    if lost[-1]:
        where.insert(0, f"{lost[-1]} of {scored[-1]} last log-probabilities")
    if len(where) > SHOWN:
        rest = f"some at {len(where) - SHOWN} more observations"
        where = [*where[:SHOWN], rest]
    return f"{', '.join(where)} are not finite"


def above_zero(trajectory: Trajectory) -> Finding | None:
    """Log-probabilities that no model has; None where all are zero or below."""
    values = trajectory.columns["logp"]
    above = values > ABOVE
    if not above.any():
        return None
    first = trajectory.steps[int(np.argmax(above.any(axis=1)))]
    says = (
        f"{above.sum()} log-probabilities are above zero, by {values[above].max():.3g} "
        f"nats at most, first at {clock(trajectory)} {first}: no model has such. The "
        "files are damaged or the scoring is wrong; believe nothing that follows."
    )
    return Finding("above_zero", "problem", says, {"count": int(above.sum())}, "data")


def _late_start(trajectory: Trajectory) -> list[Finding]:
    """A first observation that is not of the model before training."""
    first, unit = int(trajectory.steps[0]), clock(trajectory)
    if first == 0:
        return []
    says = (
        f"The first observation is at {unit} {first}: all changes are measured from "
        f"there, not from {unit} 0."
    )
    return [_caution("late_start", says)]


def no_start(trajectory: Trajectory) -> Finding | None:
    """The one thing to say where the first observation holds no numbers."""
    lost, scored = int(trajectory.lost[0].sum()), trajectory.covered[0].sum()
    if lost <= 0.5 * scored:
        return None
    says = (
        f"The first observation, at {clock(trajectory)} {trajectory.steps[0]}, gives "
        f"nothing to compare with: {lost} of its {scored} log-probabilities are not "
        "finite. Nothing else can be said. Restore its file, or look at the model and "
        "the precision that it is scored in, and train again."
    )
    return Finding("no_start", "problem", says, {"lost": lost})


def missing_in_words(trajectory: Trajectory) -> str | None:
    """Which observations should be there and are not; None where none is missing."""
    gaps = trajectory.missing
    if not gaps:
        return None
    named = ", ".join(map(str, gaps[:SHOWN])) + (" ..." if gaps[SHOWN:] else "")
    every = trajectory.run.info.get("every")
    many = f"{len(gaps)} observation{'s are' if gaps[1:] else ' is'} missing"
    return (
        f"{many}, at {clock(trajectory)} {named}: run.json says one every {every}, and "
        "there is no file. Curves and peaks pass over the gap."
    )


def diverged(trajectory: Trajectory) -> Finding | None:
    """The one thing to say of a model whose log-probabilities are not numbers."""
    lost = trajectory.lost
    if lost[-1].sum() <= 0.5 * trajectory.covered[-1].sum():
        return None
    first = int(trajectory.steps[np.argmax(lost.any(axis=1))])
    unit = clock(trajectory)
    says = (
        f"The model diverged: at {unit} {trajectory.steps[-1]}, "
        f"{lost[-1].sum()} of {trajectory.covered[-1].sum()} log-probabilities are not "
        f"finite (first seen at {unit} {first}). Nothing else can be said. Lower the "
        "learning rate, or start from a checkpoint before that."
    )
    numbers: dict[str, Any] = {"first_seen": first, "lost": int(lost[-1].sum())}
    return Finding("diverged", "problem", says, numbers)


def _defects(entries: list[Any]) -> list[Finding]:
    """The first of the defects that run.json lists, and how many more there are."""
    if not entries:
        return []
    first = entries[0]
    what = first.get("what", first) if isinstance(first, dict) else first
    more = f" ({len(entries) - 1} more in run.json)" if entries[1:] else ""
    says = f"Not everything here is what its name says: {str(what).rstrip('.')}{more}."
    return [_caution("defects", says, len(entries))]


def _caution(name: str, says: str, count: int | None = None) -> Finding:
    numbers: dict[str, Any] = {} if count is None else {"count": count}
    return Finding(name, "watch", says, numbers, "data")
