"""Why does nothing move, or the loss stay where it began?

Users say "the loss stays at 0.693". What can make it so is told apart from run.json and
the training log, in `causes.py`; what was looked for and is not there is said too.
"""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.causes import causes
from learndyn.diagnose.findings.faults.stillness import Cause, Stillness
from learndyn.diagnose.findings.finding import Advice, Finding
from learndyn.diagnose.numbers import counted
from learndyn.diagnose.paths import Paths


_MOVED = 1e-3
"""Nats per response: about ten times what rounding does to a float32 sum of 100
tokens."""


class NotTraining(Finding):
    """No kind changed by a size that matters, or no update can push on anything."""

    name = "not_training"
    mend = Advice(
        "Check that parameters train (requires_grad), that the optimizer holds them, "
        "and that the callback watches the model that the trainer trains.",
        "No watched log-probability moved.",
    )

    @property
    def at(self) -> str:
        """A fault is shown where the training log is."""
        return "curves" if self.severity == "fine" else "training"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None below two observations."""
        paths = Paths.of(facts.trajectory, facts.split).common()
        if len(paths.steps) < 2:
            return None
        case = Stillness.of(facts)
        if not np.isfinite(case.largest):
            return None
        cause, excluded = causes(case)
        numbers = {
            "largest_change": case.largest,
            "largest_per_token": case.per_token,
            "cause": None if cause is None else cause.name,
            "excluded": excluded,
        }
        if cause is not None:
            severity = "problem" if cause.fault else "watch"
            return cls(severity, f"{cause.headline} {cause.why}", numbers)
        size = f"{case.largest:.1f}" if case.largest >= 1 else f"{case.largest:.1g}"
        if not case.still:
            says = f"Watched answers move: the largest change is {size} nats."
            return cls("fine", says, numbers)
        ran = counted(int(facts.trajectory.steps[-1]), facts.unit)
        ruled = f" Excluded: {', '.join(excluded)}." if excluded else ""
        if case.largest <= _MOVED:
            says = (
                f"Nothing trains: in {ran} no watched answer moved by more than "
                f"{case.largest:.1g} nats. Check that the learning rate is above 0 and "
                f"that some parameters train.{ruled}"
            )
            return cls("problem", says, numbers)
        says = (
            f"In {ran} no kind of answer moved by a size that matters: the largest "
            f"change of one answer is {size} nats.{ruled}"
        )
        return cls("watch", says, numbers)

    def headline(self, facts: Facts) -> str | None:
        """The cause, where one is known."""
        if self.severity != "problem":
            return None
        cause = self._cause(facts)
        return (
            "Nothing trains: no watched answer moved."
            if not cause
            else (cause.headline)
        )

    def sentence(self, facts: Facts, findings: object) -> str:
        """The numbers behind the headline."""
        cause = self._cause(facts)
        return cause.why if cause and cause.fault else self.says

    def advice(self, facts: Facts) -> list[Advice]:
        """What mends the cause."""
        cause = self._cause(facts)
        if cause is not None:
            return [cause.mend]
        return super().advice(facts)

    def _cause(self, facts: Facts) -> Cause | None:
        if self.severity == "fine":
            return None
        return causes(Stillness.of(facts))[0]
