"""Losses on pairs: DPO, its relatives, and what others changed to keep y+ from falling.

Letters: r = log pi/pi_ref summed over tokens (nats), h = r+ - r- the margin, sigma the
logistic function, l-bar a mean of log pi over tokens. `push_equation` has the slope of
each in closed form, and the tests hold autograd to it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from learndyn.errors import BadInput
from learndyn.forces.losses.loss import PairLoss, Pairs, below_zero, log_one_minus_exp


@dataclass(frozen=True)
class DPO(PairLoss):
    """Direct preference optimisation."""

    beta: float = 0.1

    name = "dpo"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, Eq. 7"
    equation = "-log σ(β h)"
    push_equation = "y⁺: -β σ(-β h);  y⁻: +β σ(-β h)"
    differs = "as TRL 'sigmoid'"
    needs_reference: ClassVar[bool] = True

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        return -logsigmoid(self.beta * pairs.margin())


@dataclass(frozen=True)
class CDPO(PairLoss):
    """Conservative DPO: a share `label_smoothing` of the labels is taken to be wrong.

    Its push turns around where sigmoid(-beta margin) = label_smoothing.
    """

    beta: float = 0.1
    label_smoothing: float = 0.1

    name = "cdpo"
    paper = "Mitchell 2023, note on noisy preferences, Eq. 3"
    equation = "-(1-ε) log σ(β h) - ε log σ(-β h)"
    push_equation = "y⁺: -β (σ(-β h) - ε);  y⁻: the opposite"
    differs = "TRL 1.16 has no cDPO; its 'robust' divides by 1-2ε and subtracts"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise BadInput(
                f"cdpo: label_smoothing is {self.label_smoothing:g}, the share of "
                "wrong labels: give a number from 0 to below 0.5."
            )

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        # logsigmoid of both signs: log(1 - sigmoid(x)) would be log 0 from x = 17 on in
        # float32.
        score, smooth = self.beta * pairs.margin(), self.label_smoothing
        return -(1 - smooth) * logsigmoid(score) - smooth * logsigmoid(-score)


@dataclass(frozen=True)
class IPO(PairLoss):
    """Identity preference optimisation: drives the margin to 1/(2 beta), and back.

    The margin is of summed log-probabilities, as in the paper (whose tau is `beta`).
    """

    beta: float = 0.1

    name = "ipo"
    paper = "Azar et al. 2023, arXiv 2310.12036, Eq. 17"
    equation = "(h - 1/(2β))²"
    push_equation = "y⁺: 2 (h - 1/(2β));  y⁻: the opposite"
    differs = "TRL 'ipo' averages over tokens: see ipo-mean"
    needs_reference: ClassVar[bool] = True

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        return (pairs.margin() - 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class IPOMean(PairLoss):
    """IPO with each log-ratio divided by the tokens of its response, as TRL has it."""

    beta: float = 0.1

    name = "ipo-mean"
    paper = "Azar et al. 2023, arXiv 2310.12036, Eq. 17; averaged as in TRL 1.16"
    equation = "(h̄ - 1/(2β))²,  h̄ = r⁺/|y⁺| - r⁻/|y⁻|"
    push_equation = "y⁺: 2 (h̄ - 1/(2β)) / |y⁺|;  y⁻: -2 (h̄ - 1/(2β)) / |y⁻|"
    differs = "as TRL 'ipo'; the paper's text has sums"
    needs_reference: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        (chosen, rejected), (long, short) = pairs.log_ratios(), pairs.lengths()
        return (chosen / long - rejected / short - 0.5 / self.beta) ** 2


@dataclass(frozen=True)
class SLiC(PairLoss):
    """SLiC-HF: a hinge on the gap of the log-probabilities themselves.

    The gap is log pi(y+) - log pi(y-), without a reference model. The regulariser is
    SFT on a target y_ref, which is the chosen response here: a batch of pairs has no
    other target, and the paper allows this choice. It is off by default.
    """

    delta: float = 1.0
    """Gap that is enough, nats."""
    regularise: float = 0.0
    """lambda: weight of -log pi(chosen)."""

    name = "slic"
    paper = "Zhao et al. 2023, arXiv 2305.10425"
    equation = "max(0, δ - log π(y⁺) + log π(y⁻)) - λ log π(y⁺)"
    push_equation = "y⁺: -1[gap < δ] - λ;  y⁻: +1[gap < δ],  gap = log π(y⁺)/π(y⁻)"
    differs = "TRL 'hinge' is max(0, 1 - β h): against the reference, no regulariser"
    positive = ("delta",)

    @property
    def reach(self) -> float:
        """Well beyond the hinge, nats."""
        return 10 * self.delta

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.sums()
        hinge = relu(self.delta - (chosen - rejected))
        return hinge - self.regularise * chosen


@dataclass(frozen=True)
class SimPO(PairLoss):
    """Simple preference optimisation: means over tokens, no reference model."""

    beta: float = 2.0
    gamma: float = 1.0
    """Target of beta times the gap of the means."""

    name = "simpo"
    paper = "Meng et al. 2024, arXiv 2405.14734, Eq. 6"
    equation = "-log σ(β (ℓ̄⁺ - ℓ̄⁻) - γ),  ℓ̄ = log π(y) / |y|"
    push_equation = "y⁺: -β σ(-u) / |y⁺|;  y⁻: +β σ(-u) / |y⁻|,  u = β (ℓ̄⁺ - ℓ̄⁻) - γ"
    differs = "as TRL's CPO trainer with 'simpo' and cpo_alpha 0"
    averages: ClassVar[bool] = True

    @property
    def reach(self) -> float:
        """Nats per token around the target."""
        return (20 + abs(self.gamma)) / self.beta

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.means()
        return -logsigmoid(self.beta * (chosen - rejected) - self.gamma)


@dataclass(frozen=True)
class ORPO(PairLoss):
    """Odds ratio preference optimisation: SFT on the chosen and a term on the odds.

    p is the geometric mean of a response's token probabilities. Both terms take a mean
    over the tokens of a response.
    """

    beta: float = 0.1
    """lambda of the paper: the weight of the odds."""

    name = "orpo"
    paper = "Hong et al. 2024, arXiv 2403.07691, Eq. 6-7"
    equation = "-ℓ̄⁺ - β log σ(o),  o = log [p⁺/(1-p⁺)] - log [p⁻/(1-p⁻)],  p = e^ℓ̄"
    push_equation = "y⁺: -(1 + β σ(-o)/(1-p⁺)) / |y⁺|;  y⁻: +β σ(-o) / ((1-p⁻) |y⁻|)"
    differs = "TRL's SFT term is a mean over all tokens of the batch, prompts included"
    averages: ClassVar[bool] = True

    @property
    def reach(self) -> float:
        """Nats per token: the odds have no scale but 1."""
        return 20.0

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        plain, _ = pairs.means()
        # A response that the model is sure of has odds 1/0; SFT's term needs no clamp.
        chosen, rejected = map(below_zero, pairs.means())
        odds = chosen - log_one_minus_exp(chosen)
        odds = odds - (rejected - log_one_minus_exp(rejected))
        return -plain - self.beta * logsigmoid(odds)


@dataclass(frozen=True)
class SPPO(PairLoss):
    """Self-play preference optimisation: each log-ratio has its own target.

    Hard labels: with probabilities 1 and 0 of winning, and eta = 1/beta. The paper
    estimates the probabilities with a preference model. The residual printed in Ren &
    Sutherland (Eq. 22) has the opposite sign, see docs/losses.md.
    """

    beta: float = 0.1

    name = "sppo"
    paper = "Wu et al. 2024, arXiv 2405.00675, Eq. 4.7, hard labels"
    equation = "(r⁺ - 1/(2β))² + (r⁻ + 1/(2β))²"
    push_equation = "y⁺: 2 (r⁺ - 1/(2β));  y⁻: 2 (r⁻ + 1/(2β))"
    differs = "as TRL 'sppo_hard'"
    needs_reference: ClassVar[bool] = True

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        target = 0.5 / self.beta
        return (chosen - target) ** 2 + (rejected + target) ** 2


@dataclass(frozen=True)
class DPOP(PairLoss):
    """DPO-positive: a chosen response below its reference counts as a lost margin.

    The penalty is inside the sigmoid, so a chosen response below its reference is
    raised 1 + weight times as hard. At r+ = 0, where training starts, the penalty has
    slope 0, as torch's relu has it. `weight` is the paper's lambda; the default is
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

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        margin = chosen - rejected - self.weight * relu(-chosen)
        return -logsigmoid(self.beta * margin)


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

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        return -logsigmoid(self.beta * (chosen - self.f * rejected))


