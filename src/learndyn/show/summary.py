"""The numbers behind the page, for `learndyn report --json`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.diagnose.changes import Curve, change_curves, kind_table
from learndyn.diagnose.forces import explain
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


def summaries(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Of each run: what was scored, the table of kinds, and every curve with its 95 %
    interval and standard error, in nats per response; of each recorded update its
    forces, but none of its training tokens. A record that cannot be read has its error.

    Raises:
        BadInput: if a run cannot be read.
    """
    return [_summary(Trajectory.load(run)) for run in runs]


def _summary(trajectory: Trajectory) -> dict[str, Any]:
    panel = trajectory.panel
    return {
        "run": str(trajectory.run.path),
        "steps": trajectory.steps.tolist(),
        "full_steps": trajectory.steps[trajectory.covered.all(axis=1)].tolist(),
        "approximate": trajectory.approximate,
        "panel": None if panel is None else panel.to_info(),
        "kinds": [asdict(row) for row in kind_table(trajectory)],
        "curves": {k: _plain(curve) for k, curve in change_curves(trajectory).items()},
        "forces": [_forces(trajectory, step) for step in trajectory.run.forces_steps],
    }


def _forces(trajectory: Trajectory, step: int) -> dict[str, Any]:
    try:
        forces = trajectory.run.read_forces(step, influence=False)
        return explain(forces, trajectory.probes).to_dict(text=False)
    except BadInput as error:
        return {"step": step, "error": str(error)}


def _plain(curve: Curve) -> dict[str, Any]:
    values = {k: v for k, v in vars(curve).items() if isinstance(v, np.ndarray)}
    return {name: value.tolist() for name, value in values.items()}
