"""Reads pieces of work: a model, a tier of the backbone and a way to read its head.

A piece is what a tier lays out of the probes, such as a pack of trees: the tier makes
the hidden states of its predicting positions, [row, d], and the head folds each row of
logits into the statistics of its labels. A prompt's last row predicts the first token
of every response, so there are more labels than rows.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from learndyn.measure.forward import Forward, Head, output_embedding
from learndyn.measure.linear import fast_linear
from learndyn.measure.plan import ProbePlan, Targets
from learndyn.measure.statistics import RowStatistics, row_statistics
from learndyn.measure.tiers import Limits, Tier
from learndyn.measure.tiles import Tiles


_ROW_CHUNK_BYTES = 2**26
"""Most bytes of logits that exist at once where rows of them are made; about three
times that is touched. 16 times as much on other devices than a CPU."""


def most_rows(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits exist at once."""
    most = _ROW_CHUNK_BYTES * (1 if device.type == "cpu" else 16)
    return max(1, most // (4 * vocabulary))


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads pieces of work with one model, one tier and one head."""

    forward: Forward
    tier: Tier
    limits: Limits
    head: Head | None
    """None reads the model's own logits."""
    tiled: bool
    """Whether the projection runs in tiles of the vocabulary, see `tiles`."""
    autocast: torch.dtype | None = None
    fast: bool = True
    """Whether products may go by the faster library, see `linear`."""

    @property
    def head_name(self) -> str:
        """ "tiles", "rows" or "logits"."""
        if self.tiled:
            return "tiles"
        return "logits" if self.head is None else "rows"

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """What all of an observation is read within."""
        library = fast_linear() if self.fast and self.autocast is None else None
        with library or nullcontext(), self.casting():
            yield

    @contextmanager
    def casting(self) -> Iterator[None]:
        """In the precision asked for; weights are cast once.

        Autocast keeps casts until its outermost block ends. If that is the user's own,
        casts from before the last update would be used.
        """
        if self.autocast is None:
            yield
            return
        torch.clear_autocast_cache()
        try:
            with torch.autocast(self.forward.device.type, dtype=self.autocast):
                yield
        finally:
            torch.clear_autocast_cache()

    def current(self) -> tuple[Forward, Head | None, Tiles | None]:
        """Forward and head with the output embedding as it is now.

        Between two observations its weights may be replaced, not only changed.
        """
        if self.head is None:
            return self.forward, None, None
        module = output_embedding(self.forward.model)
        # `after` was learnt once: a scale or a cap belongs to the architecture.
        head = replace(self.head, module=module)
        tiles = Tiles.of(module, head.after, self.autocast) if self.tiled else None
        return replace(self.forward, tap=module), head, tiles

    def read_all(
        self,
        plan: ProbePlan,
        pieces: Iterable[Any],
        start_ids: Int[np.ndarray, " token"] | None = None,
    ) -> RowStatistics:
        """Statistics of every response token of `plan`, flat, on the CPU."""
        rows = RowStatistics.empty(plan.n_tokens)
        forward, head, tiles = self.current()
        with self._precision():
            for piece in pieces:
                targets: Targets = piece.targets
                states = self.tier.read(forward, piece)
                device = states.device
                source = torch.from_numpy(targets.source).to(device)
                labels = torch.from_numpy(targets.labels).to(device)
                starts = None
                if start_ids is not None:
                    starts = torch.from_numpy(start_ids[targets.flat])
                    starts = starts.long().to(device)
                if tiles is not None:
                    part = tiles(states, source, labels, starts)
                else:
                    part = _in_chunks(head, states, source, labels, starts)
                rows.put(torch.from_numpy(targets.flat), part)
        return rows


def _in_chunks(
    head: Head | None,
    states: Float[Tensor, "row last"],
    source: Int[Tensor, " label"],
    labels: Int[Tensor, " label"],
    starts: Int[Tensor, " label"] | None,
) -> RowStatistics:
    """Rows of logits, a few at a time; `head` None if `states` are logits already."""
    vocabulary = states.shape[-1] if head is None else head(states[:1]).shape[-1]
    size = most_rows(vocabulary, states.device)
    parts = []
    for i in range(0, len(labels), size):
        chunk = slice(i, i + size)
        rows = states[source[chunk]]  # a copy: it may be overwritten
        if head is not None:
            rows = head(rows)
        elif rows.dtype != torch.float64:
            rows = rows.float()
        start = None if starts is None else starts[chunk]
        parts.append(row_statistics(rows, labels[chunk], start))
    return RowStatistics.concatenate(parts)
