"""Is the loss about 0 so early that most updates push on nothing?"""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series, short
from learndyn.diagnose.findings.faults.steps_too_large import StepsTooLarge
from learndyn.diagnose.findings.finding import Finding


_LOSS = 0.01
"""A loss of -log sigmoid(h) below this pushes with a weight 1 - sigmoid(h) below 1 %, a
fiftieth of the first update's."""

_ACCURACY = 0.99
_ROWS = 5
_SHARE = 0.5
"""Share of the logged rows, from the end, that are so: then most push on nothing."""


class Saturated(Finding):
    """The pairs are told apart with a loss near 0 over most of the run."""

    name = "saturated"
    section = "training"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None of methods that compare no pairs, of a log without accuracies, and
        where the steps are too large: such a loss says nothing of the pairs."""
        if facts.trajectory.run.info.family != "preference":
            return None
        broken = StepsTooLarge.detect(facts)
        if broken is not None and broken.severity == "problem":
            return None
        log = facts.trajectory.train_log
        loss = Series.of(log, "loss")
        right = Series.of(log, "rewards/accuracies")
        if len(right) < _ROWS or len(loss) != len(right):
            return None
        over = (loss.values < _LOSS) & (right.values >= _ACCURACY)
        since = len(over) - _trailing(over)
        numbers = {"share": over[since:].size / over.size}
        if numbers["share"] < _SHARE:
            last = short(loss.values[-1])
            says = f"The loss is not at 0 over most of the run; it ends at {last}."
            return cls("fine", says, numbers)
        step = int(loss.steps[since])
        epochs = Series.of(log, "epoch").at(loss.steps[since])
        end = (
            "The pairs differ by something trivial (length, template, an end token), "
            "or the model could tell them apart before."
        )
        if epochs is not None and epochs > 1:
            end = f"That was in pass {int(np.ceil(epochs))} over the pairs: stop there."
        says = (
            f"From {facts.unit} {step} on the loss is below {_LOSS} and the accuracy "
            f"1 ({short(loss.values[-1])} at the end): later updates push on almost "
            f"nothing. {end}"
        )
        return cls("watch", says, numbers | {"since": step})


def _trailing(over: np.ndarray) -> int:
    """How many values from the end are true."""
    false = np.flatnonzero(~over)
    return len(over) - (int(false[-1]) + 1 if len(false) else 0)
