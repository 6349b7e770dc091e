r"""What a small move of the parameters does to every token of every probe.

    d log pi(y_l)  =  < d log pi(y_l) / d theta,  d >  +  O(||d||^2)

along any direction d, such as the real displacement of an optimizer's update. Two ways:

    forward-mode         one pass, exact to rounding. Not every model has it.
    finite difference    two scorings at theta +- e d: any model that can be scored.
                         Its error is rounding / e + curvature * e^2.

Which one is found by trying: forward mode is taken where it runs and agrees with a
finite difference on a few of the probes.

A directional derivative by two scorings, for any model that can be scored.

    d log pi(y)  =  (log pi at theta + e d  -  log pi at theta - e d) / 2e

Its error is rounding / e + curvature * e^2. Which e loses least depends on the model,
its precision and the direction, so it is found for each direction, on a few short
pairs. Measured on 12 small models along AdamW's displacement: 2e-5 to 1e-4 of the
change is lost in float32 (at a fixed 1e-3 of the weights up to 2e-3), 3e-2 to 1e-1 in
bfloat16 autocast, where no step is better than 3e-2 to 7e-2.

How much of an actual change may be rounding.

One update moves log-probabilities by little; a forward pass in finite precision has
them only so well. The noise is measured: every number of the input embeddings is
changed by one rounding of the model's coarsest weights, up or down, and the probes are
scored again.
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
from learndyn.forces.gradients import TokenReader
from learndyn.measure.score import Scorer, Settings
from learndyn.measure.selftest import coarsest, rounded_embeddings
from learndyn.measure.tiers import PaddedTier
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


def change_noise(
    scorer: Scorer, rows: Float[np.ndarray, " token"] | None = None
) -> Float[np.ndarray, " probe"]:
    """One standard deviation of the rounding in a change of each probe's logp, nats.

    A change is a difference of two scorings, hence sqrt(2). Rounding of single tokens
    is taken as independent, so that of a sum grows with the root of its tokens; the
    size is that of the probes' root mean square. Costs one scoring, two without `rows`,
    the log-probabilities of all tokens as they are.
    """
    rows = scorer.rows().logp.numpy() if rows is None else rows
    counts = np.diff(scorer.plan.starts)
    off = np.concatenate([[0.0], np.cumsum(_again(scorer) - rows)])
    sums = np.diff(off[scorer.plan.starts])
    typical = float(np.sqrt(np.mean(sums**2 / counts)))
    return np.sqrt(2 * counts) * typical


def token_noise(scorer: Scorer) -> float:
    """Rounding in the log-probability of a token: root mean square, in nats."""
    off = _again(scorer) - scorer.rows().logp.numpy()
    return float(np.sqrt(np.mean(off**2)))


def _again(scorer: Scorer) -> Float[np.ndarray, " token"]:
    with rounded_embeddings(scorer.model, scorer.reader.autocast):
        return scorer.rows().logp.numpy()


STEPS = {torch.float64: 1e-5, torch.float32: 1e-3}
"""First probing step ||e d|| as a share of ||theta||, of the parameters that move."""

COARSE_STEP = 2e-2
"""The same in bfloat16 and float16."""

FEW = 4
"""Short pairs on which the probing step is found."""


def central_difference(
    scorer: Scorer, direction: Direction, step: float | None = None
) -> Float[np.ndarray, " token"]:
    """(log pi at theta + e d  -  log pi at theta - e d) / 2e, of every token.

    `step` is ||e d|| / ||theta||. By default it is found on a few short pairs, see
    `_tuned`. Costs two scorings, and the moving of all parameters three times.

    Raises:
        BadInput: if the direction is zero or does not fit the model.
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
    lengths = [len(p.prompt_ids) + len(p.response_ids) for p in scorer.plan.pairs]
    few = scorer.select(np.argsort(lengths, kind="stable")[:FEW].tolist())
    noise = token_noise(few) / 2**0.5
    step = default_step(scorer)
    for _ in range(2):
        near = _difference(few, direction, step * unit)
        far = _difference(few, direction, 4 * step * unit)
        slope = unit * float(np.linalg.norm(far)) / len(far) ** 0.5
        if not np.isfinite(slope) or slope == 0 or noise == 0:
            return step
        lost = noise / slope  # of the change, times the step
        miss = float(np.linalg.norm(far - near) / np.linalg.norm(far))
        rounding = lost / step * (1 + 1 / 16) ** 0.5
        if miss < 2 * rounding:  # no curvature to be seen: nothing to balance
            return 2 * step
        curvature = (miss**2 - rounding**2) ** 0.5 / (15 * step**2)
        best = float(np.cbrt(lost / (2 * curvature)))
        found = step * min(max(best / step, 1 / 30), 30.0)
        if 1 / 3 < found / step < 3:
            return found
        step = found
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
    dtype = getattr(torch, coarsest(scorer.model).dtype)
    kinds = {p.dtype for p in scorer.model.parameters() if p.is_floating_point()}
    if kinds == {torch.float64}:
        dtype = torch.float64
    if scorer.reader.autocast is not None:
        return COARSE_STEP
    return STEPS.get(dtype, COARSE_STEP)


