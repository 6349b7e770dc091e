"""The runs of a published result folder: their columns, their rows, and their numbers.

`NAME_metrics.json` is appended to by every process that was given the folder: one
object a line, NaN written out, the last line cut where a process was stopped.
`logp_npy_all_COLUMN.npy` is written once, at the end of a run, with axes evaluation,
column, prompt. `argmax_token_all_COLUMN.npy` is a pickle, which could run code when it
is loaded, and is never opened.

A run with a .npy file has one value per prompt. Of any other run only the means are
known, from its lines, so it has one value per kind.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from learndyn.errors import BadInput, listed
from learndyn.paper.authors.layout import (
    Layout,
    layout_of_names,
    layout_of_values,
)
from learndyn.paper.authors.rows import distance, match_rows, split_runs, usual_move


@dataclass(frozen=True)
class _Lines:
    """Lines of a JSON file that have the same columns in the same order."""

    names: tuple[str, ...]
    numbers: Int[np.ndarray, " row"]
    """Line of the file that each row is, counted from 0 without empty lines."""
    values: Float[np.ndarray, "row column"]


def _read_lines(path: Path) -> tuple[list[_Lines], list[str]]:
    """All readable lines, grouped by their columns, and what is wrong with the others.

    Raises:
        BadInput: if the file cannot be read, or no line of it is an object of numbers.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    groups: dict[tuple[str, ...], list[tuple[int, list[float]]]] = {}
    problems = []
    # splitlines() would also split at U+2028, which JSON leaves as it is
    filled = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(filled):
        try:
            row = _numbers(json.loads(line))
        except (ValueError, RecursionError, OverflowError) as error:
            why = "cut short" if number == len(filled) - 1 else "unreadable"
            problems.append(f"{path.name}, line {number}: {why} ({error})")
            continue
        groups.setdefault(tuple(row), []).append((number, list(row.values())))
    if not groups:
        raise BadInput(
            f"{path} has no line that is a JSON object of numbers ({len(problems)} of "
            f"{len(problems)} lines cannot be read). A result file has one object a "
            "line, one line an evaluation."
        )
    by_columns = [
        _Lines(
            names,
            np.array([number for number, _ in rows]),
            np.array([values for _, values in rows], dtype=np.float64),
        )
        for names, rows in groups.items()
    ]
    return by_columns, problems


def _read_array(path: Path) -> Float[np.ndarray, "step column prompt"]:
    """The numbers of a .npy file; they stay on disk until they are looked at.

    Raises:
        BadInput: if it holds anything but numbers, is no such file, is shorter than
            its header says, or has other axes than evaluation, column and prompt.
    """
    try:
        # A map takes no memory, whatever shape the header claims, and fails where the
        # file is shorter than that.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise BadInput(
            f"{path.name} is not read: {_short(error)}. Only plain arrays of numbers "
            "are loaded; a pickle could run code."
        ) from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{path.name} is not read: it is an archive, not one array.")
    if array.dtype.kind != "f":
        raise BadInput(f"{path.name} is not read: it holds {array.dtype}, not floats.")
    if array.ndim != 3 or 0 in array.shape:
        raise BadInput(
            f"{path.name} is not read: its shape is {array.shape}, and (evaluations, "
            "columns, prompts) is expected."
        )
    return array


def _means_of(
    array: Float[np.ndarray, "step column prompt"],
) -> Float[np.ndarray, "step column"]:
    """Mean over prompts at every evaluation: what the JSON lines hold. NaN stays NaN
    there, so it does here."""
    return np.array([np.mean(step, axis=-1, dtype=np.float64) for step in array])


def _numbers(row: Any) -> dict[str, float]:
    """The columns of one line.

    Raises:
        ValueError: if it is no object of numbers.
    """
    if not isinstance(row, dict) or not row:
        raise ValueError("it is not a JSON object")
    wrong = [k for k, v in row.items() if isinstance(v, bool) or not _number(v)]
    if wrong:
        raise ValueError(f"{', '.join(wrong[:5])}: not a number")
    return {k: float("nan") if v is None else float(v) for k, v in row.items()}


def _number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".")


@dataclass(frozen=True, eq=False)
class FolderRun:
    """One run of a folder."""

    layout: Layout
    values: Float[np.ndarray, "step column prompt"]
    """One prompt where only means are known."""
    lines: list[int | None]
    """Line of the JSON file that each evaluation is, from 0; None where it has none."""
    metrics: str | None
    """Name of the JSON file."""
    array: str | None
    """Name of the .npy file; None where only means are known."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of how the run was told from others."""

    @property
    def means_only(self) -> bool:
        """Whether only means over prompts are known."""
        return self.array is None

    @property
    def means(self) -> Float[np.ndarray, "step column"]:
        """Means over prompts."""
        return _means_of(self.values)


@dataclass
class _LineGroup:
    """Lines of one JSON file with the same columns, and those that are not taken."""

    file: str
    lines: _Lines
    layout: Layout
    free: list[int]
    """Rows that no array has."""


