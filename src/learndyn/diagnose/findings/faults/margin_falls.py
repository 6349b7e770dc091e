"""Did rejected gain on chosen? Preference training pushes the other way."""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.exchanged import Exchanged
from learndyn.diagnose.findings.faults.reference import Reference
from learndyn.diagnose.findings.faults.steps_too_large import StepsTooLarge
from learndyn.diagnose.findings.faults.truncated import Truncated
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.findings.signs.chosen_peak import stop_at_peak
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.state import DELTA


_EXPLAINS = (Exchanged, Reference, Truncated, StepsTooLarge)
"""Faults that make a margin fall: where one is there, it says more."""


class MarginFalls(Finding):
    """The mean margin is surely below zero, by more than `DELTA` per token."""

    name = "margin_falls"
    section = "kinds"
    fault = (
        "The margin falls: rejected gains on chosen, the opposite of what preference "
        "training is for."
    )
    mend = Advice(
        "Read a few training rows and look which column is chosen; then hold the "
        "probes against the training data.",
        "Rejected gained on chosen, which the loss pushes the other way.",
        limits="Probes unlike the training data may fall behind without a fault.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where no pairs are compared, without both kinds, and where a fault of
        `_EXPLAINS` or a sure COLLAPSE says more."""
        evidence, state = facts.evidence, facts.state
        margin, chosen, rejected = evidence.margin, evidence.chosen, evidence.rejected
        if margin is None or chosen is None or rejected is None:
            return None
        if facts.trajectory.run.info.family != "preference":
            return None
        others = (kind.detect(facts) for kind in _EXPLAINS)
        if any(other is not None and other.severity == "problem" for other in others):
            return None
        if state.state == "COLLAPSE" and state.sure:
            return None
        numbers = {
            "margin": limits_of(margin),
            "chosen": limits_of(chosen),
            "rejected": limits_of(rejected),
        }
        throughout = state.margin is not None and state.margin.nats.below_zero
        if not (margin.below_zero and _matters(margin, facts) and throughout):
            says = f"No sure sign of a falling margin: {number(margin)} nats."
            return cls("fine", says, numbers)
        says = (
            f"The margin falls, by {number(margin)} nats: chosen changed by "
            f"{number(chosen)} and rejected by {number(rejected)}. Preference training "
            "should raise it: look for exchanged columns, and for probes that are "
            "unlike the training data."
        )
        return cls("problem", says, numbers)

    def advice(self, facts: Facts) -> list[Advice]:
        """The margin may have fallen since chosen's peak alone: then stop there."""
        mend = super().advice(facts)
        return [*stop_at_peak(facts), *mend] if mend else []


def _matters(margin: Interval, facts: Facts) -> bool:
    """Whether the fall is large, per token of chosen; 1 nat per response if unknown."""
    tokens = Paths.of(facts.trajectory, facts.split).n_tokens["chosen"]
    known = tokens[np.isfinite(tokens) & (tokens > 0)]
    limit = DELTA * float(known.mean()) if len(known) else 1.0
    return abs(margin.mean) > limit
