r"""What a small move of the parameters does to every token of every probe.

    d log pi(y_l)  =  < d log pi(y_l) / d theta,  d >  +  O(||d||^2)

along any direction d, such as the real displacement of an optimizer's update. Two ways:

    forward-mode         one pass, exact to rounding. Not every model has it.
    finite difference    (log pi at theta + e d  -  log pi at theta - e d) / 2e: two
                         scorings, for any model that can be scored.

Trying decides which: forward mode is taken where it runs and agrees with a finite
difference on a few of the probes.

A finite difference is off by rounding / e + curvature e^2. Which e loses least depends
on the model, its precision and the direction, so it is searched for each direction, on
a few short pairs. Measured on 12 small models along AdamW's displacement: 2e-5 to 1e-4
of the change is lost in float32 (at a fixed 1e-3 of the weights up to 2e-3), 3e-2 to
1e-1 in bfloat16 autocast, where no step is better than 3e-2 to 7e-2.

One update moves log-probabilities by little, and a forward pass in finite precision has
them only so well. `change_noise` measures how much of an actual change may be rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from learndyn.errors import BadInput
from learndyn.forces.direction import (
    Direction,
    checked,
    moving,
    norm,
    parameters_of,
    scaled,
    whole,
)
from learndyn.forces.gradients import TokenLogps
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.measure.selftest import coarsest, rounded_embeddings
from learndyn.measure.tiers import PaddedTier
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


Method = Literal["auto", "forward-mode", "finite difference"]

_AGREEMENT = 0.1
"""Forward mode that is off by more than this share of the change, or three times it in
lower precision, is not used. Right ones agree to 1e-4 in float32; a part of the
model without derivative was seen to lose 20 % or more."""


@dataclass(frozen=True, eq=False)
class Change:
    """First-order change of every response token, in nats."""

    token: Float[np.ndarray, " token"]
    """Flat: token after token, probe after probe. float64."""
    logp: Float[np.ndarray, " probe"]
    """Sums over each probe's tokens."""
    method: str
    """ "forward-mode" or "finite difference"."""


@dataclass(frozen=True)
class Agreement:
    """How well predicted changes agree with actual ones."""

    relative_error: float
    """||actual - predicted|| / ||actual||."""
    r2: float
    """1 - sum (actual - predicted)^2 / sum (actual - mean)^2; NaN for one number."""
    slope: float
    """Of actual on predicted, through the origin; 1 where they agree."""
    noise: float
    """Expected ||rounding|| / ||actual||: an error of this size says nothing."""


def fit(
    predicted: Float[np.ndarray, " _"],
    actual: Float[np.ndarray, " _"],
    noise: Float[np.ndarray, " _"] | float = 0.0,
) -> Agreement:
    """Compare predicted with actual changes; `noise` is the latter's rounding."""
    size = float(np.linalg.norm(actual))
    miss = float(np.linalg.norm(actual - predicted))
    spread = float(np.linalg.norm(actual - actual.mean()))
    own = float(predicted @ predicted)
    rounding = float(np.linalg.norm(np.broadcast_to(noise, actual.shape)))
    nan = float("nan")
    return Agreement(
        relative_error=miss / size if size else nan,
        r2=1 - (miss / spread) ** 2 if spread else nan,
        slope=float(predicted @ actual) / own if own else nan,
        noise=rounding / size if size else nan,
    )