Method = Literal["auto", "forward-mode", "finite difference"]

AGREEMENT = 0.1
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
class Fit:
    """How well predicted changes agree with actual ones."""

    relative_error: float
    """||actual - predicted|| / ||actual||."""
    r2: float
    """1 - sum (actual - predicted)^2 / sum (actual - mean)^2; NaN for one number."""
    slope: float
    """Of actual on predicted, through the origin; 1 where they agree."""
    noise: float
    """||rounding|| / ||actual||, as expected: an error of this size says nothing."""

    @property
    def is_noise(self) -> bool:
        """Whether the actual changes are lost in rounding."""
        return self.noise > 0.3


def fit(
    predicted: Float[np.ndarray, " _"],
    actual: Float[np.ndarray, " _"],
    noise: Float[np.ndarray, " _"] | float = 0.0,
) -> Fit:
    """Compare predicted with actual changes; `noise` is the latter's rounding."""
    size = float(np.linalg.norm(actual))
    miss = float(np.linalg.norm(actual - predicted))
    spread = float(np.linalg.norm(actual - actual.mean()))
    own = float(predicted @ predicted)
    rounding = float(np.linalg.norm(np.broadcast_to(noise, actual.shape)))
    nan = float("nan")
    return Fit(
        relative_error=miss / size if size else nan,
        r2=1 - (miss / spread) ** 2 if spread else nan,
        slope=float(predicted @ actual) / own if own else nan,
        noise=rounding / size if size else nan,
    )


