"""Tables of a run on disk: named by their step, read without reading their path."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def steps_in(folder: Path, what: str = "step") -> list[int]:
    """Steps of all complete files `what`-00000025.parquet of a folder, ascending."""
    names = (path.name for path in folder.glob(f"{what}-*.parquet"))
    found = (re.fullmatch(rf"{what}-(\d{{8,}})\.parquet", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def read_table(path: Path) -> pa.Table:
    """Read one file, and nothing from its path: pyarrow's own makes a folder called a=b
    a column."""
    with pq.ParquetFile(path) as file:
        return file.read()
