"""Runs that cannot be judged, or whose numbers cannot be believed."""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series, short
from learndyn.diagnose.findings.faults.trouble import early_jump
from learndyn.diagnose.findings.finding import Finding


_ABOVE = 1e-3
"""Nats: a log-probability above this is no rounding of zero."""


class NoStart(Finding):
    """The first observation holds no numbers to compare with."""

    name = "no_start"
    alone = True

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """Found where more than half of its values are not finite."""
        run = facts.trajectory
        lost, scored = int(run.lost[0].sum()), run.covered[0].sum()
        if len(run.steps) < 2 or lost <= 0.5 * scored:
            return None
        says = (
            f"Nothing can be compared with the first observation, at {facts.unit} "
            f"{run.steps[0]}: {lost} of its {scored} log-probabilities are "
            "not finite, so this run cannot be judged. Restore its file, or look at "
            "the model and the precision that it is scored in, and train again."
        )
        return cls("problem", says, {"lost": lost})


class Diverged(Finding):
    """The model's log-probabilities are not numbers any more."""

    name = "diverged"
    alone = True

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """Found where more than half of the last values are not finite."""
        run, unit = facts.trajectory, facts.unit
        lost, scored = int(run.lost[-1].sum()), run.covered[-1].sum()
        if len(run.steps) < 2 or lost <= 0.5 * scored:
            return None
        first = int(run.steps[np.argmax(run.lost.any(axis=1))])
        says = (
            f"The model diverged: at {unit} {run.steps[-1]}, {lost} of {scored} "
            f"log-probabilities are not finite (first seen at {unit} {first}). "
            f"This run cannot be judged further. {_before_it(facts)}Lower the learning "
            "rate, or start from an earlier checkpoint."
        )
        return cls("problem", says, {"first_seen": first, "lost": lost})


def _before_it(facts: Facts) -> str:
    """What the log and run.json say of the cause, as sentences."""
    info, text = facts.trajectory.run.info, ""
    jump = early_jump(facts)
    if jump is not None:
        rate = Series.of(facts.trajectory.train_log, "learning_rate").at(jump.step)
        at = f", at a learning rate of {short(rate)}" if rate else ""
        text = (
            f"The loss went from {short(jump.before)} to {short(jump.after)} at "
            f"{facts.unit} {jump.step}{at}. "
        )
    if "float16" in (info.dtype, info.dtype.removeprefix("torch.")):
        text += (
            "The weights are in float16, which overflows above 65504, the usual cause: "
            "load them in float32 or bfloat16. "
        )
    return text


class OneObservation(Finding):
    """There is no second observation to show a change."""

    name = "one_observation"
    section = "data"
    alone = True

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """Of all prompts, or of those of the split, where none is in the panel."""
        run, split = facts.trajectory, facts.split
        where = f"{facts.unit} {run.steps[0]}"
        if len(run.steps) < 2:
            return cls(
                "watch",
                f"One observation so far, at {where}: no change can be shown yet.",
            )
        if run.covered[-1].all() or split is None:
            return None
        covered = run.covered[:, run.split_of == split]
        full = np.asarray(covered.all(axis=1))
        if covered.all(axis=0).any() or full[1:].any():
            return None
        says = (
            f"One observation of all prompts so far, at {where}, and no prompt of "
            f"split {split} is in the panel: no change can be shown yet."
        )
        return cls("watch", says)


class AboveZero(Finding):
    """Log-probabilities that no model has."""

    name = "above_zero"
    section = "data"
    fault = "These numbers cannot be right: some log-probabilities are above zero."

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all are zero or below."""
        run = facts.trajectory
        values = run.columns["logp"]
        above = values > _ABOVE
        if not above.any():
            return None
        first = run.steps[int(np.argmax(above.any(axis=1)))]
        says = (
            f"{above.sum()} log-probabilit{'ies are' if above.sum() > 1 else 'y is'} "
            "above zero, by "
            f"{values[above].max():.3g} nats at most, first at {facts.unit} {first}. "
            "No model has such values: the files are damaged or the scoring is wrong, "
            "so do not trust what follows."
        )
        return cls("problem", says, {"count": int(above.sum())})