class Predictor:
    """Predicts changes of one set of pairs along any direction; make it by `attach`."""

    def __init__(self, scorer: Scorer, reader: TokenReader | None, why: str) -> None:
        self.scorer = scorer
        self.reader = TokenReader.of(scorer)
        """Reads the pairs so that gradients can be taken."""
        self.forward = reader
        """Reads them in forward mode; None if the model has none."""
        self.why = why
        """Why it has none; "" otherwise."""

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        pairs: Sequence[TokenizedPair],
        *,
        method: Method = "auto",
        **settings: Unpack[Settings],
    ) -> "Predictor":
        """Find how this model's change can be computed.

        `settings` are those of `Scorer.attach`.

        Raises:
            BadInput: if `method` is "forward-mode" and the model has none or a wrong
                one, or is no method; and as `Scorer.attach`.
        """
        if method not in get_args(Method):
            raise BadInput(
                f"there is no method {method!r}: choose {', '.join(get_args(Method))}."
            )
        return cls.of(Scorer.attach(model, pairs, **settings), method)

    @classmethod
    def of(cls, scorer: Scorer, method: Method = "auto") -> "Predictor":
        """The same for a scorer that is attached already.

        Raises:
            BadInput: as `attach`, or if a weight is not finite.
        """
        lost = [
            name
            for name, p in scorer.model.named_parameters()
            if not bool(whole(torch.isfinite(p).all()))
        ]
        if lost:
            raise BadInput(
                f"the weights of {type(scorer.model).__name__} are not finite in "
                f"{len(lost)} parameters, such as {', '.join(lost[:3])}. Take an "
                "earlier checkpoint."
            )
        if method == "finite difference":
            return cls(scorer, None, "a finite difference was asked for")
        reader, why = _find_forward(scorer)
        if why and method == "forward-mode":
            raise BadInput(
                f"{type(scorer.model).__name__} has no usable forward mode: {why}. "
                'Leave method out, or take "finite difference".'
            )
        return cls(scorer, reader, why)

    @property
    def model(self) -> nn.Module:
        """Whose change is predicted."""
        return self.scorer.model

    @property
    def method(self) -> str:
        """ "forward-mode" or "finite difference"."""
        return "finite difference" if self.forward is None else "forward-mode"

    def along(self, direction: Direction) -> Change:
        """First-order change of every token of every pair along a direction, in nats.

        The model's parameters are bit-identical afterwards, also after an error.

        Raises:
            BadInput: as `direction.checked`.
        """
        direction = checked(self.model, direction)
        if self.forward is not None:
            token = self.forward.tangents(direction)
        else:
            token = central_difference(self.scorer, direction)
        return Change(token, self.reader.summed(token), self.method)

    def select(self, rows: Sequence[int]) -> "Predictor":
        """The same for some of the pairs, without a new trial."""
        return self.on_pairs([self.scorer.plan.pairs[i] for i in rows])

    def on_pairs(self, pairs: Sequence[TokenizedPair]) -> "Predictor":
        """The same way of predicting for other pairs, without a new trial.

        Raises:
            BadInput: as `Scorer.on`.
        """
        forward = None if self.forward is None else self.forward.on(pairs)
        return Predictor(self.scorer.on(pairs), forward, self.why)


def predict_change(
    model: nn.Module,
    probes: TokenizedProbes,
    direction: Direction,
    *,
    method: Method = "auto",
    **settings: Unpack[Settings],
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


def _find_forward(scorer: Scorer) -> tuple[TokenReader | None, str]:
    """A reader with a right forward mode, and why there is none ("" if there is).

    Found by trying, on two short pairs: as scoring reads them, then side by side.
    """
    direction = _anywhere(scorer.model)
    if not direction:
        return None, "no parameter has requires_grad"
    lengths = [len(p.prompt_ids) + len(p.response_ids) for p in scorer.plan.pairs]
    few = np.argsort(lengths, kind="stable")[:2].tolist()
    true = central_difference(scorer.select(few), direction)
    allowed = AGREEMENT * (3 if default_step(scorer) == COARSE_STEP else 1)
    why = ""
    own = TokenReader.of(scorer)
    for reader in (own, replace(own, tier=PaddedTier())):
        try:
            found = reader.select(few).tangents(direction)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an operation says that has no derivative
            told = str(error).split("\n")[0][:200]
            why = why or f"{type(error).__name__}: {told}"
            continue
        miss = fit(found, true).relative_error
        if miss < allowed:
            return reader, ""
        why = why or f"it is off by {miss:.0%} of a finite difference"
    return None, why


def _anywhere(model: nn.Module) -> dict[str, torch.Tensor]:
    """A random direction in which every parameter counts, as large as the weights."""
    chance = torch.Generator().manual_seed(0)
    parameters = parameters_of(model)
    drawn = {
        name: torch.randn(p.shape, generator=chance).to(p.device, p.dtype)
        for name, p in parameters.items()
    }
    typical = (
        norm(parameters.values())
        / max(1, sum(p.numel() for p in parameters.values())) ** 0.5
    )
    return scaled(drawn, typical or 1.0)
