"""Has chosen surely fallen since it was highest, so that training went on too long?"""

from collections.abc import Sequence

from learndyn.diagnose.advice import again
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import PEAK, Advice, Finding, Place, limits_of
from learndyn.diagnose.numbers import nats, number, signed
from learndyn.diagnose.paths import outside_panel
from learndyn.diagnose.peak import Peak
from learndyn.diagnose.state import DELTA


class ChosenPeak(Finding):
    """Where chosen was highest, and what it has lost since."""

    name = "chosen_peak"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without chosen, two observations or two prompts."""
        peak = facts.peak
        if peak is None:
            return None
        numbers = {
            "peak_step": peak.step,
            "peak_step_low": peak.low,
            "peak_step_high": peak.high,
            "rise": peak.rise,
            "rose": peak.rose,
            "fall": limits_of(peak.fall),
            "margin_at_peak": peak.margin,
            "margin_at_end": peak.margin_end,
        }
        since = f"{number(peak.fall)} nats{_per_token(peak)}"
        if peak.step == peak.last:
            where = f"{peak.clock} {peak.last}"
            says = f"Chosen was highest at the last observation, {where}."
            return cls("fine", says, numbers)
        if not peak.rose:
            says = f"Chosen never rose by {DELTA:g} nats per token above its start"
            if not peak.fell:
                says += f", nor did it surely fall by as much: {since}."
                return cls("fine", says, numbers)
            return cls("watch", f"{says} and has fallen since: {since}.", numbers)
        highest = f"{peak.clock} {peak.step} ({peak.others})"
        if not peak.fell:
            says = (
                f"Chosen was highest at {highest} and has not surely fallen since: "
                f"{since}."
            )
            return cls("fine", says, numbers)
        says = (
            f"Stop at about {highest}, where chosen was highest: it changed by {since} "
            "since."
        )
        if margin := _margin_then(peak):
            says += f" The {margin} at {peak.clock} {peak.last}."
        return cls("watch", says, numbers)

    @property
    def place(self) -> Place | None:
        """After the numbers of the whole run. That chosen fell from the start these
        numbers say themselves."""
        stop = self.severity == "watch" and self.numbers["rose"]
        return PEAK if stop else None

    def sentence(self, facts: Facts, findings: Sequence[Finding]) -> str:
        """What happened, without the remedy that `says` begins with."""
        peak = facts.peak
        assert peak is not None  # it was found
        among = ""
        if facts.trajectory.panel is not None:
            outside = outside_panel(facts.trajectory, facts.split)
            full = "full " if "chosen" in outside else ""
            among = f", among {peak.fall.n} prompts scored at every {full}observation"
        return (
            f"Chosen was highest at {peak.clock} {peak.step}, {signed(peak.rise)} nats "
            f"above its start, and has changed by {number(peak.fall)} nats"
            f"{_per_token(peak)} since "
            f"(the interval allows for picking the peak afterwards{among})."
        )


def stop_at_peak(facts: Facts) -> list[Advice]:
    """Stop where chosen was highest, if it has surely fallen since."""
    peak = facts.peak
    if peak is None or not peak.turned:
        return []
    because = (
        f"Chosen was {signed(peak.rise)} nats above its start there and changed by "
        f"{number(peak.fall)} since"
    )
    if margin := _margin_then(peak):
        because += f"; the {margin} at the end"
    return [
        Advice(
            f"Stop at about {peak.clock} {peak.step} ({peak.others}), or take the "
            "checkpoint nearest to it.",
            f"{because}.",
            limits="It is the peak of chosen's log-probability on these prompts; "
            "answers were not graded. A schedule that decays ends elsewhere.",
            command=again(facts, f"until-{peak.step}", "--max_steps", str(peak.step)),
        )
    ]


def _per_token(peak: Peak) -> str:
    if peak.tokens is None or -peak.fall.mean < peak.smallest:
        return ""
    return f" ({signed(peak.fall.mean / peak.tokens)} per token)"


def _margin_then(peak: Peak) -> str:
    if peak.margin is None or peak.margin_end is None:
        return ""
    return f"margin was {nats(peak.margin)} nats there and is {nats(peak.margin_end)}"
