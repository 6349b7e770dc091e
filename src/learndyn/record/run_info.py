"""`run.json`: read, and refused where it is none that this learndyn can use.

What a run counts its steps in, and at which of them it was to be observed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.probes.panel import Panel


SCHEMA_VERSION = 1
"""Version of the run directory's layout. A reader refuses any other."""


def read_run_json(folder: Path) -> dict[str, Any]:
    """What the `run.json` of a run directory holds.

    Raises:
        BadInput: if there is none in `folder`, it cannot be read, or it is of another
            schema version.
    """
    path = folder / "run.json"
    if folder.is_file():
        raise BadInput(
            f"{folder} is a file. Give its folder, the run directory: {folder.parent}."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{folder} is no run directory: it has no run.json. A run directory is "
            "what `learndyn run --out` or LearningDynamicsCallback(out=) made."
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    if not isinstance(info, dict):
        raise BadInput(
            f"cannot read {path}: it is not an object, {{...}}, but "
            f"{str(info)[:40]!r}. Restore this run's own file."
        )
    version = info.get("schema_version")
    if type(version) is not int:  # true is none either
        raise BadInput(
            f"cannot read {path}: its schema_version is not a whole number but "
            f"{version!r}. Restore this run's own file."
        )
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has schema version {version}; this learndyn reads version "
            f"{SCHEMA_VERSION}. Use the learndyn that wrote it ({_version_of(info)})."
        )
    return info


def _version_of(info: dict[str, Any]) -> str:
    versions = info.get("versions")
    known = versions.get("learndyn") if isinstance(versions, dict) else None
    return f"learndyn {known or 'of unknown version'}"


def step_unit(info: Mapping[str, Any]) -> str:
    """ "update", unless run.json says otherwise, such as "evaluation"."""
    return str(info.get("step_unit") or "update")


def began_before(
    info: Mapping[str, Any], first: int, log: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a run was trained before `first`, the step of its earliest observation.

    Every run is observed before its first update. That is update 0, or a later one
    where a trainer resumed a checkpoint into a new run; then the log has no loss up to
    there. Imported runs begin at evaluation 0.
    """
    if first <= 0:
        return False
    if step_unit(info) == "evaluation":
        return True
    losses = (row.get("step", 0) for row in log if "loss" in row)
    return any(_is_count(step) and step <= first for step in losses)


def missing_steps(info: Mapping[str, Any], steps: Sequence[int]) -> tuple[int, ...]:
    """Where the schedule in run.json has an observation and `steps` has none.

    Between the first of `steps` and the last, or the run's end once it is finished: all
    multiples of `every`, and of the panel's `full_every`. Of a schedule that is not so
    regular ("log"), was changed or is not known, none is missed.
    """
    every = info.get("every")
    if not _is_count(every) or not steps:
        return ()
    last = max(steps)
    if info.get("finished") and _is_count(info.get("final_step")):
        last = max(last, info["final_step"])
    panel = Panel.of_run(info)
    periods = [every, None if panel is None else panel.full_every]
    due = {s for k in periods if k for s in range(0, last + 1, k) if s > min(steps)}
    return tuple(sorted(due - set(steps)))


def _is_count(value: Any) -> bool:
    """Whether it is a whole number above zero; true is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
