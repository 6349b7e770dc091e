r"""What each known optimizer does with a gradient, as three parts that add up.

For one parameter, with g the gradient as given, s = -1 if the optimizer maximizes and
else 1, theta the parameter before the step, and w the weight decay,

    d  =  -scale g  +  history  +  decay        elementwise

    SGD       d = -lr b                       b = mu b_old + (1 - dampening) g'
    Adam      d = -lr / (1 - beta1^t) m / D   m = beta1 m_old + (1 - beta1) g'
    RMSprop   d = -lr b                       b = mu b_old + g' / D
    Adagrad   d = -lr / (1 + (t - 1) lr_decay) g' / D

with g' = s g + w theta; AdamW has g' = s g and - lr w theta apart. D is sqrt(v) + eps,
for Adam sqrt(v / (1 - beta2^t)) + eps, for a centered RMSprop sqrt(v - a^2) + eps.

Denominators are taken as they stand after the step and count as constants: they hold
this step's gradient too, so `scale` is not the derivative of d by g. It splits d among
the terms of a sum g, which is the question. What the optimizer remembers of earlier
gradients is history, the weight decay that went into it included.

Written from the documentation and behaviour of torch.optim (2.13). Adam: Kingma & Ba
2015; AdamW: Loshchilov & Hutter 2019; RMSprop: Graves 2013; Adagrad: Duchi et al. 2011.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop


State = dict[str, Tensor]
"""What the optimizer keeps for one parameter, by its own names."""


@dataclass(frozen=True)
class Parts:
    """One parameter's step: -scale * gradient + history + decay, each of its shape."""

    scale: Tensor
    history: Tensor | None = None
    """None: zero."""
    decay: Tensor | None = None
    """None: zero."""


