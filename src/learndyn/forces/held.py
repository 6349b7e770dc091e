"""What an optimizer holds, and what it is given to step: looked at, not touched.

A sharded tensor (DTensor) is judged as a whole, by all processes together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learndyn.errors import BadInput, listed
from learndyn.forces.direction import whole
from learndyn.forces.rules import RULES, State, numbers, unknown


@dataclass(frozen=True)
class Given:
    """What the optimizer had at the moment it stepped."""

    gradient: dict[str, Tensor]
    """A copy, without the loss scale; parameters whose gradient is None are absent."""
    options: dict[str, dict[str, Any]]
    """Of each parameter's group, as `rules.numbers` gives them."""
    remembered: dict[str, State]
    """Copies of what the rule reads of the state before the step."""
    closure: bool
    """Whether the step computes its gradient itself, later than this."""
    unknown: str
    """Why the rule is not known; "" if it is."""


def unwrapped(optimizer: Any) -> Optimizer:
    """The innermost optimizer: accelerate's wrapper calls the one that it holds.

    Raises:
        BadInput: if there is no torch optimizer inside.
    """
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer) or not hasattr(
        inner, "_optimizer_step_pre_hooks"
    ):
        raise BadInput(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer, nor does it wrap "
            "one in `.optimizer`: its step cannot be seen. Give the optimizer itself."
        )
    return inner


def held_parameters(optimizer: Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by the model's names, in the model's order.

    Without those that are frozen and have no gradient; tied ones once.

    Raises:
        BadInput: if the model does not have some of them, or none of them trains.
    """
    held = {
        id(p)
        for group in optimizer.param_groups
        for p in group["params"]
        # Optimizers look at the gradient alone: one left over still moves a parameter.
        if p.requires_grad or p.grad is not None
    }
    named = {name: p for name, p in model.named_parameters() if id(p) in held}
    if len(named) < len(held):
        raise BadInput(
            f"{len(held) - len(named)} of the {len(held)} trainable parameters that "
            f"{type(optimizer).__name__} holds are not in {type(model).__name__}. Give "
            "the model that it was built for, before or after both are wrapped."
        )
    if not named:
        raise BadInput(
            f"{type(optimizer).__name__} holds no parameter that trains: it will move "
            "none. Unfreeze the parameters in question before it is built."
        )
    return named


@torch.no_grad()
def look(
    optimizer: Optimizer, parameters: dict[str, nn.Parameter], closure: bool
) -> Given:
    """Copies of what the step, or a scheduler after it, may change in place."""
    # A fused step under a gradient scaler divides by this itself.
    scaled = getattr(optimizer, "grad_scale", None)
    gradient = {
        name: p.grad.detach().clone() if scaled is None else p.grad.detach() / scaled
        for name, p in parameters.items()
        if p.grad is not None
    }
    why = unknown(optimizer, gradient)
    remembered = () if why else RULES[type(optimizer)].remembered
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    options = {name: numbers(groups[id(p)]) for name, p in parameters.items()}
    return Given(
        gradient={
            n: g.to_dense() if g.is_sparse else g  # the rule is unknown then
            for n, g in gradient.items()
        },
        options=options,
        remembered={
            name: {
                key: kept.detach().clone()
                for key, kept in optimizer.state.get(parameters[name], {}).items()
                if key in remembered and kept is not None
            }
            for name in gradient
        },
        closure=closure,
        unknown=why,
    )


def check_finite(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors with NaN or infinity.

    Raises:
        BadInput: with how many they are, and the first five names.
    """
    bad = [n for n, x in tensors.items() if not bool(whole(torch.isfinite(x).all()))]
    if bad:
        raise BadInput(
            f"{len(bad)} of {len(tensors)} {what} are not finite:\n{listed(bad, 5)}\n"
            "Training has diverged or overflowed here: capture an earlier step, lower "
            "the learning rate, or clip."
        )
