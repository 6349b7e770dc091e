r"""A directional derivative by two scorings, for any model that can be scored.

    d log pi(y)  =  (log pi at theta + e d  -  log pi at theta - e d) / 2e

Its error is rounding / e + curvature * e^2. Which e loses least depends on the model,
its precision and the direction, so it is found for each direction, on a few short
pairs. Measured on 12 small models along AdamW's displacement: 2e-5 to 1e-4 of the
change is lost in float32 (at a fixed 1e-3 of the weights up to 2e-3), 3e-2 to 1e-1 in
bfloat16 autocast, where no step is better than 3e-2 to 7e-2.
"""

import numpy as np
import torch
from jaxtyping import Float

from learndyn.forces.direction import Direction, checked, moving, norm
from learndyn.forces.noise import token_noise
from learndyn.measure.score import Scorer
from learndyn.measure.selftest import coarsest


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
