"""The vocabulary projection in tiles: logits that are used up where they are made.

A block of positions is multiplied by 1,024 rows of the output embedding at a time, and
what comes out is folded into sums while it is still in the cache. No row of logits ever
exists as a whole. At width 512 the folding costs 7 to 8 % of the matrix product on a
CPU. `torch.compile` would make that 5 %, take seconds at the start and need a C++
compiler: it is not used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.measure.linear import goes_by_onednn, in_few_shapes, product
from learndyn.measure.statistics import (
    RowStatistics,
    VocabularySums,
    row_statistics,
)


TILE = 1024
"""Tokens in a tile. Two float32 buffers of a block x 1,024 stay in a CPU's caches: 512
and 1,024 measured equal, 2,048 costs 3 % more, 4,096 15 %."""

ROWS = 1024
"""Most positions in a block."""

WIDE = 8
"""How many times larger both may be on other devices, where launching a kernel costs
more than fetching memory."""

_TAIL = 1e-30
"""Relative to the argmax, the others' sum leaves float32 at about 1e-38. Rows in which
it is below this (p_max > 1 - 1e-30) are swept again, relative to their second-largest
logit."""

_AGAIN = 8
"""Rows swept again at once."""

_LOG2_E = math.log2(math.e)

_NOTHING = -1e4
"""An exponent of 2 that is 0 in any precision."""


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module multiplies by its own weights and does no more.

    Adapters subclass or wrap, PEFT and others hook, accelerate puts a forward of its
    own on the instance, and quantized weights are integers.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks
    return (
        type(module) is nn.Linear
        and not hooked
        and "forward" not in module.__dict__
        and module.weight.is_floating_point()
    )


@dataclass(frozen=True, slots=True)
class Tiles:
    """A plain linear projection, read tile by tile."""

    weight: Float[Tensor, "vocab d"]
    bias: Float[Tensor, " vocab"] | None
    after: Callable[[Tensor], Tensor]
    """What the model does to its logits next."""

    @classmethod
    def of(
        cls,
        module: nn.Module,
        after: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None = None,
    ) -> "Tiles | None":
        """None if `module` is more than a plain linear layer, or holds other weights.

        Adapters, hooks, quantized and sharded weights are more. With a `dtype` the
        projection is computed in it.
        """
        if not is_plain_linear(module):
            return None
        if any(type(p) is not nn.Parameter for p in module.parameters()):
            return None
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        if dtype is not None:
            weight = weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return cls(weight, bias, after)

    def __call__(
        self,
        hidden: Float[Tensor, "row d"],
        source: Int[Tensor, " label"],
        labels: Int[Tensor, " label"],
        start_ids: Int[Tensor, " label"] | None,
    ) -> RowStatistics:
        """Statistics of each label, predicted by row `source` of `hidden`."""
        hidden = hidden.to(self.weight.dtype)
        most = ROWS if hidden.device.type == "cpu" else WIDE * ROWS
        # Blocks of one size: a last one of few rows would read all weights for little.
        rows = -(-len(hidden) // -(-len(hidden) // most))
        parts, where = [], []
        for first in range(0, len(hidden), rows):
            block = in_few_shapes(hidden[first : first + rows])
            mine = ((source >= first) & (source < first + rows)).nonzero().squeeze(-1)
            starts = None if start_ids is None else start_ids[mine]
            parts.append(self._block(block, source[mine] - first, labels[mine], starts))
            where.append(mine)
        return RowStatistics.concatenate(parts).take(torch.cat(where).argsort())

    def _block(
        self,
        hidden: Float[Tensor, "row d"],
        source: Int[Tensor, " label"],
        labels: Int[Tensor, " label"],
        start_ids: Int[Tensor, " label"] | None,
    ) -> RowStatistics:
        vocabulary = len(self.weight)
        tile = min(TILE if hidden.device.type == "cpu" else WIDE * TILE, vocabulary)
        begins = range(0, vocabulary, tile)
        picked = [_Picked(source, labels, begins)]
        if start_ids is not None:
            picked.append(_Picked(source, start_ids, begins))
        # One buffer for all tiles: in ways that make whole logits, page faults of fresh
        # memory were 14 to 36 % of the time on a CPU.
        buffer = hidden.new_empty(len(hidden), tile)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        fold = _Fold(len(hidden), begins, buffer.to(wide))
        for number, begin in enumerate(begins):
            logits = self._logits(hidden, begin, begin + tile, buffer)
            for tokens in picked:
                tokens.pick(logits, number)
            fold.add(logits, number)  # overwrites the tile
        swept = fold.sums().take(source)  # from one row per state to one per label
        rows = swept.statistics(labels, *(tokens.logits for tokens in picked))
        # Where the argmax has nearly all mass, the others' sums left float32: 0 or NaN.
        lost = ~(swept.total > _TAIL) | ~torch.isfinite(swept.spread)
        lost &= ~torch.isnan(swept.top)  # a model that has diverged
        again = lost.nonzero().squeeze(-1)
        for some in again.split(_AGAIN) if len(again) else ():
            logits = self._logits(hidden[source[some]], 0, vocabulary, hidden[:0])
            starts = None if start_ids is None else start_ids[some]
            rows.put(some, row_statistics(logits, labels[some], starts))
        return rows

    def _logits(
        self, hidden: Tensor, begin: int, end: int, buffer: Tensor
    ) -> Float[Tensor, "row tile"]:
        """Final logits of some tokens, in float32 or wider; in `buffer` if they fit."""
        if goes_by_onednn(hidden):
            bias = None if self.bias is None else self.bias[begin:end]
            return self.after(product(hidden, self.weight[begin:end], bias))
        columns = self.weight[begin:end].T
        out = buffer if buffer.shape == (len(hidden), columns.shape[1]) else None
        if self.bias is None:
            logits = torch.mm(hidden, columns, out=out)
        else:
            logits = torch.addmm(self.bias[begin:end], hidden, columns, out=out)
        return self.after(logits.to(torch.promote_types(logits.dtype, torch.float32)))


class _Picked:
    """Logits of one token per label, picked out of the tiles as they pass."""

    def __init__(
        self, source: Int[Tensor, " label"], ids: Int[Tensor, " label"], begins: range
    ) -> None:
        # Sorted by token once, so that each tile's labels are a slice.
        self.order = ids.argsort()
        self.source = source[self.order]
        self.ids = ids[self.order]
        self.begins = begins
        edges = torch.tensor([*begins, begins.stop], device=ids.device)
        self.bounds = torch.searchsorted(self.ids, edges).tolist()
        self.logits = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)

    def pick(self, tile: Float[Tensor, "row tile"], number: int) -> None:
        """Take what tile `number` holds."""
        here = slice(self.bounds[number], self.bounds[number + 1])
        columns = self.ids[here] - self.begins[number]
        self.logits[self.order[here]] = tile[self.source[here], columns].double()


class _Fold:
    """Sums over the tiles that have passed, one row per position.

    A tile is summed relative to its own maximum, which stays out of its sums. Tiles are
    joined in float64 at the end. All room is taken at the start: small tensors that
    outlive large ones leave holes that the next large one does not fit, and cost up to
    300 MB.
    """

    def __init__(self, rows: int, begins: range, like: Tensor) -> None:
        self.begins = begins
        self.best = torch.full((rows,), -torch.inf, dtype=like.dtype).to(like.device)
        self.argmax_id = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.parts = like.new_empty(4, len(begins), rows, dtype=torch.float64)
        self.spare = like.new_empty(rows, begins.step)

    def add(self, tile: Float[Tensor, "row tile"], number: int) -> None:
        """Fold one tile of logits, which is overwritten."""
        # A tile of nothing but masked tokens has -inf, and -inf - -inf is NaN.
        top = tile.amax(-1).clamp(min=torch.finfo(tile.dtype).min)
        # On a CPU an argmax costs ten times a maximum, and few rows have a new one.
        rows = (top > self.best).nonzero().squeeze(-1)
        spare = self.spare if tile.shape == self.spare.shape else torch.empty_like(tile)
        new = torch.index_select(tile, 0, rows, out=spare[: len(rows)])
        self.argmax_id[rows] = new.argmax(-1) + self.begins[number]
        torch.maximum(self.best, top, out=self.best)

        # Some models mask tokens with -inf, and -inf times 0 is NaN.
        back = tile.sub_(top[:, None]).mul_(_LOG2_E).clamp_(min=_NOTHING)
        # exp2 takes a quarter of the time of exp on a CPU (torch 2.13)
        below = torch.exp2(back, out=spare).neg_()
        with_top = below.sum(-1)
        torch.threshold_(below, -1.0, 0.0)  # the maximum is -1: it goes
        total = below.sum(-1)
        # Tokens equal to the maximum went with it; all but one of them come back.
        ties = (total - with_top).round() - 1
        spread = back.mul_(below).sum(-1) / _LOG2_E
        squares = below.square_().sum(-1) + ties
        self.parts[:, number] = torch.stack((top, ties - total, spread, squares))

    def sums(self) -> VocabularySums:
        """All tiles together, relative to the largest logit."""
        tops, totals, spreads, squares = self.parts.transpose(1, 2)
        top = tops.amax(-1)
        home = torch.div(self.argmax_id, self.begins.step, rounding_mode="floor")
        # Log-sum-exp of the tiles' sums, each relative to its own maximum. In float64:
        # up to 150 tiles are joined, and p near 1 needs all digits of the rest.
        back = tops - top[:, None]
        share = back.exp()
        # The maxima of all tiles but one are tokens like the others.
        others = torch.ones_like(tops).scatter_(-1, home[:, None], 0.0)
        totals = totals + others
        return VocabularySums(
            top=top,
            argmax_id=self.argmax_id,
            reference=top,
            total=(share * totals).sum(-1),
            spread=(share * (spreads - back * totals)).sum(-1),
            squares=(share**2 * (squares + others)).sum(-1),
        )
