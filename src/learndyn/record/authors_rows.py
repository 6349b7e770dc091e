"""Which rows of an appended file are those of an array, and how far rows are apart."""

from typing import Any

import numpy as np
from jaxtyping import Float


Rows = Float[np.ndarray, "row column"]
_Way = tuple[int, int, Any]
_BEGIN: _Way = (0, 0, None)
_WORST: _Way = (2**31, 0, None)

SAME = 1e-6
"""Largest difference between a row and the mean of the array that it was made from:
both are sums of the same numbers, in another order."""


def match_rows(rows: Rows, array: Float[np.ndarray, "step column"]) -> list[int | None]:
    """The row that each row of an array's means was written as; None where there is
    none, as for a line that was cut.

    Order is kept, and as many as possible are found. Where several rows are equal, the
    choice with the fewest gaps is taken: what a crashed process wrote stays together.
    """
    # last row used -> (array rows without one, gaps, row of each array row so far)
    ways = {-1: _BEGIN}
    for mean in array:
        equal = set(np.flatnonzero(_same(rows, mean)).tolist())
        now = {at: _without(way) for at, way in ways.items()}
        best: _Way | None = None
        for at in range(-1, len(rows)):
            # best: of all ways that end before this row
            if at in equal and best is not None:
                lost, gaps, path = best
                adjoining = ways.get(at - 1)
                if at and adjoining is not None and adjoining[:2] <= (lost, gaps + 1):
                    lost, gaps, path = adjoining
                else:
                    gaps += path is not None
                if (lost, gaps) < now.get(at, _WORST)[:2]:
                    now[at] = (lost, gaps, (at, path))
            if at in ways and (best is None or ways[at][:2] < best[:2]):
                best = ways[at]
        ways = now
    path = min(ways.values(), key=lambda way: way[:2])[2]
    found: list[int | None] = []
    while path is not None:
        found.append(path[0])
        path = path[1]
    return found[::-1]


def usual_move(rows: Rows) -> Float[np.ndarray, " column"]:
    """How far each column usually moves in one or two rows, whichever is more: two
    processes that take turns write nearly the same row twice."""
    with np.errstate(invalid="ignore"):
        one = np.abs(np.diff(rows, axis=0))
        two = np.abs(rows[2:] - rows[:-2])
    moves = np.fmax(one[1:], two) if len(two) else one
    out = np.zeros(rows.shape[1])
    for column in range(rows.shape[1]):
        known = moves[:, column][np.isfinite(moves[:, column])]
        out[column] = np.median(known) if len(known) else 0.0
    return out


def distance(
    a: Float[np.ndarray, " column"],
    b: Float[np.ndarray, " column"],
    move: Float[np.ndarray, " column"],
) -> float:
    """Largest difference of any column, in usual moves of that column.

    Columns that one of the two lacks are not compared; no column to compare is a
    distance of infinity.
    """
    known = np.isfinite(a) & np.isfinite(b)
    if not known.any():
        return float("inf")
    apart = np.abs(a[known] - b[known])
    scale = move[known]
    moves = np.where(scale > 0, apart / np.where(scale > 0, scale, 1.0), np.inf)
    return float(np.max(np.where(apart == 0, 0.0, moves)))


def _same(rows: Rows, mean: Float[np.ndarray, " column"]) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        close = np.abs(rows - mean) <= SAME * np.maximum(1.0, np.abs(mean))
    both = ~np.isfinite(rows) & ~np.isfinite(mean)
    return np.asarray((close | both).all(axis=1) & np.isfinite(rows).any(axis=1))


def _without(way: _Way) -> _Way:
    """A way that finds no row for one more array row."""
    lost, gaps, path = way
    return lost + 1, gaps, (None, path)
