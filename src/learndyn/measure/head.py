"""The vocabulary projection, apart from the rest of the model.

A model's own forward is run with its output embedding made to hand back what it was
given. The projection then runs over response positions alone, a few rows at a time: no
tensor of (batch, time, vocab) ever exists.

What a model does to logits after the projection (Cohere and Granite scale them, Gemma
caps them) is learnt from one short forward and checked on it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.measure.neutral import is_sharded


TOLERANCE = 1e-5
"""Largest error of a learnt head, as a share of the largest logit. Two float32 routes
through the same projection differ by about 1e-6; a missed scale or cap by 1e-2."""

ROUNDINGS = 2
"""The same where it is more: in units of the distance between two numbers (2^-7 in
bfloat16, 2^-10 in float16). A model in half precision rounds its logits after each of
the three operations of a soft cap, by half a unit each; the head computes in float32,
and is the more exact of the two."""


@dataclass(frozen=True, slots=True)
class Head:
    """Maps rows of last hidden states to rows of final logits, in float32 or wider."""

    module: nn.Module
    after: Callable[[Tensor], Tensor]
    name: str
    """What follows the projection: "identity", "scale 0.0625", "softcap 30"."""
    error: float
    """Largest error seen when it was checked, as a share of the largest logit."""
    tolerance: float = TOLERANCE
    """Largest error that the model's own rounding explains."""

    @property
    def is_exact(self) -> bool:
        """Whether it may stand in for the model's own logits."""
        return self.error < self.tolerance

    def __call__(self, hidden: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
        logits = self.module(hidden)
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        # `clone` when nothing was copied: the caller overwrites what it gets
        return self.after(wide.clone() if wide is logits else wide)


def output_embedding(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits.

    Raises:
        BadInput: if the model has none, so is no causal language model.
    """
    getter = getattr(model, "get_output_embeddings", None)
    module = getter() if getter is not None else None
    config = getattr(model, "config", None)
    if module is None or getattr(config, "is_encoder_decoder", False):
        raise BadInput(
            f"{type(model).__name__} is not a causal language model: it has no output "
            "embedding over a vocabulary. Load it with AutoModelForCausalLM."
        )
    return module


@contextmanager
def tapped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, `module` records its input and returns one column of it."""
    seen: list[Tensor] = []
    own = module.__dict__.get("forward")
    module.forward = partial(_record, seen)
    try:
        yield seen
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _record(seen: list[Tensor], hidden: Tensor) -> Tensor:
    seen.append(hidden)
    return hidden[..., :1]


def learn_head(model: nn.Module, ids: Int[Tensor, "1 time"]) -> Head | None:
    """Find what the model does to logits after its output embedding, from a forward.

    Of identity, a scale and a soft cap the one that explains the model's own logits
    best; look at `is_exact` before using it.
    Returns None if the output embedding cannot be called by itself: it is sharded
    (FSDP2 gathers it only within the model's forward), or not called once.
    """
    module = output_embedding(model)
    if is_sharded(module):
        return None
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    true = model(**given).logits[0].double()
    with tapped(module) as seen:
        model(**given)
    if len(seen) != 1:  # the forward does not go through its output embedding once
        return None
    own = module(seen[0][0, -len(true) :])
    if own.shape != true.shape:
        return None
    raw = own.double()
    scale = float((true * raw).sum() / (raw * raw).sum())
    candidates: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("identity", lambda z: z),
        (f"scale {scale:.6g}", lambda z: z * scale),
    ]
    named = _cap_of(model)
    cap = named or _cap(float(raw.abs().max()), float(true.abs().max()))
    if cap is not None:
        candidates.append((f"softcap {cap:.6g}", lambda z: torch.tanh(z / cap) * cap))
    size = float(true.abs().max()) or 1.0
    misses = [(after(raw) - true).abs() / size for _, after in candidates]
    usual = [float(miss.square().mean().sqrt().nan_to_num(inf)) for miss in misses]
    # The simplest that is right: with rounding alone, scale 1.0000001 would win too
    enough = 1.1 * min(usual) + 1e-6
    best = next(i for i, miss in enumerate(usual) if miss <= enough)
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(own.dtype).eps)
    if named is not None and usual[best] > 1e-6 and misses[-1].max() < tolerance:
        best = -1  # where these logits are small, rounding hides the cap of others
    name, after = candidates[best]
    return Head(module, after, name, float(misses[best].max()), tolerance)


def _cap_of(model: nn.Module) -> float | None:
    """The soft cap that the model's config names: in half precision the logits show it
    too coarsely."""
    config = getattr(model, "config", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def _cap(raw: float, capped: float) -> float | None:
    """c with c tanh(raw / c) = capped, by bisection; None if nothing was capped."""
    if not 0 < capped < raw * (1 - 1e-6):
        return None
    low, high = capped, 1e6 * raw
    for _ in range(200):
        middle = (low + high) / 2
        value = middle * torch.tanh(torch.tensor(raw / middle, dtype=torch.float64))
        low, high = (middle, high) if value < capped else (low, middle)
    return round(high, 4)
