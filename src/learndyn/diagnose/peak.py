"""Where chosen was highest, whether it has surely fallen since, and when to stop.

The peak is picked after the fact, so the fall from it is negative even where nothing
but noise moves. Two things account for that. The peak is picked anew in every resample
of prompts, which gives the distribution of its step. And the fall has an interval that
holds at all observations at once: with d_t the mean of l_t - l_T over prompts, l_T the
last observation, s_t its standard error, and c the 95 % quantile over resamples of

    max over t of |d*_t - d_t| / s_t

the interval at the peak is -d_t -+ c s_t, whichever t the peak turned out to be.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from learndyn.diagnose.intervals import (
    Interval,
    resample_weights,
    standard_error,
    widening,
)
from learndyn.diagnose.paths import Paths, paired
from learndyn.diagnose.state import DELTA, TOKENS
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Peak:
    """Chosen's highest observation, among prompts that were scored at all of them."""

    step: int
    """Update of the observation where the mean over prompts is highest."""
    low: int
    """The step is at or after this one in 97.5 % of resamples."""
    high: int
    """And at or before this one in 97.5 %."""
    start: float
    """Mean of chosen at the first observation, nats per response."""
    rise: float
    """Mean change from the start to the peak, nats per response."""
    fall: Interval
    """From the peak to the last observation, nats per response; it holds although the
    peak was picked."""
    first: int
    last: int
    """Updates at the first and last observation."""
    margin: float | None
    """Mean margin at the peak, nats; None without rejected."""
    margin_end: float | None
    tokens: float | None = None
    """Mean tokens of a response; None where the run does not know."""
    clock: str = "update"
    """What steps count."""

    @property
    def smallest(self) -> float:
        """Smallest change that counts, nats per response: 0.01 per token."""
        return DELTA * (self.tokens or TOKENS)

    @property
    def rose(self) -> bool:
        """Whether it is above the start by a size that counts."""
        return self.rise >= self.smallest

    @property
    def inside(self) -> bool:
        """Whether it lies within the run: after a rise, before the last observation."""
        return self.rose and self.step < self.last

    @property
    def fell(self) -> bool:
        """Whether chosen has surely fallen since, by a size that counts."""
        return self.fall.below_zero and -self.fall.mean >= self.smallest

    @property
    def others(self) -> str:
        """Where else the peak may be, for a sentence."""
        if self.low == self.high:
            return f"in 95 % of resamples at {self.low}"
        return f"95 %: {self.low} to {self.high}"

    @property
    def turned(self) -> bool:
        """Whether it rose to a peak inside the run and surely fell from there."""
        return self.inside and self.fell


def chosen_peak(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> Peak | None:
    """Find chosen's peak; None without chosen, two observations or two prompts."""
    paths = Paths.of(trajectory, split)
    if "chosen" not in paths.logp:
        return None
    path = paths.logp["chosen"]
    steps, prompts = paired(path, paths.scored)
    margin = None if paths.margin is None else paths.margin[steps][:, prompts]
    path, updates = path[steps][:, prompts], paths.steps[steps]
    known = np.isfinite(path[:, np.isfinite(path[0])])
    usable = known.mean(axis=1) > 0.5 if known.size else np.zeros(len(path), bool)
    if usable.sum() < 2 or not usable[-1]:
        return None
    path, updates = path[usable], updates[usable]
    whole = np.asarray(np.isfinite(path).all(axis=0))
    if whole.sum() < 2:
        return None
    path, tokens = path[:, whole], paths.n_tokens["chosen"][prompts][whole]
    top = int(np.argmax(path.mean(axis=1)))
    picked = _picked(path, seed)
    low, high = np.quantile(picked, [0.025, 0.975], method="inverted_cdf").astype(int)
    return Peak(
        int(updates[top]),
        int(updates[low]),
        int(updates[high]),
        float(path[0].mean()),
        float((path[top] - path[0]).mean()),
        _fall(path, top, seed),
        int(updates[0]),
        int(updates[-1]),
        _mean(margin, usable, whole, top),
        _mean(margin, usable, whole, -1),
        float(tokens.mean()) if tokens.sum() else None,
        trajectory.unit,
    )


def _picked(path: Float[np.ndarray, "step prompt"], seed: int) -> np.ndarray:
    """Index of the highest observation in each resample of prompts."""
    weights = resample_weights(path.shape[1], seed=seed)
    return np.argmax((path - path[0]) @ weights.T, axis=0)


def _fall(path: Float[np.ndarray, "step prompt"], top: int, seed: int) -> Interval:
    """Last minus peak, with the interval that holds at all observations at once."""
    prompts = path.shape[1]
    before = path[:-1] - path[-1]
    if top == len(path) - 1:
        return Interval(0.0, float("nan"), float("nan"), prompts)
    mean = before.mean(axis=1)
    error = standard_error(before, np.ones_like(before))
    weights = resample_weights(prompts, seed=seed) / prompts
    apart = np.abs(before @ weights.T - mean[:, None])
    spread = np.where(error > 0, error, np.inf)[:, None]
    wide = float(np.quantile((apart / spread).max(axis=0), 0.95))
    reach = wide * float(error[top]) * float(widening(np.array(prompts)))
    fall = -float(mean[top])
    return Interval(fall, fall - reach, fall + reach, prompts)


def _mean(
    margin: Float[np.ndarray, "step prompt"] | None,
    usable: Bool[np.ndarray, " step"],
    whole: Bool[np.ndarray, " prompt"],
    index: int,
) -> float | None:
    if margin is None:
        return None
    values = margin[usable][index, whole]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
