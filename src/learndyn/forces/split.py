r"""Splits of an update that sum to the whole.

Every loss that is a function of the response tokens' log-probabilities has the gradient

    g  =  sum_l  push_l  d log pi(y_l) / d theta,      push_l = dL / d log pi(y_l)

so that one number for each training token holds all that the loss asks for. What is
linear in g splits the same way: by the sign of push, the example, the token. A
direction splits by parameters. The change of a probe is linear in the direction: parts
add up.

Over many updates a first-order change at the start is off by 10 to 90 %. From one
observation to the next, `path_attribution` follows the straight line between them.
Exactly,

    log pi(theta_1) - log pi(theta_0)  =  integral_0^1  < d log pi / d theta,  D >  ds

with D = theta_1 - theta_0 and the derivative at theta_0 + s D: whatever path training
took, and the integral splits by parameters. Gauss-Legendre with two points leaves out
3e-5 to 1e-1 of the change over 25 updates (measured, by learning rate); what it left
out is the residual.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import (
    Direction,
    moved,
    norm,
    parameters_of,
    placed,
    plus,
)
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.optimizers import wide
from learndyn.forces.predict import Change, Predictor
from learndyn.measure.forward import input_embedding, output_embedding


Descend = Callable[[Direction], dict[str, Tensor]]
"""From a gradient to the displacement that the optimizer makes of it; linear."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What each part of an update does to every probe, and what all do together."""

    parts: dict[str, Change]
    whole: Change
    """Along the sum of the parts' directions, measured and not added up."""

    @property
    def residual(self) -> float:
        """||sum of parts - whole|| / ||whole||: what the splitting lost."""
        total = np.sum([part.token for part in self.parts.values()], axis=0)
        size = float(np.linalg.norm(self.whole.token))
        return float(np.linalg.norm(total - self.whole.token)) / (size or 1.0)


def decompose(
    predictor: Predictor, directions: Mapping[str, Direction]
) -> Decomposition:
    """First-order change along each direction and along their sum.

    Parts that move nothing are left out. Costs one pass per part and one for the whole.

    Raises:
        BadInput: if all are zero, or one does not fit the model.
    """
    moving = {name: d for name, d in directions.items() if norm(d.values()) > 0}
    # Measured along the sum: adding up the parts' changes would hide what they lose.
    whole = predictor.along(plus(*(moving or directions).values()))
    parts = {name: predictor.along(part) for name, part in moving.items()}
    return Decomposition(parts, whole)


