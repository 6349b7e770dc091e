"""Which kinds a run's panel does not have."""

import numpy as np

from learndyn.record.trajectory import Trajectory


def outside_panel(trajectory: Trajectory, split: str | None = None) -> list[str]:
    """Kinds that no prompt of the panel has: they are followed over all prompts, at the
    full observations alone. None of them without a panel."""
    always = trajectory.covered.all(axis=0)
    start = np.isfinite(trajectory.columns["logp"][0])
    here = True if split is None else trajectory.split_of == split
    inside = set(trajectory.kind_of[always & start & here])
    wanted = set(trajectory.kind_of[~always & here])
    return [kind for kind in trajectory.kinds if kind in wanted - inside]
