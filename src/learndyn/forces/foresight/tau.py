r"""The tau test: who gains when one token is pushed down, before any update.

At one position, with the logits moved by an update of their own kernel alone (K = k I;
Ren & Sutherland 2025, Section 3.3 and Appendix E), a push down on the label y by s = lr
times push times k changes every token's log-probability by

    d log pi_i / ds  =  pi_i - tau - 1[i = y]        tau = ||pi||^2 - pi_y

to first order, so a token other than the label rises if and only if pi_i > tau. It
follows that the label always falls, and that the likeliest other token, the favourite,
always rises. What differs between positions is by how much, and with how many others:
the peakier pi and the less likely the label, the fewer tokens are above tau. Where mass
goes to one favourite and nearly all other tokens lose, that is the squeezing effect.

Real kernels are not multiples of the identity: take the direction from this, not the
size (docs/foresight.md has both measured).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from learndyn.forces.gradients import TokenLogps
from learndyn.measure.statistics import Columns


_SHARE = 8
"""The rows are taken in so many parts: four arrays of their size in float64, so
eight times their bytes, exist at once."""


@dataclass(frozen=True, eq=False)
class PushDown(Columns):
    """What a push down on each label would do; float64, rates per unit of s."""

    logp: Float[Tensor, " label"]
    """log pi of the label, nats."""
    p_norm2: Float[Tensor, " label"]
    """||pi||^2, the peakiness: 1 / vocabulary where flat, 1 where certain."""
    tau: Float[Tensor, " label"]
    """||pi||^2 - pi_y. Below zero every other token rises."""
    winners: Int[Tensor, " label"]
    """Tokens that rise; never less than one."""
    off_target: Bool[Tensor, " label"]
    """Whether the model's argmax is another token than the label."""
    favourite_id: Int[Tensor, " label"]
    """The likeliest token that is not the label."""
    favourite_rate: Float[Tensor, " label"]
    """d log pi of the favourite, nats; at least 0."""
    label_rate: Float[Tensor, " label"]
    """d log pi of the label, nats; at most 0."""
    favourite_gain: Float[Tensor, " label"]
    """d pi of the favourite: the probability that it receives."""


def push_down(
    logits: Float[Tensor, "label vocab"], labels: Int[Tensor, " label"]
) -> PushDown:
    """The tau test of each row of logits and its label. Needs two tokens or more."""
    # In float64: pi - tau of small tokens is a difference of numbers near 1e-5.
    pi = logits.double().softmax(-1)
    where = labels[:, None]
    label = pi.gather(-1, where)
    norm2 = pi.square().sum(-1, keepdim=True)
    tau = norm2 - label
    others = pi.scatter(-1, where, -1.0)
    best, best_id = others.max(-1, keepdim=True)
    # where the favourite has all but 1e-16 of the mass, pi - tau is rounding alone
    winners = (others > tau).sum(-1).clamp(min=1)
    rate = (best - norm2 + label).clamp(min=0)  # >= 0 but for rounding
    wide = logits.double()
    logp = wide.gather(-1, where) - wide.logsumexp(-1, keepdim=True)
    return PushDown(
        logp=logp.squeeze(-1),
        p_norm2=norm2.squeeze(-1),
        tau=tau.squeeze(-1),
        winners=winners,
        off_target=(best > label).squeeze(-1),
        favourite_id=best_id.squeeze(-1),
        favourite_rate=rate.squeeze(-1),
        label_rate=(label - tau - 1).clamp(max=0).squeeze(-1),
        favourite_gain=(best * rate).squeeze(-1),
    )


def push_down_all(logps: TokenLogps) -> PushDown:
    """The tau test at every response token of the pairs, flat, on the CPU.

    Logits exist a few rows at a time, as when probes are scored.
    """
    parts, flat = [], []
    with logps.measuring():
        for piece in logps.pieces:
            for rows in logps.rows(piece):
                size = -(-len(rows.labels) // _SHARE)
                logits, labels = rows.logits.split(size), rows.labels.split(size)
                parts += [push_down(*part) for part in zip(logits, labels, strict=True)]
                flat.append(rows.flat)
    return PushDown.concatenate(parts).cpu().take(torch.cat(flat).argsort())