@dataclass(frozen=True)
class CalDPO(PairLoss):
    """DPO with both log-ratios calibrated to +-1/(2 beta).

    The sigmoid has no beta. The paper's text was not at hand: the formula comes from
    the authors' code, which multiplies the squares by 0.5; re-implementations
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
        chosen, rejected = pairs.log_ratios()
        target = 0.5 / self.beta
        squares = (chosen - target) ** 2 + (rejected + target) ** 2
        return -logsigmoid(chosen - rejected) + self.weight * squares


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
        """Share of the push on the rejected response that passes, 0 to 1."""
        _, mean = pairs.means()
        # Detached: the gate scales the gradient, and has none of its own.
        if self.probability == "sequence":
            likely = mean.detach().exp()
        else:
            tokens = pairs.logp.detach().exp()
            by_response = tokens.split(pairs.responses.n_tokens.tolist())
            low = [by_response[i].quantile(0.1) for i in pairs.rejected_index.tolist()]
            likely = torch.stack(low)
        return torch.sigmoid(self.alpha * (likely - self.tau))

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        gate = self.gate(pairs)
        # The value of `rejected`, and `gate` times its gradient.
        gated = gate * rejected + (1 - gate) * rejected.detach()
        return -logsigmoid(self.beta * (chosen - gated))


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
        """The cooling weight of each rejected response, 0 to 1."""
        _, mean = pairs.means()
        return torch.sigmoid((mean.detach() - self.floor) / self.tau)

    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        chosen, rejected = pairs.log_ratios()
        return -logsigmoid(self.beta * (chosen - self.weights(pairs) * rejected))
