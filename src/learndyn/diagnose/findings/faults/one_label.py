"""Did KTO see examples of one label only?"""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series
from learndyn.diagnose.findings.finding import Advice, Finding


_ROWS = 3
"""Logged rows from which a label that never came is no chance of the batches."""


class OneLabel(Finding):
    """The log of KTO has rewards of one label and never of the other."""

    name = "one_label"
    section = "training"
    mend = Advice(
        "Give KTO examples of both labels, mixed in each batch, and balance them by "
        "desirable_weight and undesirable_weight.",
        "The log has rewards of one label only.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None for other methods, and without logged rewards."""
        if "kto" not in facts.trajectory.run.info.method.lower():
            return None
        log = facts.trajectory.train_log
        rows = {
            kind: len(Series.of(log, f"rewards/{kind}"))
            for kind in ("chosen", "rejected")
        }
        if sum(rows.values()) < _ROWS:
            return None
        numbers = {"desirable": rows["chosen"], "undesirable": rows["rejected"]}
        if all(rows.values()):
            return cls("fine", "KTO saw examples of both labels.", numbers)
        if rows["rejected"]:
            says = (
                f"rewards/rejected is logged in {rows['rejected']} rows and "
                "rewards/chosen in none: every update pushes answers down, and nothing "
                "says which answer should gain."
            )
        else:
            says = (
                f"rewards/chosen is logged in {rows['chosen']} rows and "
                "rewards/rejected in none: every update pulls answers up, as SFT does, "
                "and nothing is compared."
            )
        return cls("problem", says, numbers)

    def headline(self, facts: Facts) -> str | None:
        """Which label is missing."""
        if self.severity != "problem":
            return None
        there, lacks = "undesirable", "desirable"
        if self.numbers["desirable"]:
            there, lacks = lacks, there
        return f"KTO saw only {there} examples, not one {lacks} one."
