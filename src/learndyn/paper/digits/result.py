"""What was measured on images of digits with one seed; numbers only, ready for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int


PerClass = Float[np.ndarray, "class class"]


@dataclass(frozen=True, eq=False)
class OneUpdate:
    """One SGD step on one image: what A K G says, and what it did."""

    label: int
    """Of the image that is learnt."""
    image: Int[np.ndarray, "side side"]
    """0 to 255."""
    lr: float
    """Of the step whose changes these are."""
    classes: Int[np.ndarray, " row"]
    """Class of the images that each row is the mean of; row 0 is the image itself."""
    predicted: Float[np.ndarray, "row label"]
    """-lr A K G: change of log pi(y | o) to first order, nats."""
    actual: Float[np.ndarray, "row label"]
    lrs: Float[np.ndarray, " step"]
    """Rates of the steps by which the order of the error was found."""
    misses: Float[np.ndarray, " step"]
    """||actual - predicted|| over all observed images and labels, nats."""
    order: float
    """Slope of log misses on log lrs: 2 where the first-order term is right."""


@dataclass(frozen=True, eq=False)
class ClassInfluence:
    """Influence of class on class at one moment of training.

    Rows are the class that is learnt, columns the class that is observed. Kernel and
    prediction are of other images than the actual changes.
    """

    epoch: int
    norms: PerClass
    """Mean ||K(o, u)|| over pairs, Frobenius, per squared unit of parameters."""
    predicted: PerClass
    """First-order change of log pi(u | o) by all updates on class u, nats."""
    actual: PerClass
    """Actual change of mean log pi(u | o) by those updates, nats."""
    paths: Float[np.ndarray, "class point class"]
    """Mean pi(u | o) before those updates, between some, and after the last."""
    agreement: Mapping[str, float]
    """Spearman's rank correlations over the 90 pairs of different classes."""


@dataclass(frozen=True, eq=False)
class DigitsResult:
    """Everything that the claims and figures need."""

    seed: int
    source: str
    """Which images."""
    facts: Mapping[str, int | float]
    """Sizes, rates and seconds, by name."""
    samples: Int[np.ndarray, "class side side"]
    """One observed image of each class, 0 to 255."""
    softmax: Float[np.ndarray, "epoch class label"]
    """Mean pi(y | o) over the observed images of each class, from epoch 0 on."""
    accuracy: Float[np.ndarray, " epoch"]
    """Share of observed images that are answered right."""
    one_update: OneUpdate
    looks: tuple[ClassInfluence, ...]
    accumulated: Mapping[str, float]
    """As `Look.agreement`, of the sums over all looks."""

    @property
    def predicted(self) -> PerClass:
        """First-order influence, summed over the looks."""
        return np.sum([look.predicted for look in self.looks], axis=0)

    @property
    def actual(self) -> PerClass:
        """Actual influence, summed over the looks."""
        return np.sum([look.actual for look in self.looks], axis=0)

    @property
    def final(self) -> PerClass:
        """Mean softmax at the end: row the class of the image, column the answer."""
        return self.softmax[-1]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; NaN stays NaN."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "DigitsResult":
        """The result that `to_dict` wrote."""
        known = dict(given)
        known["one_update"] = _arrays(OneUpdate, given["one_update"])
        known["looks"] = tuple(_arrays(ClassInfluence, look) for look in given["looks"])
        return _arrays(cls, known)


def off_diagonal(values: PerClass) -> Float[np.ndarray, " pair"]:
    """Of different classes alone."""
    return values[~np.eye(len(values), dtype=bool)]


def _arrays(kind: Any, given: Mapping[str, Any]) -> Any:
    """Lists back to arrays, whole numbers staying whole."""
    return kind(
        **{
            field.name: np.array(value) if isinstance(value, list) else value
            for field in fields(kind)
            for value in [given[field.name]]
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
