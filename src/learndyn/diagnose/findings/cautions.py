"""What a reader must know before believing a run's numbers."""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import CAUTION, Finding, Place
from learndyn.diagnose.numbers import rounded_by
from learndyn.record.trajectory import Trajectory


_FEW_PROMPTS = 10
"""Intervals over fewer prompts are rough; a sentence says so."""

_SHOWN = 5
"""Observations that a sentence names; of more it says how many."""


class Caution(Finding):
    """Always worth watching; the verdict says it last."""

    section = "data"

    @classmethod
    def of(cls, says: str, count: int | None = None) -> Finding:
        """One sentence, and how many things it is about."""
        return cls("watch", says, {} if count is None else {"count": count})

    @property
    def place(self) -> Place | None:
        """At the end."""
        return CAUTION


class Defects(Caution):
    """The first of the defects that run.json lists, and how many more there are."""

    name = "defects"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where it lists none."""
        entries = facts.trajectory.run.info.defects
        if not entries:
            return None
        first = entries[0]
        what = first.get("what", first) if isinstance(first, dict) else first
        more = f" ({len(entries) - 1} more in run.json)" if entries[1:] else ""
        what = f"{str(what).rstrip('.')}{more}"
        return cls.of(
            f"Some values are not what their names say: {what}.", len(entries)
        )


class Unreadable(Caution):
    """Observations whose files cannot be read."""

    name = "unreadable"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all can be read."""
        if not facts.trajectory.unreadable:
            return None
        first, *more = facts.trajectory.unreadable
        says = f"{first} {len(more)} more cannot be read." if more else first
        return cls.of(says, len(more) + 1)


class Missing(Caution):
    """Observations that should be there and are not."""

    name = "missing"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where none is missing."""
        says = missing_in_words(facts.trajectory)
        return None if says is None else cls.of(says, len(facts.trajectory.missing))


class LateStart(Caution):
    """A first observation after the first update."""

    name = "late_start"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where it is at 0."""
        first, unit = int(facts.trajectory.steps[0]), facts.unit
        if first == 0:
            return None
        return cls.of(
            f"The first observation is at {unit} {first}: all changes are measured "
            f"from there, not from {unit} 0."
        )


class Approximate(Caution):
    """Numbers that carry the rounding of approximate scoring."""

    name = "approximate"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all are exact."""
        label = facts.trajectory.approximate
        if label is None:
            return None
        return cls.of(
            f"Scored approximately, {rounded_by(label)}: all numbers carry its "
            "rounding, and small changes may be nothing else."
        )


class MeansOnly(Caution):
    """Kinds of which a mean over prompts is all that was recorded."""

    name = "means_only"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where every prompt was recorded."""
        means = facts.trajectory.means_only
        if not means:
            return None
        which = f" for {', '.join(sorted(means))}" if _prompts(facts) else ""
        return cls.of(
            f"Only means over prompts are recorded{which}, so they have no intervals.",
            len(means),
        )


class FewPrompts(Caution):
    """Intervals over fewer prompts than `_FEW_PROMPTS`."""

    name = "few_prompts"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where means are all that there is."""
        counts = _prompts(facts)
        prompts = max(counts, default=0)
        if prompts >= _FEW_PROMPTS or (not counts and facts.trajectory.means_only):
            return None
        says = f"Only {prompts} prompts: the intervals are rough."
        if prompts < 2:
            says = "Fewer than two prompts: there are no intervals."
        return cls.of(says, prompts)


class NotFinite(Caution):
    """Log-probabilities that were scored and are not numbers."""

    name = "not_finite"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all are finite."""
        run, unit = facts.trajectory, facts.unit
        lost, scored = run.lost.sum(axis=1), run.covered.sum(axis=1)
        if not lost.any():
            return None
        where = [
            f"{lost[i]} of {scored[i]} log-probabilities at {unit} {run.steps[i]}"
            for i in np.flatnonzero(lost[:-1])
        ]
        if lost[-1]:
            where.insert(0, f"{lost[-1]} of {scored[-1]} last log-probabilities")
        if len(where) > _SHOWN:
            rest = f"some at {len(where) - _SHOWN} more observations"
            where = [*where[:_SHOWN], rest]
        says = f"{', '.join(where)} are not finite; they are left out."
        return cls.of(says, int(lost.sum()))


class PanelOnly(Caution):
    """Numbers that are of the panel's prompts alone, or of few of them."""

    name = "panel"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without a panel, and where the last observation is full and the panel
        is not small."""
        run = facts.trajectory
        panel = run.panel
        if panel is None:
            return None
        if not run.covered[-1].all():
            return cls.of(
                f"The last observation is of the panel, {panel.size} of {panel.of} "
                "prompts: all numbers are of those.",
                panel.size,
            )
        if panel.size < _FEW_PROMPTS <= max(_prompts(facts), default=0):
            return cls.of(
                f"Only {panel.size} prompts in the panel: the curves' bands are rough.",
                panel.size,
            )
        return None


def missing_in_words(trajectory: Trajectory) -> str | None:
    """Which observations should be there and are not; None where none is missing."""
    gaps = trajectory.missing
    if not gaps:
        return None
    named = ", ".join(map(str, gaps[:_SHOWN])) + (" ..." if gaps[_SHOWN:] else "")
    every = trajectory.run.info.every
    many = f"{len(gaps)} observation{'s are' if gaps[1:] else ' is'} missing"
    return (
        f"{many}, at {trajectory.unit} {named}: run.json says one every "
        f"{every}, and there is no file. Curves and peaks pass over the gap."
    )


def _prompts(facts: Facts) -> list[int]:
    """Prompts of each kind that is not a recorded mean."""
    kinds = facts.evidence.kinds
    return [
        change.n
        for kind, change in kinds.items()
        if kind not in facts.trajectory.means_only
    ]
