"""Do the recorded updates add up to what chosen did?"""

import math

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import SHARE, Finding, Place, limits_of
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import counted, number, signed
from learndyn.diagnose.updates.why import Why


_MANY = 6
"""Records from which on their spread tells how many more are needed."""


class RecordedUpdates(Finding):
    """How much of chosen's change the records of forces add up to, over the run."""

    name = "recorded_updates"
    section = "forces"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where no update is recorded; fine where they carry the change."""
        why = facts.why
        if why is None:
            return None
        numbers = _numbers(why)
        if math.isnan(why.share.mean):
            says = (
                f"Chosen of the {counted(why.prompts, 'prompt')} that recorded updates "
                f"are of did not surely change: {number(why.actual)} nats. There is "
                "nothing for them to add up to."
            )
            return cls("fine", says, numbers)
        if why.carries:
            pushed = facts.trajectory.run.info.pushes_rejected and why.by_push
            return cls("fine", _carried(why, pushed=bool(pushed)), numbers)
        return cls("watch", _not_carried(why, _record_more(facts, why)), numbers)

    @property
    def place(self) -> Place | None:
        """After the state, wherever chosen changed."""
        return None if self.numbers["share"] is None else SHARE


def _carried(why: Why, *, pushed: bool) -> str:
    parts = sorted(why.parts.items(), key=lambda item: item[1].mean)
    made = ", ".join(f"{name} {signed(part.mean)}" for name, part in parts)
    cause = ": chosen fell because rejected was pushed down" if pushed else ""
    return (
        f"The recorded updates carry this change: {_those(why)} add up to "
        f"{number(why.estimate)} of chosen's {_whole(why)}, {_percent(why.share)}; "
        f"by part: {made}{cause}."
    )


def _not_carried(why: Why, more: str) -> str:
    if why.too_large:
        return (
            f"The recorded updates do not carry chosen's change: {_those(why)} add up "
            f"to {number(why.estimate)} of {_whole(why)} by their forces, "
            f"which are of first order, and {number(why.beyond)} beyond: "
            "single updates are too large to be explained one by one."
        )
    wide = why.share.high - why.share.low
    if not wide <= 2:  # also where it has no limits
        return (
            f"The recorded updates do not carry chosen's change: {_those(why)} are too "
            f"few, and add up to {number(why.estimate)} of {_whole(why)}{more}."
        )
    share = "none" if why.share.high <= 0 else _percent(why.share)
    return (
        f"The recorded updates do not carry chosen's change: {_those(why)} explain "
        f"{share} of {_whole(why)}, and add up to "
        f"{number(why.estimate)}{more}."
    )


def _those(why: Why) -> str:
    return f"{why.recorded} of {counted(why.updates, 'update')}"


def _whole(why: Why) -> str:
    """The change to be explained, and of how many prompts: often fewer than watched."""
    return f"{signed(why.actual.mean)} nats over {counted(why.prompts, 'prompt')}"


def _percent(share: Interval) -> str:
    mean, low, high = (
        f"{100 * value:.0f}".replace("-", "\N{MINUS SIGN}")
        for value in (share.mean, share.low, share.high)
    )
    return f"{mean} % [{low}, {high}]"


def _record_more(facts: Facts, why: Why) -> str:
    """What to type for more records: twice as many, or as many as the spread of these
    asks for; empty where every update is recorded."""
    if why.recorded == why.updates:
        return ""
    times = max(2.0, why.missing) if why.recorded >= _MANY else 2.0
    steps = facts.trajectory.steps
    records = [s for s in facts.trajectory.run.forces_steps if s > steps[0]]
    every = float(np.median(np.diff(steps)))
    apart = float(np.median(np.diff([steps[0], *records])))
    wanted = max(1, math.floor(apart / times))
    settings = {"forces": max(1, math.floor(wanted / every))}
    if wanted < every and facts.trajectory.run.info.every != "log":
        settings["every"] = wanted
    if (facts.trajectory.run.path / "config.yaml").exists():
        typed = " ".join(f"--{name} {value}" for name, value in settings.items())
    else:
        typed = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"; record more with {typed}"


def _numbers(why: Why) -> dict[str, object]:
    known = not math.isnan(why.share.mean)
    return {
        "recorded": why.recorded,
        "updates": why.updates,
        "prompts": why.prompts,
        "estimate": limits_of(why.estimate),
        "actual": limits_of(why.actual),
        "share": limits_of(why.share) if known else None,
        "beyond": None if math.isnan(why.beyond.mean) else limits_of(why.beyond),
        "parts": {name: limits_of(part) for name, part in why.parts.items()},
        "carries": why.carries,
        "by_push": why.by_push,
    }
