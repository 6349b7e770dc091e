r"""Inner products of gradients that are never formed.

The gradient of a linear layer's weight is a sum of outer products over tokens,

    g  =  sum_t  delta_t (x) x_t

delta the gradient at the layer's output, x its input. So for two responses o and u

    <g(o), g(u)>  =  sum_ts  <delta_t(o), delta_s(u)> <x_t(o), x_s(u)>

which needs x and delta alone: T (d_in + d_out) numbers instead of d_in d_out. An
embedding is the same with one-hot x. Where output and input embedding are one weight,
g has both terms, and the products of one with the other count too.

Small parameters (norms, biases) have their gradients formed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from learndyn.forces.kernel.sketch import ProbeGradients
from learndyn.measure.selftest import coarsest


_SMALL = 2**16
"""Most numbers of a parameter whose gradient is formed."""

_AGREEMENT = 1e-4
"""Largest error allowed when it is checked, as a share of the two gradients' norms, in
float32. Right ones were measured below 1e-6, without cross terms 0.01 and more."""


@dataclass(frozen=True, eq=False)
class Outer:
    """A gradient as sum_t left_t (x) right_t; `left` as ids stands for one-hot rows."""

    left: Float[Tensor, "row out"] | Int[Tensor, " row"]
    right: Float[Tensor, "row in"]

    @property
    def n_bytes(self) -> int:
        """Bytes it holds."""
        return self.left.nbytes + self.right.nbytes


@dataclass(frozen=True, eq=False)
class Factored:
    """The gradient of one pair in factors, by parameter name."""

    outer: dict[str, list[Outer]]
    formed: dict[str, Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes it holds."""
        parts = [part for parts in self.outer.values() for part in parts]
        return sum(p.n_bytes for p in parts) + sum(
            v.nbytes for v in self.formed.values()
        )


class NotCovered(Exception):
    """A parameter whose gradient this module cannot put into factors; says which."""


@dataclass(frozen=True, eq=False)
class Ghost:
    """Factors of the gradients of pairs; make it by `attach`."""

    gradients: ProbeGradients
    owners: dict[nn.Module, dict[str, str]]
    """Modules that own parameters: own name of each, and its name in the model."""

    @classmethod
    def attach(cls, gradients: ProbeGradients) -> "Ghost":
        """Find the modules that own the parameters, and check two pairs' products.

        Raises:
            NotCovered: if a parameter cannot be put into factors, or products differ
                from those of the gradients themselves.
        """
        name_of = {id(p): name for name, p in gradients.parameters.items()}
        owners: dict[nn.Module, dict[str, str]] = {}
        for module in gradients.logps.model.modules():
            own = {
                own: name_of[id(p)]
                for own, p in module._parameters.items()
                if id(p) in name_of
            }
            if own:
                owners[module] = own
        ghost = cls(gradients, owners)
        ghost._check()
        return ghost

    def __getitem__(self, row: int) -> Factored:
        """The gradient of one pair."""
        one = self.gradients.logps.select([row])
        with one.measuring(), torch.enable_grad():
            with _recording(self.owners) as calls:
                logp = torch.cat([one.logp(piece) for piece in one.pieces]).sum()
            # At the outputs alone: the parameters' own gradients, each of a parameter's
            # size, are never computed.
            outputs = [call.output for call in calls]
            deltas = torch.autograd.grad(logp, outputs, allow_unused=True)
            outer: dict[str, list[Outer]] = {}
            formed: dict[str, Tensor] = {}
            for call, delta in zip(calls, deltas, strict=True):
                if delta is not None:  # else its output was not used
                    self._add(call, delta, outer, formed)
        # One parameter in factors by one module and formed by another: their products
        # with each other would be missing.
        both = outer.keys() & formed.keys()
        if both:
            raise NotCovered(f"{min(both)} is shared by modules of different kinds")
        return Factored(outer, formed)

    def _add(
        self,
        call: "_Call",
        delta: Tensor,
        outer: dict[str, list[Outer]],
        formed: dict[str, Tensor],
    ) -> None:
        wide = self.gradients.dtype
        own = dict(self.owners[call.module])
        put = _OUTER.get(type(call.module).forward)
        if put is not None and "weight" in own:
            part = put(call.module, call.input, delta.to(wide))
            outer.setdefault(own.pop("weight"), []).append(part)
        if put is not None and "bias" in own:
            value = delta.to(wide).flatten(0, -2).sum(0)
            _accumulate(formed, own.pop("bias"), value)
        if not own:
            return
        # The rest is differentiated at the recorded input, one small module at a time.
        large = [n for n in own if call.module.get_parameter(n).numel() > _SMALL]
        if large:
            kind = type(call.module).__name__
            raise NotCovered(f"{own[large[0]]} belongs to {kind}, an unknown layer")
        parameters = [call.module.get_parameter(name) for name in own]
        parts = torch.autograd.grad(
            call.module(call.input), parameters, delta, allow_unused=True
        )
        for name, part in zip(own.values(), parts, strict=True):
            if part is not None:
                _accumulate(formed, name, part.to(wide))

    def _check(self) -> None:
        # Two pairs: their cross product fails where one-hot rows or tied weights are
        # paired up wrongly, which a single pair's norm may hide.
        rows = range(min(2, len(self.gradients)))
        exact = [self.gradients[row] for row in rows]
        own = [self[row] for row in rows]
        true = torch.tensor([[_dot(a, b) for b in exact] for a in exact])
        size = true.diagonal().sqrt()
        error = (products(own, own) - true).abs() / (size[:, None] * size)
        allowed = max(_AGREEMENT, 4 * coarsest(self.gradients.logps.model).eps)
        if float(error.max()) > allowed:
            raise NotCovered(
                f"products of two responses' gradients are off by {error.max():.1e} of "
                "their norms: a weight is used outside its own module"
            )


