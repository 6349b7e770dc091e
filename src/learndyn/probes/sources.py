"""From a file, a folder or a hub id to records: one mapping of columns per row.

Nothing here knows what a prompt or a response is; `learndyn.probes.formats` does.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from learndyn.errors import BadInput, listed


_FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")
"""Endings of files that can be read."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in its source."""

    where: str
    """File and line, or source and row: what an error message points to."""
    position: int
    """Position in the source, from 0."""
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """All rows of one source."""

    source: str
    rows: tuple[Record, ...]
    sha256: str
    """Of the file's bytes, or of a dataset's rows."""

    @property
    def column_names(self) -> list[str]:
        """Every column that some row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.columns))


def read_records(source: str | Path, split: str) -> Records:
    """Read a file by its ending; a folder or a hub id with `datasets`."""
    path = Path(source)
    if path.is_dir():
        return _dataset(str(source), split)
    if path.is_file():
        return _file(path)
    known = path.suffix.lower() in _FILE_TYPES
    if isinstance(source, Path) or known or not _HUB_ID.fullmatch(source):
        raise BadInput(
            f"{source} is neither a file nor a folder. Give a path that exists, or the "
            "hub id of a dataset (owner/name)."
        )
    return _dataset(source, split)


def _file(path: Path) -> Records:
    ending = path.suffix.lower()
    if ending not in _FILE_TYPES:
        raise BadInput(
            f"{path} ends in {ending or 'nothing'!r}, not in {', '.join(_FILE_TYPES)}. "
            "Convert the file, or rename it if it holds one of these."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    read = {
        ".jsonl": _json_lines,
        ".json": _json,
        ".parquet": _parquet,
        ".csv": _csv,
    }[ending]
    rows = tuple(
        Record(where, position, columns)
        for position, (where, columns) in enumerate(read(path, content))
    )
    if not rows:
        raise BadInput(f"{path} has no rows ({len(content)} bytes). Give another file.")
    return Records(str(path), rows, hashlib.sha256(content).hexdigest())


_Rows = Iterator[tuple[str, dict[str, Any]]]


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at byte offset "
            f"{error.start} (line {line}). Save it as UTF-8, for instance with "
            "`iconv -f latin1 -t utf-8`."
        ) from error


def _json_lines(path: Path, content: bytes) -> _Rows:
    # Not splitlines(): JSON allows U+2028 and other line ends within a text.
    lines = _text(path, content).split("\n")
    problems: list[str] = []
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}, column {error.colno}: {error.msg}")
            continue
        if isinstance(row, dict):
            rows.append((where, row))
        else:
            problems.append(
                f"{where}: {type(row).__name__} where an object is expected"
            )
    if problems:
        raise BadInput(
            f"{path} has {len(problems)} lines that are not JSON objects:\n"
            f"{listed(problems)}\nWrite one JSON object per line."
        )
    return iter(rows)


def _json(path: Path, content: bytes) -> _Rows:
    try:
        value = json.loads(_text(path, content))
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}:{error.lineno}, column {error.colno}: {error.msg}. The file must "
            "hold one JSON value; if it has one object per line, name it .jsonl."
        ) from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise BadInput(
            f"{path} holds a {type(value).__name__} without a list of rows. It must be "
            'a list of objects, or {"data": [...]}.'
        )
    problems = [
        f"{path}, row {index}: {type(row).__name__} where an object is expected"
        for index, row in enumerate(rows)
        if not isinstance(row, dict)
    ]
    if problems:
        raise BadInput(
            f"{path} has {len(problems)} rows that are not objects:\n"
            f"{listed(problems)}\nWrite each row as one object."
        )
    return ((f"{path}, row {index}", row) for index, row in enumerate(rows))


def _parquet(path: Path, content: bytes) -> _Rows:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{path} is not a readable Parquet file: {error}") from error
    return _rows_of(path, table)


def _csv(path: Path, content: bytes) -> _Rows:
    text = _text(path, content)
    if not text.strip():
        return iter(())
    data = text.encode()
    parsing = pcsv.ParseOptions(newlines_in_values=True)
    # Blocks as large as the file: a row with line ends must not straddle two.
    reading = pcsv.ReadOptions(block_size=len(data) + 1)
    try:
        header = pcsv.read_csv(
            io.BytesIO(data), read_options=reading, parse_options=parsing
        ).column_names
        converting = pcsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = pcsv.read_csv(
            io.BytesIO(data),
            read_options=reading,
            parse_options=parsing,
            convert_options=converting,
        )
    except pa.ArrowInvalid as error:
        raise BadInput(f"{path} is not a readable CSV file: {error}") from error
    return _rows_of(path, table)


def _rows_of(path: Path, table: pa.Table) -> _Rows:
    rows = table.to_pylist()
    return ((f"{path}, row {index}", row) for index, row in enumerate(rows))


def _dataset(name: str, split: str) -> Records:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            f"{name} is a folder or a hub id; reading it needs the package datasets: "
            "pip install 'learndyn[train]'."
        ) from error
    try:
        if any((Path(name) / f).is_file() for f in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, split=split)
    # The hub, the network and each builder raise their own types.
    except Exception as error:
        raise BadInput(
            f"cannot load split {split!r} of {name}: {type(error).__name__}: {error}\n"
            "Check the name, the split and the network. Offline, give a local file, or "
            "a folder written by Dataset.save_to_disk."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise BadInput(
                f"{name} has no split {split!r}; it has {', '.join(map(str, loaded))}."
            )
        loaded = loaded[split]
    digest = hashlib.sha256()
    rows: list[Record] = []
    for index, row in enumerate(loaded):
        assert isinstance(row, dict)
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        rows.append(Record(f"{name} ({split}), row {index}", index, row))
    if not rows:
        raise BadInput(f"split {split!r} of {name} has no rows. Give another split.")
    return Records(name, tuple(rows), digest.hexdigest())
