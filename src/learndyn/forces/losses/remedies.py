"""What others changed in DPO so that the chosen responses do not fall.

Letters: r = log pi/pi_ref summed over tokens (nats), h = r+ - r- the margin, sigma the
logistic function, l-bar a mean of log pi over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from learndyn.forces.losses.pairs import PairLoss, Pairs


Slopes = tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]


@dataclass(frozen=True)
class DPOP(PairLoss):
    """DPO-positive: a chosen response below its reference counts as a lost margin.

    The penalty is inside the sigmoid. At r+ = 0, where training starts, its slope is
    taken as 0, as torch's relu has it. `weight` is the paper's lambda; the default is
    the one that re-implementations give for the paper.
    """

    beta: float = 0.1
    weight: float = 50.0

    name = "dpop"
    paper = "Pal et al. 2024, arXiv 2402.13228"
    equation = "-log σ(β (h - λ max(0, -r⁺)))"
    push_equation = "y⁺: -β σ(-u) (1 + λ 1[r⁺ < 0]);  y⁻: +β σ(-u),  u as in the loss"
    differs = "not in TRL 1.16"
    needs_reference: ClassVar[bool] = True
    positive = ("beta", "weight")

    def _score(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        lost = relu(-chosen)
        return self.beta * (chosen - rejected - self.weight * lost)

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """DPO with the penalty in the margin."""
        return -logsigmoid(self._score(pairs))

    def slopes(self, pairs: Pairs) -> Slopes:
        """A chosen response below its reference is raised 1 + weight times as hard."""
        chosen, _ = pairs.log_ratios()
        slope = self.beta * torch.sigmoid(-self._score(pairs))
        return -slope * (1 + self.weight * (chosen < 0).to(slope)), slope


@dataclass(frozen=True)
class DPOShift(PairLoss):
    """DPO with the rejected response's term scaled by f(lambda) <= 1.

    The authors' code has f fixed, or rising or falling linearly over training between
    0.5 and 1; here it is the number at this update. Checked against that code.
    """

    beta: float = 0.1
    f: float = 0.75

    name = "dpo-shift"
    paper = "Yang et al. 2025, arXiv 2502.07599"
    equation = "-log σ(β (r⁺ - f r⁻))"
    push_equation = "y⁺: -β σ(-u);  y⁻: +β f σ(-u),  u = β (r⁺ - f r⁻)"
    differs = "not in TRL 1.16"
    needs_reference: ClassVar[bool] = True
    positive = ("beta", "f")

    def _score(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        return self.beta * (chosen - self.f * rejected)

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """-log sigmoid of the shifted margin."""
        return -logsigmoid(self._score(pairs))

    def slopes(self, pairs: Pairs) -> Slopes:
        """The rejected is lowered f times as hard as the chosen is raised."""
        slope = self.beta * torch.sigmoid(-self._score(pairs))
        return -slope, slope * self.f


@dataclass(frozen=True)
class CalDPO(PairLoss):
    """DPO with both log-ratios calibrated to +-1/(2 beta).

    There is no beta in the sigmoid. The paper's text was not at hand: the formula is
    that of the authors' code, which multiplies the squares by 0.5; re-implementations
    give the paper's loss with weight 1, the default here.
    """

    beta: float = 0.1
    weight: float = 1.0
    """Of the two squares; 0.5 in the authors' code."""

    name = "cal-dpo"
    paper = "Xiao et al. 2024, arXiv 2412.14516"
    equation = "-log σ(h) + w [(r⁺ - 1/(2β))² + (r⁻ + 1/(2β))²]"
    push_equation = "y⁺: -σ(-h) + 2w (r⁺ - 1/(2β));  y⁻: +σ(-h) + 2w (r⁻ + 1/(2β))"
    differs = "not in TRL 1.16; the authors' code has w = 0.5"
    needs_reference: ClassVar[bool] = True
    positive = ("beta", "weight")

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """DPO at beta 1, and the squared distances from the targets."""
        chosen, rejected = pairs.log_ratios()
        target = 0.5 / self.beta
        squares = (chosen - target) ** 2 + (rejected + target) ** 2
        return -logsigmoid(chosen - rejected) + self.weight * squares

    def slopes(self, pairs: Pairs) -> Slopes:
        """DPO's and the two calibrations'."""
        chosen, rejected = pairs.log_ratios()
        target, slope = 0.5 / self.beta, torch.sigmoid(rejected - chosen)
        return (
            -slope + 2 * self.weight * (chosen - target),
            slope + 2 * self.weight * (rejected + target),
        )