def products(
    rows: Sequence[Factored], columns: Sequence[Factored]
) -> Float[Tensor, "row column"]:
    """<gradient of row, gradient of column> of all pairs, in float64 on the CPU.

    Of a set with itself, half of them are computed.
    """
    same = rows is columns
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for name in _names([item.formed for item in rows], [c.formed for c in columns]):
        left, right = (_formed(side, name) for side in (rows, columns))
        total += (left @ right.T).cpu()
    for name in _names([item.outer for item in rows], [c.outer for c in columns]):
        for axes in (1, 2):  # one-hot rows, then others
            parts = [
                (i, part)
                for i, item in enumerate(rows)
                for part in item.outer.get(name, [])
                if part.left.ndim == axes
            ]
            if parts:
                others = [column.outer.get(name, []) for column in columns]
                total += _outer_products(parts, others, len(rows), same)
    if same:
        total = total.triu() + total.triu(1).T
    return total


def _names(rows: Sequence[Any], columns: Sequence[Any]) -> list[str]:
    """Parameters that both sides have used, in order."""
    other = {name for item in columns for name in item}
    return list(dict.fromkeys(n for item in rows for n in item if n in other))


def _formed(items: Sequence[Factored], name: str) -> Float[Tensor, "item number"]:
    """One small parameter's gradients; zeros where a response did not use it."""
    shape = next(item.formed[name] for item in items if name in item.formed)
    zero = torch.zeros_like(shape)
    return torch.stack([i.formed.get(name, zero).flatten().double() for i in items])


def _outer_products(
    parts: Sequence[tuple[int, Outer]],
    columns: Sequence[Sequence[Outer]],
    count: int,
    same: bool,
) -> Float[Tensor, "row column"]:
    """Those of one parameter; `parts` of one kind, each with the row it belongs to.

    With `same`, of rows up to the column's own only.
    """
    left = torch.cat([part.left for _, part in parts])
    right = torch.cat([part.right for _, part in parts])
    lengths = torch.tensor([len(part.right) for _, part in parts])
    owner = torch.tensor([row for row, _ in parts]).repeat_interleave(lengths)
    total = torch.zeros(count, len(columns), dtype=torch.float64)
    for j, others in enumerate(columns):
        above = int(torch.searchsorted(owner, j, right=True)) if same else len(owner)
        for other in others:
            # [rows' tokens, column's tokens]: the one array that grows with T^2.
            each = _gram(left[:above], other.left) * (right[:above] @ other.right.T)
            each = each.sum(1, dtype=torch.float64).cpu()
            total[:, j].index_add_(0, owner[:above], each)
    return total


def _gram(a: Tensor, b: Tensor) -> Shaped[Tensor, "row column"]:
    """Products of rows, where ids stand for one-hot rows."""
    if a.ndim == b.ndim == 1:
        return a[:, None] == b
    if a.ndim == 1:
        return b[:, a].T
    if b.ndim == 1:
        return a[:, b]
    return a @ b.T


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def _accumulate(formed: dict[str, Tensor], name: str, value: Tensor) -> None:
    formed[name] = formed[name] + value if name in formed else value


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module: the one tensor it was given, and what it made of it."""

    module: nn.Module
    input: Tensor
    output: Tensor


@contextmanager
def _recording(modules: dict[nn.Module, dict[str, str]]) -> Iterator[list[_Call]]:
    """Within the block, calls of these modules are noted."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) != 1 or not isinstance(output, Tensor):
            name = next(iter(modules[module].values()))
            raise NotCovered(
                f"{name} belongs to {type(module).__name__}, which takes more than one "
                "tensor or returns more than one"
            )
        # The input without its graph, the output with it: only deltas flow back.
        calls.append(_Call(module, given[0].detach(), output))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _linear(_module: Any, given: Tensor, delta: Tensor) -> Outer:
    """weight is (out, in)"""
    return Outer(delta.flatten(0, -2), given.flatten(0, -2).to(delta))


def _conv1d(_module: Any, given: Tensor, delta: Tensor) -> Outer:
    """weight is (in, out): GPT-2's layers"""
    return Outer(given.flatten(0, -2).to(delta), delta.flatten(0, -2))


def _embedding(module: Any, given: Tensor, delta: Tensor) -> Outer:
    """weight is (id, out); torch gives its padding row no gradient"""
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise NotCovered("an embedding scales its gradient, or its weights, by itself")
    ids, rows = given.flatten(), delta.flatten(0, -2)
    if module.padding_idx is not None:
        real = ids != module.padding_idx
        ids, rows = ids[real], rows[real]
    return Outer(ids, rows)


_OUTER: dict[Any, Callable[[Any, Tensor, Tensor], Outer]] = {
    nn.Linear.forward: _linear,
    Conv1D.forward: _conv1d,
    nn.Embedding.forward: _embedding,
}
"""By forward, not by class: a subclass that scales its output is another thing."""
