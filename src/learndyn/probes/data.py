"""Prompts and responses from files and datasets, checked at the door.

Rows are read whole, one error names all that is wrong with them, and nothing is left
out in silence: `Data.dropped` lists it.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from learndyn.errors import BadInput, listed
from learndyn.probes.formats import (
    ID_COLUMNS,
    Mismatched,
    Parsed,
    SourceColumns,
    Unusable,
    parser,
    read_columns,
)
from learndyn.probes.sources import Record, Records, read_records


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its responses."""

    row_id: str
    """The row's own `row_id`, `prompt_id` or `id`, or else split and position in the
    source: "train-000012"."""
    prompt: str
    responses: dict[str, str]
    """kind -> text."""
    rendered: bool = False
    """Whether a chat template was applied."""
    frame: tuple[str, str] | None = ("", "")
    """What the chat template writes before and after the chosen answer's own text;
    None where they cannot be separated."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was left out of the source, and why."""

    what: str
    """"row", "response" or "column"."""
    reason: str
    names: tuple[str, ...]
    """Row ids or column names."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a source that were drawn at random."""

    limit: int
    seed: int
    of: int
    """Rows that there were to draw from."""
    rows: tuple[int, ...]
    """Their positions in the source, ascending, from 0."""

    def to_info(self) -> dict[str, Any]:
        """The entry of a manifest: seed and numbers, and the rows as "3, 17, 20-22"."""
        drawn = set(self.rows)
        first = (row for row in self.rows if row - 1 not in drawn)
        last = (row for row in self.rows if row + 1 not in drawn)
        runs = zip(first, last, strict=True)
        parts = (str(a) if a == b else f"{a}-{b}" for a, b in runs)
        numbers = {"limit": self.limit, "seed": self.seed, "of": self.of}
        return {**numbers, "rows": ", ".join(parts)}


@dataclass(frozen=True)
class Data:
    """The rows of one split of one source."""

    rows: tuple[Row, ...]
    source: str
    split: str
    sha256: str
    """Of the file's bytes, or of a dataset's rows."""
    dropped: tuple[Dropped, ...] = ()
    sample: Sample | None = None
    """Which rows were drawn, if not all."""

    @property
    def kinds(self) -> list[str]:
        """Every kind that some row has, in order of appearance."""
        return list(dict.fromkeys(kind for row in self.rows for kind in row.responses))


