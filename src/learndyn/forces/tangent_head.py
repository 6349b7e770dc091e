"""d log pi through the vocabulary projection in forward mode, in tiles.

    d log pi(y)  =  dz_y  -  sum_v pi_v dz_v,      z = W h + b,   dz = W dh + dW h + db

A tile of z and dz is made and folded into running sums while it is in the cache; no row
of logits exists as a whole. Each distinct state is projected once, however many labels
it predicts (a prompt's last token predicts the first one of every response).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from learndyn.measure.linear import in_few_shapes
from learndyn.measure.tiles import ROWS, TILE, WIDE


Pair = tuple[Tensor | None, Tensor | None]
"""A value and its derivative; None for zero."""


@dataclass(frozen=True, eq=False)
class TangentHead:
    """A plain linear projection with what a model does to its logits next."""

    module: nn.Linear
    after: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, module: nn.Module, after: Callable[[Tensor], Tensor]
    ) -> "TangentHead | None":
        """None if `module` is more than a plain linear layer: adapters, hooks."""
        hooked = module._forward_hooks or module._forward_pre_hooks
        if type(module) is not nn.Linear or hooked or "forward" in module.__dict__:
            return None
        return cls(module, after) if module.weight.is_floating_point() else None

    def __call__(
        self,
        states: Float[Tensor, "row d"],
        source: Int[Tensor, " label"],
        labels: Int[Tensor, " label"],
    ) -> Float[Tensor, " label"]:
        """Derivative of each label's log-probability; dual states, dual weights."""
        most = ROWS if states.device.type == "cpu" else WIDE * ROWS
        out = torch.empty(len(labels), dtype=_wide(states), device=states.device)
        for first in range(0, len(states), most):
            block = states[first : first + most]
            mine = (source >= first) & (source < first + len(block))
            out[mine] = self._block(block, source[mine] - first, labels[mine])
        return out

    def _block(self, states: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        weight = forward_ad.unpack_dual(self.module.weight)
        bias: Pair = (None, None)
        if self.module.bias is not None:
            bias = forward_ad.unpack_dual(self.module.bias)
        hidden = forward_ad.unpack_dual(states)
        rows, wide = len(states), _wide(states)
        h = in_few_shapes(hidden.primal.to(weight.primal.dtype))
        dh = hidden.tangent
        dh = None if dh is None else in_few_shapes(dh.to(h.dtype).contiguous())
        top = torch.full((rows,), -torch.inf, dtype=wide, device=states.device)
        mass, mean = torch.zeros_like(top), torch.zeros_like(top)
        own = torch.zeros(len(labels), dtype=wide, device=states.device)
        tile = TILE if states.device.type == "cpu" else WIDE * TILE
        for begin in range(0, len(weight.primal), tile):
            part = slice(begin, begin + tile)
            z, dz = self._tile(h, dh, _cut(weight, part), _cut(bias, part))
            z, dz = z[:rows].to(wide), dz[:rows].to(wide)
            here = (labels >= begin) & (labels < begin + z.shape[1])
            own[here] = dz[source[here], labels[here] - begin]
            peak = torch.maximum(top, z.amax(-1))
            shrink = (top - peak).exp()
            weights = z.sub_(peak[:, None]).exp_()
            mass = mass * shrink + weights.sum(-1)
            mean = mean * shrink + torch.linalg.vecdot(weights, dz)
            top = peak
        return own - (mean / mass)[source]

    def _tile(
        self, h: Tensor, dh: Tensor | None, weight: Pair, bias: Pair
    ) -> tuple[Tensor, Tensor]:
        """Logits of a tile, in a buffer of their own, and their derivative."""
        (w, dw), (b, db) = weight, bias
        assert w is not None
        z = functional.linear(h, w, b)
        dz = torch.zeros_like(z) if dh is None else functional.linear(dh, w)
        if dw is not None:
            dz += functional.linear(h, dw)
        if db is not None:
            dz += db
        value, change = forward_ad.unpack_dual(self.after(forward_ad.make_dual(z, dz)))
        assert change is not None
        return value, change


def _cut(pair: Pair, part: slice) -> Pair:
    value, change = pair
    return (
        None if value is None else value[part],
        None if change is None else change[part],
    )


def _wide(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)
