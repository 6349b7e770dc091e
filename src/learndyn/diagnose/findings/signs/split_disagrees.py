"""Do the probes' splits say what was trained on?"""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import CAUTION, Finding, Place
from learndyn.diagnose.groups import misplaced
from learndyn.diagnose.numbers import counted


class SplitDisagrees(Finding):
    """Prompts marked train that were not trained on, or others that were."""

    name = "split_disagrees"
    section = "data"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the run does not record what it trained on."""
        counts = misplaced(facts.trajectory)
        if counts is None:
            return None
        idle, leaked = counts
        numbers = {"marked_not_trained": idle, "trained_not_marked": leaked}
        parts = []
        if idle:
            parts.append(f"{counted(idle, 'prompt')} marked train not trained on")
        if leaked:
            parts.append(f"{counted(leaked, 'prompt')} marked otherwise trained on")
        if not parts:
            says = "The probes' splits agree with what was trained on."
            return cls("fine", says, numbers)
        says = (
            f"The probes' splits disagree with what was trained on: "
            f"{' and '.join(parts)}. The run's own record is used."
        )
        return cls("watch", says, numbers)

    @property
    def place(self) -> Place | None:
        """Among what a reader must know before believing the numbers."""
        return CAUTION if self.severity == "watch" else None
