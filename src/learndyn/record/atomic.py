"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from learndyn.errors import BadInput


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""A full disk, and a used-up quota."""


class StorageFull(OSError):
    """The disk has no room for a file. What was written before is intact."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`.

    A reader sees the old file or the new one, never part of one; a crash leaves at
    most a `.tmp` file, which the next write of the same name replaces.

    Raises:
        StorageFull: if the disk is full. The temporary file is removed and an older
            file at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())  # the rename must not overtake the data
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in NO_SPACE:
            raise full(path, error) from error
        raise


def refuse_taken_file(out: Path | None, overwrite: bool) -> None:
    """Find out that a table cannot go to `out` before the work for it is done.

    Raises:
        BadInput: if a folder is there, or a file and `overwrite` is false.
    """
    if out is None:
        return
    if out.is_dir():
        raise BadInput(f"{out} is a folder. Name the Parquet file to write with --out.")
    if out.exists() and not overwrite:
        raise BadInput(f"{out} exists. Choose another --out, or --overwrite it.")


def full(path: Path, error: OSError) -> StorageFull:
    """The error for a full disk at `path`: what is lost, what is kept, what to do."""
    return StorageFull(
        error.errno,
        f"no space left on the disk of {path.parent} while writing {path.name}. That "
        "file was not written; everything before it is intact. Free some space, then "
        "continue with --resume",
    )