class Predictor:
    """Predicts changes of one set of pairs along any direction; make it by `attach`."""

    def __init__(
        self, scorer: Scorer, forward_mode: TokenLogps | None, why: str
    ) -> None:
        self.scorer = scorer
        self.logps = TokenLogps.of(scorer)
        """The pairs' log-probabilities, to take gradients of."""
        self.forward_mode = forward_mode
        """The same where forward mode is right; None if the model has none."""
        self.why = why
        """Why it has none; "" otherwise."""

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        pairs: Sequence[TokenizedPair],
        *,
        method: Method = "auto",
        **settings: Unpack[ScoreSettings],
    ) -> "Predictor":
        """Find how this model's change can be computed.

        `settings` are those of `Scorer.attach`.

        Raises:
            BadInput: if `method` is unknown, or "forward-mode" and the model has none
                or a wrong one; and as `Scorer.attach`.
        """
        if method not in get_args(Method):
            raise BadInput(
                f"method is {method!r}: choose from {', '.join(get_args(Method))}."
            )
        return cls.of(Scorer.attach(model, pairs, **settings), method)

    @classmethod
    def of(cls, scorer: Scorer, method: Method = "auto") -> "Predictor":
        """The same for a scorer that is attached already.

        Raises:
            BadInput: as `attach`, or if a weight is not finite.
        """
        # Else both ways give NaN, and forward mode would be blamed for it.
        bad = [
            name
            for name, p in scorer.model.named_parameters()
            if not bool(whole(torch.isfinite(p).all()))
        ]
        if bad:
            raise BadInput(
                f"{len(bad)} parameters of {type(scorer.model).__name__} hold NaN or "
                f"infinity, such as {', '.join(bad[:3])}. Take an earlier checkpoint."
            )
        if method == "finite difference":
            return cls(scorer, None, "a finite difference was asked for")
        forward_mode, why = _find_forward_mode(scorer)
        if why and method == "forward-mode":
            raise BadInput(
                f"{type(scorer.model).__name__} has no usable forward mode: {why}. "
                'Leave method out, or take "finite difference".'
            )
        return cls(scorer, forward_mode, why)

    @property
    def model(self) -> nn.Module:
        """Whose change is predicted."""
        return self.scorer.model

    @property
    def method(self) -> str:
        """ "forward-mode" or "finite difference"."""
        return "finite difference" if self.forward_mode is None else "forward-mode"

    def along(self, direction: Direction) -> Change:
        """First-order change of every token of every pair along a direction, in nats.

        The model's parameters are bit-identical afterwards, also after an error.
        """
        direction = checked(self.model, direction)
        if self.forward_mode is not None:
            token = self.forward_mode.tangents(direction)
        else:
            token = _central_difference(self.scorer, direction)
        return Change(token, self.logps.summed(token), self.method)

    def select(self, rows: Sequence[int]) -> "Predictor":
        """The same for some of the pairs, without a new trial."""
        return self.on_pairs([self.scorer.plan.pairs[i] for i in rows])

    def on_pairs(self, pairs: Sequence[TokenizedPair]) -> "Predictor":
        """The same way of predicting for other pairs, without a new trial."""
        forward_mode = self.forward_mode and self.forward_mode.on(pairs)
        return Predictor(self.scorer.on(pairs), forward_mode, self.why)


def predict_change(
    model: nn.Module,
    probes: TokenizedProbes,
    direction: Direction,
    *,
    method: Method = "auto",
    **settings: Unpack[ScoreSettings],
) -> Change:
    """First-order change of every token of every probe along a direction, in nats.

    `direction` is what is added to each parameter, by name: for one update that is
    `capture_step(...).step.direction`, the optimizer's real displacement. For several
    directions attach a `Predictor` once.

    Raises:
        BadInput: as `direction.checked` and `Predictor.attach`.
    """
    predictor = Predictor.attach(model, probes.pairs, method=method, **settings)
    return predictor.along(direction)


def _find_forward_mode(scorer: Scorer) -> tuple[TokenLogps | None, str]:
    """Pairs whose forward mode is right, and why there are none ("" if there are).

    Found by trying, on two short pairs: laid out as scoring lays them out, then side by
    side.
    """
    direction = _anywhere(scorer.model)
    if not direction:
        return None, "no parameter has requires_grad"
    few = _shortest(scorer, 2)
    true = _central_difference(scorer.select(few), direction)
    # Half precision leaves the finite difference itself 3 to 7 % off, see above.
    allowed = _AGREEMENT * (3 if default_step(scorer) == COARSE_STEP else 1)
    why = ""
    own = TokenLogps.of(scorer)
    for logps in (own, replace(own, tier=PaddedTier())):
        try:
            tangents = logps.select(few).tangents(direction)
        except torch.OutOfMemoryError:
            raise
        # An operation without forward derivative raises whatever it likes: torch,
        # functorch, custom autograd functions and compiled layers have types of their
        # own, and some give a wrong derivative without raising (hence the comparison).
        except Exception as error:
            message = str(error).split("\n")[0][:200]
            why = why or f"{type(error).__name__}: {message}"
            continue
        error = fit(tangents, true).relative_error
        if error < allowed:
            return logps, ""
        why = why or f"it is off by {error:.0%} of a finite difference"
    return None, why


def _shortest(scorer: Scorer, count: int) -> list[int]:
    """Positions of the pairs with the fewest tokens."""
    lengths = [len(p.prompt_ids) + len(p.response_ids) for p in scorer.plan.pairs]
    return np.argsort(lengths, kind="stable")[:count].tolist()


def _anywhere(model: nn.Module) -> dict[str, torch.Tensor]:
    """A random direction in which every parameter counts, as large as the weights.

    Along a direction with few or small entries in one part of the model, a derivative
    that is lost there would go unnoticed.
    """
    chance = torch.Generator().manual_seed(0)
    parameters = parameters_of(model)
    drawn = {
        name: torch.randn(p.shape, generator=chance).to(p.device, p.dtype)
        for name, p in parameters.items()
    }
    count = max(1, sum(p.numel() for p in parameters.values()))
    typical = norm(parameters.values()) / count**0.5
    return scaled(drawn, typical or 1.0)


_STEPS = {torch.float64: 1e-5, torch.float32: 1e-3}
"""First probing step ||e d|| as a share of ||theta||, of the parameters that move."""

COARSE_STEP = 2e-2
"""The same in bfloat16 and float16."""

