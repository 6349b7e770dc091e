"""Looking at a model without leaving a trace.

Probing must not change training. Within `undisturbed` a model is in eval mode, outside
any autocast, without the trainer's wrapping of its forward; afterwards training flags,
forward and all random states are what they were, also after an error.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no autocast; all restored on the way out."""
    # One by one: `model.train()` afterwards would also wake modules that training keeps
    # in eval mode, such as frozen batch norms or a reference model inside.
    flags = {module: module.training for module in model.modules()}
    device = device_of(model).type
    model.eval()
    try:
        with (
            preserved_random_state(),
            _own_forward(model),
            _full_float32(),
            _uncompiled(model),
            torch.no_grad(),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply float32 as float32, also where training runs in TF32."""
    chosen = torch.get_float32_matmul_precision()
    if chosen == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Leave what `model.compile()` traced as it is.

    Other shapes would make the compiler trace training's graph anew, with dynamic
    shapes.
    """
    if all(module._compiled_call_impl is None for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: with its first weights.

    Weights that accelerate keeps elsewhere stand on "meta", and their inputs come from
    the CPU.
    """
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds only a part of the weights (FSDP2, ZeRO-3)."""
    return any(
        hasattr(parameter, "full_tensor") or parameter.numel() == 0
        for parameter in module.parameters()
    )


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Undo accelerate's mixed-precision wrapper, which autocasts inside `forward`.

    An outer `autocast(enabled=False)` does not reach it: log-probabilities would carry
    bf16 noise of about 4e-3 nats (measured on 16 sequences) although the weights are
    float32.
    """
    wrapped = model.__dict__.get("forward")
    original = getattr(model, "_original_forward", None)
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn within, all random states are put back afterwards."""
    # All of them: dropout, data order and TRL's sampling each draw from another.
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
