r"""What one row of logits says: all statistics of an observation, for one position.

With z the logits, i the argmax, and S = sum_{v != i} exp(z_v - r) over all others, r a
reference such as the second-largest logit,

    log pi_i       = -log(1 + S exp(r - z_i))
    log(1 - pi_i)  = r + log S - z_i + log pi_i

so both ends of the scale keep all their digits: log(1 - pi_i) is finite and right to
rounding at pi_i = 1 - 1e-12 and far beyond, where 1 - pi_i itself is 0 in floating
point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


C = TypeVar("C", bound="Columns")  # not Self, which the tests' type checker refuses


class Columns:
    """A dataclass of tensors that share their first axis."""

    @classmethod
    def names(cls: Any) -> list[str]:
        """The columns, in order."""
        return [field.name for field in fields(cls)]

    @classmethod
    def concatenate(cls: type[C], parts: Sequence[C]) -> C:
        """Join rows in order."""
        columns = {n: torch.cat([getattr(p, n) for p in parts]) for n in cls.names()}
        return cls(**columns)

    def take(self: C, rows: Int[Tensor, " some"]) -> C:
        """Some rows, in any order and number."""
        return type(self)(**{name: getattr(self, name)[rows] for name in self.names()})

    def cpu(self: C) -> C:
        """The same on the CPU."""
        return type(self)(**{name: getattr(self, name).cpu() for name in self.names()})


@dataclass(frozen=True, slots=True)
class RowStatistics(Columns):
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
    def empty(rows: int) -> "RowStatistics":
        """Room for `rows` rows on the CPU, NaN until they are put in."""
        values = torch.full((rows,), torch.nan, dtype=torch.float64)
        columns = {name: values.clone() for name in RowStatistics.names()}
        columns["argmax_id"] = torch.full((rows,), -1)
        return RowStatistics(**columns)

    def put(self, rows: Int[Tensor, " some"], other: "RowStatistics") -> None:
        """Write `other` over some rows."""
        for name in self.names():
            column = getattr(self, name)
            column[rows] = getattr(other, name).to(column.device)


@dataclass(frozen=True, slots=True)
class VocabularySums(Columns):
    """What one sweep over the vocabulary leaves of each row, axis row.

    Sums run over all tokens but the argmax, of e = exp(z - reference). The reference is
    any logit near the largest of those: then no digit of the tail is lost.
    """

    top: Float[Tensor, " row"]
    """The largest logit, float64 as all that follows."""
    argmax_id: Int[Tensor, " row"]
    reference: Float[Tensor, " row"]
    total: Float[Tensor, " row"]
    """Sum of e."""
    spread: Float[Tensor, " row"]
    """Sum of -e (z - reference)."""
    squares: Float[Tensor, " row"]
    """Sum of e^2."""

    def statistics(
        self,
        labels: Int[Tensor, " row"],
        label: Float[Tensor, " row"],
        start: Float[Tensor, " row"] | None = None,
    ) -> RowStatistics:
        """All statistics, given the labels, their logits and those of `start_ids`.

        A label equal to the argmax gets exactly its log-probability, and no label ever
        gets more.
        """
        top, reference = self.top, self.reference
        argmax_logp = -torch.log1p(self.total * torch.exp(reference - top))
        rest_logp = reference + self.total.log() - top + argmax_logp

        logp = argmax_logp - (top - label)
        reference_logp = argmax_logp - (top - reference)
        weight = reference_logp.exp()
        entropy = weight * (self.spread - reference_logp * self.total)
        entropy = entropy - argmax_logp.exp() * argmax_logp

        is_top = labels == self.argmax_id
        energy = torch.where(is_top, rest_logp.exp(), -torch.expm1(logp))
        others_norm2 = weight**2 * self.squares
        p_norm2 = others_norm2 + torch.exp(2 * argmax_logp)
        not_label = torch.where(is_top, others_norm2, p_norm2 - torch.exp(2 * logp))
        p_gap = (not_label.clamp(min=0) + energy**2).sqrt()
        return RowStatistics(
            logp=logp,
            argmax_logp=argmax_logp,
            rest_logp=rest_logp,
            start_logp=argmax_logp - (top - (top if start is None else start)),
            entropy=entropy,
            p_norm2=p_norm2,
            p_gap=p_gap,
            energy=energy,
            argmax_id=self.argmax_id,
        )


def row_statistics(
    logits: Float[Tensor, "row vocab"],
    labels: Int[Tensor, " row"],
    start_ids: Int[Tensor, " row"] | None = None,
) -> RowStatistics:
    """Statistics of each row; `logits` is overwritten.

    The vocabulary is swept in float32 (float64 if the logits are), its sums are
    accumulated in float64, relative to the second-largest logit: right at any p_max.
    """
    argmax = logits.argmax(-1, keepdim=True)
    top = logits.gather(-1, argmax).double().squeeze(-1)
    label = logits.gather(-1, labels[:, None]).double().squeeze(-1)
    start = None
    if start_ids is not None:
        start = logits.gather(-1, start_ids[:, None]).double().squeeze(-1)

    logits.scatter_(-1, argmax, -torch.inf)
    # a vocabulary that is masked but for one token has no second
    second = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    others = logits.sub_(second).exp_()  # pi_v / pi_second, argmax entry 0
    total = others.sum(-1, dtype=torch.float64)
    spread = torch.special.entr(others).sum(-1, dtype=torch.float64)
    squares = others.square_().sum(-1, dtype=torch.float64)
    sums = VocabularySums(
        top, argmax.squeeze(-1), second.double().squeeze(-1), total, spread, squares
    )
    return sums.statistics(labels, label, start)
