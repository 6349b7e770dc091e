"""Did rejected gain on chosen? Preference training pushes the other way."""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.exchanged import Exchanged
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.findings.signs.chosen_peak import stop_at_peak
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import number
from learndyn.diagnose.squeeze import Evidence
from learndyn.diagnose.state import DELTA


_WITHOUT_PAIRS = ("grpo", "ppo", "rloo")
"""Methods, as run.json names them, whose loss does not compare chosen and rejected."""


class MarginFalls(Finding):
    """The mean margin is surely below zero, by more than delta of chosen's start."""

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
        """None for SFT and `_WITHOUT_PAIRS`, without both kinds, and where exchanged
        columns or a sure COLLAPSE say more."""
        evidence, state = facts.evidence, facts.state
        margin, chosen, rejected = evidence.margin, evidence.chosen, evidence.rejected
        if margin is None or chosen is None or rejected is None:
            return None
        method = facts.trajectory.run.info.method.lower()
        if facts.sft or method in _WITHOUT_PAIRS:
            return None
        exchanged = Exchanged.detect(facts)
        if exchanged is not None and exchanged.severity == "problem":
            return None
        if state.state == "COLLAPSE" and state.sure:
            return None
        numbers = {
            "margin": limits_of(margin),
            "chosen": limits_of(chosen),
            "rejected": limits_of(rejected),
        }
        if not (margin.below_zero and _large(margin, evidence)):
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


def _large(margin: Interval, evidence: Evidence) -> bool:
    """Whether the fall is over delta of what chosen was at the start."""
    chosen, share = evidence.chosen, evidence.chosen_relative
    if chosen is None or share is None or share.mean == 0:
        return True
    return abs(margin.mean) > DELTA * abs(chosen.mean / share.mean)
