"""A direction in parameter space, by parameter name; and a model moved along it.

Names are those of `model.named_parameters()`. A tied weight has one name there; its
other names are understood too.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learndyn.errors import BadInput, listed
from learndyn.forces.optimizers import wide


Direction = Mapping[str, Tensor]
"""What is added to each parameter; a parameter without an entry stays as it is."""


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that training may move, once, by its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def checked(model: nn.Module, direction: Direction) -> dict[str, Tensor]:
    """The direction by first names, or an error that says what is wrong with it.

    Raises:
        BadInput: if it is empty or zero, names something that is not a parameter of
            the model, has another shape or a number that is not finite.
    """
    # By identity: a tied weight has several names and must move once, not twice.
    first = {id(p): name for name, p in model.named_parameters()}
    known = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in direction if name not in known]
    if not direction:
        raise BadInput(
            "the direction is empty: give a tensor for at least one parameter, named "
            f"as in model.named_parameters(): {', '.join(list(known)[:3])} ..."
        )
    if unknown:
        raise BadInput(
            f"{len(unknown)} of {len(direction)} names of the direction are not "
            f"parameters of {type(model).__name__}:\n{listed(unknown)}\nIts parameters "
            f"are named as in model.named_parameters(): {', '.join(list(known)[:3])} "
            "..."
        )
    parts: dict[str, Tensor] = {}
    problems = []
    for given, part in direction.items():
        parameter, name = known[given], first[id(known[given])]
        if part.shape != parameter.shape:
            problems.append(
                f"{given}: {tuple(part.shape)}, not {tuple(parameter.shape)}"
            )
        elif not bool(whole(torch.isfinite(part).all())):
            lost = int((~torch.isfinite(part)).sum())
            problems.append(f"{given}: {lost} of {part.numel()} numbers are not finite")
        elif name in parts:
            other = next(n for n in direction if known[n] is parameter)
            problems.append(f"{given}: the same weight as {other}, which is there too")
        parts[name] = part.detach()
    if problems:
        raise BadInput(
            f"the direction does not fit {type(model).__name__}:\n{listed(problems)}"
        )
    if not any(bool(whole(part.any())) for part in parts.values()):
        raise BadInput(
            "the direction is zero: no parameter moves, so nothing can change. A "
            "learning rate of 0 (the first update of a warm-up) does this; take "
            "another update."
        )
    return parts


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor (DTensor) as a whole, over all processes; others as they are."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def norm(parts: Iterable[Tensor]) -> float:
    """Euclidean length of all parts together, in float64; 0 if there are none."""
    lengths = (
        whole(torch.linalg.vector_norm(part.detach(), dtype=torch.float64))
        for part in parts
    )
    return math.hypot(*map(float, lengths))  # does not overflow where squares would


def scaled(direction: Direction, factor: float) -> dict[str, Tensor]:
    """`factor` times a direction."""
    return {name: factor * part for name, part in direction.items()}


def plus(*directions: Direction) -> dict[str, Tensor]:
    """The sum of directions."""
    total: dict[str, Tensor] = {}
    for direction in directions:
        for name, part in direction.items():
            total[name] = total[name] + part if name in total else part
    return total


@contextmanager
def moving(model: nn.Module, direction: Direction) -> Iterator[Callable[[float], None]]:
    """Yields what puts every parameter at theta + factor * direction.

    Afterwards, also after an error, parameters are bit-identical: they are put back
    from a copy, since p + d - d is not p.
    """
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in direction}

    def go(factor: float) -> None:
        with torch.no_grad():
            for name, part in direction.items():
                own = saved[name]
                # In place: the same rounding, and no temporary of the parameter's size.
                if part.dtype == own.dtype and part.dtype.itemsize >= 4:
                    parameters[name].copy_(own).add_(part, alpha=factor)
                else:  # one rounding: of the sum, not of the step too
                    parameters[name].copy_(wide(own) + factor * wide(part))

    try:
        yield go
    finally:
        _put(parameters, saved)


@contextmanager
def moved(
    model: nn.Module, direction: Direction, factor: float = 1.0
) -> Iterator[None]:
    """Within the block every parameter is moved by `factor` times the direction; after
    it, all are bit-identical to before."""
    with moving(model, direction) as go:
        go(factor)
        yield


@contextmanager
def placed(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the named parameters have these values; after it, their own."""
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in weights}
    try:
        _put(parameters, weights)
        yield
    finally:
        _put(parameters, saved)


def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    # copy_ into the parameter, never a new one: optimizers, tied modules and FSDP hold
    # references to it.
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
