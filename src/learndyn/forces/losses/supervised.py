"""Losses on single responses: SFT and what unlearning makes of it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from learndyn.forces.losses.loss import (
    Loss,
    Responses,
    below_zero,
    log_one_minus_exp,
)


ANY = {"response": True}
BY_LABEL = {"chosen": True, "rejected": False}


@dataclass(frozen=True)
class SFT(Loss):
    """Supervised finetuning as the paper has it: sum over tokens, mean over responses.

    Every response is trained on; `chosen` is not looked at.
    """

    name = "sft"
    paper = "Ren & Sutherland 2025, arXiv 2407.10490, Eq. 10-11"
    equation = "-Σ_l log π(y_l)"
    push_equation = "-1"
    differs = "TRL: a mean over the tokens of the batch, see sft-mean"
    layout = "responses"
    roles = ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of the summed negative log-likelihood, nats."""
        return -responses.sums(responses.check_tokens(logp)).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """-1 / responses on every token."""
        flat = torch.full_like(responses.check_tokens(logp), -1.0)
        return flat.detach() / len(responses.n_tokens)


@dataclass(frozen=True)
class SFTMean(Loss):
    """Supervised finetuning as TRL has it: mean over all tokens of the batch.

    A long response weighs more than a short one. `chosen` is not looked at.
    """

    name = "sft-mean"
    paper = "TRL 1.16, `SFTTrainer`, loss_type 'nll'"
    equation = "-Σ_l log π(y_l) / tokens of the batch"
    push_equation = "-1 / tokens of the batch (no further division)"
    differs = "as TRL (with one process and no gradient accumulation)"
    layout = "responses"
    averages: ClassVar[bool] = True
    roles = ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per token, nats."""
        return -responses.check_tokens(logp).sum() / _tokens(responses)

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """-1 / tokens on every token."""
        flat = torch.full_like(responses.check_tokens(logp), -1.0)
        return flat.detach() / _tokens(responses)


def _tokens(responses: Responses) -> int:
    responses.lengths(torch.zeros(1))  # refuses responses without tokens
    return int(responses.n_tokens.sum())


@dataclass(frozen=True)
class GradientAscent(Loss):
    """Unlearning by going up SFT's loss. Every response is lowered, `chosen` or not."""

    name = "gradient-ascent"
    paper = "Jang et al. 2022, arXiv 2210.01504"
    equation = "+Σ_l log π(y_l)"
    push_equation = "+1"
    differs = "not in TRL"
    layout = "responses"
    roles = ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of the summed log-likelihood, nats."""
        return responses.sums(responses.check_tokens(logp)).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """+1 / responses on every token."""
        flat = torch.full_like(responses.check_tokens(logp), 1.0)
        return flat.detach() / len(responses.n_tokens)


@dataclass(frozen=True)
class NPO(Loss):
    """Negative preference optimisation: gradient ascent that stops far below pi_ref.

    Every response is lowered, `chosen` or not. At pi = pi_ref its push is that of
    gradient ascent.
    """

    beta: float = 0.1

    name = "npo"
    paper = "Zhang et al. 2024, arXiv 2404.05868"
    equation = "-(2/β) log σ(-β r),  r = log π/π_ref (y)"
    push_equation = "+2 σ(β r)"
    differs = "not in TRL"
    layout = "responses"
    needs_reference: ClassVar[bool] = True
    roles = ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses."""
        ratio = responses.log_ratios(responses.check_tokens(logp))
        return -2 / self.beta * logsigmoid(-self.beta * ratio).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """2 sigmoid(beta log-ratio) / responses on every token of a response."""
        ratio = responses.log_ratios(responses.check_tokens(logp).detach())
        slope = 2 * torch.sigmoid(self.beta * ratio) / len(ratio)
        return responses.spread(slope)


@dataclass(frozen=True)
class Unlikelihood(Loss):
    """Likelihood on the chosen, unlikelihood on the tokens of the rejected.

    The paper's negative candidates are single tokens; here they are the tokens of the
    rejected responses, each at its own place. Summed over tokens, mean over responses.
    """

    alpha: float = 1.0
    """Weight of unlikelihood."""

    name = "unlikelihood"
    paper = "Welleck et al. 2019, arXiv 1908.04319, Section 5"
    equation = "-Σ_l log π(y⁺_l)  or  -α Σ_l log(1 - π(y⁻_l))"
    push_equation = "y⁺: -1;  y⁻_l: +α π(y⁻_l) / (1 - π(y⁻_l))"
    differs = "not in TRL"
    layout = "responses"
    roles = BY_LABEL
    positive = ("alpha",)

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses."""
        responses.check_tokens(logp)
        unlikely = self.alpha * log_one_minus_exp(below_zero(logp))
        gain = torch.where(responses.chosen[responses.owner()], logp, unlikely)
        return -responses.sums(gain).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """-1 on tokens of the chosen, alpha p / (1 - p) on the others, / responses."""
        sure = below_zero(responses.check_tokens(logp).detach())
        odds = self.alpha * sure.exp() / -sure.expm1()
        slope = torch.where(responses.chosen[responses.owner()], -1.0, odds)
        return slope / len(responses.n_tokens)
