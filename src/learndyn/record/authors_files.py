"""The files of a published result folder, read as what they are: text and numbers.

`NAME_metrics.json` is appended to by every process that was given the folder: one
object a line, NaN written out, the last line cut where a process was stopped.
`logp_npy_all_COLUMN.npy` is written once, at the end of a run, with axes evaluation,
column, prompt. `argmax_token_all_COLUMN.npy` is a pickle, which could run code when it
is loaded, and is never opened.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from learndyn.errors import BadInput


@dataclass(frozen=True)
class Lines:
    """Lines of a JSON file that have the same columns in the same order."""

    names: tuple[str, ...]
    numbers: Int[np.ndarray, " row"]
    """Line of the file that each row is, counted from 0 without empty lines."""
    values: Float[np.ndarray, "row column"]


def read_lines(path: Path) -> tuple[list[Lines], list[str]]:
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
    found = [
        Lines(
            names,
            np.array([number for number, _ in rows]),
            np.array([values for _, values in rows], dtype=np.float64),
        )
        for names, rows in groups.items()
    ]
    return found, problems


def read_array(path: Path) -> Float[np.ndarray, "step column prompt"]:
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


def means_of(
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
        raise ValueError("it is no JSON object")
    wrong = [k for k, v in row.items() if isinstance(v, bool) or not _number(v)]
    if wrong:
        raise ValueError(f"{', '.join(wrong[:5])}: no number")
    return {k: float("nan") if v is None else float(v) for k, v in row.items()}


def _number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".")
