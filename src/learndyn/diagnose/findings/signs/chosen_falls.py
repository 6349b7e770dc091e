"""Does chosen surely fall although the state does not say why?"""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, limits_of
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.state import DELTA


class ChosenFalls(Finding):
    """Chosen is surely below -delta, and the state is FIT or NEUTRAL."""

    name = "chosen_falls"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None for SFT, without chosen, and where no state can be judged."""
        evidence, state = facts.evidence, facts.state
        share, chosen = evidence.chosen_relative, evidence.chosen
        if facts.sft or share is None or chosen is None:
            return None
        if state.reason is not None or state.state in ("SQUEEZE", "COLLAPSE"):
            return None
        if not share.high < -DELTA:
            return None
        numbers = {
            "chosen": limits_of(chosen),
            "chosen_relative": limits_of(share),
            "best": limits_of(state.best),
            "best_kind": state.best_kind,
        }
        says = (
            f"Chosen fell by {percent(-share.mean).lstrip('+')} of its log-probability "
            f"({number(chosen)} nats), while {state.best_kind} changed by "
            f"{percent(state.best.mean)}: neither squeezing nor a leak is certain."
        )
        return cls("watch", says, numbers)

    def headline(self, facts: Facts) -> str | None:
        """It comes before a FIT or NEUTRAL that says nothing of chosen."""
        return (
            "Chosen falls, but neither squeezing nor a leak is certain; "
            f"{facts.state.best_kind} did best."
        )
