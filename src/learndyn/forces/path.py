r"""From one observation to the next: the change along the straight line between them.

Over many updates a first-order change at the start is off by 10 to 90 %. Exactly,

    log pi(theta_1) - log pi(theta_0)  =  integral_0^1  < d log pi / d theta,  D >  ds

with D = theta_1 - theta_0 and the derivative at theta_0 + s D: whatever path
training took, and the integral splits by parameters. Gauss-Legendre with two points
leaves out 3e-5 to 1e-1 of the change over 25 updates (measured, by learning
rate); what it left out is the residual.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from learndyn.errors import BadInput
from learndyn.forces.direction import Direction, moved, parameters_of, placed
from learndyn.forces.predict import Predictor
from learndyn.forces.split import group_directions


@dataclass(frozen=True, eq=False)
class PathAttribution:
    """The change between two points in parameter space, by groups of parameters."""

    parts: dict[str, Float[np.ndarray, " token"]]
    """Change of every response token that each group made, in nats."""
    actual: Float[np.ndarray, " token"]
    """The real change, from one scoring at each end."""
    points: int

    @property
    def total(self) -> Float[np.ndarray, " token"]:
        """Sum over the groups."""
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def residual(self) -> float:
        """||actual - total|| / ||actual||: the integral's error, and rounding."""
        size = float(np.linalg.norm(self.actual))
        return float(np.linalg.norm(self.actual - self.total)) / (size or 1.0)


def path_attribution(
    predictor: Predictor,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    *,
    groups: Mapping[str, Direction] | None = None,
    points: int = 2,
) -> PathAttribution:
    """Attribute the change from `before` to `after` (parameters by name) to groups.

    `groups` are directions that sum to after - before; by default the parts of the
    model. Costs `points` passes per group. The model's own parameters are bit-identical
    afterwards.

    Raises:
        BadInput: if the two are equal or do not name the same parameters, or `points`
            is below 1.
    """
    if points < 1 or set(before) != set(after):
        raise BadInput(
            f"path_attribution needs the same parameters at both ends (there are "
            f"{len(before)} and {len(after)}, {len(set(before) & set(after))} shared) "
            f"and one point or more (there are {points})."
        )
    whole = {name: after[name] - before[name] for name in before}
    groups = group_directions(predictor.model, whole) if groups is None else groups
    groups = {
        name: part
        for name, part in groups.items()
        if any(bool(d.any()) for d in part.values())
    }
    if not groups:
        raise BadInput(
            "the two ends are the same point: nothing changed between them. Take "
            "observations with an update between them."
        )
    nodes, weights = np.polynomial.legendre.leggauss(points)
    parts = {name: np.zeros(predictor.reader.plan.n_tokens) for name in groups}
    with placed(predictor.model, before):
        start = predictor.scorer.rows().logp.numpy()
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            with moved(predictor.model, whole, float(node)):
                for name, part in groups.items():
                    parts[name] += weight * predictor.along(part).token
    with placed(predictor.model, after):
        end = predictor.scorer.rows().logp.numpy()
    return PathAttribution(parts, end - start, points)


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters that training may move, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in parameters_of(model).items()
    }
