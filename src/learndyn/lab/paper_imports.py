"""The authors' published runs in the roles of ours, each import a "seed" of its own."""

from pathlib import Path

from learndyn.errors import BadInput
from learndyn.lab.recorded import Recorded
from learndyn.record.authors import AUTHORS_KINDS, import_folder
from learndyn.record.run_directory import is_run
from learndyn.record.trajectory import Trajectory


def imported(folder: Path, out: Path, *, overwrite: bool = False) -> list[Recorded]:
    """Import every result folder in `folder`, or `folder` itself, into `out/NAME`.

    What was imported before is read again, not imported again, unless `overwrite`. A
    folder that holds several runs gives its main one; the others, which are pieces of
    restarted processes, are imported beside it and not drawn.

    Raises:
        BadInput: if there is no folder at `folder`, or none with a result in it.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder. Name the authors' result folders.")
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    refused: list[str] = []
    found: list[Recorded] = []
    for source in inside or [folder]:
        path = out / source.name
        try:
            if overwrite or not is_run(path):
                import_folder(source, path, overwrite=overwrite)
            found.append(_recorded(source.name, path))
        except BadInput as error:
            refused.append(f"{source.name}: {error}")
    if not found:
        raise BadInput(
            f"{folder} holds no result of the authors that can be read:\n"
            + "\n".join(refused)
        )
    return found


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
