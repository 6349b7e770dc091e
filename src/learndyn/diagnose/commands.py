"""Commands of ours that act on a run, as one would type them beside it."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from learndyn.diagnose.comparable import is_sft
from learndyn.record.trajectory import Trajectory


UNKNOWN_BASE = "BASE"
"""Stands in a command for a model that we do not know."""


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


def base_of(trajectory: Trajectory) -> str:
    """The model that SFT started from, where this run started from an SFT run's `model`
    folder that is still there and names a hub id; else a placeholder."""
    started = trajectory.run.info.get("model")
    if not isinstance(started, str) or Path(started).name != "model":
        return UNKNOWN_BASE
    try:
        info = json.loads((Path(started).parent / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return UNKNOWN_BASE
    base = info.get("model") if isinstance(info, dict) and is_sft(info) else None
    hub = isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)
    return base if isinstance(base, str) and hub else UNKNOWN_BASE


def check_probes(trajectory: Trajectory) -> str:
    """Look for confounds in what this run watched."""
    path = f"{shown(trajectory.run.path)}/probes.parquet"
    return f"learndyn probes check {shlex.quote(path)}"


def shown(path: Path) -> str:
    """A run's path as a page may hold it: without the folders above, unless it was
    given relative to here. From inside the folder it is named as from beside it."""
    inside = path.name in ("", "..")
    return path.resolve().name if path.is_absolute() or inside else path.as_posix()
