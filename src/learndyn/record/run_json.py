"""`run.json`: read, and refused where it is none that this learndyn can use."""

import json
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput


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
