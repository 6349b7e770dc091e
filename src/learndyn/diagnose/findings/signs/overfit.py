"""Do training prompts gain what test prompts do not?

Two groups of prompts, so two independent bootstraps, each over its own prompts; the
difference of their draws has the interval. Prompts of the groups differ in length, so a
difference counts only where it is also there relative to the start.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, limits_of
from learndyn.diagnose.intervals import (
    Band,
    Interval,
    band,
    ratio_of_sums,
    resample_weights,
)
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import Paths, paired
from learndyn.diagnose.state import DELTA
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class _SplitGap:
    """Change of chosen on prompts that were trained on, and on others, in nats."""

    other: str
    """Name of the split that was not trained on."""
    train: Interval
    test: Interval
    difference: Interval
    """Train minus test, independent groups."""
    relative: Interval
    """Difference of the changes relative to their starts."""
    parted: int | None
    """First update from which on the difference stays surely above zero to the end."""

    @property
    def sure(self) -> bool:
        """Whether training prompts surely gained more, by more than the threshold."""
        return bool(
            self.difference.above_zero
            and self.relative.above_zero
            and self.relative.mean > DELTA
        )


class Overfit(Finding):
    """Chosen gains more, or falls less, on training prompts than on others."""

    name = "overfit"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where one split is asked for, or there are no two to compare."""
        gap = _split_gap(facts.trajectory) if facts.split is None else None
        if gap is None:
            return None
        numbers = {
            "train": limits_of(gap.train),
            gap.other: limits_of(gap.test),
            "difference": limits_of(gap.difference),
            "difference_relative": limits_of(gap.relative),
            "parted_step": gap.parted,
        }
        both = (
            f"chosen changed by {number(gap.train)} nats on training prompts and by "
            f"{number(gap.test)} on {gap.other} prompts"
        )
        if not gap.sure:
            says = (
                f"No sign of overfitting: {both}, a difference of "
                f"{number(gap.difference)}."
            )
            return cls("fine", says, numbers)
        since = (
            "" if gap.parted is None else f"; they part at {facts.unit} {gap.parted}"
        )
        if gap.train.above_zero and gap.test.below_zero:
            says = f"Overfitting: {both}{since}. What was learned does not carry over."
            return cls("problem", says, numbers)
        how = "fare better"
        if gap.train.above_zero:
            how = "gain more"
        elif gap.train.below_zero and gap.test.below_zero:
            how = "fall less"
        says = (
            f"Training prompts {how} than others: {both}, a difference of "
            f"{number(gap.difference)}{since}."
        )
        return cls("watch", says, numbers)


def _split_gap(trajectory: Trajectory, *, seed: int = 0) -> _SplitGap | None:
    """Compare chosen on the probes of split "train" and on those of another split.

    The other is "test" where there is one, else the only other. None without two such
    groups of two prompts each.
    """
    of_chosen = trajectory.kind_of == "chosen"
    splits = sorted(set(trajectory.split_of[of_chosen].tolist()))
    others = [name for name in splits if name != "train"]
    if "train" not in splits or not others:
        return None
    if len(others) > 1 and "test" not in others:
        return None
    other = "test" if "test" in others else others[0]
    groups = [
        _group(trajectory, name, seed + index)
        for index, name in enumerate(("train", other))
    ]
    if groups[0] is None or groups[1] is None:
        return None
    shared = sorted(set(groups[0].steps) & set(groups[1].steps))
    one, two = (group.at(shared) for group in (groups[0], groups[1]))
    fewer = min(one.n, two.n)
    nats = _apart(one.nats, two.nats, fewer)
    shares = _apart(one.shares, two.shares, fewer)
    above = nats.low > 0
    last = len(shared) - 1
    ends = [i for i in range(len(shared)) if above[i:].all()]
    return _SplitGap(
        other,
        one.interval(last),
        two.interval(last),
        nats.at(last),
        shares.at(last),
        int(shared[ends[0]]) if ends else None,
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """Draws of one group of prompts; the first column is the group as it is."""

    steps: tuple[int, ...]
    nats: Float[np.ndarray, "step draw"]
    shares: Float[np.ndarray, "step draw"]
    n: int

    def at(self, steps: list[int]) -> "_Group":
        """Only these steps."""
        rows = [self.steps.index(step) for step in steps]
        return _Group(tuple(steps), self.nats[rows], self.shares[rows], self.n)

    def interval(self, row: int) -> Interval:
        """Change of chosen in this group."""
        values = self.nats[row]
        return band(values[:1].squeeze(), values[1:], np.array(self.n)).at()


def _group(trajectory: Trajectory, split: str, seed: int) -> _Group | None:
    paths = Paths.of(trajectory, split)
    if "chosen" not in paths.logp:
        return None
    path = paths.logp["chosen"]
    steps, prompts = paired(path, paths.scored)
    path = path[steps][:, prompts]
    path = path[:, np.isfinite(path[0]) & np.isfinite(path[-1])]
    if path.shape[1] < 2:
        return None
    # another seed for each group: equal draws would tie groups of equal size together
    drawn = resample_weights(path.shape[1], seed=seed)
    weights = np.vstack([np.ones((1, path.shape[1])), drawn])
    change, start = path - path[0], np.broadcast_to(np.abs(path[0]), path.shape)
    return _Group(
        tuple(paths.steps[steps].astype(int).tolist()),
        ratio_of_sums(change, np.ones_like(change), weights),
        ratio_of_sums(change, start, weights),
        path.shape[1],
    )


def _apart(
    one: Float[np.ndarray, "step draw"], two: Float[np.ndarray, "step draw"], n: int
) -> Band:
    """Difference of two independent groups, draw by draw; `n` prompts in the smaller,
    so that few are allowed for."""
    differ = one - two
    return band(differ[:, 0], differ[:, 1:], np.full(len(differ), n))
