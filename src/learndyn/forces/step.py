r"""What one update of an optimizer is made of.

The real displacement of the parameters is measured, for any optimizer:

    d  =  theta_after - theta_before

and for torch's SGD, Adam, AdamW, RMSprop and Adagrad also its parts, elementwise,

    d  =  -scale * gradient  +  history  +  decay  +  rounding

with the gradient as the optimizer was given it, that is after accumulation, averaging
and clipping. Whatever splits the gradient into a sum (the sign of push, an example, a
token) splits the update through the same `-scale`: see `optimizers.py`.

    with capture_step(optimizer, model) as captured:
        optimizer.step()
    captured.step.parts()["history"]

Capturing changes no bit of the parameters, their gradients or the optimizer's state.

Memory, in units of the trainable parameters: 1 for theta_before, and from the start of
`optimizer.step()` 1 for the gradient and 1 for what the rule remembers (Adam's first
average, a momentum buffer; nothing for Adagrad). The finished Step holds theta_before,
the gradient, d and up to 3 parts. Parameters and gradients keep their dtype; all else
is in float32 or wider.

Sharded parameters (DTensors, FSDP2) stay sharded; `finish` then takes norms over all
processes, so that each must call it (tried with two processes on CPU). Optimizers that
flatten parameters (DeepSpeed ZeRO) hold tensors that the model cannot name: they are
refused.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learndyn.errors import BadInput, listed
from learndyn.forces.direction import norm, whole
from learndyn.forces.optimizers import (
    RULES,
    Parts,
    State,
    numbers,
    total,
    unknown,
    wide,
)


@dataclass(frozen=True)
class Given:
    """What the optimizer had at the moment it stepped."""

    gradient: dict[str, Tensor]
    """A copy, without the loss scale; parameters whose gradient is None are absent."""
    options: dict[str, dict[str, Any]]
    """Of each parameter's group, as `optimizers.numbers` gives them."""
    remembered: dict[str, State]
    """Copies of what the rule reads of the state before the step."""
    closure: bool
    """Whether the step computes its gradient itself, later than this."""
    unknown: str
    """Why the rule is not known; "" if it is."""


def _unwrapped(optimizer: Any) -> Optimizer:
    """The innermost optimizer: accelerate's wrapper calls the one that it holds."""
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer) or not hasattr(
        inner, "_optimizer_step_pre_hooks"
    ):
        raise BadInput(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer and wraps none "
            "in `.optimizer`, so its step cannot be recorded. Give the optimizer."
        )
    return inner


def _own_parameters(optimizer: Optimizer, model: nn.Module) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by the model's names, in the model's order.

    Without those that are frozen and have no gradient; tied ones once.
    """
    own = {
        id(p)
        for group in optimizer.param_groups
        for p in group["params"]
        # Optimizers look at the gradient alone: one left over still moves a parameter.
        if p.requires_grad or p.grad is not None
    }
    named = {name: p for name, p in model.named_parameters() if id(p) in own}
    if len(named) < len(own):
        raise BadInput(
            f"{len(own) - len(named)} of the {len(own)} trainable parameters of "
            f"{type(optimizer).__name__} are not in {type(model).__name__}. Give the "
            "model that the optimizer was built for, both wrapped or both not."
        )
    if not named:
        raise BadInput(
            f"none of the parameters of {type(optimizer).__name__} trains, so its step "
            "will move nothing. Unfreeze parameters before you build the optimizer."
        )
    return named


@torch.no_grad()
def _look(
    optimizer: Optimizer, parameters: dict[str, nn.Parameter], closure: bool
) -> Given:
    """Copies of what the step, or a scheduler after it, may change in place."""
    # Copies, and not references: foreach and fused steps work in place on them.
    # A fused step under a gradient scaler divides by this itself.
    scaled = getattr(optimizer, "grad_scale", None)
    gradient = {
        name: p.grad.detach().clone() if scaled is None else p.grad.detach() / scaled
        for name, p in parameters.items()
        if p.grad is not None
    }
    why = unknown(optimizer, gradient)
    remembered = () if why else RULES[type(optimizer)].remembered
    # Options now: a scheduler changes a group's lr right after the step, in place.
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
                key: value.detach().clone()
                for key, value in optimizer.state.get(parameters[name], {}).items()
                if key in remembered and value is not None
            }
            for name in gradient
        },
        closure=closure,
        unknown=why,
    )


def _check_finite(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors with NaN or infinity; a sharded one is judged as a whole."""
    bad = [n for n, x in tensors.items() if not bool(whole(torch.isfinite(x).all()))]
    if bad:
        raise BadInput(
            f"{len(bad)} of {len(tensors)} {what} are not finite:\n{listed(bad, 5)}\n"
            "Training has diverged or overflowed here: capture an earlier step, lower "
            "the learning rate, or clip."
        )