@dataclass(frozen=True)
class Rule:
    """A known optimizer."""

    parts: Callable[[State, State, dict[str, Any], Tensor, Tensor], Parts]
    """State before and after the step, the group's options (numbers as floats), the
    parameter before the step and its gradient, both in float32 or wider."""
    remembered: tuple[str, ...]
    """What `parts` reads of the state before the step; the rest of it is not copied."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is wider."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _sgd(
    old: State, new: State, options: dict[str, Any], theta: Tensor, gradient: Tensor
) -> Parts:
    """SGD: momentum, dampening, Nesterov, weight decay.

    Dampening does not apply to a parameter's first step with momentum.
    """
    lr, momentum = options["lr"], options["momentum"]
    buffer = old.get("momentum_buffer")
    fresh = 1.0  # what b, or Nesterov's look ahead, takes of this step's gradient
    if momentum != 0 and buffer is not None:
        fresh = 1 - options["dampening"]
    old_share = momentum  # what it takes of the buffer
    if momentum != 0 and options["nesterov"]:
        # d = -lr (g' + mu b) with b = mu b_old + fresh g'
        fresh, old_share = 1 + momentum * fresh, momentum * momentum
    return Parts(
        scale=torch.full_like(gradient, lr * fresh * _sign(options)),
        history=_times(buffer, -lr * old_share) if momentum != 0 else None,
        decay=_times(theta, -lr * fresh * options["weight_decay"]),
    )


def _adam(
    old: State, new: State, options: dict[str, Any], theta: Tensor, gradient: Tensor
) -> Parts:
    """Adam: AMSGrad, and weight decay in the gradient or apart."""
    lr, decay, beta1 = options["lr"], options["weight_decay"], options["beta1"]
    steps = float(new["step"])
    second = new["max_exp_avg_sq" if options["amsgrad"] else "exp_avg_sq"]
    # torch's own order, so that both round alike: root, correction, then eps.
    root = wide(second).sqrt() / (1 - options["beta2"] ** steps) ** 0.5
    rate = lr / (1 - beta1**steps) / (root + options["eps"])
    remembered = _times(old.get("exp_avg"), -beta1)
    if options.get("decoupled_weight_decay", False):
        decayed = _times(theta, -lr * decay)
    else:
        decayed = _times(theta, -(1 - beta1) * decay, rate)
    return Parts(
        scale=rate * ((1 - beta1) * _sign(options)),
        history=None if remembered is None else remembered * rate,
        decay=decayed,
    )


def _adamw(
    old: State, new: State, options: dict[str, Any], theta: Tensor, gradient: Tensor
) -> Parts:
    """AdamW, whose weight decay is always apart, also where no option says so."""
    return _adam(old, new, {**options, "decoupled_weight_decay": True}, theta, gradient)


def _rmsprop(
    old: State, new: State, options: dict[str, Any], theta: Tensor, gradient: Tensor
) -> Parts:
    """RMSprop: centered, momentum, weight decay. Its squares are in the scale alone."""
    lr, momentum = options["lr"], options["momentum"]
    square = wide(new["square_avg"])
    if options["centered"]:  # the variance: E g^2 - (E g)^2
        mean = wide(new["grad_avg"])
        square = square.addcmul(mean, mean, value=-1)
    rate = lr / (square.sqrt() + options["eps"])
    buffer = old.get("momentum_buffer") if momentum > 0 else None
    return Parts(
        scale=rate * _sign(options),
        history=_times(buffer, -lr * momentum),
        decay=_times(theta, -options["weight_decay"], rate),
    )


def _adagrad(
    old: State, new: State, options: dict[str, Any], theta: Tensor, gradient: Tensor
) -> Parts:
    """Adagrad. What it remembers is squares alone: it has a scale and no history."""
    lr = options["lr"] / (1 + (float(new["step"]) - 1) * options["lr_decay"])
    rate = lr / (wide(new["sum"]).sqrt() + options["eps"])
    return Parts(
        scale=rate * _sign(options),
        decay=_times(theta, -options["weight_decay"], rate),
    )


RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(_sgd, ("momentum_buffer",)),
    Adam: Rule(_adam, ("exp_avg",)),
    AdamW: Rule(_adamw, ("exp_avg",)),
    RMSprop: Rule(_rmsprop, ("momentum_buffer",)),
    Adagrad: Rule(_adagrad, ()),
}
"""The optimizers whose step is known. Exact classes: a subclass may step otherwise."""


def unknown(optimizer: Optimizer, gradient: State) -> str:
    """Why the parts of this optimizer's step are not known; "" if they are."""
    if type(optimizer) not in RULES:
        return "it is another class, and may step in another way"
    if any(g.is_sparse for g in gradient.values()):
        return "gradients are sparse, and it passes over rows that are absent"
    if any(g.is_complex() for g in gradient.values()):
        return "parameters are complex, and it takes their two components apart"
    return ""


def total(parts: Parts, gradient: Tensor) -> Tensor:
    """What the parts sum to: -scale * gradient + history + decay."""
    whole = -parts.scale * wide(gradient)
    for part in (parts.history, parts.decay):
        if part is not None:
            whole = whole + part
    return whole


def numbers(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group's options as they stand now, numbers as floats.

    A scheduler changes them in place after the step. `betas` come as beta1 and beta2,
    too; an lr that the optimizer finds by itself (Adafactor's) comes as nan.
    """
    options = {name: _number(x) for name, x in group.items() if name != "params"}
    for i, beta in enumerate(group.get("betas") or ()):
        options[f"beta{i + 1}"] = float(beta)
    if options.get("lr") is None:
        options["lr"] = math.nan
    return options


def _number(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.numel() == 1
    # True is an int, and stays a flag
    return float(value) if single or type(value) is int else value


def _sign(options: dict[str, Any]) -> float:
    return -1.0 if options.get("maximize", False) else 1.0


def _times(
    tensor: Tensor | None, factor: float, rate: Tensor | None = None
) -> Tensor | None:
    """factor * tensor [* rate]; None, which means zero, where it is nothing."""
    if tensor is None or factor == 0:
        return None
    product = wide(tensor) * factor
    return product if rate is None else product * rate
