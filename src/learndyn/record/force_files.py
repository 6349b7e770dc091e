"""The forces of a run on disk: RUN/forces/, two files for each recorded update."""

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learndyn.errors import BadInput
from learndyn.record.atomic import write_whole
from learndyn.record.forces import Forces, Influence, expects_influence
from learndyn.record.tables import read_table, steps_in


INFLUENCE = "influence"
"""File of the training tokens; that of the probes is called "step"."""


def path_of(folder: Path, step: int, what: str = "step") -> Path:
    """Where one file of the update to `step` is or will be."""
    return folder / f"{what}-{step:08d}.parquet"


def write_forces(folder: Path, forces: Forces) -> None:
    """Add the forces of one update, replacing those of the same step.

    The influence is written first: where the other file is, the record is complete.

    Raises:
        StorageFull: if the disk is full; the records of other steps are intact.
    """
    folder.mkdir(exist_ok=True)
    _forget_one(folder, forces.step)  # never an old file beside a new one
    tables = {"step": forces.to_table()}
    if forces.influence is not None:
        tables = {INFLUENCE: forces.influence.to_table(), **tables}
    for what, table in tables.items():
        write = partial(pq.write_table, table, compression="zstd")
        write_whole(path_of(folder, forces.step, what), write)


def read_forces(folder: Path, step: int, *, influence: bool = True) -> Forces:
    """Read the forces of the update to `step`, its influence only if asked for.

    Raises:
        BadInput: if a file is absent or corrupt; that of the influence counts where it
            was asked for and the record was written with one.
    """
    path, found = path_of(folder, step), None
    try:
        table = read_table(path)
        if influence and expects_influence(table):
            path = path_of(folder, step, INFLUENCE)
            found = Influence.from_table(read_table(path))
        return Forces.from_table(step, table, found)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"cannot read {path}: {error}. Complete records of forces: "
            f"{steps_in(folder)}. Record this update again, or remove its files."
        ) from error


def forget_forces(folder: Path, after: int) -> None:
    """Remove the records of all updates later than `after`, from the last backwards."""
    found = {*steps_in(folder), *steps_in(folder, INFLUENCE)}
    for step in sorted((s for s in found if s > after), reverse=True):
        _forget_one(folder, step)


def _forget_one(folder: Path, step: int) -> None:
    for what in ("step", INFLUENCE):
        path_of(folder, step, what).unlink(missing_ok=True)
