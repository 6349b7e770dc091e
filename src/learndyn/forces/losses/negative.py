"""When a loss has a negative gradient: computed from its push, not asserted.

A response is lowered where push > 0. To find those states, `push` is evaluated over
states of a policy around its reference (or around the policy that sampled), and its
zeros are bisected. A state is a log-ratio of each response; the values themselves show
whether the sign goes by the margin or by a response's own log-ratio.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from learndyn.forces.losses.loss import Loss, Responses


_COARSE, _FINE = 22, 401
"""States along each axis: of the plane (even, so that no state lies on a target), and
of the line that is looked at closely."""

_MOST_TOKENS = 2_000_000
"""Evaluated at once; bounds the memory."""

_States = Float[np.ndarray, " state"]
_Stretches = tuple[tuple[float, float], ...]
_Lowers = Callable[[_States, _States], Bool[np.ndarray, " state"]]
"""Whether the role is lowered, given its own and the other's log-ratio in nats."""


@dataclass(frozen=True)
class Lowered:
    """When one kind of response is lowered."""

    role: str
    """`chosen`, `rejected`, `response`, or GRPO's sign of the advantage."""
    coordinate: str | None
    """What decides, in words; None where it is never or always."""
    stretches: _Stretches
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
        stretches = _stretches(loss, lambda own: lowers(own, np.zeros_like(own)))
        decided = stretches in ((), everywhere)
        return Lowered(role, None if decided else _coordinate(loss, "own"), stretches)
    # A whole plane of states first: along one line a push that turns with the other
    # response could seem to be never or always above 0.
    axis = np.linspace(-loss.reach, loss.reach, _COARSE)
    own, other = np.meshgrid(axis, axis, indexing="ij")
    plane = lowers(own.ravel(), other.ravel()).reshape(_COARSE, _COARSE)
    if plane.all() or not plane.any():
        return Lowered(role, None, everywhere if plane.all() else ())
    # First along the margin, with the sum of both log-ratios held; where the ends move
    # with that sum the margin does not decide, and the own log-ratio is looked at.
    side = 0.5 if role == "chosen" else -0.5
    stretches, range_of_ends = _beside(
        loss, lambda m, s: lowers(side * m + s, s - side * m), axis[-1] / 2
    )
    if stretches not in ((), everywhere) and range_of_ends is None:
        return Lowered(role, _coordinate(loss, "margin"), stretches)
    stretches, range_of_ends = _beside(loss, lowers, axis[-1])
    return Lowered(role, _coordinate(loss, "own"), stretches, range_of_ends)


def _beside(
    loss: Loss, lowers: _Lowers, far: float
) -> tuple[_Stretches, tuple[float, float] | None]:
    """Stretches of a line, and the range of their ends on lines beside it.

    None where the ends are the same on all: then the line's coordinate decides alone.
    """
    lines = [
        _stretches(loss, lambda x, s=shift: lowers(x, np.full_like(x, s)))
        for shift in (0.0, -far, far)
    ]
    ends = [
        end for line in lines for pair in line for end in pair if math.isfinite(end)
    ]
    same = all(
        len(line) == len(lines[0]) and np.allclose(line, lines[0], rtol=1e-6)
        for line in lines[1:]
    )
    return lines[0], None if same else (min(ends), max(ends))


def _coordinate(loss: Loss, which: str) -> str:
    """What the sign goes by."""
    if which == "margin":
        what = "margin" if loss.needs_reference else "gap"
        return f"{what} per token" if loss.averages else what
    if loss.layout == "advantages":
        return "the token's log π/π_old"
    return "its log-ratio" if loss.needs_reference else "its log-probability"


def _stretches(
    loss: Loss, lowers: Callable[[_States], Bool[np.ndarray, " state"]]
) -> _Stretches:
    """Stretches of a line where it is True, to the last digit; ends are infinite."""
    line = np.linspace(-loss.reach, loss.reach, _FINE)
    lowered = lowers(line)
    turns = [
        _bisect(lowers, line[i], line[i + 1], bool(lowered[i]))
        for i in np.flatnonzero(lowered[1:] != lowered[:-1])
    ]
    edges = [-math.inf, *turns, math.inf]
    first = 0 if lowered[0] else 1
    return tuple((edges[i], edges[i + 1]) for i in range(first, len(edges) - 1, 2))


def _bisect(
    lowers: Callable[[_States], Bool[np.ndarray, " state"]],
    low: float,
    high: float,
    below: bool,
) -> float:
    """Where `lowers` turns from `below`."""
    for _ in range(60):  # float64 has 53 bits
        middle = (low + high) / 2
        if bool(lowers(np.array([middle]))[0]) == below:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def _lowers(loss: Loss, role: str) -> _Lowers:
    """Evaluates the sign of the push, many states at once."""
    # A loss of means sees nats per token, so one token will do. A loss of sums gets
    # enough tokens that each stays at about -1 nat, as in a language model.
    n_tokens = 1 if loss.averages else math.ceil(2 * loss.reach)
    start = -2 * loss.reach  # log pi_ref: the policy's stays below 0
    sides = 2 if loss.layout == "pairs" else 1
    # The role's own response first: every `sides`-th one is looked at.
    flags = torch.tensor([loss.roles[role], not loss.roles[role]][:sides])

    def in_one_batch(own: _States, other: _States) -> Bool[np.ndarray, " state"]:
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

    def lowers(own: _States, other: _States) -> Bool[np.ndarray, " state"]:
        width = max(1, _MOST_TOKENS // (sides * n_tokens))
        parts = [
            in_one_batch(own[i : i + width], other[i : i + width])
            for i in range(0, len(own), width)
        ]
        return np.concatenate(parts)

    return lowers
