"""Losses on single judged responses: KTO by label, GRPO by advantage.

When a loss has a negative gradient: computed from its push, not asserted.

A response is lowered where push > 0. Which states those are is found by evaluating
`push` over states of a policy around its reference (or around the policy that sampled),
and by bisection where its sign turns. A state is a log-ratio of each response; whether
the sign goes by the margin or by a response's own log-ratio is seen from the values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
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


COARSE, FINE = 22, 401
"""States along each axis: of the plane (even, so that no state lies on a target), and
of the line that is looked at closely."""

MOST_TOKENS = 2_000_000
"""Evaluated at once; bounds the memory."""

States = Float[np.ndarray, " state"]
Stretches = tuple[tuple[float, float], ...]
Lowers = Callable[[States, States], Bool[np.ndarray, " state"]]
"""Whether the role is lowered, given its own and the other's log-ratio in nats."""


@dataclass(frozen=True)
class Lowered:
    """When one kind of response is lowered."""

    role: str
    """`chosen`, `rejected`, `response`, or GRPO's sign of the advantage."""
    coordinate: str | None
    """What decides, in words; None where it is never or always."""
    stretches: Stretches
    """Where on the coordinate the push is above 0: nats, or nats per token."""
    elsewhere: tuple[float, float] | None = None
    """Least and greatest place of the boundary while the other response moves, where
    the coordinate alone does not decide; `stretches` has the other at its reference."""

    @property
    def in_words(self) -> str:
        """`never`, `always`, or while what."""
        if not self.stretches:
            return "never"
        if self.coordinate is None:
            return "always"
        words = " or ".join(self._words(low, high) for low, high in self.stretches)
        if self.elsewhere is None:
            return words
        low, high = self.elsewhere
        return f"{words} ({low:.4g} to {high:.4g} with the other response moved)"

    def _words(self, low: float, high: float) -> str:
        # Training starts at 0: a stretch around it ends, one beyond it begins.
        when = "while" if low < 0 < high else "once"
        if math.isinf(low):
            return f"{when} {self.coordinate} < {high:.4g}"
        if math.isinf(high):
            return f"{when} {self.coordinate} > {low:.4g}"
        return f"{when} {low:.4g} < {self.coordinate} < {high:.4g}"


@dataclass(frozen=True)
class NegativeGradient:
    """When a loss lowers which responses."""

    loss: Loss
    lowered: dict[str, Lowered]
    """By role."""

    @property
    def in_words(self) -> str:
        """All roles in one line."""
        if len(self.lowered) == 1:
            return next(iter(self.lowered.values())).in_words
        return "; ".join(f"{k}: {v.in_words}" for k, v in self.lowered.items())


def negative_gradient(loss: Loss) -> NegativeGradient:
    """When the loss has a negative gradient, per role, found from `push` alone.

    Looks at log-ratios within `loss.reach` of 0 (ends of that range are given as
    infinite) for responses of about 1 nat per token; for losses of means, at responses
    of one token.
    """
    return NegativeGradient(loss, {role: _lowered(loss, role) for role in loss.roles})


def _lowered(loss: Loss, role: str) -> Lowered:
    lowers = _lowers(loss, role)
    everywhere = ((-math.inf, math.inf),)
    if loss.layout != "pairs":
        found = _turns(loss, lambda own: lowers(own, np.zeros_like(own)))
        decided = found in ((), everywhere)
        return Lowered(role, None if decided else _words(loss, "own"), found)
    axis = np.linspace(-loss.reach, loss.reach, COARSE)
    own, other = np.meshgrid(axis, axis, indexing="ij")
    plane = lowers(own.ravel(), other.ravel()).reshape(COARSE, COARSE)
    if plane.all() or not plane.any():
        return Lowered(role, None, everywhere if plane.all() else ())
    side = 0.5 if role == "chosen" else -0.5
    found, spread = _beside(
        loss, lambda m, s: lowers(side * m + s, s - side * m), axis[-1] / 2
    )
    if found not in ((), everywhere) and spread is None:
        return Lowered(role, _words(loss, "margin"), found)
    found, spread = _beside(loss, lowers, axis[-1])
    return Lowered(role, _words(loss, "own"), found, spread)


def _beside(
    loss: Loss, lowers: Lowers, far: float
) -> tuple[Stretches, tuple[float, float] | None]:
    """Stretches of a line, and the range of their ends on lines beside it.

    None where the ends are the same on all: then the line's coordinate decides alone.
    """
    found = [
        _turns(loss, lambda x, s=shift: lowers(x, np.full_like(x, s)))
        for shift in (0.0, -far, far)
    ]
    ends = [
        end for line in found for pair in line for end in pair if math.isfinite(end)
    ]
    same = all(
        len(line) == len(found[0]) and np.allclose(line, found[0], rtol=1e-6)
        for line in found[1:]
    )
    return found[0], None if same else (min(ends), max(ends))


def _words(loss: Loss, which: str) -> str:
    """What the sign goes by."""
    if which == "margin":
        what = "margin" if loss.needs_reference else "gap"
        return f"{what} per token" if loss.averages else what
    if loss.layout == "advantages":
        return "the token's log π/π_old"
    return "its log-ratio" if loss.needs_reference else "its log-probability"


def _turns(
    loss: Loss, lowers: Callable[[States], Bool[np.ndarray, " state"]]
) -> Stretches:
    """Stretches of a line where it is True, to the last digit; ends are infinite."""
    line = np.linspace(-loss.reach, loss.reach, FINE)
    seen = lowers(line)
    places = np.flatnonzero(seen[1:] != seen[:-1])
    turns = [_bisect(lowers, line[i], line[i + 1], bool(seen[i])) for i in places]
    edges = [-math.inf, *turns, math.inf]
    first = 0 if seen[0] else 1
    return tuple((edges[i], edges[i + 1]) for i in range(first, len(edges) - 1, 2))


def _bisect(
    lowers: Callable[[States], Bool[np.ndarray, " state"]],
    low: float,
    high: float,
    below: bool,
) -> float:
    """Where `lowers` turns from `below`."""
    for _ in range(60):
        middle = (low + high) / 2
        if bool(lowers(np.array([middle]))[0]) == below:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def _lowers(loss: Loss, role: str) -> Lowers:
    """Evaluates the sign of the push, many states at once."""
    n_tokens = 1 if loss.averages else math.ceil(2 * loss.reach)
    start = -2 * loss.reach  # log pi_ref: the policy's stays below 0
    sides = 2 if loss.layout == "pairs" else 1
    flags = torch.tensor([loss.roles[role], not loss.roles[role]][:sides])

    def some(own: States, other: States) -> Bool[np.ndarray, " state"]:
        ratios = torch.from_numpy(np.stack([own, other][:sides], axis=1)).ravel()
        count = len(ratios)
        tokens = torch.full((count,), n_tokens)
        chosen = flags.repeat(len(own))
        old = torch.full((count * n_tokens,), start / n_tokens, dtype=ratios.dtype)
        responses = Responses(
            n_tokens=tokens,
            chosen=chosen,
            reference=torch.full_like(ratios, start),
            old_logp=old,
            advantage=torch.where(chosen, 1.0, -1.0).to(ratios),
        )
        logp = responses.spread((start + ratios) / n_tokens)
        return (loss.push(logp, responses)[:: sides * n_tokens] > 0).numpy()

    def lowers(own: States, other: States) -> Bool[np.ndarray, " state"]:
        width = max(1, MOST_TOKENS // (sides * n_tokens))
        parts = [
            some(own[i : i + width], other[i : i + width])
            for i in range(0, len(own), width)
        ]
        return np.concatenate(parts)

    return lowers
