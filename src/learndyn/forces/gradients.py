"""Log-probabilities of response tokens that can be differentiated, in both directions.

Probes are read as scoring reads them: laid out as prefix trees where the model allows
it, so that forward mode too encodes a prompt once for all its responses. Only the head
differs. Backward, logits are made a few rows at a time, and no statistic but log pi(y)
is kept. Forward (`_TangentHead`), the derivative of the vocabulary projection is folded
in tiles,

    d log pi(y)  =  dz_y  -  sum_v pi_v dz_v,      z = W h + b,   dz = W dh + dW h + db

and no row of logits exists as a whole. Each distinct state is projected once, however
many labels it predicts: a prompt's last token predicts the first one of every response.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from learndyn.errors import BadInput
from learndyn.forces.direction import Direction, norm, parameters_of
from learndyn.measure.forward import text_config
from learndyn.measure.linear import fast_linear, in_few_shapes
from learndyn.measure.neutral import undisturbed
from learndyn.measure.plan import ProbePlan
from learndyn.measure.reader import Reader, most_rows
from learndyn.measure.score import Scorer
from learndyn.measure.tiers import CachedTier, PaddedTier, Tier
from learndyn.measure.tiles import ROWS, TILE, WIDE, is_plain_linear
from learndyn.probes.tokenize import TokenizedPair


@dataclass(frozen=True, eq=False)
class Rows:
    """Logits at some response tokens, and which tokens those are."""

    logits: Float[Tensor, "label vocab"]
    labels: Int[Tensor, " label"]
    """The response tokens."""
    flat: Int[Tensor, " label"]
    """Where each stands in the flat order: token after token, pair after pair."""

    @property
    def logp(self) -> Float[Tensor, " label"]:
        """log pi of each response token, in nats."""
        # As TRL does it; log_softmax would make another array of the logits' size, and
        # in float32 on a CPU it is biased by 4e-6 nats at 50,000 tokens.
        own = self.logits.gather(-1, self.labels[:, None]).squeeze(-1)
        return own - self.logits.logsumexp(-1)

    @property
    def tangent(self) -> Float[Tensor, " label"]:
        """In forward mode, d log pi of each response token: dz_y - sum_v pi_v dz_v.

        Zero if these logits do not depend on what moves.
        """
        logits, change = forward_ad.unpack_dual(self.logits)
        if change is None:
            return logits.new_zeros(len(logits))
        own = change.gather(-1, self.labels[:, None]).squeeze(-1)
        return own - torch.linalg.vecdot(logits.softmax(-1), change)


@dataclass(frozen=True, eq=False)
class TokenLogps:
    """log pi of every response token of some pairs under a model; make it by `of`."""

    plan: ProbePlan
    reader: Reader
    tier: Tier

    @classmethod
    def of(cls, scorer: Scorer) -> "TokenLogps":
        """The pairs of `scorer`, read as it does where that can be differentiated.

        The cached tier cannot: it copies keys and values, and a copy has no derivative.
        """
        tier = scorer.reader.tier
        if isinstance(tier, CachedTier):
            tier = PaddedTier()
        return cls(scorer.plan, scorer.reader, tier)

    @property
    def model(self) -> nn.Module:
        """What is read."""
        return self.reader.forward.model

    def select(self, rows: Sequence[int]) -> "TokenLogps":
        """The same for some of the pairs, in the order of `rows`."""
        return self.on([self.plan.pairs[i] for i in rows])

    def on(self, pairs: Sequence[TokenizedPair]) -> "TokenLogps":
        """The same way of reading for other pairs."""
        return replace(self, plan=ProbePlan(tuple(pairs)))

    @cached_property
    def pieces(self) -> Sequence[Any]:
        """The work, as the tier lays it out."""
        return self.tier.pieces(self.plan, self.reader.limits)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model tells apart."""
        return int(text_config(self.model).vocab_size)

    @property
    def offsets(self) -> Int[np.ndarray, " bound"]:
        """Pair i owns the tokens `offsets[i]:offsets[i + 1]` of the flat order."""
        return self.plan.starts

    def summed(self, values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " pair"]:
        """Sums over each pair's tokens."""
        # Not `add.reduceat`: it gives a pair without tokens the next pair's number.
        counts = np.diff(self.offsets)
        owners = np.repeat(np.arange(len(counts)), counts)
        return np.bincount(owners, values, minlength=len(counts))

    def rows(self, piece: Any) -> Iterator[Rows]:
        """Logits at every label of a piece, a few at a time.

        Differentiable where the caller has made it so. Must be used up within
        `measuring`.
        """
        forward, head, _ = self.reader.current()
        states = self.tier.read(forward, piece)  # [row, d], or [row, vocab] of logits
        device, targets = states.device, piece.targets
        size = most_rows(self.vocabulary, device)
        for first in range(0, len(targets.labels), size):
            part = slice(first, first + size)
            source = torch.from_numpy(targets.source[part]).to(device)
            labels = torch.from_numpy(targets.labels[part]).to(device)
            logits = states[source]  # [label, ...]: a state may predict many labels
            if head is not None:
                logits = head(logits)
            elif logits.dtype != torch.float64:
                # A sum over 150,000 tokens in bfloat16 keeps 3 digits of log pi.
                logits = logits.float()
            yield Rows(logits, labels, torch.from_numpy(targets.flat[part]))

    def logp(self, piece: Any) -> Float[Tensor, " label"]:
        """log pi of every label of a piece, in nats, differentiable."""
        return torch.cat([rows.logp for rows in self.rows(piece)])

    def values(self) -> Float[np.ndarray, " token"]:
        """log pi of every response token with the model as it stands, in float64."""
        logp = np.empty(self.plan.n_tokens)
        with self.measuring():
            for piece in self.pieces:
                for rows in self.rows(piece):
                    logp[rows.flat.numpy()] = rows.logp.double().cpu().numpy()
        return logp

    def along(self, direction: Direction, read: Callable[[Rows], None]) -> None:
        """Call `read` on all rows, in forward mode along a direction.

        Within the call, `forward_ad.unpack_dual` gives logits (or what `read` makes of
        them) and their derivative.

        Raises:
            NotImplementedError, RuntimeError: if the model has a part without forward
                derivative.
        """

        def run() -> None:
            for piece in self.pieces:
                for rows in self.rows(piece):
                    read(rows)

        self._dual(direction, run)

    def tangents(self, direction: Direction) -> Float[np.ndarray, " token"]:
        """d log pi of every response token along a direction, in nats, float64."""
        changes = np.zeros(self.plan.n_tokens)
        direction, size = _in_range(self.model, direction)

        def run() -> None:
            # Within `_dual`: only there do the head's weights carry their derivative.
            forward, head, _ = self.reader.current()
            tiled = None if head is None else _TangentHead.of(head.module, head.after)
            for piece in self.pieces:
                if tiled is None:
                    for rows in self.rows(piece):
                        tangent = rows.tangent.double().cpu().numpy()
                        changes[rows.flat.numpy()] = tangent
                    continue
                states, targets = self.tier.read(forward, piece), piece.targets
                source = torch.from_numpy(targets.source).to(states.device)
                labels = torch.from_numpy(targets.labels).to(states.device)
                tangent = tiled(states, source, labels)
                changes[targets.flat] = tangent.double().cpu().numpy()

        self._dual(direction, run)
        return changes * size

    def _dual(self, direction: Direction, run: Callable[[], None]) -> None:
        """Run with parameters that carry a direction as their derivative."""
        parameters = dict(self.model.named_parameters())
        library = fast_linear() if self.reader.fast else nullcontext()
        with (
            self.measuring(),
            library,
            # The fused attention kernels have no forward derivative, on CPU nor CUDA.
            # This one is written out in torch and also rounds less than "eager", which
            # upcasts softmax to float32 even in a float64 model.
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
        ):
            with warnings.catch_warnings():
                # At its first use torch calls what torch itself deprecates.
                warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
                duals = {
                    f"model.{name}": forward_ad.make_dual(
                        parameters[name].detach(), part.to(parameters[name])
                    )
                    for name, part in direction.items()
                }
            # Not by assignment: a Parameter cannot hold a dual tensor. And tied weights
            # have one name here, under which functional_call replaces all their uses.
            functional_call(_WithModel(self.model), duals, (run,))

    def pullback(self, weights: Float[np.ndarray, " token"]) -> dict[str, Tensor]:
        """sum_l weights[l] d log pi(y_l) / d theta, over all response tokens.

        Returns one tensor for each parameter that training may move. With dL/dlogp for
        weights this is the gradient of the loss.

        Raises:
            BadInput: if it is not finite, or nothing can move.
        """
        parameters = parameters_of(self.model)
        if not parameters:
            raise BadInput(
                f"no parameter of {type(self.model).__name__} has requires_grad: "
                "nothing can move. Unfreeze some, or attach an adapter."
            )
        # Sums of many small parts, in float32 or wider: in bfloat16 the parts after the
        # first few would be rounded away.
        total = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for name, p in parameters.items()
        }
        with self.measuring(), torch.enable_grad():
            for piece in self.pieces:
                outer = torch.from_numpy(weights[piece.targets.flat])
                if not bool(outer.any()):
                    continue  # sign splits leave whole pieces without weight
                logp = self.logp(piece)
                parts = torch.autograd.grad(
                    logp,
                    list(parameters.values()),
                    grad_outputs=outer.to(logp),
                    # Experts that no token was routed to, heads of other tasks.
                    allow_unused=True,
                )
                for name, part in zip(total, parts, strict=True):
                    if part is not None:
                        total[name] += part
        if not np.isfinite(norm(total.values())):
            raise BadInput(
                f"the gradient of {len(self.plan.pairs)} responses is not finite. "
                "Check the model's weights and the loss for NaN or infinity."
            )
        return total

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within the block the model is in eval mode and its autocast casts are fresh.

        Casts of the block before would be those of other weights: a finite difference
        within one autocast block was measured 75 % off.
        """
        with undisturbed(self.model), self.reader.casting():
            yield


def _in_range(model: nn.Module, direction: Direction) -> tuple[Direction, float]:
    """The direction as long as the weights, and by how much it was lengthened.

    A derivative is linear, but in float16 the numbers of a small step are zero. In
    float32 and wider nothing is changed.
    """
    parameters = dict(model.named_parameters())
    # Only half precision needs it, and only there may numbers change in their last bit.
    if all(parameters[name].dtype.itemsize >= 4 for name in direction):
        return direction, 1.0
    length = norm(part.float() for part in direction.values())
    weights = norm(parameters[name].float() for name in direction) or 1.0
    size = length / weights
    return {name: part.float() / size for name, part in direction.items()}, size


class _WithModel(nn.Module):
    """Lets `functional_call` run any function while a model has other parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], None]) -> None:
        run()


