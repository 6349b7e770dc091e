"""What one update did to the probes, and which forces did it.

A record is of the update that led to `step`, from step - 1 to step. All changes are of
log pi(response | prompt), in nats. Every split is of the predicted change:

    predicted  =  sum over parts  =  sum over groups      (up to info["completeness"])

`parts` says what in the update made the change (pull, push, other, history, decay);
`groups` says through which layers it came, from the embedding to the head. Names of
both are open strings: they are column names and labels, and never a path or markup.
On disk a record is two files in RUN/forces/: the probes and, where asked for, the
influence of each training token.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from learndyn.errors import BadInput
from learndyn.record.files import dumps, read_table, steps_in, storable, write_whole


_METADATA = "learndyn_forces"
"""Key in a file's metadata, with what belongs to no row as JSON."""


@dataclass(frozen=True)
class Influence:
    """How much each training token of the batch moved each kind, to first order."""

    kinds: tuple[str, ...]
    example: Int[np.ndarray, " train_token"]
    """Row of the batch; chosen and rejected answers are rows of their own."""
    position: Int[np.ndarray, " train_token"]
    """Place within its response, from 0."""
    role: tuple[str, ...]
    """Of each training token: "chosen", "rejected", "response", or any other text."""
    token: tuple[str, ...]
    """Text of each training token."""
    push: Float[np.ndarray, " train_token"]
    """dL/dlogp of the token: below 0 it is raised, above 0 it is lowered."""
    change: Float[np.ndarray, "train_token kind"]
    """Nats: mean over the watched probes of a kind of the change of their logp."""
    example_text: dict[int, str]
    """Short text of a row of the batch; may be empty."""

    def to_table(self) -> pa.Table:
        """One row per training token; `change` becomes a list over the kinds."""
        rows, kinds = self.change.shape
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(kinds))
        change = np.ascontiguousarray(self.change).reshape(-1)
        texts = {str(key): text for key, text in self.example_text.items()}
        extra = {"kinds": list(self.kinds), "example_text": texts}
        return pa.table(
            {
                "example": pa.array(self.example),
                "position": pa.array(self.position),
                "role": _texts(self.role),
                "token": _texts(self.token),
                "push": pa.array(self.push),
                "change": pa.ListArray.from_arrays(offsets, pa.array(change)),
            },
            metadata={_METADATA: dumps(extra)},
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "Influence":
        """Inverse of `to_table`."""
        extra = _metadata(table)
        kinds = tuple(str(kind) for kind in extra["kinds"])
        counts = np.full(len(table), len(kinds))
        change = _ragged(table, "change", counts)
        return cls(
            kinds,
            example=_whole(table, "example"),
            position=_whole(table, "position"),
            role=tuple(_strings(table["role"])),
            token=tuple(_strings(table["token"])),
            push=_numbers(table, "push"),
            change=change.reshape(len(table), len(kinds)),
            example_text={int(k): str(v) for k, v in extra["example_text"].items()},
        )


@dataclass(frozen=True)
class Forces:
    """One update's forces on the watched probes. Per-token arrays are flat: probe after
    probe, `n_tokens` each."""

    step: int
    """Optimizer updates after the update that is described."""
    probe_ids: Int[np.ndarray, " probe"]
    """Rows of probes.parquet that were watched, ascending."""
    n_tokens: Int[np.ndarray, " probe"]
    """Scored tokens of each response, its EOS included."""
    actual: Float[np.ndarray, " probe"]
    """Measured change of the summed logp; NaN where it was not measured."""
    predicted: Float[np.ndarray, " probe"]
    """The same to first order: along the update's real displacement."""
    noise: Float[np.ndarray, " probe"]
    """One standard deviation of the rounding in `actual`; NaN where not known."""
    token_actual: Float[np.ndarray, " token"]
    token_predicted: Float[np.ndarray, " token"]
    token_text: tuple[str, ...]
    """Text of each token of the watched responses."""
    parts: dict[str, Float[np.ndarray, " probe"]]
    token_parts: dict[str, Float[np.ndarray, " token"]]
    """Of the parts, or of some of them."""
    groups: dict[str, Float[np.ndarray, " probe"]]
    """By layer, in order from the embedding to the head."""
    info: dict[str, Any]
    """loss, optimizer, lr, method, dtype, seconds, notes, completeness, kernel ..."""
    influence: Influence | None = None

    def to_table(self) -> pa.Table:
        """One row per probe; per-token values become lists. Influence is a table of
        its own, and the metadata says whether there is one."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.n_tokens)]), pa.int32())
        tokens = {"actual": self.token_actual, "predicted": self.token_predicted}
        tokens |= {f"part_{name}": v for name, v in self.token_parts.items()}
        columns = {
            "probe_id": pa.array(self.probe_ids.astype(np.int32)),
            "n_tokens": pa.array(self.n_tokens.astype(np.int32)),
            "actual": pa.array(self.actual),
            "predicted": pa.array(self.predicted),
            "noise": pa.array(self.noise),
            **{f"part_{storable(n)}": pa.array(v) for n, v in self.parts.items()},
            **{f"group_{storable(n)}": pa.array(v) for n, v in self.groups.items()},
            **{
                f"token_{storable(name)}": pa.ListArray.from_arrays(
                    offsets, pa.array(values.astype(np.float32))
                )
                for name, values in tokens.items()
            },
            "token_text": pa.ListArray.from_arrays(offsets, _texts(self.token_text)),
        }
        extra = {"info": self.info, "influence": self.influence is not None}
        return pa.table(columns, metadata={_METADATA: dumps(extra)})

    @classmethod
    def from_table(
        cls, step: int, table: pa.Table, influence: Influence | None = None
    ) -> "Forces":
        """Inverse of `to_table`; the influence comes from its own table."""
        counts = _whole(table, "n_tokens")

        def named(prefix: str) -> list[tuple[str, str]]:
            names = [n for n in table.column_names if n.startswith(prefix)]
            return [(n.removeprefix(prefix), n) for n in names]

        return cls(
            step,
            probe_ids=_whole(table, "probe_id").astype(np.int32),
            n_tokens=counts,
            actual=_numbers(table, "actual"),
            predicted=_numbers(table, "predicted"),
            noise=_numbers(table, "noise"),
            token_actual=_ragged(table, "token_actual", counts),
            token_predicted=_ragged(table, "token_predicted", counts),
            token_text=tuple(_strings(_flat(table, "token_text", counts))),
            parts={name: _numbers(table, n) for name, n in named("part_")},
            token_parts={
                name: _ragged(table, n, counts) for name, n in named("token_part_")
            },
            groups={name: _numbers(table, n) for name, n in named("group_")},
            info=dict(_metadata(table).get("info") or {}),
            influence=influence,
        )


@dataclass(frozen=True)
class ForceSums:
    """One update's forces on the watched probes, without tokens and layers."""

    step: int
    probe_ids: Int[np.ndarray, " probe"]
    actual: Float[np.ndarray, " probe"]
    """As `Forces`, like the rest: nats per response."""
    predicted: Float[np.ndarray, " probe"]
    parts: dict[str, Float[np.ndarray, " probe"]]


def _texts(values: tuple[str, ...]) -> pa.Array:
    return pa.array([storable(value) for value in values], pa.string())


def _metadata(table: pa.Table) -> dict[str, Any]:
    extra = json.loads((table.schema.metadata or {}).get(_METADATA.encode(), b"null"))
    if not isinstance(extra, dict):
        raise ValueError(f"its metadata has no {_METADATA}")
    return extra


def _numbers(table: pa.Table, name: str) -> Float[np.ndarray, " row"]:
    """A column of floats; what is missing becomes NaN."""
    values = table[name].to_numpy()
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"column {name} is {table[name].type}, not numbers")
    return values


