"""Did any watched answer move at all?"""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.training_log import logged
from learndyn.diagnose.findings.finding import Advice, Finding
from learndyn.diagnose.numbers import counted
from learndyn.diagnose.paths import Paths


_STILL = 1e-3
"""Nats per response: about ten times what rounding does to a float32 sum of 100
tokens."""


class NotTraining(Finding):
    """No watched log-probability moved by more than `_STILL`."""

    name = "not_training"
    fault = "Nothing trains: no watched answer moved."
    mend = Advice(
        "Check that the learning rate is above 0 and that parameters train "
        "(requires_grad, adapters, a warm-up longer than the run).",
        "No watched log-probability moved.",
    )

    @property
    def at(self) -> str:
        """A fault is shown where the training log is."""
        return "training" if self.severity == "problem" else "curves"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None below two observations."""
        run = facts.trajectory
        paths = Paths.of(run, facts.split).common()
        if len(paths.steps) < 2:
            return None
        moved = [np.abs(path - path[0]) for path in paths.logp.values()]
        finite = np.concatenate([values[np.isfinite(values)] for values in moved])
        if not len(finite):
            return None
        largest = float(finite.max())
        numbers = {"largest_change": largest}
        if largest > _STILL:
            size = f"{largest:.1f}" if largest >= 1 else f"{largest:.1g}"
            says = f"The model trains: the largest change is {size} nats."
            return cls("fine", says, numbers)
        rates = logged(run.train_log, "learning_rate")
        why = "Check that the learning rate is above 0 and that some parameters train"
        if rates and max(rates) == 0:
            why = "The logged learning rate is 0 throughout"
        says = (
            f"Nothing trains: in {counted(int(run.steps[-1]), facts.unit)} no watched "
            f"answer moved by more than {largest:.1g} nats. {why}."
        )
        return cls("problem", says, numbers)
