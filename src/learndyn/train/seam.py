"""Where a loss reads a model: at its log-probabilities, or at its logits.

TRL's fused head hands out `log_probs`, a model's own forward hands out `logits`. What
passes back through either says what the loss asks of each training token, dL/dlogp.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from learndyn.forces.rules import wide


IGNORED = -100
"""Label of a position that no loss reads."""


def inputs_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a forward was given: every causal LM takes the token ids first."""
    return {"input_ids": args[0], **kwargs} if args else kwargs


def read_by_loss(output: Any) -> Tensor | None:
    """Log-probabilities, or logits; None where a model hands out neither."""
    logp = getattr(output, "log_probs", None)
    return getattr(output, "logits", None) if logp is None else logp


def logp_of(output: Any, inputs: dict[str, Any]) -> Float[Tensor, "batch time"]:
    """log pi of each next token, in nats, differentiable; 0 where there is no label.

    Column t is of token t + 1.
    """
    logp = getattr(output, "log_probs", None)
    if logp is not None:
        return logp
    labels = _labels(inputs)
    found = []
    for row, label in zip(output.logits, labels, strict=True):  # float32 is large
        logits = row[:-1]
        # not `wide`, which detaches
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = logits.gather(-1, label.clamp(min=0)[:, None]).squeeze(-1)
        found.append(own - logits.logsumexp(-1))
    return torch.stack(found).masked_fill(labels == IGNORED, 0.0)


def on_gradient(tensor: Tensor, keep: Callable[[Tensor], None]) -> None:
    """Call `keep` with the gradient of what a loss reads, when it comes by.

    Under mixed precision accelerate hands out a float32 copy of the logits, while a
    loss within the forward has read the logits themselves: there both come together.
    """
    node, number = tensor.grad_fn, tensor.output_nr
    assert node is not None
    if node.name().startswith("ToCopyBackward"):
        node, number = node.next_functions[0]
        assert node is not None

    def hook(gradients: Any) -> None:
        if gradients[number] is not None:
            keep(gradients[number].detach())

    node.register_prehook(hook)


def push_reader(output: Any, inputs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """What makes dL/dlogp, laid out as `logp_of`, of the gradient that comes by.

    It holds the forward's numbers without their graph: the graph is to hold it.
    """
    logp = getattr(output, "log_probs", None)
    if logp is None:
        return partial(_nearest, output.logits.detach(), _labels(inputs))
    ignored = logp.detach() == 0  # a constant there, gradient or not
    return lambda gradient: gradient.masked_fill(ignored, 0.0)


def _nearest(
    logits: Float[Tensor, "batch position vocab"],
    labels: Int[Tensor, "batch time"],
    gradient: Float[Tensor, "batch position vocab"],
) -> Float[Tensor, "batch time"]:
    """The c for which c (e_y - pi) is nearest to dL/dz.

    What a loss asks of other tokens (label smoothing) is left over.
    """
    found = []
    for row, label in enumerate(labels):  # one at a time: each is as large as logits
        known = label.clamp(min=0)[:, None]
        steer = -wide(logits[row, :-1]).softmax(-1)
        steer.scatter_add_(-1, known, torch.ones_like(known, dtype=steer.dtype))
        length = steer.square().sum(-1).clamp(min=1e-30)
        found.append((wide(gradient[row, :-1]) * steer).sum(-1) / length)
    return torch.stack(found).masked_fill(labels == IGNORED, 0.0)


def _labels(inputs: dict[str, Any]) -> Int[Tensor, "batch time"]:
    """Of each position but the last, the token that comes next."""
    labels = inputs.get("labels")
    return (inputs["input_ids"] if labels is None else labels)[:, 1:]
