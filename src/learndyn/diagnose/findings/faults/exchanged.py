"""Do chosen and rejected move as if their columns were exchanged?"""

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series, short
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.intervals import Interval, known
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import LAST, Paths, mean_path


_AS_MUCH = 0.25
"""The watched margin fell by at least this share of what the trainer's own rose: less
is what probes unlike the training data do."""

_ACCURACY = 0.6
"""rewards/accuracies at the end, from which the trainer tells its pairs apart."""


class Exchanged(Finding):
    """The margin is surely below zero and was never above, and either chosen falls and
    rejected rises, or the trainer's own margin rises all the while.

    Where intervals are not known, means that do so are only worth watching.
    """

    name = "exchanged"
    section = "kinds"
    fault = (
        "Chosen and rejected are probably exchanged: chosen falls and rejected rises."
    )
    mend = Advice(
        "Read a few training rows and look which column is chosen.",
        "The margin falls from the start.",
        limits="If only the probes are exchanged, training is right and the names on "
        "this page are wrong.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where no pairs are compared, without both kinds, and where the margin
        falls otherwise: `MarginFalls` says that."""
        evidence = facts.evidence
        chosen, rejected, margin = evidence.chosen, evidence.rejected, evidence.margin
        if facts.trajectory.run.info.family != "preference":
            return None
        if chosen is None or rejected is None or margin is None:
            return None
        watched = Paths.of(facts.trajectory, facts.split).common().margin
        assert watched is not None  # both kinds are there
        path = mean_path(watched)
        never_above = bool((path[np.isfinite(path)] <= 0).all())
        numbers = {
            "chosen": limits_of(chosen),
            "rejected": limits_of(rejected),
            "margin": limits_of(margin),
        }
        unknown = not (known(chosen) and known(rejected))
        if unknown and chosen.mean < 0 < rejected.mean and never_above:
            says = (
                f"Chosen ({number(chosen)} nats) falls and rejected "
                f"({number(rejected)}) rises as if they were exchanged, but without "
                "intervals this is not sure."
            )
            return cls("watch", says, numbers)
        margin_moved = facts.state.margin is not None and facts.state.margin.matters
        both = chosen.below_zero and rejected.above_zero
        if both and never_above and margin_moved:
            says = (
                f"In the training data or in the probes: chosen fell ({number(chosen)} "
                f"nats), rejected rose ({number(rejected)}), and the margin was never "
                "above its start."
            )
            return cls("problem", says, numbers)
        if not margin.below_zero:
            says = f"No sign of exchanged columns: the margin is {number(margin)} nats."
            return cls("fine", says, numbers)
        rose = _trained_margin(facts, margin) if never_above else None
        if rose is None:
            return None
        says = (
            f"The trainer's own margin rose to {rose:.1f} nats (rewards/margins "
            f"{short(rose * (facts.trajectory.run.info.beta or 1))}), while the "
            f"probes' fell by {number(margin)}: what is chosen in one is rejected in "
            "the other."
        )
        return cls("problem", says, numbers | {"trained_margin": rose})

    def headline(self, facts: Facts) -> str | None:
        """Which of the two signs it has."""
        if self.severity == "problem" and "trained_margin" in self.numbers:
            return (
                "Chosen and rejected are probably exchanged: the logged margin rises "
                "while the margin of the probes falls."
            )
        return super().headline(facts)


def _trained_margin(facts: Facts, margin: Interval) -> float | None:
    """What the log says of the margin on trained pairs, in nats, where it surely rose
    and is not far larger than the fall of the watched one; else None."""
    log, beta = facts.trajectory.train_log, facts.trajectory.run.info.beta
    if not facts.trajectory.run.info.has_reference:
        return None  # its rewards do not count from the start
    logged, right = (
        Series.of(log, f"rewards/{key}") for key in ("margins", "accuracies")
    )
    if not beta or len(logged) < 3 or len(right) < 3:
        return None
    last = -max(1, round(LAST * len(logged)))
    rose = float(logged.values[last:].mean()) / beta
    if rose <= 0 or float(right.values[last:].mean()) < _ACCURACY:
        return None
    return rose if -margin.mean >= _AS_MUCH * rose else None
