r"""The first DPO update, split by the sign of its push: who moved what.

At the first update policy and reference agree, so every pair has the same weight
c = beta sigmoid(0) = beta/2, and the step uphill is

    d  =  P ( c E[grad log pi(y+)]  -  c E[grad log pi(y-)] )  =  d_pull + d_push

with P the optimizer's preconditioner: 1 for SGD; for RMSprop, whose first average is
(1 - alpha) g^2, it is 1 / (sqrt(0.01) |g| + eps). The change of any statistic along
each part is a central finite difference of two scorings.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from learndyn.errors import BadInput
from learndyn.measure.batches import pad
from learndyn.measure.neutral import undisturbed
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


RELATIVE_STEP = {torch.float32: 1e-3, torch.float64: 1e-5, torch.bfloat16: 2e-2}
"""Length of the probing step, as a share of the weights' norm. The error is rounding
divided by the step plus curvature times its square. In float32 pull + push misses both
by 1.5e-3 to 2.5e-3 of the largest change with SGD, by 4e-4 with RMSprop (measured on
small models)."""


@dataclass(frozen=True)
class Change:
    """Rate of change of each probe along one part of the update, nats per unit step."""

    logp: Float[np.ndarray, " probe"]
    argmax_logp: Float[np.ndarray, " probe"]
    token_start_logp: Float[np.ndarray, " token"]


@dataclass(frozen=True)
class SignSplit:
    """Pull the chosen up and push the rejected down; the two add up to `both`."""

    pull: Change
    push: Change
    both: Change
    """Measured along the whole update, not summed: the difference to the sum is the
    error of the finite differences."""


def split_first_update(
    model: Any,
    chosen: Sequence[TokenizedPair],
    rejected: Sequence[TokenizedPair],
    probes: TokenizedProbes,
    *,
    beta: float = 0.1,
    optimizer: Literal["sgd", "rmsprop"] = "rmsprop",
    batch_size: int = 32,
) -> SignSplit:
    """Split what the first DPO update on these pairs does to the probes.

    The model's weights are bit-identical afterwards, also after an error.

    Raises:
        BadInput: if there are not as many chosen as rejected, the model's dtype has no
            probing step, or a gradient is zero or not finite.
    """
    dtype = _parameters(model)[0].dtype
    if dtype not in RELATIVE_STEP:
        known = ", ".join(_name(dtype) for dtype in RELATIVE_STEP)
        raise BadInput(
            f"the model is in {_name(dtype)}, for which no probing step is known: a "
            f"step must be larger than its rounding. Load it in one of {known}."
        )
    if len(chosen) != len(rejected) or not chosen:
        raise BadInput(
            f"{len(chosen)} chosen and {len(rejected)} rejected responses: a DPO "
            "update needs as many of both, and at least one."
        )
    weight = beta / 2
    pull = _gradient(model, chosen, weight, batch_size)
    push = _gradient(model, rejected, -weight, batch_size)
    total = [a + b for a, b in zip(pull, push, strict=True)]
    if optimizer == "rmsprop":
        scale = [1 / (0.1 * g.abs() + 1e-8) for g in total]
        pull, push, total = (
            [s * g for s, g in zip(scale, part, strict=True)]
            for part in (pull, push, total)
        )
    scorer = Scorer.attach(model, probes.pairs, batch_size=batch_size)
    first = scorer.observe().token_argmax_id

    def along(direction: list[Tensor]) -> Change:
        return _change(scorer, direction, first)

    return SignSplit(along(pull), along(push), along(total))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parameters(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _gradient(
    model: Any, pairs: Sequence[TokenizedPair], weight: float, batch_size: int
) -> list[Tensor]:
    """weight * gradient of the mean over pairs of log pi(response | prompt)."""
    parameters = _parameters(model)
    totals = [torch.zeros_like(p) for p in parameters]
    device = parameters[0].device
    with undisturbed(model), torch.enable_grad():
        for i in range(0, len(pairs), batch_size):
            batch = pairs[i : i + batch_size]
            value = _summed_logp(model, batch, device) * weight / len(pairs)
            parts = torch.autograd.grad(value, parameters, allow_unused=True)
            for total, part in zip(totals, parts, strict=True):
                if part is not None:
                    total += part
    norm = torch.stack([t.norm() for t in totals]).norm()
    if not torch.isfinite(norm) or norm == 0:
        raise BadInput(
            f"the gradient of {len(pairs)} responses has norm {float(norm)}: there is "
            "no direction to follow. Check the model for NaNs and frozen parameters."
        )
    return totals


def _summed_logp(
    model: Any, pairs: Sequence[TokenizedPair], device: torch.device
) -> Tensor:
    batch = pad(pairs, device, "right")
    logits = model(
        input_ids=batch.ids, attention_mask=batch.attention, use_cache=False
    ).logits
    logp = logits[batch.predicts].log_softmax(-1)
    return logp.gather(-1, batch.labels[:, None]).sum()


def _change(scorer: Scorer, direction: list[Tensor], first: np.ndarray) -> Change:
    parameters = _parameters(scorer.model)
    weights = torch.stack([p.detach().norm() for p in parameters]).norm()
    length = torch.stack([d.norm() for d in direction]).norm()
    step = float(RELATIVE_STEP[parameters[0].dtype] * weights / length)
    seen = []
    for sign in (1.0, -1.0):
        with _moved(scorer.model, direction, sign * step):
            seen.append(scorer.observe(start_ids=first))
    up, down = seen
    rate = 1 / (2 * step)
    return Change(
        logp=(up.logp - down.logp) * rate,
        argmax_logp=(up.argmax_logp - down.argmax_logp) * rate,
        token_start_logp=(up.token_start_logp - down.token_start_logp)
        * np.float32(rate),
    )


@contextmanager
def _moved(model: Any, direction: list[Tensor], step: float) -> Iterator[None]:
    """The model moved along a direction; put back from a copy: p + e - e is not p."""
    parameters = _parameters(model)
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter.add_(part, alpha=step)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
