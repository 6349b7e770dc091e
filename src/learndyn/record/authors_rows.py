"""Which rows of an appended file are those of an array, and how far rows are apart."""

import numpy as np
from jaxtyping import Float


Rows = Float[np.ndarray, "row column"]

_LOST = 2**31
"""Price of an array row without a row; of a gap it is 1."""
_NEVER = 2**62

SAME = 1e-6
"""Largest difference between a row and the mean of the array that it was made from:
both are sums of the same numbers, in another order."""


def match_rows(rows: Rows, array: Float[np.ndarray, "step column"]) -> list[int | None]:
    """The row that each row of an array's means was written as; None where there is
    none, as for a line that was cut.

    Order is kept, and as many as possible are found. Where several rows are equal, the
    choice with the fewest gaps is taken: what a crashed process wrote stays together.
    """
    size = len(rows) + 1  # the last row used, counted from 1; 0 is none so far
    cost, seen = np.full(size, _NEVER), np.full(size, len(array))
    cost[0], seen[0] = 0, 0
    parents = np.empty((len(array), size), dtype=np.int32)
    places = np.arange(size)
    for step, mean in enumerate(array):
        lost, parent = cost + _LOST, places.copy()  # one more array row without a row
        equal = 1 + np.flatnonzero(_same(rows, mean))
        best = _first_least(cost)[equal - 1]  # of all ways that end before this row
        gap = cost[best] + (step > 0)
        adjoining = (equal > 1) & (cost[equal - 1] <= gap)
        way = np.where(adjoining, equal - 1, best)
        price = np.where(adjoining, cost[equal - 1], gap)
        better = price < lost[equal]
        lost[equal[better]], parent[equal[better]] = price[better], way[better]
        cost, parents[step] = np.minimum(lost, _NEVER), parent
        seen = np.where((seen == len(array)) & (cost < _NEVER), step, seen)
    at = int(min(np.flatnonzero(cost == cost.min()), key=lambda place: seen[place]))
    found: list[int | None] = []
    for parent in parents[::-1]:
        found.append(None if parent[at] == at else at - 1)
        at = int(parent[at])
    return found[::-1]


def _first_least(cost: np.ndarray) -> np.ndarray:
    """Of every place the first of the least among those up to it."""
    least = np.minimum.accumulate(cost)
    new = np.r_[True, least[1:] < least[:-1]]
    return np.maximum.accumulate(np.where(new, np.arange(len(cost)), 0))


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
