"""Five ways to read a probe set, from the fastest that is right for a model.

    tree     packed prefix trees, attention by `tree_attention`. For every transformer
             that looks its attention up in transformers' registry.
    masked   prefix trees, one at a time, attention by 4D masks. For models that attend
             in their own way.
    cached   the prompt once, its keys and values copied to each response. For models
             whose positions need real sequences (ALiBi).
    padded   whole sequences side by side. For recurrent models and prompt tuning.
    alone    one sequence at a time, should a model not keep even its padding apart.

The first three were measured to be silently wrong for some family, by up to 20 nats. So
none is used before it was compared with the plain forward on the model at hand (see
`route`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from learndyn.measure.forward import (
    Forward,
    Padded,
    adds_virtual_tokens,
    base_of,
    pad,
    text_config,
)
from learndyn.measure.plan import Pack, ProbePlan, Targets, Tree
from learndyn.measure.tree_attention import attending


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read at once."""

    tokens: int = 1024
    """Of a packed sequence."""
    rows: int | None = None
    """Predicting positions of a packed sequence; bounds the logits where those of the
    model are used."""
    batch_size: int = 8
    """Sequences side by side."""
    padding_side: Literal["right", "left"] = "right"


@runtime_checkable
class Tier(Protocol):
    """One way to read a probe set."""

    @property
    def name(self) -> str:
        """As in `run.json`."""
        ...

    def why_not(self, model: nn.Module) -> str | None:
        """Why this way is not open to a model; None if it may be tried."""
        ...

    def pieces(self, plan: ProbePlan, limits: Limits) -> Sequence[Any]:
        """The work, in order; each piece names its targets."""
        ...

    def read(self, forward: Forward, piece: Any) -> Float[Tensor, "row last"]:
        """Last hidden states (or logits) at the piece's predicting positions."""
        ...


class _TreeTier:
    """Packed prefix trees with a registered attention function."""

    name = "tree"

    def why_not(self, model: nn.Module) -> str | None:
        """Stateful models carry one token into the next outside attention."""
        base = base_of(model)
        if not getattr(base, "_supports_attention_backend", False):
            return "does not look its attention up"
        return _sequential(model)

    def pieces(self, plan: ProbePlan, limits: Limits) -> list[Pack]:
        """As many trees in one sequence as fit."""
        return plan.packs(limits.tokens, limits.rows)

    def read(self, forward: Forward, piece: Pack) -> Float[Tensor, "row last"]:
        """One forward."""
        pack = piece.to(forward.device)
        with attending(forward.model, pack) as layout:
            states = forward(
                pack.ids[None], pack.predicts, position_ids=pack.positions[None]
            )
        if layout.calls == 0:
            raise RuntimeError("the model does not look its attention up")
        return states


class _MaskedTier:
    """Prefix trees with masks of (time, time), one for each type of layer."""

    name = "masked"

    def why_not(self, model: nn.Module) -> str | None:
        """As for the tree."""
        return _sequential(model)

    def pieces(self, plan: ProbePlan, limits: Limits) -> list[Pack]:
        """One tree in a sequence: between two there is nothing to attend to."""
        return [
            pack
            for tree in plan.trees
            for pack in plan.packs(limits.tokens, limits.rows, trees=[tree])
        ]

    def read(self, forward: Forward, piece: Pack) -> Float[Tensor, "row last"]:
        """One forward."""
        pack = piece.to(forward.device)
        dtype = next(forward.model.parameters()).dtype
        return forward(
            pack.ids[None],
            pack.predicts,
            position_ids=pack.positions[None],
            attention_mask=_masks(forward.model, pack, dtype),
        )


@dataclass(frozen=True, slots=True)
class Branching:
    """A prompt and the responses that continue it, in batches of similar length."""

    prompt: Int[Tensor, "1 prompt"]
    batches: tuple[tuple[Int[Tensor, "_ _"], Bool[Tensor, "_ _"]], ...]
    """Ids, padded on the right, and where they are real. Each token predicts the
    next one, the last its response's end."""
    targets: Targets


