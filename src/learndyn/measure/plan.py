"""What is scored, laid out once: prefix trees, packed into sequences.

A probe set holds many responses to each prompt. As a tree, a prompt is encoded once and
its responses branch from it; several trees stand end to end in one sequence, without
padding. Of a prompt of P tokens with responses of R_1 ... R_k tokens the backbone reads
P + sum(R_i - 1) tokens: the last token of a response is a label only. The vocabulary
projection reads 1 + sum(R_i - 1) positions: the prompt's last one predicts the first
token of every response.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from learndyn.measure.linear import MANY, STEP
from learndyn.probes.tokenize import TokenizedPair


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the labels of one piece of work come from and go to, axis label."""

    labels: Int[np.ndarray, " label"]
    """The response tokens."""
    source: Int[np.ndarray, " label"]
    """Which of the piece's predicting positions predicts each label."""
    flat: Int[np.ndarray, " label"]
    """Where each label stands in the flat order: token after token, pair after pair."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a packed sequence that attends to itself and to its prompt."""

    prompt: slice
    own: slice
    """Empty overlap with `prompt`; equal to it for the prompt itself."""

    @property
    def is_prompt(self) -> bool:
        """Whether this stretch is the prompt itself."""
        return self.prompt == self.own


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt and some of its responses."""

    prompt_ids: tuple[int, ...]
    pairs: tuple[int, ...]
    """Positions of the responses among all pairs."""


@dataclass(frozen=True, eq=False)
class Pack:
    """Trees end to end in one sequence."""

    ids: Int[Tensor, " time"]
    positions: Int[Tensor, " time"]
    """Distance from the start of the prompt, also within responses."""
    tree: Int[Tensor, " time"]
    """Number of the tree that each token belongs to."""
    branch: Int[Tensor, " time"]
    """0 in prompts, otherwise a number of its own for each response of the tree."""
    segments: tuple[Segment, ...]
    predicts: Int[Tensor, " row"]
    """Positions that predict a response token, ascending, each once."""
    targets: Targets

    def visible(self, window: int | None = None) -> Bool[Tensor, "time time"]:
        """Which token (row) attends to which (column), at most `window` - 1 back."""
        time = torch.arange(len(self.ids), device=self.ids.device)
        visible = time[:, None] >= time
        visible &= self.tree[:, None] == self.tree
        visible &= (self.branch == 0) | (self.branch[:, None] == self.branch)
        if window is not None:
            visible &= self.positions[:, None] - self.positions < window
        return visible

    def to(self, device: torch.device) -> "Pack":
        """The same on a device."""
        if device == self.ids.device:
            return self
        names = ("ids", "positions", "tree", "branch", "predicts")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class ProbePlan:
    """Pairs of token ids, grouped by prompt. Built once, used at every observation."""

    pairs: tuple[TokenizedPair, ...]

    @cached_property
    def starts(self) -> Int[np.ndarray, " bound"]:
        """Tokens of pair i stand at `starts[i]:starts[i + 1]` of the flat order."""
        return np.cumsum([0, *(len(pair.response_ids) for pair in self.pairs)])

    @property
    def n_tokens(self) -> int:
        """Response tokens of all pairs."""
        return int(self.starts[-1])

    @cached_property
    def trees(self) -> tuple[Tree, ...]:
        """One tree per distinct prompt, longest first: memory peaks at once."""
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for i, pair in enumerate(self.pairs):
            by_prompt.setdefault(pair.prompt_ids, []).append(i)
        trees = [Tree(ids, tuple(pairs)) for ids, pairs in by_prompt.items()]
        return tuple(sorted(trees, key=self._size, reverse=True))

    def targets(
        self, pairs: Sequence[int], source: Int[np.ndarray, " label"]
    ) -> Targets:
        """The labels of some pairs, pair after pair."""
        labels = [i for pair in pairs for i in self.pairs[pair].response_ids]
        spans = [np.arange(self.starts[i], self.starts[i + 1]) for i in pairs]
        return Targets(np.array(labels), source, np.concatenate(spans))

    def packs(
        self,
        most_tokens: int,
        most_rows: int | None = None,
        trees: Sequence[Tree] | None = None,
    ) -> list[Pack]:
        """Fill sequences of about `most_tokens` with trees (default: all).

        A tree with more tokens of responses than that is split, its prompt encoded
        again; a prompt and a single response are never split. So a sequence may be
        longer by a prompt. `most_rows` bounds the predicting positions in the same way.
        """
        packs, waiting, tokens, rows = [], [], 0, 0
        for tree in self.trees if trees is None else trees:
            for part in self._split(tree, most_tokens, most_rows):
                size, predicting = self._size(part), self._rows(part)
                over = most_rows is not None and rows + predicting > most_rows
                if waiting and (tokens + size > most_tokens or over):
                    packs.append(self._pack(waiting))
                    waiting, tokens, rows = [], 0, 0
                waiting.append(part)
                tokens, rows = tokens + size, rows + predicting
        return [*packs, self._pack(waiting)]

    def _size(self, tree: Tree) -> int:
        return len(tree.prompt_ids) + self._rows(tree) - 1

    def _rows(self, tree: Tree) -> int:
        return 1 + sum(len(self.pairs[i].response_ids) - 1 for i in tree.pairs)

    def _split(
        self, tree: Tree, most_tokens: int, most_rows: int | None
    ) -> Iterator[Tree]:
        room = most_tokens if most_rows is None else min(most_tokens, most_rows - 1)
        part: list[int] = []
        used = 0
        for pair in tree.pairs:
            size = len(self.pairs[pair].response_ids) - 1
            if part and used + size > room:
                yield Tree(tree.prompt_ids, tuple(part))
                part, used = [], 0
            part.append(pair)
            used += size
        yield Tree(tree.prompt_ids, tuple(part))

    def _pack(self, trees: Sequence[Tree]) -> Pack:
        ids: list[int] = []
        positions: list[int] = []
        branches: list[int] = []
        segments: list[Segment] = []
        predicts: list[int] = []
        source: list[int] = []
        for tree in trees:
            prompt = slice(len(ids), len(ids) + len(tree.prompt_ids))
            ids += tree.prompt_ids
            positions += range(len(tree.prompt_ids))
            branches += [0] * len(tree.prompt_ids)
            segments.append(Segment(prompt, prompt))
            first = len(predicts)
            predicts.append(prompt.stop - 1)
            for branch, pair in enumerate(tree.pairs, start=1):
                read = self.pairs[pair].response_ids[:-1]
                own = slice(len(ids), len(ids) + len(read))
                source += [first, *range(len(predicts), len(predicts) + len(read))]
                predicts += range(own.start, own.stop)
                ids += read
                depth = len(tree.prompt_ids)
                positions += range(depth, depth + len(read))
                branches += [branch] * len(read)
                if read:
                    segments.append(Segment(prompt, own))
        owners = np.repeat(range(len(trees)), [self._size(tree) for tree in trees])
        if len(ids) >= MANY:
            # Up to a multiple of STEP, so that matrix products come in few shapes: a
            # tree of its own, which nothing attends to and which predicts nothing.
            filler = -len(ids) % STEP
            own = slice(len(ids), len(ids) + filler)
            ids += [0] * filler
            positions += [0] * filler
            branches += [0] * filler
            owners = np.append(owners, np.full(filler, len(trees)))
            segments += [Segment(own, own)] * (filler > 0)
        pairs = [pair for tree in trees for pair in tree.pairs]
        return Pack(
            torch.tensor(ids),
            torch.tensor(positions),
            torch.from_numpy(owners),
            torch.tensor(branches),
            tuple(segments),
            torch.tensor(predicts),
            self.targets(pairs, np.array(source)),
        )