def find_runs(folder: Path) -> tuple[list[FolderRun], list[str]]:
    """All runs of a folder, the main one first, and what was left out and why.

    The main run is that of a .npy file, of `chosen` before others; without one it is
    the longest.

    Raises:
        BadInput: if the folder holds no result file, or none that can be read.
    """
    metrics = sorted(folder.glob("*_metrics.json"), key=lambda p: "train" not in p.name)
    arrays = sorted(folder.glob("logp_npy_all_*.npy"), key=_chosen_first)
    if not metrics and not arrays:
        there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise BadInput(
            f"{folder} holds no result of the authors' trainer: neither "
            f"prob_train_metrics.json nor logp_npy_all_chosen.npy. It has: {there}."
        )
    left_out = [
        f"{path.name}: a pickle, which could run code; it is never opened"
        for path in sorted(folder.glob("argmax_token_all_*"))
    ]
    groups = _groups(metrics, left_out)
    with_array = []
    for path in arrays:
        try:
            with_array.append(_of_array(path, groups))
        except BadInput as error:
            left_out.append(str(error))
    alone = [run for group in groups for run in _of_lines(group, left_out)]
    alone.sort(key=lambda run: run.lines[0] or 0)
    if alone and not with_array:
        longest = max(alone, key=lambda run: len(run.lines))
        alone.sort(key=lambda run: run is not longest)
    if not with_array and not alone:
        raise BadInput(f"no file of {folder} can be read:\n{listed(left_out)}")
    return with_array + alone, left_out


def _chosen_first(path: Path) -> tuple[bool, str]:
    return path.name != "logp_npy_all_chosen.npy", path.name


def _groups(metrics: Sequence[Path], left_out: list[str]) -> list[_LineGroup]:
    groups = []
    for path in metrics:
        try:
            by_columns, problems = _read_lines(path)
        except BadInput as error:
            left_out.append(str(error))
            continue
        left_out += problems
        for lines in by_columns:
            try:
                layout = layout_of_names(lines.names, path.name)
            except BadInput as error:
                left_out.append(f"{len(lines.numbers)} lines: {error}")
                continue
            rows = list(range(len(lines.numbers)))
            groups.append(_LineGroup(path.name, lines, layout, rows))
    return groups


def _of_array(path: Path, groups: Sequence[_LineGroup]) -> FolderRun:
    """The run of one .npy file, and the lines that it wrote.

    Raises:
        BadInput: if the file cannot be read, or nothing says what its columns are.
    """
    array = _read_array(path)
    means = _means_of(array)
    for group in groups:
        if len(group.lines.names) != array.shape[1]:
            continue
        matches = match_rows(group.lines.values[group.free], means)
        rows = [None if at is None else group.free[at] for at in matches]
        taken = [row for row in rows if row is not None]
        if 2 * len(taken) < len(rows):
            continue
        group.free = [row for row in group.free if row not in taken]
        numbers = [None if r is None else int(group.lines.numbers[r]) for r in rows]
        lost = len(rows) - len(taken)
        notes = [f"{lost} of its {len(rows)} evaluations have no line."] if lost else []
        return FolderRun(group.layout, array, numbers, group.file, path.name, notes)
    layout = layout_of_values(means, path.name)
    notes = [f"columns named by their order alone: layout {layout.letter}."]
    if groups:
        notes.append("the JSON files have no lines of this array's run.")
    return FolderRun(layout, array, [None] * len(array), None, path.name, notes)


def _of_lines(group: _LineGroup, left_out: list[str]) -> list[FolderRun]:
    """The runs of the lines that no array has: means alone."""
    rows = group.lines.values[group.free]
    if not len(rows):
        return []
    start = group.lines.values[0]
    runs = split_runs(rows, start)
    move = usual_move(group.lines.values)
    longer = [run for run in runs if len(run) > 1]
    only_starts = [run[0] for run in runs if len(run) == 1]
    if not longer and len(group.free) == len(group.lines.numbers):
        longer, only_starts = [only_starts[:1]], only_starts[1:]
    if only_starts:
        again = [int(group.lines.numbers[group.free[row]]) for row in only_starts]
        left_out.append(
            f"{group.file}, {_lines(again)}: the first evaluation once more, by a "
            "process that wrote nothing else (or by a model that did not move)"
        )
    several = len(longer) > 1 or len(group.free) < len(group.lines.numbers)
    in_lines = []
    for run in longer:
        distinct = _without_repeats(rows, run, group, left_out)
        numbers: list[int | None] = [
            int(group.lines.numbers[group.free[row]]) for row in distinct
        ]
        notes = []
        if len(longer) > 1:
            notes.append(
                "the lines of several runs were told apart by how near they are to "
                "each other: nothing in the file says which process wrote a line."
            )
        if several and distance(rows[run[0]], start, move) > 1e-3:
            notes.append("it does not begin with the first evaluation of the file.")
        values = rows[distinct][:, :, None]
        in_lines.append(
            FolderRun(group.layout, values, numbers, group.file, None, notes)
        )
    return in_lines


def _without_repeats(
    rows: Float[np.ndarray, "row column"],
    run: Sequence[int],
    group: _LineGroup,
    left_out: list[str],
) -> list[int]:
    """A run's rows without those that equal the one before in every digit."""
    distinct = [run[0]]
    for row in run[1:]:
        if np.array_equal(rows[row], rows[distinct[-1]], equal_nan=True):
            number = int(group.lines.numbers[group.free[row]])
            left_out.append(f"{group.file}, line {number}: the line before once more")
        else:
            distinct.append(row)
    return distinct


def _lines(numbers: Sequence[int]) -> str:
    return f"line{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"


def ranges(numbers: Sequence[int | None]) -> str:
    """Ascending numbers as text, neighbours joined: "0-31, 33, 35"."""
    parts: list[list[int]] = []
    for number in numbers:
        if number is None:
            continue
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
