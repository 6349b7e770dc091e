"""Do chosen and rejected move as if their columns were exchanged?"""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.intervals import known
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import Paths, mean_path


class Exchanged(Finding):
    """Chosen surely falls, rejected surely rises, and the margin is never above zero.

    Where intervals are not known, means that do so are only worth watching.
    """

    name = "exchanged"
    section = "kinds"
    fault = (
        "Chosen and rejected are probably exchanged: chosen falls and rejected rises."
    )
    mend = Advice(
        "Read a few training rows and look which column is chosen.",
        "Chosen falls and rejected rises from the start.",
        limits="If only the probes are exchanged, training is right and the names on "
        "this page are wrong.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None for SFT, and without both kinds."""
        evidence = facts.evidence
        chosen, rejected = evidence.chosen, evidence.rejected
        if facts.sft or chosen is None or rejected is None:
            return None
        margin = Paths.of(facts.trajectory, facts.split).common().margin
        assert margin is not None  # both kinds are there
        path = mean_path(margin)
        never_above = bool((path[np.isfinite(path)] <= 0).all())
        numbers = {
            "chosen": limits_of(chosen),
            "rejected": limits_of(rejected),
            "margin": limits_of(evidence.margin),
        }
        unknown = not (known(chosen) and known(rejected))
        if unknown and chosen.mean < 0 < rejected.mean and never_above:
            says = (
                f"Chosen ({number(chosen)} nats) falls and rejected "
                f"({number(rejected)}) rises as if they were exchanged, but without "
                "intervals this is not sure."
            )
            return cls("watch", says, numbers)
        if not (chosen.below_zero and rejected.above_zero and never_above):
            says = (
                f"Chosen ({number(chosen)} nats) and rejected ({number(rejected)}) do "
                "not move as if they were exchanged."
            )
            return cls("fine", says, numbers)
        says = (
            f"Chosen and rejected are probably exchanged, in the training data or in "
            f"the probes: chosen fell ({number(chosen)} nats), rejected rose "
            f"({number(rejected)}), and the margin was never above its start."
        )
        return cls("problem", says, numbers)