def read_data(
    source: str | Path,
    *,
    split: str = "train",
    rename: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    empty: Literal["error", "keep", "drop"] = "error",
    mismatched: Literal["error", "drop"] = "error",
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    r"""Read prompts and responses.

    `source` is a file (.jsonl, .json, .parquet, .csv), a folder (written by
    `Dataset.save_to_disk`, or with Parquet or JSONL files), or a dataset's hub id. The
    first row decides the format, see `learndyn.probes.formats`: texts with a `prompt`
    column, chat messages, Anthropic HH dialogues, or texts that share their start.

    Every further text column is a kind of response. Reserved are row_id, prompt_id,
    id, split, source, rendered, messages, tools, chat_template_kwargs and names that
    begin `score_`. A null, or an unquoted empty CSV field, is an absent response. If a
    file has a `split` column, rows of other splits are left out.

    `rename` maps the source's column names to ours; `aliases` does so too, and may name
    columns that are not there. Chat messages need a `tokenizer` with a chat template.
    UltraFeedback, whose `prompt` is text beside
    messages, is written "Human: ...\nAssistant:" without one. `empty` says what to do
    with empty responses: "keep" scores end-of-text alone, "drop" leaves the response
    out. `mismatched` is for rows whose chosen and rejected answer different prompts.
    `limit` reads that many rows, drawn at random with `seed`; their order stays.

    Raises:
        BadInput: if the source cannot be read or rows cannot be used; all are counted,
            and the first 20 are named.
    """
    if limit is not None and limit < 1:
        raise BadInput(
            f"limit is {limit}; it must be at least 1, or None for all rows."
        )
    records = _renamed(read_records(source, split), rename or {}, aliases or {})
    records = _of_split(records, split)
    records, sample = _sampled(records, limit, seed)
    columns = read_columns(records)
    ids = _row_ids(records, split)
    parse = parser(columns, tokenizer, records.source)
    collector = _Collector(records, ids, empty, mismatched)
    for record in records.rows:
        try:
            collector.add(record, parse(record.columns), columns)
        except Mismatched as error:
            collector.mismatch(record, str(error))
        except Unusable as error:
            collector.problems.append(f"{record.where}, {error}")
    rows = collector.finish()
    dropped = collector.dropped()
    if columns.left_out:
        dropped += (Dropped("column", "holds no response text", columns.left_out),)
    return Data(rows, records.source, split, records.sha256, dropped, sample)


def _sampled(
    records: Records, limit: int | None, seed: int
) -> tuple[Records, Sample | None]:
    count = len(records.rows)
    if limit is None or limit >= count:
        return records, None
    drawn = sorted(random.Random(seed).sample(range(count), limit))
    rows = tuple(records.rows[i] for i in drawn)
    sample = Sample(limit, seed, count, tuple(row.position for row in rows))
    return replace(records, rows=rows), sample


class _Collector:
    """Collects rows, and all that is wrong with them."""

    def __init__(
        self, records: Records, ids: dict[int, str], empty: str, mismatched: str
    ) -> None:
        self.records, self.ids = records, ids
        self.empty_rule, self.mismatched_rule = empty, mismatched
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.empties: Counter[str] = Counter()
        self.mismatches = 0
        self.left_out: dict[tuple[str, str], list[str]] = {}

    def add(self, record: Record, parsed: Parsed, columns: SourceColumns) -> None:
        row_id = self.ids[record.position]
        responses = parsed.responses
        for kind in columns.kinds:
            if kind not in responses:
                self._leave_out("response", f"{kind} is absent", row_id)
        if self.empty_rule == "error":
            for kind in sorted(parsed.empty):
                self.empties[kind] += 1
                self.problems.append(
                    f"{record.where}, field {kind!r}: the response is empty"
                )
        elif self.empty_rule == "drop":
            for kind in sorted(parsed.empty):
                self._leave_out("response", f"{kind} is empty", row_id)
            responses = {k: t for k, t in responses.items() if k not in parsed.empty}
        if responses:
            row = Row(row_id, parsed.prompt, responses, parsed.rendered, parsed.frame)
            self.rows.append(row)
        else:
            self._leave_out("row", "no response is left", row_id)

    def mismatch(self, record: Record, message: str) -> None:
        if self.mismatched_rule == "drop":
            row_id = self.ids[record.position]
            self._leave_out("row", "chosen and rejected have different prompts", row_id)
            return
        self.mismatches += 1
        self.problems.append(f"{record.where}, {message}")

    def _leave_out(self, what: str, reason: str, row_id: str) -> None:
        self.left_out.setdefault((what, reason), []).append(row_id)

    def dropped(self) -> tuple[Dropped, ...]:
        return tuple(
            Dropped(what, reason, tuple(names))
            for (what, reason), names in self.left_out.items()
        )

    def finish(self) -> tuple[Row, ...]:
        source = self.records.source
        if self.problems:
            advice = [
                f"{source}: {len(self.problems)} entries of "
                f"{len(self.records.rows)} rows cannot be used:",
                listed(self.problems),
            ]
            if self.empties:
                counts = ", ".join(f"{n} {k}" for k, n in self.empties.most_common())
                advice.append(
                    f'Empty responses: {counts}. empty="keep" scores their end-of-text '
                    'token alone; empty="drop" leaves them out.'
                )
            if self.mismatches:
                advice.append(
                    f"Rows without one common prompt: {self.mismatches}. Correct them, "
                    'or leave them out with mismatched="drop".'
                )
            if len(self.problems) > self.mismatches + self.empties.total():
                advice.append("Correct the source and read it again.")
            raise BadInput("\n".join(advice))
        if not self.rows:
            why = "; ".join(
                f"{len(d.names)} {d.what}s: {d.reason}" for d in self.dropped()
            )
            raise BadInput(f"{source} has no usable rows ({why}). Give another source.")
        return tuple(self.rows)


def _renamed(
    records: Records, rename: Mapping[str, str], aliases: Mapping[str, str]
) -> Records:
    names = records.column_names
    new_name = {old: new for old, new in {**aliases, **rename}.items() if old in names}
    if rename and not set(rename) & set(names):
        raise BadInput(
            f"rename names {', '.join(rename)}, but {records.source} has the columns "
            f"{', '.join(names)}."
        )
    after = Counter(new_name.get(name, name) for name in names)
    twice = [name for name, count in after.items() if count > 1]
    if twice:
        raise BadInput(
            f"after renaming, {records.source} has two columns named "
            f"{', '.join(twice)}. Rename one of them to something else."
        )
    rows = (
        replace(row, columns={new_name.get(k, k): v for k, v in row.columns.items()})
        for row in records.rows
    )
    return replace(records, rows=tuple(rows))


def _of_split(records: Records, split: str) -> Records:
    if "split" not in records.column_names:
        return records
    rows = tuple(row for row in records.rows if row.columns.get("split") == split)
    if not rows:
        there = sorted({str(row.columns.get("split")) for row in records.rows})
        raise BadInput(
            f"{records.source} has no rows whose split is {split!r}; its split column "
            f"holds {', '.join(there[:20])}. Give one of them as split, or, if the "
            'column means something else, rename={"split": "source"}.'
        )
    return replace(records, rows=rows)


def _row_ids(records: Records, split: str) -> dict[int, str]:
    """Position -> name of the row."""
    names = records.column_names
    column = next((name for name in ID_COLUMNS if name in names), None)
    if column is None:
        return {row.position: f"{split}-{row.position:06d}" for row in records.rows}
    ids: dict[int, str] = {}
    first: dict[str, str] = {}
    problems: list[str] = []
    for row in records.rows:
        value = row.columns.get(column)
        if not isinstance(value, (str, int)) or isinstance(value, bool) or value == "":
            problems.append(f"{row.where}, field {column!r}: {value!r} is not an id")
            continue
        name = str(value)
        if name in first:
            problems.append(
                f"{row.where}, field {column!r}: {name!r} is the id of {first[name]}"
            )
        first.setdefault(name, row.where)
        ids[row.position] = name
    if problems:
        raise BadInput(
            f"{records.source}: {len(problems)} of {len(records.rows)} rows lack an id "
            f"of their own:\n{listed(problems)}\nMake the ids unique, or number the "
            f'rows by position with rename={{{column!r}: "source"}}.'
        )
    return ids
