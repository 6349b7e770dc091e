"""Files of a run: written whole or not at all, and named by their step.

`dumps` and `visible` make any value fit for JSON and any text for UTF-8 and a terminal.
"""

import errno
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
    """Find out that a table cannot go to `out` before the work for it is done."""
    if out is None:
        return
    if out.is_dir():
        raise BadInput(f"{out} is a folder. Name the Parquet file to write with out=.")
    if out.exists() and not overwrite:
        raise BadInput(
            f"{out} exists. Choose another out=, or replace it with overwrite=True."
        )


def full(path: Path, error: OSError) -> StorageFull:
    """The error for a full disk at `path`: what is lost, what stays, what to do."""
    return StorageFull(
        error.errno,
        f"no space left on the disk of {path.parent} while writing {path.name}. That "
        "file was not written; everything before it is intact. Free some space and "
        "start again; a training run continues with resume=True",
    )


def steps_in(folder: Path, what: str = "step") -> list[int]:
    """Steps of all complete files `what`-00000025.parquet of a folder, ascending."""
    names = (path.name for path in folder.glob(f"{what}-*.parquet"))
    matches = (re.fullmatch(rf"{what}-(\d{{8,}})\.parquet", name) for name in names)
    return sorted(int(match.group(1)) for match in matches if match)


def read_table(path: Path) -> pa.Table:
    """Read one file, and nothing from its path: pyarrow's own makes a folder called a=b
    a column."""
    with pq.ParquetFile(path) as file:
        return file.read()


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def to_plain(value: Any) -> Any:
    """The same value as JSON can hold it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """A value as JSON text that UTF-8 can hold."""
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False)
    # A lone surrogate, from a file name that is no UTF-8, becomes JSON's own \udc80.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def storable(text: str) -> str:
    """The same text with U+FFFD for lone surrogates, which no file of text holds."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def visible(text: str) -> str:
    """Show a sign for what no page or terminal may be given: control characters, lone
    surrogates, and the marks that turn the direction of all text after them."""
    return _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
