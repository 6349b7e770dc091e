"""Commands of ours that act on a run, as one would type them beside it."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from learndyn.record.trajectory import Trajectory


def again(
    trajectory: Trajectory, suffix: str, method: str, *changes: str
) -> str | None:
    """Train once more as this run did, with changes; None where its config.yaml cannot
    be replayed: it has none, or its data is no file and no hub id."""
    path = trajectory.run.path
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    data: Any = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, str) or not re.fullmatch(r"\S+", data):
        return None
    run = shown(path)
    words = ["--config", f"{run}/config.yaml", *changes, "--out", f"{run}-{suffix}"]
    return f"learndyn run {method} {shlex.join(words)}"


def check_probes(trajectory: Trajectory) -> str:
    """Look for confounds in what this run watched."""
    path = f"{shown(trajectory.run.path)}/probes.parquet"
    return f"learndyn probes check {shlex.quote(path)}"


def shown(path: Path) -> str:
    """A run's path as a page may hold it: without the folders above, unless it was
    given relative to here."""
    return path.name or "." if path.is_absolute() else path.as_posix()
