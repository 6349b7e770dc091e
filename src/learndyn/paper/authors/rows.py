"""Which rows of an appended file belong to which run, and how far rows are apart.

Where an array exists, its values tell. Elsewhere the likeliest assignment of rows to
runs is searched for. Every run of one model begins with the same row. After that, a row
continues the last row of its run by a step of usual size; or, where another run is
ahead, by the step which that run made from the same place: processes with the same
settings and seed repeat each other, up to rounding that grows. The assignment is a
guess, and the notes of runs that were told apart by it say so.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


Rows = Float[np.ndarray, "row column"]

_LOST = 2**31
"""Price of an array row without a row; of a gap it is 1."""
_NEVER = 2**62

_SAME = 1e-6
"""Largest difference between a row and the mean of the array that it was made from:
both are sums of the same numbers, in another order."""


def match_rows(rows: Rows, array: Float[np.ndarray, "step column"]) -> list[int | None]:
    """The row that each row of an array's means was written as; None where there is
    none, as for a line that was cut.

    Order is kept, and as many as possible are found. Where several rows are equal, the
    choice with the fewest gaps is taken: what a crashed process wrote stays together.
    """
    size = len(rows) + 1  # the last row used, counted from 1; 0 is none so far
    cost, reached = np.full(size, _NEVER), np.full(size, len(array))
    cost[0], reached[0] = 0, 0
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
        reached = np.where((reached == len(array)) & (cost < _NEVER), step, reached)
    at = int(min(np.flatnonzero(cost == cost.min()), key=lambda place: reached[place]))
    matches: list[int | None] = []
    for parent in parents[::-1]:
        matches.append(None if parent[at] == at else at - 1)
        at = int(parent[at])
    return matches[::-1]


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
        close = np.abs(rows - mean) <= _SAME * np.maximum(1.0, np.abs(mean))
    both = ~np.isfinite(rows) & ~np.isfinite(mean)
    return np.asarray((close | both).all(axis=1) & np.isfinite(rows).any(axis=1))


_START = 1e-3
"""A row within this share of a usual move from the first row is a first row too."""
_REPEATS = (1e-3, 1e-2, 0.1, 0.3)
"""How near a repetition may be, in usual moves; the likeliest of these is used."""
_BEGIN = 1.5
"""What it costs to begin to repeat another run, in nats a column: one row that is near
by chance does not pay for it."""
_SWITCH = 0.5
"""What it costs a run to go on, not as a repetition, after a row of another one, in
nats a column. Without it one run would be divided into two smoother ones."""
_PAIR = 0.2
"""Rows nearer than this in every column are the same step of two runs."""
_BEAM = 12
"""Assignments that are followed at once."""
_OPEN = 4
"""Runs, of those with equally many rows, that a row may go on with."""


@dataclass(frozen=True)
class _Guess:
    """One assignment of the rows so far."""

    cost: float
    runs: tuple[tuple[int, ...], ...]
    repeats: tuple[bool | None, ...]
    """Whether each run repeats one that is ahead of it; None where it did not have to
    choose yet. It does not change that."""


def split_runs(rows: Rows, start: Float[np.ndarray, " column"]) -> list[list[int]]:
    """Rows of each run, in the order in which the runs began.

    `start` is the first row of the whole file: a row like it begins a run, as the first
    of `rows` does.
    """
    move = usual_move(rows)
    begins = [i == 0 or distance(r, start, move) <= _START for i, r in enumerate(rows)]
    if sum(begins) == 1:
        return [list(range(len(rows)))]
    scale = np.where(move > 0, move, np.inf)
    guesses = [_follow(rows / scale, begins, repeat) for repeat in _REPEATS]
    best = min(guesses, key=lambda guess: guess.cost)
    return [list(run) for run in best.runs]


def _follow(rows: Rows, begins: list[bool], repeat: float) -> _Guess:
    """The likeliest assignment of rows, in units of usual moves."""
    beam = [_Guess(0.0, (), ())]
    step_of = _Steps(rows, repeat)
    for index, begin in enumerate(begins):
        if begin:
            beam = [
                _Guess(g.cost, (*g.runs, (index,)), (*g.repeats, None)) for g in beam
            ]
            continue
        grown = [new for guess in beam for new in _grown(step_of, guess, index)]
        beam = sorted(grown, key=lambda guess: guess.cost)[:_BEAM]
    return beam[0]


class _Steps:
    """How unlikely a step is. Many guesses ask for the same one."""

    def __init__(self, rows: Rows, repeat: float) -> None:
        self.rows, self.repeat = rows, repeat
        self.known: dict[tuple[int, ...], float] = {}

    def surprise(self, *places: int) -> float:
        """Of the step from row `places[0]` to `places[1]`; with two more, of how it
        differs from the step between those."""
        if places not in self.known:
            step = self.rows[places[1]] - self.rows[places[0]]
            scale = 1.0
            if len(places) == 4:
                step = step - (self.rows[places[3]] - self.rows[places[2]])
                scale = self.repeat
            self.known[places] = _surprise(step, scale)
        return self.known[places]

    def costs(
        self, guess: _Guess, k: int, index: int, turns: bool
    ) -> list[tuple[bool | None, float]]:
        """What it costs run k to go on with a row: as a repetition, or on its own."""
        run, known = guess.runs[k], guess.repeats[k]
        place = len(run)
        free = turns or run[-1] == index - 1
        own = self.surprise(run[-1], index)
        own += 0.0 if free else _SWITCH * self.rows.shape[1]
        ahead = [other for other in guess.runs if len(other) > place]
        if not ahead:
            return [(known, own)]
        again = min(
            self.surprise(run[-1], index, other[place - 1], other[place])
            for other in ahead
        )
        fee = _BEGIN * self.rows.shape[1]
        ways: list[tuple[bool | None, float]] = []
        if known is not True:
            ways.append((False, own))
        if known is not False:
            ways.append((True, again + (fee if known is None else 0.0)))
        return ways


def _grown(steps: _Steps, guess: _Guess, index: int) -> list[_Guess]:
    """All ways to add one row to a run."""
    rows = steps.rows
    grown: list[_Guess] = []
    open_runs: Counter[int] = Counter()
    newest_first = sorted(range(len(guess.runs)), key=lambda k: -guess.runs[k][-1])
    # rows that come in pairs: the runs take turns, and the one that waited is next
    began = any(run[0] == index - 1 for run in guess.runs)
    turns = _pair(rows, index) or (not began and _pair(rows, index - 2))
    for rank, k in enumerate(newest_first):
        run = guess.runs[k]
        open_runs[len(run)] += 1
        if open_runs[len(run)] > _OPEN:
            continue
        # of two about as likely; a row that tells them apart counts for more
        preference = 0.5 * (-rank if turns else rank)
        runs = (*guess.runs[:k], (*run, index), *guess.runs[k + 1 :])
        for repeats, cost in steps.costs(guess, k, index, turns):
            all_repeats = (*guess.repeats[:k], repeats, *guess.repeats[k + 1 :])
            grown.append(_Guess(guess.cost + cost + preference, runs, all_repeats))
    return grown


def _pair(rows: Rows, index: int) -> bool:
    """Whether this row and the next one are nearly the same."""
    inside = 0 <= index < len(rows) - 1
    return inside and _apart(rows[index + 1] - rows[index]) < _PAIR


def _apart(difference: Float[np.ndarray, " column"]) -> float:
    known = difference[np.isfinite(difference)]
    return float(np.max(np.abs(known), initial=0.0))


def _surprise(difference: Float[np.ndarray, " column"], scale: float) -> float:
    """Negative log-likelihood of a difference, per column Student's t of 3 degrees: a
    run may jump."""
    known = difference[np.isfinite(difference)]
    if not len(known):
        return 0.0
    return float(np.sum(np.log(scale) + 2 * np.log1p((known / scale) ** 2 / 3)))
