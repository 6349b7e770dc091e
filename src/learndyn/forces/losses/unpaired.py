"""Losses on single responses: SFT, unlearning, KTO by label, GRPO by advantage."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from learndyn.errors import BadInput
from learndyn.forces.losses.loss import (
    Loss,
    Responses,
    below_zero,
    log_one_minus_exp,
)


_ANY = {"response": True}
_BY_LABEL = {"chosen": True, "rejected": False}


@dataclass(frozen=True)
class SFT(Loss):
    """Supervised finetuning as the paper has it: sum over tokens, mean over responses.

    Trains on every response, whatever `chosen` says.
    """

    name = "sft"
    paper = "Ren & Sutherland 2025, arXiv 2407.10490, Eq. 10-11"
    equation = "-Σ_l log π(y_l)"
    push_equation = "-1"
    differs = "TRL: a mean over the tokens of the batch, see sft-mean"
    layout = "responses"
    roles = _ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of the summed negative log-likelihood, nats."""
        return -responses.sums(responses.check_tokens(logp)).mean()


@dataclass(frozen=True)
class SFTMean(Loss):
    """Supervised finetuning as TRL has it: mean over all tokens of the batch.

    A long response weighs more than a short one; `chosen` changes nothing.
    """

    name = "sft-mean"
    paper = "TRL 1.16, `SFTTrainer`, loss_type 'nll'"
    equation = "-Σ_l log π(y_l) / tokens of the batch"
    push_equation = "-1 / tokens of the batch (no further division)"
    differs = "as TRL (with one process and no gradient accumulation)"
    layout = "responses"
    averages: ClassVar[bool] = True
    roles = _ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean negative log-likelihood per token, nats."""
        return -responses.check_tokens(logp).sum() / responses.lengths(logp).sum()


@dataclass(frozen=True)
class GradientAscent(Loss):
    """Unlearning by going up SFT's loss. Every response is lowered, `chosen` or not."""

    name = "gradient-ascent"
    paper = "Jang et al. 2022, arXiv 2210.01504"
    equation = "+Σ_l log π(y_l)"
    push_equation = "+1"
    differs = "not in TRL"
    layout = "responses"
    roles = _ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of the summed log-likelihood, nats."""
        return responses.sums(responses.check_tokens(logp)).mean()


@dataclass(frozen=True)
class NPO(Loss):
    """Negative preference optimisation: gradient ascent that stops far below pi_ref.

    Every response is lowered, `chosen` or not. At pi = pi_ref it pushes as
    gradient ascent does.
    """

    beta: float = 0.1

    name = "npo"
    paper = "Zhang et al. 2024, arXiv 2404.05868"
    equation = "-(2/β) log σ(-β r),  r = log π/π_ref (y)"
    push_equation = "+2 σ(β r)"
    differs = "not in TRL"
    layout = "responses"
    needs_reference: ClassVar[bool] = True
    roles = _ANY

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses."""
        # logsigmoid: sigmoid(-beta r) itself is 0 in float32 from r = 890 nats on at
        # beta 0.1, and its logarithm -inf.
        ratio = responses.log_ratios(responses.check_tokens(logp))
        return -2 / self.beta * logsigmoid(-self.beta * ratio).mean()


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
    roles = _BY_LABEL
    positive = ("alpha",)

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses."""
        responses.check_tokens(logp)
        # Both branches are computed: where `chosen` is taken the other must be finite,
        # or autograd would multiply its infinite slope by 0.
        unlikely = self.alpha * log_one_minus_exp(below_zero(logp))
        gain = torch.where(responses.chosen[responses.owner()], logp, unlikely)
        return -responses.sums(gain).mean()


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
    roles = _BY_LABEL
    positive = ("beta", "desirable", "undesirable")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z_ref < 0:
            raise BadInput(f"kto: z_ref is {self.z_ref:g}: a KL is never below 0.")

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over responses of weight - the paper's value function."""
        ratio = responses.log_ratios(responses.check_tokens(logp))
        gain = self.beta * (ratio - self.z_ref)
        loss = torch.where(responses.chosen, -gain, gain)
        weight = torch.full_like(ratio, self.undesirable)
        weight = weight.masked_fill(responses.chosen, self.desirable)
        # exp(logsigmoid(x)), not sigmoid(x): torch differentiates that as y (1 - y),
        # which in float32 is 0 from x = 17 on. At 250 nats and beta 0.1 a response's
        # push, 1e-12, came out as 0, and 5e-6 of it were lost in float64.
        return (weight * logsigmoid(loss).exp()).mean()


@dataclass(frozen=True)
class GRPO(Loss):
    """Group relative policy optimisation: the clipped ratio times the advantage.

    The ratio is per token, against the policy that sampled it; without `old_logp` it is
    1 (the first update on a batch), with push -advantage. No KL term: TRL's weight for
    it is 0 by default, and it needs the reference per token. `chosen` changes nothing.
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
    roles = {"advantage > 0": True, "advantage < 0": False}  # noqa: RUF012 never written to
    positive = ("epsilon", "epsilon_high")

    @property
    def reach(self) -> float:
        """Well beyond where the ratio is clipped, nats per token."""
        low = -math.log(1 - self.epsilon) if self.epsilon < 1 else 0.0
        return 2 * max(low, math.log(1 + self.epsilon_high)) + 1

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Minus the clipped objective, a mean over tokens as `mean` says."""
        responses.check_tokens(logp)
        if responses.advantage is None:
            raise BadInput("grpo needs the advantage of each response (advantage=...).")
        old = responses.old_logp
        # Without `old_logp` the ratio is 1 in value but keeps its slope.
        log_ratio = logp - (logp.detach() if old is None else old.to(logp))
        advantage = responses.spread(responses.advantage.to(logp))
        # The lower end compares ratios, not logs: epsilon may be 1 or more.
        high, low = math.log1p(self.epsilon_high), 1 - self.epsilon
        clipped = ((advantage > 0) & (log_ratio > high)) | (
            (advantage < 0) & (log_ratio.exp() < low)
        )
        active = ~clipped & (advantage != 0)
        # exp of a clipped ratio may overflow, and autograd would multiply it by 0.
        ratio = torch.where(active, log_ratio, 0).exp()
        bound = torch.full_like(advantage, 1 - self.epsilon)
        bound = bound.masked_fill(advantage > 0, 1 + self.epsilon_high)
        gain = torch.where(active, ratio, bound) * advantage
        return -(gain * self._weight(logp, responses)).sum()

    def _weight(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """Of each token in the mean; they sum to 1."""
        lengths = responses.lengths(logp)
        if self.mean == "token":
            return (1 / lengths.sum()).expand(len(logp))
        return responses.spread(1 / lengths) / len(lengths)