@dataclass(frozen=True)
class GateDPO(PairLoss):
    """DPO whose push on the rejected response is gated off where that is improbable.

    g = sigmoid(alpha (p - tau)) is not differentiated, and p is the probability of the
    rejected response: the geometric mean over its tokens (`sequence`), or the 10 %
    quantile of its tokens' probabilities (`q10`). The value is DPO's own: only the
    gradient is gated. Formula from the authors' published comparison; their alpha and
    tau were not found, the defaults are this package's.
    """

    beta: float = 0.1
    alpha: float = 50.0
    tau: float = 0.1
    probability: Literal["sequence", "q10"] = "sequence"

    name = "gate-dpo"
    paper = "Mouiche 2026, arXiv 2605.02626"
    equation = "-log σ(β (r⁺ - [g r⁻]∇)),  g = σ(α (p⁻ - τ)) detached"
    push_equation = "y⁺: -β σ(-β h);  y⁻: +g β σ(-β h)"
    differs = "not in TRL 1.16; α and τ are this package's"
    needs_reference: ClassVar[bool] = True
    positive = ("beta", "alpha")

    def gate(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """How much of the rejected response's push is let through, 0 to 1.

        Raises:
            BadInput: if a response has no token.
        """
        _, mean = pairs.means()
        if self.probability == "sequence":
            likely = mean.detach().exp()
        else:
            tokens = pairs.logp.detach().exp()
            by_response = tokens.split(pairs.responses.n_tokens.tolist())
            low = [by_response[i].quantile(0.1) for i in pairs.rejected_index.tolist()]
            likely = torch.stack(low)
        return torch.sigmoid(self.alpha * (likely - self.tau))

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """DPO's value; the gradient through the rejected response is scaled by g."""
        chosen, rejected = pairs.log_ratios()
        gate = self.gate(pairs)
        gated = gate * rejected + (1 - gate) * rejected.detach()
        return -logsigmoid(self.beta * (chosen - gated))

    def slopes(self, pairs: Pairs) -> Slopes:
        """DPO's, the rejected one gated."""
        slope = self.beta * torch.sigmoid(-self.beta * pairs.margin())
        return -slope, slope * self.gate(pairs)


@dataclass(frozen=True)
class CWDPO(PairLoss):
    """Cooling-weighted DPO: an easily rejected response counts for less in the margin.

    w = sigmoid((l-bar(y-) - floor) / tau) is not differentiated here; whether the paper
    does was not verified. Formula from a public summary of the paper, which gives no
    numbers for floor and tau: the defaults are this package's. Only the second stage.
    """

    beta: float = 0.1
    floor: float = -3.0
    """Mean log-probability below which a rejected response is easy, nats per token."""
    tau: float = 0.5
    """Width of the transition, nats per token."""

    name = "cw-dpo"
    paper = "Zhang et al. 2025, arXiv 2510.11978, stage 2"
    equation = "-log σ(β (r⁺ - w r⁻)),  w = σ((ℓ̄⁻ - floor)/τ) detached"
    push_equation = "y⁺: -β σ(-u);  y⁻: +w β σ(-u),  u = β (r⁺ - w r⁻)"
    differs = "not in TRL 1.16; floor and τ are this package's"
    needs_reference: ClassVar[bool] = True
    positive = ("beta", "tau")

    def weights(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """The cooling weight of each rejected response, 0 to 1.

        Raises:
            BadInput: if a response has no token.
        """
        _, mean = pairs.means()
        return torch.sigmoid((mean.detach() - self.floor) / self.tau)

    def _score(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        return self.beta * (chosen - self.weights(pairs) * rejected)

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """-log sigmoid of the margin with the rejected term cooled."""
        return -logsigmoid(self._score(pairs))

    def slopes(self, pairs: Pairs) -> Slopes:
        """The rejected is lowered w times as hard as the chosen is raised."""
        slope = self.beta * torch.sigmoid(-self._score(pairs))
        return -slope, slope * self.weights(pairs)
