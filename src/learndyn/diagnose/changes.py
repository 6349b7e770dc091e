"""What moved: every kind's change since the first observation, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
)
from learndyn.diagnose.paths import GREEDY, Paths, mean_path
from learndyn.record.trajectory import Trajectory


Per = Literal["response", "token"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Change of one kind since the first observation, mean over prompts."""

    kind: str
    steps: Int[np.ndarray, " step"]
    mean: Float[np.ndarray, " step"]
    """Nats per response, or per token: sum of nats / sum of tokens."""
    low: Float[np.ndarray, " step"]
    """Lower limit of the 95 % interval over prompts; NaN below two prompts."""
    high: Float[np.ndarray, " step"]
    n: Int[np.ndarray, " step"]
    """Prompts with a finite value at each step."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind's way through the run; logp as mean over prompts, nats per response."""

    kind: str
    prompts: int
    first: float
    peak: float
    """Highest mean. Picked after the fact, so it has no interval."""
    peak_step: int
    last: float
    change: Interval
    """Last minus first."""
    fell: float
    """Share of prompts whose value is lower at the end than at the start."""


def change_curves(
    trajectory: Trajectory,
    column: str = "logp",
    per: Per = "response",
    split: str | None = None,
    *,
    seed: int = 0,
) -> dict[str, Curve]:
    """Change of `column` since the first observation, for each kind.

    With the column "logp" the greedy path, argmax_logp along chosen, stands last under
    the name "greedy path". Per token means pooled: sum of nats / sum of tokens.
    """
    paths = Paths.of(trajectory, split)
    if column == "logp":
        values = paths.with_greedy()
    else:
        values = {kind: trajectory.values(column, kind, split) for kind in paths.logp}
    curves = {}
    for kind, path in values.items():
        change = path - path[0]
        if per == "response":
            band = paired_bootstrap(change, seed=seed)
        else:
            tokens = _tokens(trajectory, paths, kind, column, split)
            weights = np.broadcast_to(tokens, change.shape)
            band = pooled_bootstrap(change, weights, seed=seed)
        curves[kind] = Curve(
            kind, trajectory.steps, band.mean, band.low, band.high, band.n
        )
    return curves


def kind_table(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> list[KindRow]:
    """First, peak, last and change of every kind, the greedy path last."""
    rows = []
    for kind, path in Paths.of(trajectory, split).with_greedy().items():
        change = path[-1] - path[0]
        moved = change[np.isfinite(change)]
        mean = mean_path(path)
        top = int(np.argmax(np.where(np.isfinite(mean), mean, -np.inf)))
        rows.append(
            KindRow(
                kind,
                len(moved),
                float(mean[0]),
                float(mean[top]),
                int(trajectory.steps[top]),
                float(mean[-1]),
                paired_bootstrap(change, seed=seed).at(),
                float(np.mean(moved < 0)) if len(moved) else float("nan"),
            )
        )
    return rows


def falling(changes: Sequence[Interval]) -> int:
    """How many changes are below zero with their whole interval."""
    return sum(change.below_zero for change in changes)


def rising(changes: Sequence[Interval]) -> int:
    """How many changes are above zero with their whole interval."""
    return sum(change.above_zero for change in changes)


def _tokens(
    trajectory: Trajectory, paths: Paths, kind: str, column: str, split: str | None
) -> Float[np.ndarray, " prompt"]:
    if column == "logp":
        return paths.n_tokens["chosen" if kind == GREEDY else kind]
    rows = trajectory.rows(kind, split)
    return trajectory.n_tokens[rows].astype(np.float64)
