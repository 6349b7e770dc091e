"""Parts of an observation, read without the rest of its file.

Nearly all of a file are its four lists of tokens: curves need none of them, and most
else one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from learndyn.record.observation import APPROXIMATE, PROBE_COLUMNS


@dataclass(frozen=True, eq=False)
class Sums:
    """What one observation has of each probe that it scored, axis probe."""

    step: int
    ids: Int[np.ndarray, " probe"]
    """Rows of probes.parquet that were scored, as the file has them."""
    n_tokens: Int[np.ndarray, " probe"]
    columns: dict[str, Float[np.ndarray, " probe"]]
    """`PROBE_COLUMNS`; NaN where the file has null."""
    approximate: str | None = None


def read_sums(path: Path, step: int) -> Sums:
    """Read the columns with one number per probe from an observation's file.

    Raises:
        OSError, pa.ArrowException, KeyError, ValueError: if it is absent, corrupt, or
            lacks a column.
    """
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["probe_id", "n_tokens", *PROBE_COLUMNS])
        label = (file.schema_arrow.metadata or {}).get(APPROXIMATE.encode())

    return Sums(
        step,
        _as(pa.int32(), table["probe_id"]),
        _as(pa.int32(), table["n_tokens"]),
        {
            name: _as(pa.float64(), table[name]).astype(np.float64)
            for name in PROBE_COLUMNS
        },
        None if label is None else label.decode(),
    )


def _as(kind: pa.DataType, column: pa.ChunkedArray) -> np.ndarray:
    # a cast loads all of pyarrow's functions, for 0.3 s
    return (column if column.type == kind else column.cast(kind)).to_numpy()


def read_tokens(path: Path, name: str) -> np.ndarray:
    """One of `TOKEN_COLUMNS` of an observation's file, flat: probe after probe.

    Raises:
        OSError, pa.ArrowException, KeyError: if it is absent, corrupt, or lacks it.
    """
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[name])
    return table[name].combine_chunks().flatten().to_numpy()
