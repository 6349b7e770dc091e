"""What differs from the run that this one is compared with."""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding


class Baseline(Finding):
    """The difference to the baseline, in words."""

    name = "baseline"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without a baseline."""
        return cls("fine", " ".join(facts.compared)) if facts.compared else None
