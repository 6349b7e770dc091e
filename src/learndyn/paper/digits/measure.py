"""The paper's first figure: the learning dynamics of a LeNet on images of digits.

Section 2 of Ren & Sutherland 2025 learns digits to show what one update does to other
images, and how the influence of many accumulates: a 9 looks like a 4, so learning 4s
makes 9s look like 4s, until the 9s push back. Here the influence is also predicted from
the kernel, and the prediction is tested on other images than it was made from.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.diagnose.intervals import spearman
from learndyn.paper.digits.images import CLASSES, Digits, load_digits, split
from learndyn.paper.digits.network import (
    ByClass,
    Training,
    after_one_step,
    class_paths,
    first_order,
    kernel_norms,
    lenet,
    mean_softmax,
    rates,
    train,
    training_for,
)
from learndyn.paper.digits.result import (
    ClassInfluence,
    DigitsResult,
    OneUpdate,
    off_diagonal,
)


_SETS = {"kernel": 100, "updates": 100, "kernel_held": 40, "observed": 120}
"""Images of each class. The network learns `kernel` and `updates`. The kernel's view is
of learning `kernel` and observing `kernel_held`; the actual one of the other two."""
_OBSERVED = frozenset({"kernel_held", "observed"})
_LOOKS = (0.25, 0.5, 1.0)
"""Shares of the training after which influence is measured."""
_UPDATES, _EVERY, _BATCH = 30, 5, 16
"""Real updates on one class alone, after how many of them it is looked, and the images
of each."""
_CAREFUL = 0.05
"""Their learning rate, as a share of the training's. Rank correlations with first order
fall as it grows; docs/digits.md has the numbers."""
_IN_NORMS = {"learnt": 20, "observed": 10}
"""Images of each class in the norms of K."""
_LEARNT = 4
"""The digit that the paper learns in its example."""
_SHOWN = (4, 9, 0)
"""The digits that it observes: the same, a similar one and another."""
_ORDERS = np.logspace(-6, -2, 9)
"""Learning rates at which the error of first order is looked at."""


def measure_digits(
    seed: int,
    images: Path | None = None,
    *,
    training: Training | None = None,
) -> DigitsResult:
    """Train a network and measure its influence of class on class.

    Args:
        seed: Of the split, the network and the order of images.
        images: Folder of MNIST's IDX files; None for scikit-learn's digits.
        training: How long and how fast; by default what suits the images' size.

    Raises:
        BadInput: as `load_digits` and `split`.
    """
    begin = time.perf_counter()
    digits = load_digits(images)
    plan = training or training_for(digits.side)
    rows = split(digits, _SETS, _OBSERVED, seed)
    sets = {name: _tensor(digits, chosen) for name, chosen in rows.items()}
    network = lenet(digits.side, seed)
    due = {max(1, round(share * plan.epochs)) for share in _LOOKS}
    softmax, accuracy, looks = [], [], []
    one = None
    for epoch in _trained(network, sets, plan, seed):
        answered, right = mean_softmax(network, sets["observed"])
        softmax.append(answered)
        accuracy.append(right)
        if epoch in due:
            looks.append(_look(network, sets, answered, plan, epoch, seed))
            one = one or _one_update(network, sets, plan)
    assert one is not None  # there is a look after the last epoch
    sums = {
        name: np.sum([getattr(look, name) for look in looks], axis=0)
        for name in ("norms", "predicted", "actual")
    }
    facts = _facts(network, sets, plan)
    return DigitsResult(
        seed=seed,
        source=f"{digits.name}, {digits.side} x {digits.side}",
        facts=facts | {"seconds": round(time.perf_counter() - begin, 1)},
        samples=_bytes(digits.images[rows["observed"][:, 0]]),
        softmax=np.stack(softmax),
        accuracy=np.array(accuracy),
        one_update=one,
        looks=tuple(looks),
        accumulated=_agreement(**sums, softmax=np.mean(softmax, axis=0)),
    )


def _facts(
    network: nn.Module, sets: Mapping[str, ByClass], plan: Training
) -> dict[str, int | float]:
    images = {name: CLASSES * chosen.shape[1] for name, chosen in sets.items()}
    learnt = images["kernel"] + images["updates"]
    return {
        "learnt": learnt,
        "observed": images["observed"],
        "observed by the kernel": images["kernel_held"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": plan.epochs,
        "updates": plan.epochs * max(1, learnt // plan.batch),
        "learning rate": plan.lr,
        "updates on one class": _UPDATES,
        "looked at every": _EVERY,
        "their learning rate": _CAREFUL * plan.lr,
    }


def _bytes(images: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    return np.rint(255 * images).astype(np.int64)


def _tensor(digits: Digits, rows: Int[np.ndarray, "class image"]) -> ByClass:
    return torch.from_numpy(digits.images[rows])[:, :, None]


def _trained(
    network: nn.Module, sets: Mapping[str, ByClass], plan: Training, seed: int
) -> Iterator[int]:
    learnt = torch.cat([sets["kernel"], sets["updates"]], dim=1)
    labels = torch.arange(CLASSES).repeat_interleave(learnt.shape[1])
    return train(network, learnt.flatten(0, 1), labels, plan, seed)


def _look(
    network: nn.Module,
    sets: Mapping[str, ByClass],
    answered: Float[np.ndarray, "class label"],
    plan: Training,
    epoch: int,
    seed: int,
) -> ClassInfluence:
    lr = _CAREFUL * plan.lr
    norms = kernel_norms(
        network,
        sets["kernel"][:, : _IN_NORMS["learnt"]],
        sets["kernel_held"][:, : _IN_NORMS["observed"]],
    )
    rate = rates(network, sets["kernel"], sets["kernel_held"])
    predicted = _UPDATES * lr * rate
    actual, paths = class_paths(
        network,
        sets["updates"],
        sets["observed"],
        lr=lr,
        updates=_UPDATES,
        every=_EVERY,
        batch=_BATCH,
        seed=seed,
    )
    agreement = _agreement(norms, predicted, actual, answered)
    return ClassInfluence(epoch, norms, predicted, actual, paths, agreement)


def _agreement(
    norms: Float[np.ndarray, "u o"],
    predicted: Float[np.ndarray, "u o"],
    actual: Float[np.ndarray, "u o"],
    softmax: Float[np.ndarray, "o u"],
) -> dict[str, float]:
    """Rank correlations of the 90 pairs; "rows": mean over learnt classes, of 9 each.

    Within a class, what makes all others of its row rise alike does not count.
    """
    confused = softmax.T
    pairs = {
        "predicted, actual": (predicted, actual),
        "norms, actual": (norms, actual),
        "predicted, confused": (predicted, confused),
        "actual, confused": (actual, confused),
        "norms, confused": (norms, confused),
    }
    correlations = {
        name: spearman(off_diagonal(one), off_diagonal(other))
        for name, (one, other) in pairs.items()
    }
    others = ~np.eye(CLASSES, dtype=bool)
    within = [
        spearman(predicted[u][others[u]], actual[u][others[u]]) for u in range(CLASSES)
    ]
    return correlations | {"predicted, actual, rows": float(np.mean(within))}


def _one_update(
    network: nn.Module, sets: Mapping[str, ByClass], plan: Training
) -> OneUpdate:
    """In float64, on the image of a 4 whose probability is the middle one."""
    exact = copy.deepcopy(network).double()
    fours = sets["kernel"][_LEARNT].double()
    with torch.no_grad():
        certain = exact(fours).softmax(-1)[:, _LEARNT]
    middle = int(certain.argsort(stable=True)[len(certain) // 2])
    image = fours[middle : middle + 1]
    groups = [image, *(sets["kernel_held"][digit].double() for digit in _SHOWN)]
    observed = torch.cat(groups)
    rate = first_order(exact, observed, image, _LEARNT)

    def actual(lr: float) -> Tensor:
        return after_one_step(exact, observed, image, _LEARNT, lr)

    misses = [float((actual(lr) - lr * rate).norm()) for lr in _ORDERS.tolist()]
    order = np.polyfit(np.log(_ORDERS), np.log(misses), 1)[0]
    sizes = [len(group) for group in groups]

    def means(values: Tensor) -> np.ndarray:
        return torch.stack([p.mean(0) for p in values.split(sizes)]).numpy()

    return OneUpdate(
        label=_LEARNT,
        image=_bytes(image[0, 0].numpy()),
        lr=plan.lr,
        classes=np.array([_LEARNT, *_SHOWN]),
        predicted=plan.lr * means(rate),
        actual=means(actual(plan.lr)),
        lrs=_ORDERS,
        misses=np.array(misses),
        order=float(order),
    )