def sign_gradients(logps: TokenLogps, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """The loss's gradient by the sign of push: "pull" (raises) and "push" (lowers).

    Two backward passes over the batch.
    """
    own = logps.on(batch.pairs)
    return {
        "pull": own.pullback(np.where(batch.push < 0, batch.push, 0.0)),
        "push": own.pullback(np.where(batch.push > 0, batch.push, 0.0)),
    }


def _example_gradients(logps: TokenLogps, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """The loss's gradient by training response, named by its place in the batch.

    One backward pass per response.
    """
    own = logps.on(batch.pairs)
    gradients = {}
    for example in range(len(batch.pairs)):
        push = batch.push[slice(*own.offsets[example : example + 2])]
        gradients[str(example)] = own.select([example]).pullback(push)
    return gradients


def _label_gradients(logps: TokenLogps, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """The loss's gradient by the two terms of dL/dz = push (e_y - pi).

    "spike" acts on the training token's own logit, "distribution" on all logits in
    proportion to pi. They are large and cancel for the most part: each alone moves all
    logits together, which changes no probability.
    """
    own = logps.on(batch.pairs)
    parameters = parameters_of(own.model)
    gradients = {
        name: {n: torch.zeros_like(p) for n, p in parameters.items()}
        for name in ("spike", "distribution")
    }
    with own.measuring(), torch.enable_grad():
        for piece in own.pieces:
            spike: list[Tensor] = []
            spread: list[Tensor] = []
            for rows in own.rows(piece):
                push = torch.from_numpy(batch.push[rows.flat.numpy()])
                push = push.to(rows.logits)
                chosen = rows.logits.gather(-1, rows.labels[:, None]).squeeze(-1)
                # Held fixed: its own derivative would bring back the softmax's.
                pi = rows.logits.detach().softmax(-1)
                spike.append((push * chosen).sum())
                spread.append(-(push[:, None] * pi * rows.logits).sum())
            for name, terms in (("spike", spike), ("distribution", spread)):
                parts = torch.autograd.grad(
                    torch.stack(terms).sum(),
                    list(parameters.values()),
                    retain_graph=name == "spike",
                    allow_unused=True,
                )
                for key, part in zip(parameters, parts, strict=True):
                    if part is not None:
                        gradients[name][key] += part
    return gradients


def influence(
    predictor: Predictor,
    batch: Batch,
    descend: Descend,
    weights: Float[np.ndarray, "row token"],
) -> Float[np.ndarray, "row train_token"]:
    """First-order change of weighted probe log-probabilities by each training token.

    Row r of `weights` names a combination of the probes' tokens: ones at the tokens of
    a probe give the change of its logp, 1/n at the tokens of n probes their mean. Two
    passes per row, whatever the batch: one backward over the row's probes, one forward
    over the batch,

        M[r, l]  =  push_l  < d log pi(y_l) / d theta,  D v_r >,   v_r = d row / d theta

    where D is `descend`, the optimizer's preconditioner with its sign (symmetric, since
    it is diagonal). The sum over l is the change of row r along D g.
    """
    train = predictor.on_pairs(batch.pairs)
    change = np.zeros((len(weights), len(batch.push)))
    starts = predictor.logps.offsets
    for row, outer in enumerate(weights):
        # The backward pass goes through the probes that have weight alone.
        used = np.flatnonzero(np.add.reduceat(outer != 0, starts[:-1]))
        if len(used) == 0:
            continue
        tokens = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in used])
        gradient = predictor.logps.select(used.tolist()).pullback(outer[tokens])
        # D is symmetric, so it may act on the probes' side: one pass for all tokens,
        # where D on the training tokens' gradients would take one pass for each.
        direction = descend(gradient)
        if norm(direction.values()) > 0:
            change[row] = batch.push * train.along(direction).token
    return change


def group_directions(
    model: nn.Module, direction: Direction
) -> dict[str, dict[str, Tensor]]:
    """A direction by parts of the model: embedding, each layer, norm, head; in order.

    A head that shares its weights with the embedding is in "embedding".
    """
    groups: dict[str, dict[str, Tensor]] = {}
    names = _groups(model)
    for name in sorted(direction, key=lambda name: _order(names[name])):
        groups.setdefault(names[name], {})[name] = direction[name]
    return groups


def group_changes(
    logps: TokenLogps, groups: Mapping[str, Direction]
) -> dict[str, Float[np.ndarray, " pair"]]:
    """First-order change of each pair's logp along each of many directions.

    One backward pass per pair, whatever the number of groups. A forward-mode pass over
    all pairs along each group costs less for few groups or many short pairs.
    """
    changes = {name: np.zeros(len(logps.plan.pairs)) for name in groups}
    for i, pair in enumerate(logps.plan.pairs):
        gradient = logps.select([i]).pullback(np.ones(len(pair.response_ids)))
        for name, group in groups.items():
            changes[name][i] = inner(gradient, group)
    return changes


def inner(left: Direction, right: Direction) -> float:
    """Inner product over the parameters that both have."""
    return sum(
        float(torch.dot(wide(left[name]).flatten(), wide(right[name]).flatten()))
        for name in left  # not a set: the order of a sum decides its last bit
        if name in right
    )


def _groups(model: nn.Module) -> dict[str, str]:
    inner = {id(p) for p in input_embedding(model).parameters()}
    # Learned positions are embeddings too, and no part of a layer.
    inner |= {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters()
    }
    outer = {id(p) for p in output_embedding(model).parameters()} - inner  # not tied
    names = {}
    for name, parameter in model.named_parameters():
        number = re.search(r"\.(\d+)\.", name)
        if id(parameter) in inner:
            names[name] = "embedding"
        elif id(parameter) in outer:
            names[name] = "head"
        else:
            names[name] = f"layer {number[1]}" if number else "norm"
    return names


def _order(group: str) -> int:
    ends = {"embedding": -1, "norm": 10**6, "head": 10**6 + 1}  # layers between
    return ends[group] if group in ends else int(group.removeprefix("layer "))


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
    parts = {name: np.zeros(predictor.logps.plan.n_tokens) for name in groups}
    with placed(predictor.model, before):
        start = predictor.scorer.rows().logp.numpy()
        # Nodes are on [-1, 1], and weights sum to 2: both are brought to [0, 1].
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            with moved(predictor.model, whole, float(node)):
                for name, part in groups.items():
                    parts[name] += weight * predictor.along(part).token
    with placed(predictor.model, after):
        end = predictor.scorer.rows().logp.numpy()
    return PathAttribution(parts, end - start, points)
