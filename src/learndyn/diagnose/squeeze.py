"""The evidence for squeezing: does probability move to what the model already favours?

The paper's squeezing effect (Ren & Sutherland 2025, Section 3.3): pushing down an
unlikely answer takes probability from nearly every token and gives it to the argmax.
What it leaves in a run, each with its interval over prompts:

    greedy path rises   sum over chosen's positions of max_v log pi(v)
    off-target rises    log pi of the first model's favourites that are not chosen's own
    most kinds fall     chosen among them

`state.py` names a run by them; here they are numbers, at the last observation or where
the margin reaches a value, for comparisons and pages.
"""

from dataclasses import dataclass, field

import numpy as np

from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
)
from learndyn.diagnose.paths import (
    GREEDY,
    NO_GREEDY,
    Between,
    Paths,
    first_reach,
    mean_path,
    off_target,
)
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True)
class Evidence:
    """Changes since the first observation, mean over prompts, nats per response.

    A field is None where the run has no such value, or where the margin asked for was
    never reached; `reason` then says why.
    """

    step: float | None = None
    """Optimizer updates at the point looked at; between observations if fractional."""
    margin: Interval | None = None
    chosen: Interval | None = None
    rejected: Interval | None = None
    greedy: Interval | None = None
    """Change of argmax_logp along chosen."""
    chosen_relative: Interval | None = None
    """Mean change / |mean at the start|; no unit."""
    greedy_relative: Interval | None = None
    off_target: Interval | None = None
    """Nats per off-target token, pooled over all of them."""
    off_target_tokens: int = 0
    """Positions of chosen where the first observation's argmax is not the label."""
    kinds: dict[str, Interval] = field(default_factory=dict)
    relative: dict[str, Interval] = field(default_factory=dict)
    """Mean change / |mean at the start| of every kind."""
    reason: str | None = None

    @property
    def falling(self) -> int:
        """Kinds whose whole interval is below zero, of `len(kinds)`."""
        return sum(change.below_zero for change in self.kinds.values())

    @property
    def rising(self) -> int:
        """Kinds whose whole interval is above zero, of `len(kinds)`."""
        return sum(change.above_zero for change in self.kinds.values())


def squeeze_evidence(
    trajectory: Trajectory,
    *,
    at_margin: float | None = None,
    split: str | None = None,
    seed: int = 0,
) -> Evidence:
    """Collect the evidence at the last observation, or where the margin is `at_margin`.

    The point of `at_margin` (nats, not times beta) is where the mean margin first
    reaches it, interpolated between observations. The intervals hold that point fixed.
    Where the run has a panel, all that is at a margin, or at an observation that is not
    full, is over the panel's prompts; every interval has its number of prompts.
    """
    paths = Paths.of(trajectory, split)
    if at_margin is not None or not paths.full[-1]:
        paths = paths.common()
    last = len(paths.steps) - 1
    point = Between(last, last, 0.0)
    if at_margin is not None:
        if paths.margin is None:
            return Evidence(reason="no margin: the probes lack chosen or rejected.")
        means = mean_path(paths.margin)
        reached = first_reach(means, at_margin)
        if reached is None:
            return Evidence(
                reason=f"the margin never reached {at_margin:g} nats; its highest "
                f"value is {np.max(means, initial=-np.inf):.1f}."
            )
        point = reached
    sums, shares = {}, {}
    for kind, values in paths.with_greedy().items():
        change = point.of(values) - values[0]
        sums[kind] = paired_bootstrap(change, seed=seed).at()
        shares[kind] = pooled_bootstrap(change, np.abs(values[0]), seed=seed).at()
    astray = _off_target(trajectory, paths, point, seed)
    margin = None if paths.margin is None else point.of(paths.margin)
    return Evidence(
        step=float(point.of(paths.steps)),
        margin=None if margin is None else paired_bootstrap(margin, seed=seed).at(),
        chosen=sums.get("chosen"),
        rejected=sums.get("rejected"),
        greedy=sums.pop(GREEDY, None),
        chosen_relative=shares.get("chosen"),
        greedy_relative=shares.pop(GREEDY, None),
        off_target=astray[0],
        off_target_tokens=astray[1],
        kinds=sums,
        relative=shares,
        reason=None if paths.greedy is not None else NO_GREEDY,
    )


def _off_target(
    trajectory: Trajectory, paths: Paths, point: Between, seed: int
) -> tuple[Interval | None, int]:
    off = off_target(trajectory, paths, [point.before, point.after])
    if off is None or np.nansum(off[1]) == 0:
        return None, 0
    sums, tokens = off
    change = sums[0] + point.weight * (sums[1] - sums[0])
    return pooled_bootstrap(change, tokens, seed=seed).at(), int(np.nansum(tokens))
