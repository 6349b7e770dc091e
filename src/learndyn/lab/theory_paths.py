"""Paths of recorded runs: the walk of (y+, y-), and how peaky the answers became.

From observations alone, so that any recorded run will do (Ren & Sutherland 2025,
Sections 4.1 and 4.2, Figure 9).
"""

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import paired_bootstrap
from learndyn.errors import BadInput
from learndyn.lab.recorded import probed_split
from learndyn.lab.theory_result import Numbers, Peak, Walk
from learndyn.record.trajectory import Trajectory


def walk(role: str, run: Trajectory) -> Walk:
    """Mean log-probability of chosen and rejected at each observation.

    Raises:
        BadInput: if a kind is not there, or no prompt was scored at all observations.
    """
    sides = [scored(run, "logp", kind) for kind in ("chosen", "rejected")]
    chosen, rejected = (side.mean(1).tolist() for side in sides)
    turn, fall = (_change(side) for side in sides)
    return Walk(role, run.steps.tolist(), chosen, rejected, turn, fall)


def peak(role: str, run: Trajectory, vocabulary: int) -> Peak:
    """||A||_F along chosen, and log pi(y*) against log(1 - pi(y*)).

    Raises:
        BadInput: as `walk`.
    """
    size = np.sqrt(vocabulary - 2 + vocabulary * scored(run, "p_norm2", "chosen"))
    band = paired_bootstrap(size)
    tokens = scored(run, None, "chosen")
    argmax, rest = (
        (scored(run, column, "chosen") / tokens).mean(1)
        for column in ("argmax_logp", "rest_logp")
    )
    x, y = argmax - argmax.mean(), rest - rest.mean()
    slope = float(x @ y / (x @ x)) if x @ x else 0.0
    spread = float(y @ y)
    return Peak(
        role=role,
        steps=run.steps.tolist(),
        a_norm=band.mean.tolist(),
        low=band.low.tolist(),
        high=band.high.tolist(),
        rise=_change(size),
        argmax=argmax.tolist(),
        rest=rest.tolist(),
        slope=slope,
        r2=1 - float(((y - slope * x) ** 2).sum()) / spread if spread else 1.0,
    )


def scored(
    run: Trajectory, column: str | None, kind: str
) -> Float[np.ndarray, "step prompt"]:
    """One column (None: the tokens) of the training prompts that were scored at every
    observation.

    Raises:
        BadInput: if there is no such prompt, or of this kind.
    """
    split = probed_split(run)
    rows = run.rows(kind, split)
    kept = rows[run.covered[:, rows].all(axis=0)]
    if not len(kept):
        raise BadInput(
            f"no prompt of kind {kind} in {run.run.path} was scored at every "
            "observation. Score the run again without a panel."
        )
    if column is None:
        return np.broadcast_to(run.n_tokens[kept], (len(run.steps), len(kept))) * 1.0
    return run.columns[column][:, kept]


def _change(values: Float[np.ndarray, "step prompt"]) -> Numbers:
    """Mean, low, high of the change from first to last observation."""
    found = paired_bootstrap(values[-1] - values[0]).at()
    return [found.mean, found.low, found.high]
