"""Squeezing token by token: at the same positions, who gained, favourite or label?

Per token of a kind's responses, in nats since the first observation:

    SQ_k(t) = sum over prompts [d sum_m max_v log pi(v) - d sum_m log pi(y_m)] / tokens
    OT(t)   = mean over chosen's positions m where a0_m is not y_m of d log pi_t(a0_m)

a0_m is the model's favourite at the first observation. SQ alone is no sign of
squeezing: where everything falls, the label may only fall faster. So squeezing shows
token by token where favourites along chosen gain (> delta), gain more than the labels
(SQ > delta), and wrong favourites are among those that gain (OT > 0).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import Band, Interval, pooled_bootstrap
from learndyn.diagnose.paths import Paths, column_of, off_target
from learndyn.record.trajectory import Trajectory


PER_TOKEN_DELTA = 0.02
"""Smallest change that counts, nats per token."""


@dataclass(frozen=True, eq=False)
class PerToken:
    """Pooled changes since the first observation, nats per token, over prompts."""

    steps: Float[np.ndarray, " step"]
    """Optimizer updates at each observation of the curves."""
    squeeze: dict[str, Band]
    """SQ of every kind at each of `steps`."""
    favourite: Band
    """Change of max_v log pi(v) along chosen at each of `steps`."""
    off_target: Interval | None
    """OT at the last observation; None where no position has a favourite that is not
    the label."""
    off_target_tokens: int
    """Positions of chosen whose first favourite is not the label."""
    prompts: int
    """Prompts that have chosen."""

    @property
    def fires(self) -> bool:
        """Whether the three means at the last observation say squeezing."""
        return self._over("mean")

    @property
    def sure(self) -> bool:
        """Whether the whole intervals do."""
        return self._over("low")

    def _over(self, end: str) -> bool:
        if self.off_target is None:
            return False
        gain = getattr(self.favourite.at(-1), end)
        ahead = getattr(self.squeeze["chosen"].at(-1), end)
        astray = getattr(self.off_target, end)
        return gain > PER_TOKEN_DELTA and ahead > PER_TOKEN_DELTA and astray > 0


def per_token(
    trajectory: Trajectory, split: str | None = None, seed: int = 0
) -> PerToken | None:
    """Judge one run token by token, over the same prompts at every observation.

    None where there is no chosen, or where the run has no values per token.

    Raises:
        BadInput: if no probe is of this split.
    """
    paths = Paths.of(trajectory, split).common()
    if paths.greedy is None or not np.nansum(paths.n_tokens["chosen"]) > 0:
        return None
    # files of token lists are the size of all tokens: only the last one decides
    found = off_target(trajectory, paths, [len(paths.steps) - 1])
    if found is None:
        return None
    sums, tokens = found
    squeeze = {}
    for kind, logp in paths.logp.items():
        top = column_of(trajectory, paths, "argmax_logp", kind, split)
        ahead = (top - top[0]) - (logp - logp[0])
        squeeze[kind] = _pooled(ahead, paths.n_tokens[kind], seed)
    astray = int(np.nansum(tokens))
    return PerToken(
        paths.steps,
        squeeze,
        _pooled(paths.greedy - paths.greedy[0], paths.n_tokens["chosen"], seed),
        _pooled(sums, tokens, seed).at(-1) if astray else None,
        astray,
        prompts=int(np.isfinite(paths.greedy[0]).sum()),
    )


def _pooled(
    change: Float[np.ndarray, "step prompt"],
    tokens: Float[np.ndarray, " prompt"],
    seed: int,
) -> Band:
    return pooled_bootstrap(change, np.broadcast_to(tokens, change.shape), seed=seed)
