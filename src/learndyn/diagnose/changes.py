"""What moved: every kind's change since the first observation, with its interval."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
    standard_error,
)
from learndyn.diagnose.paths import GREEDY, Paths, mean_path, paired
from learndyn.record.trajectory import AnyRun, Trajectory


Per = Literal["response", "token"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Change of one kind since the first observation, mean over prompts.

    Over the same prompts at every step: where the run has a panel, the panel's. A kind
    that none of them has is followed over all prompts, at the full observations alone.
    """

    kind: str
    steps: Int[np.ndarray, " step"]
    mean: Float[np.ndarray, " step"]
    """Nats per response, or per token: sum of nats / sum of tokens."""
    low: Float[np.ndarray, " step"]
    """Lower limit of the 95 % interval over prompts; NaN below two prompts."""
    high: Float[np.ndarray, " step"]
    n: Int[np.ndarray, " step"]
    """Prompts with a finite value at each step."""
    se: Float[np.ndarray, " step"]
    """Standard error of `mean`, over prompts: of paired changes, so that what differs
    between prompts at the start is no part of it. NaN below two prompts."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind's way through the run; logp as mean over prompts, nats per response.

    First, last and change are over all prompts if the last observation is full, else
    over the panel's.
    """

    kind: str
    prompts: int
    first: float
    peak: float
    """Highest mean. Picked after the fact, so it has no interval. Looked for among the
    prompts that were scored at every step; where its observation is of the panel, it is
    `first` plus the panel's mean change."""
    peak_step: int
    last: float
    change: Interval
    """Last minus first."""
    fell: float
    """Share of prompts whose value is lower at the end than at the start."""
    se: float
    """Standard error of the change, over prompts."""
    rise: float
    """Mean change from the start to the peak, of those it was looked for among."""
    turn: float
    """Mean change from the peak to the end, of the same prompts."""
    peak_prompts: int
    """How many prompts these are."""


def change_curves(
    run: AnyRun,
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
    trajectory = Trajectory.of(run)
    paths = Paths.of(trajectory, split)
    if column == "logp":
        values = paths.with_greedy()
        scored = dict.fromkeys(values, paths.scored)
    else:
        values = {kind: trajectory.values(column, kind, split) for kind in paths.logp}
        covered = trajectory.covered
        scored = {k: covered[:, trajectory.rows(k, split)] for k in paths.logp}
    curves = {}
    for kind, path in values.items():
        steps, prompts = paired(path, scored[kind])
        change = path[steps][:, prompts] - path[0, prompts]
        weights = np.ones_like(change)
        if per == "token":
            tokens = _tokens(trajectory, paths, kind, column, split)[prompts]
            weights = np.broadcast_to(tokens, change.shape)
        band = pooled_bootstrap(change, weights, seed=seed)
        se = standard_error(change, weights)
        curves[kind] = Curve(
            kind, trajectory.steps[steps], band.mean, band.low, band.high, band.n, se
        )
    return curves


def kind_table(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> list[KindRow]:
    """First, peak, last and change of every kind, the greedy path last."""
    paths = Paths.of(trajectory, split)
    if not paths.full[-1]:
        paths = paths.common()
    rows = []
    for kind, path in paths.with_greedy().items():
        change = path[-1] - path[0]
        moved = change[np.isfinite(change)]
        mean = mean_path(path)
        steps, prompts = paired(path, paths.scored)
        line = mean_path(path[steps][:, prompts] - path[0, prompts])
        top = int(np.argmax(np.where(np.isfinite(line), line, -np.inf)))
        at = int(np.flatnonzero(steps)[top])
        exact = bool(paths.full[at])
        rows.append(
            KindRow(
                kind,
                len(moved),
                first=float(mean[0]),
                peak=float(mean[at] if exact else mean[0] + line[top]),
                peak_step=int(paths.steps[at]),
                last=float(mean[-1]),
                change=paired_bootstrap(change, seed=seed).at(),
                fell=float(np.mean(moved < 0)) if len(moved) else float("nan"),
                se=float(standard_error(change, np.ones_like(change))),
                rise=float(line[top]),
                turn=float(line[-1] - line[top]),
                peak_prompts=int(np.isfinite(path[0, prompts]).sum()),
            )
        )
    return rows


def _tokens(
    trajectory: Trajectory, paths: Paths, kind: str, column: str, split: str | None
) -> Float[np.ndarray, " prompt"]:
    if column == "logp":
        return paths.n_tokens["chosen" if kind == GREEDY else kind]
    rows = trajectory.rows(kind, split)
    return trajectory.n_tokens[rows].astype(np.float64)
