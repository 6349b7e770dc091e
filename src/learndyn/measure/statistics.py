r"""What one row of logits says: all statistics of an observation, for one position.

With z the logits, i the argmax, and S = sum_{v != i} exp(z_v - z_2) over all others,
z_2 the second-largest logit,

    log pi_i       = -log(1 + S exp(z_2 - z_i))
    log(1 - pi_i)  = z_2 + log S - z_i + log pi_i

so both ends of the scale keep all their digits: log(1 - pi_i) is finite and right to
rounding at pi_i = 1 - 1e-12 and far beyond, where 1 - pi_i itself is 0 in floating
point.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """One float64 per position, `argmax_id` aside; logs in nats."""

    logp: Float[Tensor, " row"]
    """log pi of the label."""
    argmax_logp: Float[Tensor, " row"]
    rest_logp: Float[Tensor, " row"]
    """log(1 - max pi)."""
    start_logp: Float[Tensor, " row"]
    """log pi of the token named by `start_ids`, or of the argmax."""
    entropy: Float[Tensor, " row"]
    p_norm2: Float[Tensor, " row"]
    """||pi||^2."""
    p_gap: Float[Tensor, " row"]
    """||pi - e_label||."""
    energy: Float[Tensor, " row"]
    """1 - pi(label)."""
    argmax_id: Int[Tensor, " row"]

    @staticmethod
    def concatenate(parts: list["RowStatistics"]) -> "RowStatistics":
        """Join rows in order."""
        names = [field.name for field in fields(RowStatistics)]
        return RowStatistics(
            **{name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        )


def row_statistics(
    logits: Float[Tensor, "row vocab"],
    labels: Int[Tensor, " row"],
    start_ids: Int[Tensor, " row"] | None = None,
) -> RowStatistics:
    """Statistics of each row; `logits` is overwritten.

    The vocabulary is swept in float32 (float64 if the logits are), its sums are
    accumulated in float64. A label equal to the argmax gets exactly its
    log-probability, and no label ever gets more.
    """
    argmax = logits.argmax(-1, keepdim=True)
    top = logits.gather(-1, argmax).double().squeeze(-1)
    label = logits.gather(-1, labels[:, None]).double().squeeze(-1)
    start = top
    if start_ids is not None:
        start = logits.gather(-1, start_ids[:, None]).double().squeeze(-1)

    logits.scatter_(-1, argmax, -torch.inf)
    second = logits.amax(-1, keepdim=True)
    others = logits.sub_(second).exp_()  # pi_v / pi_second, argmax entry 0
    second = second.double().squeeze(-1)
    total = others.sum(-1, dtype=torch.float64)
    argmax_logp = -torch.log1p(total * torch.exp(second - top))
    rest_logp = second + total.log() - top + argmax_logp

    logp = argmax_logp - (top - label)
    second_logp = argmax_logp - (top - second)
    weight = second_logp.exp()
    spread = torch.special.entr(others).sum(-1, dtype=torch.float64)
    entropy = weight * (spread - second_logp * total) - argmax_logp.exp() * argmax_logp

    is_top = labels == argmax.squeeze(-1)
    energy = torch.where(is_top, rest_logp.exp(), -torch.expm1(logp))
    others_norm2 = weight**2 * others.square_().sum(-1, dtype=torch.float64)
    p_norm2 = others_norm2 + torch.exp(2 * argmax_logp)
    not_label = torch.where(is_top, others_norm2, p_norm2 - torch.exp(2 * logp))
    p_gap = (not_label.clamp(min=0) + energy**2).sqrt()
    return RowStatistics(
        logp=logp,
        argmax_logp=argmax_logp,
        rest_logp=rest_logp,
        start_logp=argmax_logp - (top - start),
        entropy=entropy,
        p_norm2=p_norm2,
        p_gap=p_gap,
        energy=energy,
        argmax_id=argmax.squeeze(-1),
    )