_Dual = tuple[Tensor | None, Tensor | None]
"""A value and its derivative; None for zero."""


@dataclass(frozen=True, eq=False)
class _TangentHead:
    """A plain linear projection with what a model does to its logits next."""

    module: nn.Linear
    after: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, module: nn.Module, after: Callable[[Tensor], Tensor]
    ) -> "_TangentHead | None":
        """None if `module` is more than a plain linear layer: adapters, hooks."""
        return cls(module, after) if is_plain_linear(module) else None

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
        return out  # plain numbers: the derivative is the value here

    def _block(self, states: Tensor, source: Tensor, labels: Tensor) -> Tensor:
        weight = forward_ad.unpack_dual(self.module.weight)
        bias: _Dual = (None, None)
        if self.module.bias is not None:
            bias = forward_ad.unpack_dual(self.module.bias)
        hidden = forward_ad.unpack_dual(states)
        rows, wide = len(states), _wide(states)
        h = in_few_shapes(hidden.primal.to(weight.primal.dtype))
        dh = hidden.tangent
        dh = None if dh is None else in_few_shapes(dh.to(h.dtype).contiguous())
        # A running softmax: `top` is the largest logit so far, `mass` the sum of
        # exp(z - top) and `mean` that of exp(z - top) dz, both rescaled whenever a tile
        # has a larger one. So no exponential overflows, whatever the logits.
        top = torch.full((rows,), -torch.inf, dtype=wide, device=states.device)
        mass, mean = torch.zeros_like(top), torch.zeros_like(top)
        own = torch.zeros(len(labels), dtype=wide, device=states.device)
        tile = TILE if states.device.type == "cpu" else WIDE * TILE
        for begin in range(0, len(weight.primal), tile):
            part = slice(begin, begin + tile)
            z, dz = self._tile(h, dh, _cut(weight, part), _cut(bias, part))
            z, dz = z[:rows].to(wide), dz[:rows].to(wide)  # without padding rows
            here = (labels >= begin) & (labels < begin + z.shape[1])
            own[here] = dz[source[here], labels[here] - begin]
            peak = torch.maximum(top, z.amax(-1))
            shrink = (top - peak).exp()  # 0 for the first tile, where top is -inf
            weights = z.sub_(peak[:, None]).exp_()
            mass = mass * shrink + weights.sum(-1)
            mean = mean * shrink + torch.linalg.vecdot(weights, dz)
            top = peak
        return own - (mean / mass)[source]

    def _tile(
        self, h: Tensor, dh: Tensor | None, weight: _Dual, bias: _Dual
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
        # A soft cap is not linear: its own derivative is torch's business.
        value, change = forward_ad.unpack_dual(self.after(forward_ad.make_dual(z, dz)))
        assert change is not None
        return value, change


def _cut(dual: _Dual, part: slice) -> _Dual:
    value, change = dual
    return (
        None if value is None else value[part],
        None if change is None else change[part],
    )


def _wide(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)
