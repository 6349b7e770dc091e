"""The authors' published runs in the roles of ours, each import a "seed" of its own."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from learndyn.errors import BadInput
from learndyn.lab.recorded import Recorded
from learndyn.record.authors import AUTHORS_KINDS, import_folder
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True)
class Imports:
    """What was made of a folder of result folders."""

    seeds: list[Recorded]
    refused: list[str]
    """Folders that could not be read, each with the reason."""


def imported(folder: Path, out: Path, *, overwrite: bool = False) -> Imports:
    """Import `folder` itself, or else every result folder in it, into `out/NAME`.

    What was imported whole before is read again, not imported again, unless
    `overwrite`. A folder that holds several runs gives its main one; the others, which
    are pieces of restarted processes, are imported beside it and not drawn. Of a folder
    that cannot be read beside others that can a warning tells.

    Raises:
        BadInput: if there is no folder at `folder`, or none with a result in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder. Name the authors' result folders.")
    try:
        return Imports([_imported(folder, out, overwrite)], [])
    except BadInput as error:
        refused = [f"{folder.name}: {error}"]
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    if inside:  # then it need not be a result itself
        refused = []
    found: list[Recorded] = []
    for source in inside:
        try:
            found.append(_imported(source, out, overwrite))
        except BadInput as error:
            refused.append(f"{source.name}: {error}")
    if not found:
        raise BadInput(
            f"{folder} holds no result of the authors that can be read:\n"
            + "\n".join(refused)
        )
    for each in refused:
        warnings.warn(f"left out, as it cannot be read: {each}", stacklevel=2)
    return Imports(found, refused)


def _imported(source: Path, out: Path, overwrite: bool) -> Recorded:
    path = out / source.resolve().name
    if overwrite or not _whole(path):
        import_folder(source, path, overwrite=overwrite or is_run(path))
    return _recorded(path.name, path)


def _whole(path: Path) -> bool:
    """Whether an import is there that was not stopped halfway."""
    if not is_run(path):
        return False
    run = RunDirectory.open(path)
    told = run.info.get("imported") or {}
    return len(run.steps) == told.get("observations")


def _recorded(name: str, path: Path) -> Recorded:
    run = Trajectory.load(path)
    told = run.run.info.get("imported", {})
    role = role_of(run.run.info)
    runs = {} if role is None else {role: run}
    return Recorded(name, runs, vocabulary=told.get("vocabulary"))


def role_of(info: dict) -> str | None:
    """What an imported run stands for; None where its name does not say.

    SFT on another kind than chosen is a run that learns that kind.
    """
    method = info.get("method")
    if method not in ("sft", "dpo", "extend-sft"):
        return None
    trained = (info.get("imported") or {}).get("trained_on") or "chosen"
    kind = AUTHORS_KINDS.get(trained, trained)
    return f"learn-{kind}" if method == "sft" and kind != "chosen" else method
