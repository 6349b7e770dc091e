"""Losses on single judged responses: KTO by label, GRPO by advantage."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from learndyn.errors import BadInput
from learndyn.forces.losses.loss import Loss, Responses


@dataclass(frozen=True)
class KTO(Loss):
    """Kahneman-Tversky optimisation: each response against a baseline.

    `z_ref` is the paper's z_0, an estimate of KL(pi || pi_ref) in nats from mismatched
    prompts and responses, never below 0 and never differentiated. A batch of matched
    responses cannot estimate it: give the number the training used (TRL logs it as
    `kl`).
    """

    beta: float = 0.1
    z_ref: float = 0.0
    desirable: float = 1.0
    """Weight lambda_D of the chosen."""
    undesirable: float = 1.0
    """Weight lambda_U of the rejected."""

    name = "kto"
    paper = "Ethayarajh et al. 2024, arXiv 2402.01306, Eq. 7"
    equation = "λ_D (1 - σ(β (r - z)))  or  λ_U (1 - σ(β (z - r))),  z detached"
    push_equation = "y⁺: -λ_D β σ'(β (r - z));  y⁻: +λ_U β σ'(β (r - z)),  σ' = σ (1-σ)"
    differs = "as TRL 'kto', which estimates z per batch"
    layout = "responses"
    needs_reference: ClassVar[bool] = True
    roles = {"chosen": True, "rejected": False}  # noqa: RUF012 never written to
    positive = ("beta", "desirable", "undesirable")

    def __post_init__(self) -> None:
        """Refuse a negative divergence."""
        super().__post_init__()
        if self.z_ref < 0:
            raise BadInput(f"kto: z_ref is {self.z_ref:g}: a KL is never below 0.")

    def _gain(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> tuple[Float[Tensor, " response"], Float[Tensor, " response"]]:
        """beta (log-ratio - z) and the weight of each response."""
        ratio = responses.log_ratios(responses.check_tokens(logp))
        weight = torch.full_like(ratio, self.undesirable).detach()
        weight = weight.masked_fill(responses.chosen, self.desirable)
        return self.beta * (ratio - self.z_ref), weight

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of weight - the paper's value function."""
        gain, weight = self._gain(logp, responses)
        wanted = torch.where(responses.chosen, gain, -gain)
        # 1 - sigmoid(x), without losing digits where it is small
        return (weight * torch.sigmoid(-wanted)).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """The slope of a response on each of its tokens, / responses."""
        gain, weight = self._gain(logp.detach(), responses)
        slope = weight * self.beta * torch.sigmoid(gain) * torch.sigmoid(-gain)
        slope = torch.where(responses.chosen, -slope, slope) / len(gain)
        return responses.spread(slope)


@dataclass(frozen=True)
class GRPO(Loss):
    """Group relative policy optimisation: the clipped ratio times the advantage.

    The ratio is per token, against the policy that sampled it; without `old_logp` it is
    1 (the first update on a batch), with push -advantage. No KL term: TRL's weight for
    it is 0 by default, and it needs the reference per token. `chosen` is not looked at.
    A token whose ratio overflows and is not clipped (advantage < 0) has an infinite
    push.
    """

    epsilon: float = 0.2
    """Lowest ratio is 1 - epsilon."""
    epsilon_high: float = 0.2
    """Highest ratio is 1 + epsilon_high."""
    mean: Literal["response", "token"] = "response"
    """Over a response's tokens, then responses (paper), or over all tokens at once."""

    name = "grpo"
    paper = "Shao et al. 2024, arXiv 2402.03300, Eq. 3, without its KL term"
    equation = "-min(ρ A, clip(ρ, 1-ε, 1+ε) A),  ρ = π/π_old per token"
    push_equation = "-ρ A / |y|;  0 where clipped"
    differs = (
        "as TRL 'grpo' (mean='token': 'bnpo'); TRL's default 'dapo' divides by all "
        "tokens of the step"
    )
    layout = "advantages"
    averages: ClassVar[bool] = True
    roles = {"advantage > 0": True, "advantage < 0": False}  # noqa: RUF012 as above
    positive = ("epsilon", "epsilon_high")

    @property
    def reach(self) -> float:
        """Well beyond where the ratio is clipped, nats per token."""
        low = -math.log(1 - self.epsilon) if self.epsilon < 1 else 0.0
        return 2 * max(low, math.log(1 + self.epsilon_high)) + 1

    def _ratio(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> tuple[
        Float[Tensor, " token"], Float[Tensor, " token"], Bool[Tensor, " token"]
    ]:
        """log ratio, advantage, and whether the token has a gradient."""
        responses.check_tokens(logp)
        if responses.advantage is None:
            raise BadInput("grpo needs the advantage of each response (advantage=...).")
        old = responses.old_logp
        log_ratio = logp - (logp.detach() if old is None else old.to(logp))
        advantage = responses.spread(responses.advantage.to(logp))
        high, low = math.log1p(self.epsilon_high), 1 - self.epsilon
        clipped = ((advantage > 0) & (log_ratio > high)) | (
            (advantage < 0) & (log_ratio.exp() < low)
        )
        return log_ratio, advantage, ~clipped & (advantage != 0)

    def _weight(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        lengths = responses.lengths(logp)
        if self.mean == "token":
            return (1 / lengths.sum()).expand(len(logp))
        return responses.spread(1 / lengths) / len(lengths)

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Minus the clipped objective, a mean over tokens as `mean` says."""
        log_ratio, advantage, active = self._ratio(logp, responses)
        # exp of a clipped ratio may overflow, and autograd would multiply it by 0
        ratio = torch.where(active, log_ratio, 0).exp()
        bound = torch.full_like(advantage, 1 - self.epsilon)
        bound = bound.masked_fill(advantage > 0, 1 + self.epsilon_high)
        gain = torch.where(active, ratio, bound) * advantage
        return -(gain * self._weight(logp, responses)).sum()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """-ratio advantage where not clipped, weighted as in the mean."""
        log_ratio, advantage, active = self._ratio(logp.detach(), responses)
        ratio = torch.where(active, log_ratio, 0).exp()
        slope = torch.where(active, -ratio * advantage, 0)
        return slope * self._weight(logp, responses)