def _whole(table: pa.Table, name: str) -> Int[np.ndarray, " row"]:
    values = table[name].to_numpy()
    if not np.issubdtype(values.dtype, np.signedinteger):
        raise ValueError(f"column {name} is {table[name].type}, or has gaps")
    return values


def _flat(table: pa.Table, name: str, counts: np.ndarray) -> pa.Array:
    """A list column, row after row, if its lists are as long as `counts` says."""
    column = table[name].combine_chunks()
    if not (pa.types.is_list(column.type) and column.null_count == 0):
        raise ValueError(f"column {name} is {column.type}, or has gaps")
    if not np.array_equal(column.value_lengths().to_numpy(), counts):
        raise ValueError(f"the lists of {name} are not as long as they should be")
    return column.flatten()


def _ragged(
    table: pa.Table, name: str, counts: np.ndarray
) -> Float[np.ndarray, " value"]:
    values = _flat(table, name, counts).to_numpy(zero_copy_only=False)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"column {name} is {table[name].type}, not lists of numbers")
    return values


def _strings(column: pa.ChunkedArray | pa.Array) -> list[str]:
    return [str(value) for value in column.to_pylist()]


_INFLUENCE = "influence"
"""File of the training tokens; the file of the probes is called "step"."""


def _path_of(folder: Path, step: int, what: str = "step") -> Path:
    """Where one file of the update to `step` is or will be."""
    return folder / f"{what}-{step:08d}.parquet"


