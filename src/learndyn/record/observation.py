"""One observation: every probe's log-probabilities at one step, and its file.

Four lists of tokens fill nearly all of a file. Curves need none of them, so `read_sums`
reads a file without them and `read_tokens` one of them alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int


PROBE_COLUMNS: dict[str, str] = {
    "logp": "log pi(response | prompt): sum over its tokens, EOS included, in nats",
    "argmax_logp": "sum over the same positions of max_v log pi(v), in nats",
    "rest_logp": "sum over the same positions of log(1 - max_v pi(v)), in nats",
    "entropy": "mean over tokens of the entropy of pi, in nats",
    "p_norm2": "mean over tokens of ||pi||^2",
    "p_gap": "mean over tokens of ||pi - e_y||, y the response's token",
    "energy": "mean over tokens of 1 - pi(y)",
    "top1": "share of tokens that are the argmax",
}
"""Columns with one float64 per probe, and what each holds."""

_TOKEN_COLUMNS: dict[str, str] = {
    "token_logp": "log pi of the response's token, in nats",
    "token_argmax_logp": "max_v log pi(v), in nats",
    "token_start_logp": "log pi now of the token that was the argmax at the first "
    "observation of the run, in nats",
    "token_argmax_id": "id of the argmax",
}
"""Columns with one value per response token (float32; ids int32)."""


_APPROXIMATE = "learndyn_approximate"
"""Key in an observation file's metadata: the precision, where that is not exact."""


@dataclass(frozen=True)
class Observation:
    """Probes at one step. Per-token arrays are flat: probe after probe."""

    step: int
    """Optimizer updates taken so far; 0 is the model before training."""
    n_tokens: Int[np.ndarray, " probe"]
    """Scored tokens of each response, its EOS included."""
    logp: Float[np.ndarray, " probe"]
    argmax_logp: Float[np.ndarray, " probe"]
    rest_logp: Float[np.ndarray, " probe"]
    entropy: Float[np.ndarray, " probe"]
    p_norm2: Float[np.ndarray, " probe"]
    p_gap: Float[np.ndarray, " probe"]
    energy: Float[np.ndarray, " probe"]
    top1: Float[np.ndarray, " probe"]
    token_logp: Float[np.ndarray, " token"]
    token_argmax_logp: Float[np.ndarray, " token"]
    token_start_logp: Float[np.ndarray, " token"]
    token_argmax_id: Int[np.ndarray, " token"]
    probe_ids: Int[np.ndarray, " probe"] | None = None
    """Rows of probes.parquet that were scored, ascending; None: all of them."""
    approximate: str | None = None
    """What rounded its numbers: "bfloat16" (scoring) or "bfloat16 weights"; None where
    they are exact."""

    @property
    def ids(self) -> Int[np.ndarray, " probe"]:
        """Rows of probes.parquet that were scored, ascending."""
        if self.probe_ids is None:
            return np.arange(len(self.n_tokens), dtype=np.int32)
        return self.probe_ids

    @property
    def offsets(self) -> Int[np.ndarray, " bound"]:
        """Row i owns the tokens `offsets[i]:offsets[i + 1]`."""
        return np.concatenate([[0], np.cumsum(self.n_tokens)]).astype(np.int32)

    def to_table(self) -> pa.Table:
        """One row per probe; per-token columns become lists.

        An approximate one is labelled in the table's metadata.
        """
        offsets = pa.array(self.offsets)
        lists = {
            name: pa.ListArray.from_arrays(offsets, pa.array(getattr(self, name)))
            for name in _TOKEN_COLUMNS
        }
        columns = {
            "probe_id": pa.array(self.ids.astype(np.int32)),
            "n_tokens": pa.array(self.n_tokens),
        }
        values = {name: pa.array(getattr(self, name)) for name in PROBE_COLUMNS}
        label = {} if self.approximate is None else {_APPROXIMATE: self.approximate}
        return pa.table(columns | values | lists, metadata=label)

    @classmethod
    def from_table(cls, step: int, table: pa.Table) -> "Observation":
        """Inverse of `to_table`. Rows 0, 1, 2 ... without a gap are called all."""
        flat = {
            name: table[name].combine_chunks().flatten().to_numpy()
            for name in _TOKEN_COLUMNS
        }
        values = {name: table[name].to_numpy() for name in PROBE_COLUMNS}
        ids = table["probe_id"].to_numpy().astype(np.int32)
        if np.array_equal(ids, np.arange(len(ids))):
            ids = None
        return cls(
            step,
            table["n_tokens"].to_numpy(),
            **values,
            **flat,
            probe_ids=ids,
            approximate=_label(table.schema),
        )

    def violations(self) -> list[str]:
        """What cannot be true of any model's log-probabilities, in words.

        Empty for a right observation. NaNs (a diverged model) are reported here too.
        """
        problems = [
            f"{name}: {np.sum(~np.isfinite(getattr(self, name)))} values are not finite"
            for name in (*PROBE_COLUMNS, *_TOKEN_COLUMNS)
            if not np.all(np.isfinite(getattr(self, name)))
        ]
        if len(self.ids) and (self.ids[0] < 0 or np.any(np.diff(self.ids) <= 0)):
            problems.append("probe_ids: not ascending, or below zero")
        below = np.sum(self.token_argmax_logp < self.token_logp)
        if below:
            problems.append(f"argmax_logp < logp at {below} tokens")
        for name in ("logp", "argmax_logp"):
            # not reduceat, which is wrong for a probe without tokens
            sums = np.bincount(
                np.repeat(np.arange(len(self.n_tokens)), self.n_tokens),
                getattr(self, f"token_{name}").astype(np.float64),
                minlength=len(self.n_tokens),
            )
            # float32 tokens hold 6e-8 of themselves; a sum of n may be off n times that
            slack = 1e-6 * (1 + np.abs(getattr(self, name)))
            wrong = np.sum(np.abs(sums - getattr(self, name)) > slack)
            if wrong:
                problems.append(f"{name}: {wrong} sums differ from their tokens")
        return problems


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
    """Read the columns with one number per probe from an observation's file."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=["probe_id", "n_tokens", *PROBE_COLUMNS])
        label = _label(file.schema_arrow)
    return Sums(
        step,
        _as(pa.int32(), table["probe_id"]),
        _as(pa.int32(), table["n_tokens"]),
        {
            name: _as(pa.float64(), table[name]).astype(np.float64)
            for name in PROBE_COLUMNS
        },
        label,
    )


def _label(schema: pa.Schema) -> str | None:
    label = (schema.metadata or {}).get(_APPROXIMATE.encode())
    return None if label is None else label.decode()


def _as(kind: pa.DataType, column: pa.ChunkedArray) -> np.ndarray:
    # a cast loads all of pyarrow's functions, for 0.3 s
    return (column if column.type == kind else column.cast(kind)).to_numpy()


def read_tokens(path: Path, name: str) -> np.ndarray:
    """One of `_TOKEN_COLUMNS` of an observation's file, flat: probe after probe."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[name])
    return table[name].combine_chunks().flatten().to_numpy()
