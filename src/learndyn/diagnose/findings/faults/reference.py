"""Did policy and reference agree before the first update, so that margins began at 0?

Where they do not, DPO pushes on a difference that no update made. What a run keeps that
can tell, the best first:

    reference_gap in run.json      largest |log pi - log pi_ref| over all training
                                   responses; recipes check it before they begin
    the rewards of update 1        logged before any update: beta (log pi - log pi_ref)
                                   must be 0
    the first logged rewards       means over updates 1 to k, so they hold real changes
                                   too; they are held against what the probes moved
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding
from learndyn.diagnose.paths import Paths, mean_path
from learndyn.record.trajectory import Trajectory


_TOLERANCE = 1e-2
"""Nats per response. Two bfloat16 forwards of equal weights give equal numbers; a
reference in another precision differs by more."""

_LARGE = 1.0
"""Nats per response from which a disagreement is called a problem."""

_REWARDS = ("rewards/chosen", "rewards/rejected")
"""TRL's keys of beta (log pi - log pi_ref), means over a batch."""


_MERGE = Advice(
    "Merge the SFT adapter into its base (merge_and_unload), start DPO from the merged "
    "model with a new adapter, and pass no ref_model: with the new adapter switched "
    "off the policy is the reference.",
    "An adapter trains, and the logged rewards are not 0 where training begins: the "
    "reference is probably the base model without the SFT adapter.",
)

_SECOND_COPY = Advice(
    "Or keep the adapter and load it a second time for the reference: base plus the "
    "same SFT adapter as ref_model. TRL 1 makes that copy itself where the policy is a "
    "PeftModel and no ref_model is given; older TRL takes model_adapter_name and "
    "ref_adapter_name.",
    "The reference must have the weights that training starts from.",
)


class Reference(Finding):
    """Policy and reference differ before the first update."""

    name = "reference"
    doubt = "the reference model, which differs a little from where training began"
    section = "training"
    fault = (
        "Policy and reference differ before the first update, so the margin does not "
        "start at zero."
    )
    mend = Advice(
        "Load the reference from the very weights that training starts from, in the "
        "same precision, and give it to the trainer as ref_model.",
        "The logged rewards are not 0 where training begins. `learndyn run dpo` checks "
        "this on every training pair before the first update.",
    )

    def headline(self, facts: Facts) -> str | None:
        """With the usual cause where an adapter trains."""
        if self.severity == "problem" and facts.trajectory.run.info.trains_adapter:
            return (
                "The reference lacks the SFT adapter that training starts from: policy "
                "and reference differ before the first update."
            )
        return super().headline(facts)

    def advice(self, facts: Facts) -> list[Advice]:
        """Of an adapter the two ways to a reference that has it too."""
        if self.severity != "problem" or not facts.trajectory.run.info.trains_adapter:
            return super().advice(facts)
        return [_MERGE, _SECOND_COPY]

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None of methods without a reference, and where neither run.json nor the
        training log can tell."""
        info = facts.trajectory.run.info
        gap = info.reference_gap
        known = True if gap is not None else info.has_reference
        if facts.sft or not known or info.trainer.get("reference_free") is True:
            return None
        if gap is not None:
            how = f"the largest gap over all training responses is {gap:.2g} nats"
            return cls._judged(gap, how, {"reference_gap": gap})
        if facts.trajectory.steps[0] > 0:
            return None  # the log counts from another start than the probes
        row = next(_rewarded(facts.trajectory.train_log), None)
        if row is None or info.beta is None or info.beta <= 0:
            return None
        step = int(row["step"])
        gap = max(abs(float(row[key])) for key in _REWARDS if key in row) / info.beta
        numbers = {"first_logged_step": step, "first_logged_gap": gap}
        if step <= 1:
            return cls._judged(
                gap, f"at update 1 they are {gap:.2g} nats apart", numbers
            )
        moved = _moved_by(facts.trajectory, step)
        if not np.isfinite(moved) or gap <= _LARGE + 3 * moved:
            says = (
                f"Policy and reference were not compared before the first update: the "
                f"first logged rewards are means over updates 1 to {step} "
                f"({gap:.2g} nats). Log every update, or use `learndyn run`, which "
                "checks."
            )
            return cls("fine", says, numbers)
        says = (
            f"Policy and reference probably differ before the first update: the first "
            f"logged rewards, over updates 1 to {step}, say {gap:.1f} nats, but the "
            f"probes had moved by {moved:.1f} at most. The margin does not start at 0."
        )
        return cls("problem", says, numbers | {"probes_moved": moved})

    @classmethod
    def _judged(cls, gap: float, how: str, numbers: dict[str, Any]) -> Finding:
        if gap <= _TOLERANCE:
            says = f"Policy and reference agreed before the first update: {how}."
            return cls("fine", says, numbers)
        says = (
            f"Policy and reference differ before the first update: {how}. The margin "
            "does not start at 0, and the loss pushes on a difference that no update "
            "made."
        )
        return cls("problem" if gap > _LARGE else "watch", says, numbers)


def _rewarded(log: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the training log that hold finite rewards."""
    for row in log:
        values = [row[key] for key in _REWARDS if key in row]
        numeric = all(isinstance(v, int | float) and np.isfinite(v) for v in values)
        step = row.get("step")
        if values and numeric and isinstance(step, int | float) and np.isfinite(step):
            yield row


def _moved_by(trajectory: Trajectory, step: int) -> float:
    """Largest mean change of chosen or rejected up to the observation at or after
    `step`, nats; NaN where there is none."""
    paths = Paths.of(trajectory).common()
    later = np.flatnonzero(paths.steps >= step)
    kinds = [kind for kind in ("chosen", "rejected") if kind in paths.logp]
    if not len(later) or not kinds:
        return float("nan")
    until = slice(0, int(later[0]) + 1)
    changes = [
        mean_path((path - path[0])[until])
        for path in map(paths.logp.get, kinds)
        if path is not None
    ]
    return float(np.max(np.abs(np.concatenate(changes))))
