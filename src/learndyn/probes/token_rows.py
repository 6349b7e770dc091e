"""Rows of token ids: probes are found among many of them by hashes of their beginnings.

The hash of ids t_0, t_1, ... is the polynomial sum of t_i r^i modulo 2^64, so that of
any beginning is a difference of two prefix sums. What it finds is compared id by id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from learndyn.probes.tokenize import TokenizedPair


_SLACK = 3
"""Tokens by which the first label may stand off the end of the probe's own prompt: a
line break of a template, or letters that one tokenization merges and the other not."""

_RATIO = 0x9E3779B97F4A7C15
"""Odd, so that it has an inverse modulo 2^64 and no power of it is 0."""

_INVERSE = pow(_RATIO, -1, 2**64)


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, one after the other."""

    ids: Int[np.ndarray, " token"]
    offsets: Int[np.ndarray, " row_and_end"]
    answer: Int[np.ndarray, " row"] | None = None
    """Tokens of each row before the first that the loss reads; None if not known."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls, column: Any, labels: Any = None, lengths: Any = None, ignored: int = -100
    ) -> "TokenRows":
        """Rows of an Arrow column of lists.

        `labels` is a column with `ignored` where the loss does not look. `lengths` are
        those of the examples within each packed row.
        """
        ids, offsets = _flat(column)
        if lengths is not None:
            parts, _ = _flat(lengths)
            offsets = np.concatenate([[0], np.cumsum(parts)])
        if labels is None:
            return cls(ids, offsets)
        values, _ = _flat(labels)
        read = np.append(np.flatnonzero(values != ignored), len(values))
        first = read[np.searchsorted(read, offsets[:-1])] - offsets[:-1]
        return cls(ids, offsets, np.minimum(first, np.diff(offsets)))

    @property
    def lengths(self) -> Int[np.ndarray, " row"]:
        return np.diff(self.offsets)

    @property
    def are_blocks(self) -> bool:
        """Whether a text was cut into rows of one length, wherever examples end."""
        reads_all = self.answer is None or not self.answer.any()
        return reads_all and len(self) > 1 and len(np.unique(self.lengths[:-1])) == 1

    def row(self, index: int) -> tuple[int, ...]:
        """Token ids of one row."""
        start, end = self.offsets[index : index + 2]
        return tuple(self.ids[start:end].tolist())

    @cached_property
    def hashes(self) -> "_Beginnings":
        """Hashes of all beginnings of the rows."""
        terms = self.ids.astype(np.uint64) * _powers(_RATIO, len(self.ids))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
        starts = self.offsets[:-1]
        shift = _powers(_INVERSE, len(self.ids) + 1)[starts]
        return _Beginnings(sums, starts, shift)


@dataclass(frozen=True)
class JoinedRows:
    """Rows whose prompts and answers are apart."""

    prompts: TokenRows
    answers: TokenRows

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class _Beginnings:
    sums: UInt64[np.ndarray, " token_and_end"]
    starts: Int[np.ndarray, " row"]
    shift: UInt64[np.ndarray, " row"]
    """What makes a hash of the place in the row and not in the batch."""

    def of(
        self, rows: Int[np.ndarray, " some"], lengths: Int[np.ndarray, " some"]
    ) -> UInt64[np.ndarray, " some"]:
        """Hashes of the first tokens of some rows."""
        at = self.starts[rows]
        return (self.sums[at + lengths] - self.sums[at]) * self.shift[rows]


class IdIndex:
    """Tokenized probes, to be found in rows that hold prompt and response.

    A row may have the tokenizer's beginning or end of text where the probe has not,
    and the other way round.
    """

    def __init__(
        self, pairs: Sequence[TokenizedPair], bos: int | None, eos: int | None
    ) -> None:
        self._eos = eos
        self._responses = [_less_end(pair.response_ids, eos) for pair in pairs]
        self._probes: dict[tuple[int, ...], list[int]] = {}
        for i, pair in enumerate(pairs):
            prompt = pair.prompt_ids
            plain = prompt[1:] if bos is not None and prompt[:1] == (bos,) else prompt
            begun = plain if bos is None else (bos, *plain)
            for form in {plain, prompt, begun} - {()}:
                self._probes.setdefault(form, []).append(i)
        by_length: dict[int, list[int]] = {}
        for form in self._probes:
            by_length.setdefault(len(form), []).append(_hash(form))
        self._hashes = {n: np.array(h, np.uint64) for n, h in by_length.items()}
        self._all = np.concatenate([np.empty(0, np.uint64), *self._hashes.values()])

    def find(self, rows: TokenRows | JoinedRows) -> tuple[set[int], set[int]]:
        """Probes whose prompt a row begins with, and those that a row is, whole."""
        prompts: set[int] = set()
        answers: set[int] = set()
        joined = isinstance(rows, JoinedRows)
        for row, length in self._in_pairs(rows) if joined else self._in_rows(rows):
            ids = rows.prompts.row(row) if joined else rows.row(row)
            rest = rows.answers.row(row) if joined else ids[length:]
            for probe in self._probes.get(ids[:length], ()):
                prompts.add(probe)
                if self._is_whole(rest, self._responses[probe]):
                    answers.add(probe)
        return prompts, answers

    def _in_pairs(self, rows: JoinedRows) -> Iterator[tuple[int, int]]:
        every, lengths = np.arange(len(rows)), rows.prompts.lengths
        hashes = rows.prompts.hashes.of(every, lengths)
        for row in np.flatnonzero(np.isin(hashes, self._all)).tolist():
            yield row, int(lengths[row])

    def _in_rows(self, rows: TokenRows) -> Iterator[tuple[int, int]]:
        """Rows that begin with some prompt, and its length."""
        beginnings, lengths = rows.hashes, rows.lengths
        answer = np.zeros(len(rows), int) if rows.answer is None else rows.answer
        for off in range(-_SLACK, _SLACK + 1):
            ends = answer + off
            fit = np.flatnonzero((answer > 0) & (ends > 0) & (ends < lengths))
            fit = fit[np.isin(beginnings.of(fit, ends[fit]), self._all)]
            yield from zip(fit.tolist(), ends[fit].tolist(), strict=True)
        if answer.all():
            return
        # where the loss reads the prompt as well, it may end anywhere
        for length, known in self._hashes.items():
            fit = np.flatnonzero((answer == 0) & (lengths > length))
            fit = fit[np.isin(beginnings.of(fit, np.full(len(fit), length)), known)]
            yield from ((row, length) for row in fit.tolist())

    def _is_whole(self, rest: tuple[int, ...], response: tuple[int, ...]) -> bool:
        count = len(response)
        if rest[:count] != response:
            return False
        return len(rest) == count or rest[count] == self._eos


def _less_end(ids: tuple[int, ...], eos: int | None) -> tuple[int, ...]:
    return ids[:-1] if eos is not None and ids[-1:] == (eos,) else ids


def _hash(ids: tuple[int, ...]) -> int:
    value = 0
    for token in reversed(ids):
        value = (value * _RATIO + token) % 2**64
    return value


def _powers(ratio: int, count: int) -> UInt64[np.ndarray, " power"]:
    """1, r, r^2, ... modulo 2^64."""
    powers = np.full(max(count, 1), ratio, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)[:count]


def _flat(
    column: Any,
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " row_and_end"]]:
    """Values and offsets of an Arrow column of lists of whole numbers."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy(zero_copy_only=False)
    return values[offsets[0] : offsets[-1]].astype(np.int64), offsets - offsets[0]