@dataclass(frozen=True)
class Step:
    """One update of an optimizer; tensors by parameter name, each of its shape.

    A name that is absent from gradient, scale, history or decay is zero there: the
    optimizer passes over parameters whose gradient is None.
    """

    before: dict[str, Tensor]
    """theta_before, in the parameters' own dtype."""
    direction: dict[str, Tensor]
    """d, in float32 or wider, of every parameter that trains."""
    gradient: dict[str, Tensor]
    """What the optimizer was given, unscaled and not negated by `maximize`."""
    scale: dict[str, Tensor] | None
    """d's rate per unit of gradient at fixed denominators; None: an unknown rule."""
    history: dict[str, Tensor]
    decay: dict[str, Tensor]
    rule: str
    """The optimizer's class."""
    why: str
    """Why the rule is not known; empty if it is."""
    lr: dict[str, float]
    """Learning rate of each parameter at this step, before the scheduler's next."""
    unexplained: float
    """||d - (-scale gradient + history + decay)|| / ||d||, measured at every step: the
    rounding of theta. Seen: 3e-4 for AdamW at lr 1e-5 in float32, 2e-3 at lr 1e-6 (a
    small GPT-2); 1.2 at lr 1e-3 in bfloat16 (a small network). inf: nothing moved
    although the rule says so. 1: the rule is not known."""

    def preconditioned(self, direction: dict[str, Tensor]) -> dict[str, Tensor]:
        """-scale * direction: the part of d that this part of the gradient makes.

        Raises:
            BadInput: if the rule is not known, a name is not among the parameters, or
                a direction is not zero where the optimizer saw no gradient.
        """
        scale = self._known_scale()
        strange = [name for name in direction if name not in self.before]
        if strange:
            raise BadInput(
                f"{len(strange)} of {len(direction)} names are not among the "
                f"{len(self.before)} parameters of this step:\n{listed(strange, 5)}\n"
                "Name parameters as model.named_parameters() does."
            )
        skipped = [
            name
            for name, x in direction.items()
            if name not in scale and bool(whole(x.any()))
        ]
        if skipped:
            raise BadInput(
                f"the optimizer passed over {len(skipped)} parameters, which had no "
                "gradient at this step, but the direction is not zero there:\n"
                f"{listed(skipped, 5)}\nGive a part of this step's own gradient."
            )
        return {
            name: -scale[name] * wide(x)
            for name, x in direction.items()
            if name in scale
        }

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The update as "gradient", "history", "decay" and "rounding".

        Their sum is `direction`, up to the last bit of a float32 (or float64) sum:
        rounding is defined as the remainder. Absent names are zero.

        Raises:
            BadInput: if the rule is not known.
        """
        scale = self._known_scale()
        parts = {
            name: Parts(rate, self.history.get(name), self.decay.get(name))
            for name, rate in scale.items()
        }
        return {
            "gradient": self.preconditioned(self.gradient),
            "history": self.history,
            "decay": self.decay,
            "rounding": dict(_remainders(self.direction, self.gradient, parts)),
        }

    def _known_scale(self) -> dict[str, Tensor]:
        if self.scale is None:
            known = ", ".join(rule.__name__ for rule in RULES)
            raise BadInput(
                f"the step of {self.rule} cannot be split into parts: {self.why}. "
                f"Known are torch.optim's {known}; the whole step is in `direction`."
            )
        return self.scale


def check_moved(step: Step) -> None:
    """Refuse a step that moved nothing: it has no direction to explain."""
    if norm(step.direction.values()) > 0:
        return
    rates = step.lr.values()
    raise BadInput(
        f"the update moved none of {len(step.direction)} parameters: lr {min(rates):g} "
        f"to {max(rates):g}, gradient norm {norm(step.gradient.values()):g}. Capture a "
        "step after warm-up has begun; in bfloat16 an update may be smaller than the "
        "weights' rounding."
    )


class StepRecording:
    """One update on record: `begin`, let the optimizer step once, `finish`.

    For callbacks, which see a step's two ends in two calls. Between them the optimizer
    carries two hooks.
    """

    def __init__(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter]):
        self._optimizer = optimizer
        self._parameters = parameters
        self._before = {n: p.detach().clone() for n, p in parameters.items()}
        self._given: Given | None = None
        self._calls = self._depth = 0
        self._step: Step | None = None
        self._hooks = [
            # Here and not in `begin`: by now gradients are unscaled and clipped, and a
            # step may change them in place (foreach SGD with Nesterov does).
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        ]

    @classmethod
    def begin(cls, optimizer: Any, model: nn.Module) -> "StepRecording":
        """Note the parameters as they are. `model` gives their names.

        Accelerate's wrapper is looked through. Frozen parameters without a gradient
        are left out; tied ones count once, under their first name.

        Raises:
            BadInput: if it is not a torch optimizer, holds parameters that the model
                does not have, or none that train.
        """
        inner = _unwrapped(optimizer)
        return cls(inner, _own_parameters(inner, model))

    @property
    def step(self) -> Step:
        """The finished step."""
        if self._step is None:
            raise BadInput(
                "the step is not measured yet: call finish(), or leave the block first."
            )
        return self._step

    def finish(self) -> Step:
        """Measure what the optimizer did since `begin`.

        Raises:
            BadInput: if it stepped not exactly once, was given a closure, or a gradient
                or displacement is not finite.
        """
        if self._step is None:
            try:
                self._step = self._measured()
            finally:
                self.abandon()
        return self._step

    def abandon(self) -> None:
        """Take the hooks off and drop the copies; a finished step stays."""
        for hook in self._hooks:
            hook.remove()
        self._before, self._given, self._calls = {}, None, 0

    def _enter(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return  # a subclass's step that calls its parent's is one step
        self._calls += 1
        if self._calls == 1:
            # A closure computes the gradient after this hook: what is there is older.
            closure = kwargs.get("closure") or args[1:2] not in ((), (None,))
            self._given = _look(optimizer, self._parameters, bool(closure))

    def _leave(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._depth -= 1

    def _measured(self) -> Step:
        given, name = self._given, type(self._optimizer).__name__
        if given is None or self._calls != 1 or self._depth != 0:
            raise BadInput(
                f"{name}.step() was called {self._calls} times between begin and "
                f"finish{', and did not end' if self._depth else ''}; a Step is one "
                "call. With gradient accumulation only the last batch calls it, and a "
                "gradient scaler skips it after an overflow."
            )
        if given.closure:
            raise BadInput(
                f"{name}.step() was given a closure: it computes the gradient after "
                "the step began. Call backward first, then step()."
            )
        # Widened before the difference: in bfloat16 the difference would be rounded to
        # 3 digits once more.
        direction = {
            n: wide(p) - wide(self._before[n]) for n, p in self._parameters.items()
        }
        _check_finite("gradients", given.gradient)
        _check_finite("displacements", direction)
        parts = {} if given.unknown else self._split(given)
        rest = norm(x for _, x in _remainders(direction, given.gradient, parts))
        length = norm(direction.values())
        return Step(
            before=self._before,
            direction=direction,
            gradient=given.gradient,
            scale=None if given.unknown else {n: p.scale for n, p in parts.items()},
            history={n: p.history for n, p in parts.items() if p.history is not None},
            decay={n: p.decay for n, p in parts.items() if p.decay is not None},
            rule=name,
            why=given.unknown,
            lr={n: options["lr"] for n, options in given.options.items()},
            unexplained=rest / length if length else math.inf if rest else 0.0,
        )

    @torch.no_grad()
    def _split(self, given: Given) -> dict[str, Parts]:
        rule = RULES[type(self._optimizer)]
        return {
            n: rule.parts(
                given.remembered[n],
                # `state[p]` would add an entry where the optimizer keeps nothing
                self._optimizer.state.get(self._parameters[n], {}),
                given.options[n],
                wide(self._before[n]),
                wide(g),
            )
            for n, g in given.gradient.items()
        }


@contextmanager
def capture_step(optimizer: Any, model: nn.Module) -> Iterator[StepRecording]:
    """Record the one update made inside the block; then `.step` has it.

    An error inside the block passes through, and nothing stays on the optimizer.

    Raises BadInput as `StepRecording.begin` and `finish` do.
    """
    recording = StepRecording.begin(optimizer, model)
    try:
        yield recording
        recording.finish()
    finally:
        recording.abandon()


@torch.no_grad()
def _remainders(
    direction: dict[str, Tensor], gradient: dict[str, Tensor], parts: dict[str, Parts]
) -> Iterator[tuple[str, Tensor]]:
    """d less its parts; all of d where there are none."""
    for name, d in direction.items():
        yield name, d - total(parts[name], gradient[name]) if name in parts else d
