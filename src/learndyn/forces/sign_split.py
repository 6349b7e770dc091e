r"""The first DPO update, split by the sign of its push: who moved what.

At the first update policy and reference agree, so every pair has the same weight
c = beta sigmoid(0) = beta/2, and the step uphill is

    d  =  P ( c E[grad log pi(y+)]  -  c E[grad log pi(y-)] )  =  d_pull + d_push

with P the optimizer's preconditioner: 1 for SGD; for RMSprop, whose first average is
(1 - alpha) g^2, it is 1 / (sqrt(0.01) |g| + eps). The change of any statistic along
each part is a central finite difference of two scorings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.difference import default_step
from learndyn.forces.direction import (
    Direction,
    checked,
    moved,
    norm,
    parameters_of,
    plus,
)
from learndyn.forces.reading import TokenReader
from learndyn.forces.split import sign_gradients
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


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
        BadInput: if there are not as many chosen as rejected, or a gradient is zero or
            not finite.
    """
    if len(chosen) != len(rejected) or not chosen:
        raise BadInput(
            f"{len(chosen)} chosen and {len(rejected)} rejected responses: a DPO "
            "update needs as many of both, and at least one."
        )
    scorer = Scorer.attach(model, probes.pairs, batch_size=batch_size)
    signs = sign_gradients(TokenReader.of(scorer), _batch(chosen, rejected, beta))
    pull, push = (
        {name: -part for name, part in signs[sign].items()} for sign in ("pull", "push")
    )
    total = plus(pull, push)
    if optimizer == "rmsprop":
        scale = {name: 1 / (0.1 * g.abs() + 1e-8) for name, g in total.items()}
        pull, push, total = (_times(scale, part) for part in (pull, push, total))
    first = scorer.observe().token_argmax_id
    return SignSplit(
        _change(scorer, pull, first),
        _change(scorer, push, first),
        _change(scorer, total, first),
    )


def _batch(
    chosen: Sequence[TokenizedPair], rejected: Sequence[TokenizedPair], beta: float
) -> Batch:
    """DPO's push where policy and reference agree: -+ beta/2, averaged over pairs."""
    weight = beta / 2 / len(chosen)
    counts = [sum(len(p.response_ids) for p in pairs) for pairs in (chosen, rejected)]
    roles = ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
    return Batch(
        (*chosen, *rejected), np.repeat([-weight, weight], counts), tuple(roles)
    )


def _times(scale: Direction, part: Direction) -> dict[str, Tensor]:
    return {name: scale[name] * part[name] for name in part}


def _change(
    scorer: Scorer, direction: Direction, first: Int[np.ndarray, " token"]
) -> Change:
    """Central finite differences: an observation has more than log-probabilities."""
    direction = checked(scorer.model, direction)
    weights = norm(parameters_of(scorer.model).values())
    step = default_step(scorer) * weights / norm(direction.values())
    seen = []
    for sign in (step, -step):
        with moved(scorer.model, direction, sign):
            seen.append(scorer.observe(start_ids=first))
    up, down = seen
    rate = 1 / (2 * step)
    return Change(
        logp=(up.logp - down.logp) * rate,
        argmax_logp=(up.argmax_logp - down.argmax_logp) * rate,
        token_start_logp=(up.token_start_logp - down.token_start_logp)
        * np.float32(rate),
    )