class CachedTier:
    """The prompt's keys and values, copied to each response."""

    name = "cached"

    def why_not(self, model: nn.Module) -> str | None:
        """A recurrent state cannot be repeated like keys and values."""
        return _sequential(model)

    def pieces(self, plan: ProbePlan, limits: Limits) -> list[Branching]:
        """One prompt each."""
        return [self._branching(plan, tree, limits.batch_size) for tree in plan.trees]

    def read(self, forward: Forward, piece: Branching) -> Float[Tensor, "row last"]:
        """One forward for the prompt, one for each batch of responses."""
        device = forward.device
        prompt = piece.prompt.to(device)
        depth = prompt.shape[1]
        last = torch.tensor([depth - 1], device=device)
        states, output = forward.with_output(prompt, last, use_cache=True)
        parts = [states]
        for ids, known in piece.batches:
            # A copy: the forward appends the responses' own keys and values to it.
            cache = copy.deepcopy(output.past_key_values)
            cache.batch_repeat_interleave(len(ids))
            # Real positions: responses go on where the prompt ended.
            time = torch.arange(depth, depth + ids.shape[1], device=device)
            attention = torch.cat([known.new_ones(len(ids), depth), known], 1)
            parts.append(
                forward(
                    ids.to(device),
                    known.to(device),
                    attention_mask=attention.long().to(device),
                    position_ids=time.expand(len(ids), -1),
                    past_key_values=cache,
                    use_cache=True,
                )
            )
        return torch.cat(parts)

    def _branching(self, plan: ProbePlan, tree: Tree, batch_size: int) -> Branching:
        pairs = sorted(tree.pairs, key=lambda i: -len(plan.pairs[i].response_ids))
        batches = []
        source: list[int] = []
        rows = 1  # row 0 is the prompt's last position: it predicts all first tokens
        for first in range(0, len(pairs), batch_size):
            read = [plan.pairs[i].response_ids[:-1] for i in pairs[first:][:batch_size]]
            for ids in read:
                source += [0, *range(rows, rows + len(ids))]
                rows += len(ids)
            # A response of one token has nothing to read: its label is all there is.
            longer = [ids for ids in read if ids]
            if longer:
                batches.append(_continuations(longer))
        prompt = torch.tensor([tree.prompt_ids])
        return Branching(prompt, tuple(batches), plan.targets(pairs, np.array(source)))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Whole sequences side by side."""

    padded: Padded
    side: str
    targets: Targets


@dataclass(frozen=True, slots=True)
class PaddedTier:
    """Whole sequences of similar length, the prompt encoded once per response."""

    name: str = "padded"
    most: int | None = None
    """Sequences side by side, whatever the limits say."""

    def why_not(self, model: nn.Module) -> str | None:
        """Open to all."""
        return None

    def pieces(self, plan: ProbePlan, limits: Limits) -> list[PaddedBatch]:
        """Longest first: what does not fit into memory fails at once."""
        lengths = [len(p.prompt_ids) + len(p.response_ids) for p in plan.pairs]
        order = np.argsort(-np.array(lengths), kind="stable").tolist()
        size = self.most or (limits.batch_size if limits.rows is None else 1)
        pieces = []
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            padded = pad(
                [plan.pairs[i] for i in chosen],
                torch.device("cpu"),
                limits.padding_side,
            )
            targets = plan.targets(chosen, np.arange(len(padded.labels)))
            pieces.append(PaddedBatch(padded, limits.padding_side, targets))
        return pieces

    def read(self, forward: Forward, piece: PaddedBatch) -> Float[Tensor, "row last"]:
        """One forward."""
        attention = piece.padded.attention.to(forward.device)
        inputs: dict[str, Any] = {"attention_mask": attention}
        if piece.side == "left":
            # Without these, models with absolute positions count the padding in.
            inputs["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
        rows = piece.padded.predicts.to(forward.device)
        if len(rows) == 1:  # positions, which the model itself can select by
            rows = rows[0].nonzero().squeeze(-1)
        return forward(piece.padded.ids.to(forward.device), rows, **inputs)


ALONE = PaddedTier("alone", most=1)
"""One sequence at a time: the plain forward itself."""

TIERS: tuple[Tier, ...] = (
    _TreeTier(),
    _MaskedTier(),
    CachedTier(),
    PaddedTier(),
    ALONE,
)
"""All ways, the fastest first."""


def _sequential(model: nn.Module) -> str | None:
    base = base_of(model)
    if getattr(base, "_is_stateful", False):
        return "carries a state from token to token"
    if adds_virtual_tokens(model):
        return "puts virtual tokens before the prompt"
    return None


def _masks(model: nn.Module, pack: Pack, dtype: torch.dtype) -> Any:
    """What a model takes as its attention mask: one, or one for each type of layer.

    One mask for all layers was measured 8 to 10 nats off on models that mix sliding
    with full attention.
    """
    config = text_config(model)
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ())

    def mask(sliding: bool) -> Float[Tensor, "1 1 time time"]:
        visible = pack.visible(window if sliding else None)
        added = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        # Not -inf, as in transformers' own masks: a fully masked row stays a number.
        added.masked_fill_(~visible, torch.finfo(dtype).min)
        return added[None, None]

    if len(types) > 1:
        return {kind: mask("sliding" in kind) for kind in types}
    # With one type of layer, a config names either that or its window alone.
    return mask(not types or "sliding" in next(iter(types)))


def _continuations(
    read: Sequence[tuple[int, ...]],
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    time = max(map(len, read))
    ids = torch.zeros(len(read), time, dtype=torch.long)
    known = torch.zeros_like(ids, dtype=torch.bool)
    for row, response in enumerate(read):
        ids[row, : len(response)] = torch.tensor(response)
        known[row, : len(response)] = True
    return ids, known