def write_forces(folder: Path, forces: Forces) -> None:
    """Add the forces of one update, replacing those of the same step.

    The influence is written first: where the other file is, the record is complete.
    """
    folder.mkdir(exist_ok=True)
    _forget_one(folder, forces.step)  # never an old file beside a new one
    tables = {"step": forces.to_table()}
    if forces.influence is not None:
        tables = {_INFLUENCE: forces.influence.to_table(), **tables}
    for what, table in tables.items():
        write = partial(pq.write_table, table, compression="zstd")
        write_whole(_path_of(folder, forces.step, what), write)


def read_forces(folder: Path, step: int, *, influence: bool = True) -> Forces:
    """Read the forces of the update to `step`, its influence only if asked for.

    Raises:
        BadInput: if a file is absent or corrupt; that of the influence counts where it
            was asked for and the record was written with one.
    """
    path, part = _path_of(folder, step), None
    try:
        table = read_table(path)
        if influence and _metadata(table).get("influence") is True:
            path = _path_of(folder, step, _INFLUENCE)
            part = Influence.from_table(read_table(path))
        return Forces.from_table(step, table, part)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"cannot read {path}: {error}. Complete records of forces: "
            f"{steps_in(folder)}. Record this update again, or remove its files."
        ) from error


def read_force_sums(folder: Path, step: int) -> ForceSums:
    """Read the numbers per probe of one update: a tenth of the time of `read_forces`.

    Raises:
        BadInput: if the file is absent or corrupt.
    """
    path = _path_of(folder, step)
    try:
        with pq.ParquetFile(path) as file:
            parts = [n for n in file.schema_arrow.names if n.startswith("part_")]
            table = file.read(columns=["probe_id", "actual", "predicted", *parts])
        return ForceSums(
            step,
            _whole(table, "probe_id").astype(np.int32),
            _numbers(table, "actual"),
            _numbers(table, "predicted"),
            {name.removeprefix("part_"): _numbers(table, name) for name in parts},
        )
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error


def forget_forces(folder: Path, after: int) -> None:
    """Remove the records of all updates later than `after`, from the last backwards."""
    steps = {*steps_in(folder), *steps_in(folder, _INFLUENCE)}
    for step in sorted((s for s in steps if s > after), reverse=True):
        _forget_one(folder, step)


def _forget_one(folder: Path, step: int) -> None:
    for what in ("step", _INFLUENCE):
        _path_of(folder, step, what).unlink(missing_ok=True)
