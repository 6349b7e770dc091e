"""One model's own forward, and out of it only the positions that predict a response.

The root forward is called, so that hooks (FSDP, PEFT, accelerate) run and whatever a
model does before its output embedding is done. The output embedding alone is made to
hand back what it was given. The projection then runs over response positions, a few
rows at a time: no tensor of (batch, time, vocab) ever exists. Where the output
embedding cannot be taken apart so, the rows are the model's own logits.

What a model does to logits after the projection (Cohere and Granite scale them, Gemma
caps them) is learnt from one short forward and checked on it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.measure.neutral import device_of, is_sharded
from learndyn.probes.tokenize import TokenizedPair


_TOLERANCE = 1e-5
"""Largest error of a learnt head, as a share of the largest logit. Two float32 routes
through the same projection differ by about 1e-6; a missed scale or cap by 1e-2."""

_ROUNDINGS = 2
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
    tolerance: float = _TOLERANCE
    """Largest error that the model's own rounding explains."""

    @property
    def is_exact(self) -> bool:
        """Whether it may stand in for the model's own logits."""
        return self.error < self.tolerance

    def __call__(self, hidden: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
        logits = self.module(hidden)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # `clone` when nothing was copied: the caller overwrites what it gets
        return self.after(wide.clone() if wide is logits else wide)


def output_embedding(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits.

    Raises:
        BadInput: if the model has none, so it is not a causal language model.
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
def _tapped(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, `module` records its inputs and returns one column of each."""
    inputs: list[Tensor] = []
    # On the instance and not by a hook: a hook's result still has the projection
    # computed first. accelerate puts a forward of its own there, which comes back.
    own = module.__dict__.get("forward")
    module.forward = partial(_record, inputs)
    try:
        yield inputs
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _record(inputs: list[Tensor], hidden: Tensor) -> Tensor:
    inputs.append(hidden)
    return hidden[..., :1]  # one column: what follows may scale, cap or slice it


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
    with _tapped(module) as inputs:
        model(**given)
    if len(inputs) != 1:  # the forward does not go through its output embedding once
        return None
    own = module(inputs[0][0, -len(true) :])  # virtual tokens, if any, come first
    if own.shape != true.shape:
        return None
    raw = own.double()
    # The least-squares scale; 1 up to rounding where there is none.
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
    # The simplest that is right: by rounding alone, scale 1.0000001 would win too.
    enough = 1.1 * min(usual) + 1e-6
    best = next(i for i, miss in enumerate(usual) if miss <= enough)
    tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(own.dtype).eps)
    if named is not None and usual[best] > 1e-6 and misses[-1].max() < tolerance:
        best = -1  # these logits are small: rounding hides a cap that bites others
    name, after = candidates[best]
    return Head(module, after, name, float(misses[best].max()), tolerance)


def _cap_of(model: nn.Module) -> float | None:
    """The soft cap that the model's config names: half-precision logits show it only
    coarsely."""
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


_OPTIONAL = frozenset({"use_cache", "position_ids"})
"""Inputs that are left out where a model does not take them."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Calls a model; make it by `of`."""

    model: nn.Module
    tap: nn.Module | None
    """The output embedding, whose input is read; None reads logits."""
    accepts: frozenset[str]
    """Names that the forward takes."""

    @classmethod
    def of(cls, model: nn.Module, tap: nn.Module | None) -> "Forward":
        """A wrapper such as PEFT's takes **kwargs for the model within."""
        accepts = frozenset(inspect.signature(type(model).forward).parameters)
        base = base_of(model)
        accepts |= frozenset(inspect.signature(type(base).forward).parameters)
        if adds_virtual_tokens(model):  # then positions are not those of `ids`
            accepts -= {"logits_to_keep"}
        return cls(model, tap, accepts)

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return device_of(self.model)

    def __call__(
        self, ids: Int[Tensor, "batch time"], rows: Tensor, **inputs: Any
    ) -> Float[Tensor, "row last"]:
        """Last hidden states, or logits, at `rows`.

        `rows` are positions of a single sequence, or a mask (batch, time).
        """
        return self.with_output(ids, rows, **inputs)[0]

    def with_output(
        self, ids: Int[Tensor, "batch time"], rows: Tensor, **inputs: Any
    ) -> tuple[Float[Tensor, "row last"], Any]:
        """The same, and all that the model returned."""
        inputs.setdefault("use_cache", False)
        given = {
            name: value
            for name, value in inputs.items()
            if name in self.accepts or name not in _OPTIONAL
        }
        single = rows.ndim == 1
        if single and "logits_to_keep" in self.accepts:
            # A mask over positions; as indices, some models slice and others gather.
            mask = torch.zeros(ids.shape[1], dtype=torch.bool, device=rows.device)
            given["logits_to_keep"] = mask.index_fill_(0, rows, True)
        tap: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.tap is not None:
            tap = _tapped(self.tap)
        with tap as tapped_inputs:
            output = self.model(input_ids=ids, **given)
        states = output.logits
        if self.tap is not None:
            if len(tapped_inputs) != 1:
                calls = len(tapped_inputs)
                raise RuntimeError(f"the output embedding was called {calls} times")
            states = tapped_inputs[0]
        rows = rows.to(states.device)  # a model may be spread over several
        # By shape, not by name: some models take `logits_to_keep` and ignore it.
        if single and states.shape[1] == len(rows):
            return states[0], output
        # virtual tokens of prompt tuning come first: the last `time` are ours
        states = states[:, -ids.shape[1] :]
        return (states[0, rows] if single else states[rows]), output


def adds_virtual_tokens(model: nn.Module) -> bool:
    """Whether PEFT puts learnt tokens before the prompt (prompt tuning and its kin)."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "is_prompt_learning", False))


def base_of(model: nn.Module) -> nn.Module:
    """The model within PEFT's wrapper, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def check_batch_size(batch_size: int) -> None:
    """Refuse fewer than one sequence at once."""
    if batch_size < 1:
        raise BadInput(
            f"batch_size is {batch_size}; it must be at least 1: the number of "
            "sequences that are scored at once."
        )


def text_config(model: Any) -> Any:
    """The config of the language model, also within a model of images and texts."""
    return model.config.get_text_config()


def input_embedding(model: nn.Module) -> nn.Module:
    """The module that maps token ids to hidden states."""
    get: Any = model.get_input_embeddings
    return get()


def context_of(model: Any) -> int:
    """Most tokens that a model reads; 1024 where it does not say, or reads more."""
    known = getattr(text_config(model), "max_position_embeddings", None)
    return min(1024, known or 1024)


def check_fits(model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    """Refuse token sequences that the model cannot read."""
    output_embedding(model)
    if not pairs:
        raise BadInput("the list of pairs is empty: give at least one pair to score.")
    bare = [i for i, p in enumerate(pairs) if not (p.prompt_ids and p.response_ids)]
    if bare:
        raise BadInput(
            f"{len(bare)} of {len(pairs)} pairs lack a prompt token or a response "
            f"token, the first at position {bare[0]}. Tokenize them with "
            "learndyn.tokenize, which says why, or leave them out."
        )
    config: Any = model.config
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(p.prompt_ids) + len(p.response_ids) for p in pairs)
    if context is not None and longest > context:
        raise BadInput(
            f"the longest probe has {longest} tokens, the model's context is {context} "
            f"({type(model).__name__}.config.max_position_embeddings). Tokenize with "
            f"max_length={context} or less."
        )
    largest = max(max((*p.prompt_ids, *p.response_ids)) for p in pairs)
    embedding: Any = input_embedding(model)
    known = embedding.weight.shape[0]
    if largest >= known:
        raise BadInput(
            f"a probe holds token id {largest}, but the model has {known} tokens: the "
            "probes were tokenized for another model. Use the tokenizer of this one."
        )


@dataclass(frozen=True, slots=True)
class Padded:
    """Sequences side by side, and where their response tokens are predicted."""

    ids: Int[Tensor, "batch time"]
    attention: Int[Tensor, "batch time"]
    predicts: Bool[Tensor, "batch time"]
    """True where the next token is a response token."""
    labels: Int[Tensor, " row"]
    """The response tokens, batch row after batch row."""


def pad(pairs: Sequence[TokenizedPair], device: torch.device, side: str) -> Padded:
    """Pad a batch. The padding id is 0: it is masked, so any known id does."""
    time = max(len(p.prompt_ids) + len(p.response_ids) for p in pairs)
    ids = torch.zeros(len(pairs), time, dtype=torch.long)
    attention = torch.zeros(len(pairs), time, dtype=torch.long)
    predicts = torch.zeros(len(pairs), time, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        sequence = (*pair.prompt_ids, *pair.response_ids)
        start = 0 if side == "right" else time - len(sequence)
        end = start + len(sequence)  # exclusive
        ids[row, start:end] = torch.tensor(sequence)
        attention[row, start:end] = 1
        # A token is predicted one position before its own: from the prompt's last
        # token to the response's last but one.
        predicts[row, end - 1 - len(pair.response_ids) : end - 1] = True
    labels = torch.tensor([i for pair in pairs for i in pair.response_ids])
    return Padded(
        ids.to(device), attention.to(device), predicts.to(device), labels.to(device)
    )
