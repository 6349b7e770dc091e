"""Matrix products by the faster of two libraries.

torch multiplies float32 matrices on a CPU by MKL, which leaves half of an AMD processor
idle. oneDNN, which torch has as well, was measured 2.2 times as fast on a Zen 5 core
(262 against 118 Gflop/s; 1.7 times for a whole scoring), with errors of the same size
(2e-7 of the result), and 0.9 to 1.1 times on an Intel Xeon. So within `fast_linear`
linear layers use it only where a trial at the first use finds it faster; where torch
lacks the operator, which is private, or the self-test finds its errors too large, MKL
stays.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode


STEP = 64
"""Matrices of many rows are padded to a multiple of this."""

MANY = 8 * STEP
"""Fewest rows that are padded: then zeros are below 12 % of them, and 2 % on average of
packs of 2,048 tokens."""

_ACTIVE: ContextVar[bool] = ContextVar("learndyn_fast_linear", default=False)

_WORTH = 1.3
"""How much faster oneDNN must be: below it, both are as good."""


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight.T + bias, by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


@contextmanager
def fast_linear() -> Iterator[None]:
    """Within the block, float32 linear layers on a CPU use the faster library."""
    if not onednn_is_faster():
        yield
        return
    token = _ACTIVE.set(True)
    try:
        with _ByOneDnn():
            yield
    finally:
        _ACTIVE.reset(token)


def goes_by_onednn(rows: Tensor) -> bool:
    """Whether `product` takes these rows: within `fast_linear` alone."""
    return _ACTIVE.get() and _is_plain((rows,))


def in_few_shapes(rows: Float[Tensor, "row d"]) -> Float[Tensor, "more d"]:
    """The same with rows of zeros below, up to a multiple of `STEP` if they are many.

    oneDNN compiles a kernel for every shape, and keeps about 0.5 MB of each.
    """
    if len(rows) < MANY or not goes_by_onednn(rows):
        return rows
    return functional.pad(rows, (0, 0, 0, -len(rows) % STEP))


class _ByOneDnn(TorchFunctionMode):
    """Sends `linear` of plain float32 tensors to oneDNN; all else stays."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """One call of a torch function."""
        # The cheap test first: this stands before every torch function of a forward.
        if func not in _REPLACED or kwargs or not _is_plain(args):
            return func(*args, **(kwargs or {}))
        if func is functional.linear:
            return _dual_product(*args, *([None] if len(args) == 2 else []))
        bias, rows, columns = args
        if bias.ndim == 1:  # GPT-2's layers
            return _dual_product(rows, columns.T, bias)
        return func(*args)


_REPLACED = frozenset({functional.linear, torch.addmm})


def _dual_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`product`, which has no forward derivative, with its forward derivative."""
    x, dx = forward_ad.unpack_dual(rows)
    w, dw = forward_ad.unpack_dual(weight)
    b, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    value = product(x, w, b)
    changes = [] if dx is None else [product(dx.contiguous(), w, None)]
    changes += [] if dw is None else [product(x, dw, None)]
    changes += [] if db is None else [db.expand_as(value)]
    if not changes:
        return value
    return forward_ad.make_dual(value, sum(changes[1:], changes[0]))


def _is_plain(tensors: tuple[Any, ...]) -> bool:
    return all(
        t is None
        or (
            type(t) in (Tensor, torch.nn.Parameter)
            and t.dtype == torch.float32
            and t.device.type == "cpu"
            and (t.is_contiguous() or t.mT.is_contiguous())  # others are slow there
        )
        for t in tensors
    )


@cache
def onednn_is_faster() -> bool:
    """Whether a trial of 2 GFlop finds oneDNN `_WORTH` times as fast as MKL."""
    if not torch.backends.mkldnn.is_available():
        return False
    rows, weight = torch.ones(256, 512), torch.ones(512, 512)
    seconds: dict[Callable[..., Tensor], float] = {}
    try:
        # In turns, and the best of each: a neighbour's load then slows both. The first
        # call of each also sets its library up.
        for _ in range(8):
            for multiply in (functional.linear, product):
                took = _timed(multiply, rows, weight, None)
                seconds[multiply] = min(took, seconds.get(multiply, took))
    except (AttributeError, RuntimeError):  # a build without this operator
        return False
    return seconds[functional.linear] > _WORTH * seconds[product]


def _timed(multiply: Callable[..., Tensor], *given: Tensor | None) -> float:
    began = time.perf_counter()
    multiply(*given)
    return time.perf_counter() - began
