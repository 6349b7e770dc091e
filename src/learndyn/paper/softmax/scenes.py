"""Distributions to push on: the five of the paper's Appendix E, and random ones.

The five scenes draw from NumPy's legacy generator in the order of the authors' notebook
(`squeeze_effect.ipynb`), so that with its seed they are its distributions. Scene D is
not: there the notebook added a second, positive update on another label, which hides
what a push on a valley does alone. Here it is that push and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.paper.softmax.step import SoftmaxStep, log_ratio, log_softmax, step


_SEED = 10086
"""The notebook's."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One update of a softmax layer on one example."""

    name: str
    weights: Float[np.ndarray, "label feature"]
    x: Float[np.ndarray, " feature"]
    y: int
    lr: float
    down: bool = True
    """Whether y is pushed down; else it is pulled up."""

    @property
    def logits(self) -> Float[np.ndarray, " label"]:
        """z = W x."""
        return self.weights @ self.x

    @property
    def strength(self) -> float:
        """s = learning rate * |x|^2, below 0 where y is pulled up."""
        return (1 if self.down else -1) * self.lr * float(self.x @ self.x)

    @property
    def step(self) -> SoftmaxStep:
        """What the update does."""
        return step(self.logits, self.y, self.strength)


def paper_scenes(seed: int = _SEED) -> tuple[Scene, ...]:
    """Appendix E's five: A to D over 50 labels and 4 features, E over 1000 and 50.

    A pulls a random label up. B pushes a label of a flat distribution down, C one on a
    peak, D one in a valley of the same peaky distribution, E one of 1000.
    """
    draw = np.random.RandomState(seed)
    x = draw.randn(4)
    uneven = draw.randn(4, 50).T
    flat = 1 + 0.05 * draw.randn(4, 50).T
    peaky = draw.randn(4, 50).T
    target = np.zeros(50)
    target[5:13] = 1  # one update towards eight labels at once makes the peaks
    peaky = peaky - np.outer(np.exp(log_softmax(peaky @ x)) - target, x)
    wide_x = draw.randn(50)
    wide = 0.5 * draw.randn(50, 1000).T
    return (
        Scene("A", uneven, x, 21, 0.5, down=False),
        Scene("B", flat, x, 42, 0.3),
        Scene("C", peaky, x, 11, 0.5),
        Scene("D", peaky, x, 42, 0.5),
        Scene("E", wide, wide_x, 100, 1.0),
    )


Place = Literal["any", "peak", "valley"]

_ABSENT = -1e4
"""Logit of what is no label of its case: probability 0, and no infinity to subtract."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Random distributions, each with a label to push and a strength."""

    logits: Float[np.ndarray, "case label"]
    """`_ABSENT` beyond a case's own labels."""
    y: Int[np.ndarray, " case"]
    strength: Float[np.ndarray, " case"]
    """s > 0."""

    @property
    def present(self) -> Bool[np.ndarray, "case label"]:
        """Which are labels of their case."""
        return self.logits > _ABSENT / 2


def random_cases(rng: np.random.Generator, cases: int) -> Cases:
    """3 to 199 labels; logit std 0.01 to 6 and strength 1e-4 to 10, log-uniform."""
    sizes = rng.integers(3, 200, cases)
    std = np.exp(rng.uniform(np.log(0.01), np.log(6), cases))
    logits = std[:, None] * rng.standard_normal((cases, 199))
    logits[np.arange(199) >= sizes[:, None]] = _ABSENT
    strength = np.exp(rng.uniform(np.log(1e-4), np.log(10), cases))
    return Cases(logits, rng.integers(0, sizes), strength)


def normal_cases(
    rng: np.random.Generator,
    std: float,
    *,
    cases: int,
    labels: int = 50,
    strength: float = 1.0,
    place: Place = "any",
) -> Cases:
    """Normal logits of one standard deviation; y is a random label, or one of a place.

    A peak is the likeliest label, a valley one of the less likely half.
    """
    logits = std * rng.standard_normal((cases, labels))
    order = logits.argsort(axis=1)
    rank = {
        "any": rng.integers(0, labels, cases),
        "valley": rng.integers(0, labels // 2, cases),
        "peak": np.full(cases, labels - 1),
    }[place]
    y = order[np.arange(cases), rank]
    return Cases(logits, y, np.full(cases, strength))


def _with_probability(
    others: Float[np.ndarray, "*batch label"], probability: float
) -> Float[np.ndarray, "*batch more"]:
    """log pi with label 0 at `probability` and the others' conditional left as it is.

    `others` are the logits of labels 1 and up.
    """
    own = np.full((*others.shape[:-1], 1), np.log(probability))
    rest = log_softmax(others) + np.log1p(-probability)
    return np.concatenate([own, rest], axis=-1)


def by_probability(
    others: Float[np.ndarray, "case label"], probabilities: Sequence[float]
) -> tuple[
    Float[np.ndarray, "case probability"], Float[np.ndarray, "case probability"]
]:
    """What a push of s = 1 on a label of each probability does, in nats.

    First the change of all but y and y*, taken together; then that of y*. The
    conditional distribution of all labels but y stays what `others` says.
    """
    logp = np.stack([_with_probability(others, p) for p in probabilities], axis=1)
    ratio = log_ratio(logp, 0, 1.0)
    best = 1 + logp[..., 1:].argmax(axis=-1, keepdims=True)
    without = np.zeros_like(logp)
    without[..., 0] = -np.inf
    np.put_along_axis(without, best, -np.inf, axis=-1)
    after = np.logaddexp.reduce(logp + ratio + without, axis=-1)
    rest = after - np.logaddexp.reduce(logp + without, axis=-1)
    return rest, np.take_along_axis(ratio, best, axis=-1)[..., 0]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one push did in each of many cases."""

    others_rise: Int[np.ndarray, " case"]
    """How many labels other than y gained."""
    to_favourite: Float[np.ndarray, " case"]
    """What y* gained for every unit of probability that y lost."""


def _outcome(cases: Cases) -> Outcome:
    """Count who gains."""
    logp = log_softmax(cases.logits)
    ratio, at = log_ratio(logp, cases.y, cases.strength), np.arange(len(cases.y))
    gains = np.exp(logp) * np.expm1(ratio)
    rises = gains > 0
    rises[at, cases.y] = False
    return Outcome(
        rises.sum(axis=1), gains[at, favourites(logp, cases.y)] / -gains[at, cases.y]
    )


def favourites(
    logp: Float[np.ndarray, "case label"], y: Int[np.ndarray, " case"]
) -> Int[np.ndarray, " case"]:
    """y* of each case: the likeliest label that is not y."""
    others, at = logp.copy(), np.arange(len(y))
    others[at, y] = -np.inf
    return others.argmax(axis=1)


def peakiness_sweep(
    stds: Sequence[float], *, cases: int = 400, seed: int = 0
) -> list[Outcome]:
    """One strength-1 push on a random one of 50 labels, at each std of the logits."""
    rng = np.random.default_rng(seed)
    return [_outcome(normal_cases(rng, std, cases=cases)) for std in stds]
