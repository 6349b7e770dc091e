"""Small updates whose parts are known: models, responses, and gradients written out.

Nothing here goes through `push`: a gradient is that of the loss's value through the
model's own logits, one sequence at a time and without padding.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from models import tiny_model
from torch import Tensor

from learndyn.forces.batch import Batch
from learndyn.forces.direction import parameters_of
from learndyn.forces.losses import LOSSES, Loss, Responses, loss_named
from learndyn.forces.predict import Predictor
from learndyn.forces.step import Step, capture_step
from learndyn.probes.tokenize import TokenizedPair


VOCABULARY = 31
FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")
VARIANTS = ("plain", "tied", "lora")

TRAINED: dict[str, list[str]] = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
}
"""What LoRA adapts."""

SMALLER: dict[str, Any] = {"n_embd": 16, "n_positions": 32}
"""A GPT-2 whose Jacobian is small."""


def model_of(
    family: str = "gpt2",
    variant: str = "plain",
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Any:
    """A tiny model in which every part counts, with 31 tokens.

    "lora" adds adapters, neither of whose factors is zero, and trains them alone.
    """
    tied = {"tie_word_embeddings": variant == "tied"}
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": 64}
    if family != "gpt2":
        del sizes["n_positions"]
    model = tiny_model(family, dtype, **{**sizes, **tied, **more})
    if variant == "lora":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=4, target_modules=TRAINED[family], fan_in_fan_out=family == "gpt2"
        )
        model = get_peft_model(model, adapters).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # fresh norms and biases are 1 and 0
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            elif "lora_B" in name:
                parameter.normal_(std=0.1)
            else:
                parameter.mul_(2)
    return model.eval()


def pairs_of(
    responses: Sequence[int] = (4, 1, 3), prompts: Sequence[int] = (5, 2), seed: int = 0
) -> tuple[TokenizedPair, ...]:
    """Responses of these lengths to prompts of these lengths, random tokens."""
    draw = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, VOCABULARY) for _ in range(n))

    starts = [ids(n) for n in prompts]
    return tuple(
        TokenizedPair(p, ids(n), False, False) for p in starts for n in responses
    )


PROBES = pairs_of(seed=1)
CHOSEN = pairs_of((3, 1), seed=2)
REJECTED = pairs_of((2, 3), seed=3)
RESPONSES = (*CHOSEN, *REJECTED)

OFFSET = np.array([0.4, -0.3, 0.7, -0.2, -0.5, 0.6, 0.1, -0.8])
"""log pi - log pi_ref of the eight training responses, nats: away from every kink."""
ADVANTAGE = np.array([1.3, 0.4, -0.2, 0.9, -1.1, 0.3, -0.6, -1.7])


def plain_logits(model: Any, pair: TokenizedPair) -> Tensor:
    """The model's own logits at each token of one response."""
    ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
    return model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]


def plain_logp(model: Any, pairs: Sequence[TokenizedPair]) -> Tensor:
    """log pi of every response token, flat, differentiable; a log-softmax at least in
    float32."""
    found = []
    for pair in pairs:
        logits = plain_logits(model, pair)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = torch.tensor(pair.response_ids)[:, None]
        found.append(logits.log_softmax(-1).gather(1, labels)[:, 0])
    return torch.cat(found)


def values_of(model: Any, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    with torch.no_grad():
        return plain_logp(model, pairs).double().numpy()


def reference_of(model: Any) -> np.ndarray:
    """log pi_ref of the training responses: the model's own, less the offsets."""
    starts = np.cumsum([0, *(len(p.response_ids) for p in RESPONSES)])
    own = np.add.reduceat(values_of(model, RESPONSES), starts[:-1])
    return own - OFFSET


def loss_gradient(
    model: Any, loss: Loss, reference: np.ndarray | None = None
) -> dict[str, Tensor]:
    """dL/dtheta by autograd of the loss's value through the plain forward."""
    parameters = parameters_of(model)
    logp = plain_logp(model, RESPONSES)
    reference = reference_of(model) if reference is None else reference
    responses = Responses(
        n_tokens=torch.tensor([len(p.response_ids) for p in RESPONSES]),
        chosen=torch.arange(len(RESPONSES)) < len(CHOSEN),
        reference=torch.from_numpy(reference).to(logp),
        old_logp=logp.detach().clone(),
        advantage=torch.from_numpy(ADVANTAGE).to(logp),
    )
    parts = torch.autograd.grad(
        loss.value(logp, responses), list(parameters.values()), allow_unused=True
    )
    return {
        name: torch.zeros_like(parameter) if part is None else part
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }


def batch_of(predictor: Predictor, loss: Loss) -> Batch:
    """The same batch by way of `push`."""
    return Batch.of(
        predictor.logps,
        CHOSEN,
        REJECTED,
        loss,
        reference=reference_of(predictor.model),
        advantage=ADVANTAGE,
    )


ALL_LOSSES = {name: loss_named(name) for name in LOSSES}


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.9, 0.95)}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "sgd-momentum": (torch.optim.SGD, {"momentum": 0.9}),
}
CLIP = 0.1
"""Largest gradient norm where a test clips."""


@dataclass
class Training:
    """A model, an optimizer that remembers two updates, and the next gradient."""

    model: Any
    optimizer: torch.optim.Optimizer
    raw: dict[str, Tensor]
    """The next gradient, before clipping."""
    clip: float
    """The coefficient it was clipped by."""

    @classmethod
    def of(
        cls, model: Any, optimizer: str, lr: float, loss: str = "dpo", clip: bool = True
    ) -> "Training":
        make, options = OPTIMIZERS[optimizer]
        stepper = make(parameters_of(model).values(), lr=lr, **options)
        reference = reference_of(model)
        raw, coefficient = {}, 1.0
        for last in ("sft", "simpo", loss):
            raw = loss_gradient(model, loss_named(last), reference)
            for name, parameter in parameters_of(model).items():
                parameter.grad = raw[name].clone()
            if clip:
                held = list(parameters_of(model).values())
                size = float(torch.nn.utils.clip_grad_norm_(held, CLIP))
                coefficient = min(1.0, CLIP / (size + 1e-6))
            if last != loss:
                stepper.step()
        return cls(model, stepper, raw, coefficient)

    def step(self) -> Step:
        """Make the update; the model stands at theta_after."""
        with capture_step(self.optimizer, self.model) as captured:
            self.optimizer.step()
        return captured.step


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """||found - wanted|| / ||wanted||."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
