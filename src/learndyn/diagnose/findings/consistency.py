"""Do the log, single prompts and the last observation agree with the verdict?

The verdict is about means over the watched prompts and over the last fifth of the
observations. Three things of the same run may say something else; each is then said
beside the verdict, as one contradiction with its likely reason:

    the log      rewards/chosen / beta on trained pairs, mean over the last fifth of the
                 rows, with the other sign than chosen's change on the probes
    the prompts  a name that most prompts do not show one by one (greedy path up and
                 chosen down), or that most show while the mean does not
    the end      chosen at the last observation on the other side of its start
"""

import math
from collections.abc import Iterator

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import logged
from learndyn.diagnose.findings.finding import Finding
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import LAST
from learndyn.diagnose.prompts import by_prompt


class Consistency(Finding):
    """What contradicts the verdict, and why it may."""

    name = "consistency"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where nothing is judged."""
        if facts.state.reason is not None:
            return None
        found = [*_log(facts), *_prompts(facts), *_end(facts)]
        if not found:
            says = "The log, single prompts and the last observation agree."
            return cls("fine", says)
        return cls("watch", " ".join(found), {"contradictions": len(found)})


def _logged_chosen(facts: Facts) -> Interval | None:
    """Change of chosen on the trained pairs by the log, nats: the mean over the last
    fifth of the rows, with two standard errors; None where the log cannot tell."""
    info = facts.trajectory.run.info
    if not info.has_reference or info.family != "preference" or not info.beta:
        return None
    values = logged(facts.trajectory.train_log, "rewards/chosen")
    last = np.array(values[-max(4, round(LAST * len(values))) :]) / info.beta
    if len(values) < 8 or facts.trajectory.steps[0] > 0:
        return None
    if abs(values[0]) > info.beta:
        return None  # policy and reference differed before the first update
    error = 2 * float(last.std(ddof=1)) / math.sqrt(len(last))
    mean = float(last.mean())
    return Interval(mean, mean - error, mean + error, len(last))


def _log(facts: Facts) -> Iterator[str]:
    log, chosen = _logged_chosen(facts), facts.state.chosen
    if log is None or chosen is None or not chosen.matters:
        return
    if not (
        (log.above_zero and chosen.nats.below_zero)
        or (log.below_zero and chosen.nats.above_zero)
    ):
        return
    rejected = facts.state.rejected
    said = (
        f"The log says that chosen changed by {number(log)} nats on the trained pairs "
        f"(rewards/chosen / beta), the probes say {number(chosen.nats)}: "
    )
    if rejected is not None and _overlap(log, rejected.nats):
        yield (
            f"{said}the log's chosen moved as the probes' rejected did "
            f"({number(rejected.nats)}), so the training data and the probes disagree "
            "about which is chosen. Compare one prompt in both."
        )
        return
    yield (
        f"{said}the watched prompts are not like the trained ones, or these are "
        "learned by heart."
    )


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _prompts(facts: Facts) -> Iterator[str]:
    prompts = by_prompt(facts.trajectory, facts.split)
    chosen, state = facts.state.chosen, facts.state.state
    if prompts is None or chosen is None or prompts.squeezed.n < 10:
        return
    share, n = prompts.squeezed, prompts.squeezed.n
    count = round(share.mean * n)
    fell = chosen.matters and chosen.nats.below_zero
    if state == "SQUEEZE" and fell and share.high < 0.5:
        yield (
            f"Prompt by prompt, {count} of {n} were squeezed (greedy path up, chosen "
            "down): the mean is carried by these."
        )
    if state in ("FIT", "DISPLACED") and share.low > 0.5:
        yield (
            f"Prompt by prompt, {count} of {n} were squeezed (greedy path up, chosen "
            "down), though by sizes that do not decide the mean."
        )


def _end(facts: Facts) -> Iterator[str]:
    chosen, last = facts.state.chosen, facts.evidence.chosen
    if chosen is None or last is None or not chosen.matters:
        return
    turned = last.above_zero if chosen.nats.below_zero else last.below_zero
    if turned:
        yield (
            f"At the last observation chosen stood at {number(last)} nats, on the "
            "other side of its start: it turned within the last fifth of the "
            "observations, over which the verdict is a mean."
        )