_FEW = 4
"""Short pairs on which the probing step is found."""


def _central_difference(
    scorer: Scorer, direction: Direction, step: float | None = None
) -> Float[np.ndarray, " token"]:
    """(log pi at theta + e d  -  log pi at theta - e d) / 2e, of every token.

    `step` is ||e d|| / ||theta||. By default it is found on a few short pairs, see
    `_tuned`. Costs two scorings, and the moving of all parameters three times.
    """
    direction = checked(scorer.model, direction)
    parameters = dict(scorer.model.named_parameters())
    weights = norm(parameters[name] for name in direction) or 1.0
    unit = weights / norm(direction.values())
    if step is None:
        return _difference(scorer, direction, unit * _tuned(scorer, direction, unit))
    return _difference(scorer, direction, step * unit)


def _tuned(scorer: Scorer, direction: Direction, unit: float) -> float:
    """The probing step that loses least along a direction.

    A step s loses n / s of the change to rounding and c s^2 to curvature, least at
    s = (n / 2c)^(1/3). Both are measured on a few short pairs: n from the noise of
    their tokens, c from the difference between a first step and one four times as
    long; once more where the best step is far from the first.
    """
    few = scorer.select(_shortest(scorer, _FEW))
    # A difference of two scorings has sqrt(2) of the noise, and is halved.
    noise = token_noise(few) / 2**0.5
    step = default_step(scorer)
    for _ in range(2):
        near = _difference(few, direction, step * unit)
        far = _difference(few, direction, 4 * step * unit)
        # From the longer step: at the first one rounding may hide the slope.
        slope = unit * float(np.linalg.norm(far)) / len(far) ** 0.5
        if not np.isfinite(slope) or slope == 0 or noise == 0:
            return step
        lost = noise / slope  # of the change, times the step
        error = float(np.linalg.norm(far - near) / np.linalg.norm(far))
        # Rounding of both steps, the longer one's a quarter; independent, so squared.
        rounding = lost / step * (1 + 1 / 16) ** 0.5
        if error < 2 * rounding:  # curvature is below rounding: nothing to balance
            return 2 * step
        # far - near = c (16 - 1) step^2, and rounding on top
        curvature = (error**2 - rounding**2) ** 0.5 / (15 * step**2)
        best = float(np.cbrt(lost / (2 * curvature)))
        # c was measured at this step: a model bends otherwise 30 times further away.
        better = step * min(max(best / step, 1 / 30), 30.0)
        if 1 / 3 < better / step < 3:
            return better
        step = better
    return step


def _difference(
    scorer: Scorer, direction: Direction, factor: float
) -> Float[np.ndarray, " token"]:
    with moving(scorer.model, direction) as go:
        go(factor)
        up = scorer.rows().logp.numpy()
        go(-factor)
        return (up - scorer.rows().logp.numpy()) / (2 * factor)


def default_step(scorer: Scorer) -> float:
    """The first probing step, which suits the precision a model is scored in."""
    dtype = getattr(torch, coarsest(scorer.model).dtype)  # float32 at best
    kinds = {p.dtype for p in scorer.model.parameters() if p.is_floating_point()}
    if kinds == {torch.float64}:
        dtype = torch.float64
    if scorer.reader.autocast is not None:
        return COARSE_STEP
    return _STEPS.get(dtype, COARSE_STEP)


def change_noise(
    scorer: Scorer, rows: Float[np.ndarray, " token"] | None = None
) -> Float[np.ndarray, " probe"]:
    """One standard deviation of the rounding in a change of each probe's logp, nats.

    Measured: every number of the input embeddings is changed by one rounding of the
    model's coarsest weights, up or down, and the probes are scored again. A change is a
    difference of two scorings, hence sqrt(2). Rounding of single tokens is taken as
    independent, so a sum's grows with the root of its tokens; all probes share one root
    mean square. Costs one scoring, two without `rows`, the log-probabilities of all
    tokens as they are.
    """
    rows = scorer.rows().logp.numpy() if rows is None else rows
    counts = np.diff(scorer.plan.starts)
    running = np.concatenate([[0.0], np.cumsum(_rounded(scorer) - rows)])
    sums = np.diff(running[scorer.plan.starts])
    # One number from all probes: a single probe's sum may round to nearly nothing.
    typical = float(np.sqrt(np.mean(sums**2 / counts)))
    return np.sqrt(2 * counts) * typical


def token_noise(scorer: Scorer) -> float:
    """Rounding in the log-probability of a token: root mean square, in nats."""
    error = _rounded(scorer) - scorer.rows().logp.numpy()
    return float(np.sqrt(np.mean(error**2)))


def _rounded(scorer: Scorer) -> Float[np.ndarray, " token"]:
    """logp of every token with the input embeddings off by one rounding."""
    with rounded_embeddings(scorer.model, scorer.reader.autocast):
        return scorer.rows().logp.numpy()
