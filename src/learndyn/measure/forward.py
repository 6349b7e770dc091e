"""One model's own forward, and out of it only the positions that predict a response.

The root forward is called, so that hooks (FSDP, PEFT, accelerate) run and whatever a
model does before its output embedding is done. The output embedding alone is made to
hand back what it was given; where it cannot be, the rows are the model's own logits.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.measure.head import tapped
from learndyn.measure.neutral import device_of


OPTIONAL = frozenset({"use_cache", "position_ids"})
"""What some models do not take, and then do without."""


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
            if name in self.accepts or name not in OPTIONAL
        }
        single = rows.ndim == 1
        if single and "logits_to_keep" in self.accepts:
            kept = torch.zeros(ids.shape[1], dtype=torch.bool, device=rows.device)
            given["logits_to_keep"] = kept.index_fill_(0, rows, True)
        tap: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self.tap is not None:
            tap = tapped(self.tap)
        with tap as seen:
            output = self.model(input_ids=ids, **given)
        states = output.logits
        if self.tap is not None:
            if len(seen) != 1:
                raise RuntimeError(f"the output embedding was called {len(seen)} times")
            states = seen[0]
        rows = rows.to(states.device)  # a model may be spread over several
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
