r"""The network of the paper's first figure and its training.

LeNet with tanh: convolutions of 6 and 16 channels, dense layers of 60, 42 and 10 (the
authors' notebook `squeeze_effect.ipynb`). Kernels are 5 x 5, and 3 x 3 for images of
less than 16 pixels. SGD with momentum 0.9, weight decay 5e-4 and a cosine to zero, as
there. The authors take 100 epochs at a rate of 1e-3, after which the network is half
learnt; ours are fewer and larger, and go on until the bumps have gone down again.

One step of size eta on image u of label y_u moves the log-probabilities on image o by

    d log pi(. | o)  =  -eta  A(o) K(o, u) G(u)  +  O(eta^2)

    A  =  I - 1 pi^T            K  =  J(o) J(u)^T            G  =  pi(u) - e_{y_u}

(Ren & Sutherland 2025, Prop. 1), J the derivative of the ten logits by all parameters.
`_kernel` and `first_order` write the factors out. Averaged over whole classes, the
product is taken from right to left, so that no K is written: J(u)^T G(u) is the
gradient of the loss, and J(o) times it a forward-mode derivative. Both are exact.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap

from learndyn.paper.digits.images import CLASSES


Images = Float[Tensor, "image 1 side side"]


@dataclass(frozen=True)
class Training:
    """How a network learns."""

    lr: float
    epochs: int
    batch: int = 64
    momentum: float = 0.9
    weight_decay: float = 5e-4


def training_for(side: int) -> Training:
    """For scikit-learn's small images, and for MNIST's."""
    if side < 16:
        return Training(lr=0.05, epochs=40)
    return Training(lr=0.01, epochs=20)


def lenet(side: int, seed: int) -> nn.Sequential:
    """A network for images of `side` pixels, drawn by `seed` alone."""
    small = side < 16
    size = 3 if small else 5
    first = side // 2
    second = (first if small else first - size + 1) // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, size, padding=size // 2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, size, padding=1 if small else 0),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * second**2, 60),
            nn.Tanh(),
            nn.Linear(60, 42),
            nn.Tanh(),
            nn.Linear(42, 10),
        )


def train(
    network: nn.Module,
    images: Images,
    labels: Int[Tensor, " image"],
    plan: Training,
    seed: int,
) -> Iterator[int]:
    """Train in place; yields the number of epochs done, from 0 on.

    The order of images is drawn anew every epoch; a last batch that is not full is left
    out.
    """
    chance = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )
    per_epoch = max(1, len(images) // plan.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, plan.epochs * per_epoch
    )
    yield 0
    for epoch in range(1, plan.epochs + 1):
        order = torch.randperm(len(images), generator=chance)
        for rows in order.split(plan.batch)[:per_epoch]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        yield epoch


ByClass = Float[Tensor, "class _ 1 side side"]
"""Equally many images of every digit."""
Learnt = Float[Tensor, "class u 1 side side"]
Observed = Float[Tensor, "class o 1 side side"]
_AT_ONCE = 50
"""Images whose Jacobians are taken together."""


def _jacobian(
    network: nn.Module, images: Float[Tensor, "image 1 side side"]
) -> Float[Tensor, "image logit parameter"]:
    """Derivative of every logit by every parameter."""
    parameters = _values(network)

    def logits(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, values, (image[None],))[0]

    each = vmap(jacrev(logits), in_dims=(None, 0), chunk_size=_AT_ONCE)
    derivatives = each(parameters, images)
    return torch.cat([derivatives[name].flatten(2) for name in parameters], dim=2)


def _kernel(
    network: nn.Module,
    observed: Float[Tensor, "o 1 side side"],
    learnt: Float[Tensor, "u 1 side side"],
) -> Float[Tensor, "o u logit logit"]:
    """The empirical neural tangent kernel K(o, u) = J(o) J(u)^T of every pair."""
    left, right = _jacobian(network, observed), _jacobian(network, learnt)
    product = left.flatten(0, 1) @ right.flatten(0, 1).T
    shape = (len(observed), CLASSES, len(learnt), CLASSES)
    return product.view(shape).transpose(1, 2)


def first_order(
    network: nn.Module,
    observed: Float[Tensor, "o 1 side side"],
    learnt: Float[Tensor, "1 1 side side"],
    label: int,
) -> Float[Tensor, "o label"]:
    """-A K G: change of log pi(y | o) per unit of learning rate, in nats."""
    with torch.no_grad():
        pi = network(observed).softmax(-1)
        asked = network(learnt)[0].softmax(-1)
    asked[label] -= 1
    moved = -torch.einsum("oij,j->oi", _kernel(network, observed, learnt)[:, 0], asked)
    return moved - (pi * moved).sum(-1, keepdim=True)


def after_one_step(
    network: nn.Module,
    observed: Float[Tensor, "o 1 side side"],
    learnt: Float[Tensor, "1 1 side side"],
    label: int,
    lr: float,
) -> Float[Tensor, "o label"]:
    """Actual change of log pi(y | o) by one SGD step, in nats."""
    moved = copy.deepcopy(network)
    optimizer = torch.optim.SGD(moved.parameters(), lr=lr)
    _step(moved, optimizer, learnt, label)
    with torch.no_grad():
        before = network(observed).log_softmax(-1)
        return moved(observed).log_softmax(-1) - before


def kernel_norms(
    network: nn.Module, learnt: Learnt, observed: Observed
) -> Float[np.ndarray, "learnt observed"]:
    """Mean Frobenius norm of K(o, u) over all pairs of a class u and a class o."""
    right = _jacobian(network, learnt.flatten(0, 1)).flatten(0, 1)
    rows = []
    for images in observed:
        left = _jacobian(network, images).flatten(0, 1)
        squared = (left @ right.T).square()
        norms = squared.view(len(images), CLASSES, CLASSES, -1, CLASSES).sum((1, 4))
        rows.append(norms.sqrt().mean((0, 2)))
    return torch.stack(rows, dim=1).double().numpy()


def rates(
    network: nn.Module, learnt: Learnt, observed: Observed
) -> Float[np.ndarray, "learnt observed"]:
    """Mean of [-A K G]_u: how fast log pi(u | o) rises while class u is learnt.

    Nats per unit of learning rate, over all pairs of an image of class u and one of
    class o.
    """
    parameters = _values(network)
    images = observed.flatten(0, 1)

    def log_pi(values: dict[str, Tensor]) -> Tensor:
        return functional_call(network, values, (images,)).log_softmax(-1)

    rows = []
    for label, mine in enumerate(learnt):
        network.zero_grad()
        _loss(network, mine, label).backward()
        steepest = {name: -_gradient(p) for name, p in network.named_parameters()}
        with warnings.catch_warnings():
            # torch loads its own forward derivatives by what it calls deprecated
            warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
            change = jvp(log_pi, (parameters,), (steepest,))[1]
        rows.append(change[:, label].view(len(observed), -1).mean(1))
    network.zero_grad()
    return torch.stack(rows).double().numpy()


def class_paths(
    network: nn.Module,
    learnt: Learnt,
    observed: Observed,
    *,
    lr: float,
    updates: int,
    every: int,
    batch: int,
    seed: int,
) -> tuple[
    Float[np.ndarray, "learnt observed"],
    Float[np.ndarray, "learnt look observed"],
]:
    """Learn one class alone, for real, and watch all others.

    From the same network each class takes `updates` steps of plain SGD on batches of
    its own images. Returns the mean change of log pi(u | o), in nats, and the mean
    probability pi(u | o) before them and after each `every` of them, which must divide
    their number.
    """
    images = observed.flatten(0, 1)
    changes, paths = [], []
    for label, mine in enumerate(learnt):
        chance = torch.Generator().manual_seed(CLASSES * seed + label)
        moved = copy.deepcopy(network)
        optimizer = torch.optim.SGD(moved.parameters(), lr=lr)
        answers = [_log_pi(moved, images)[:, label]]
        for update in range(1, updates + 1):
            rows = torch.randperm(len(mine), generator=chance)[:batch]
            _step(moved, optimizer, mine[rows], label)
            if update % every == 0:
                answers.append(_log_pi(moved, images)[:, label])
        path = torch.stack(answers).view(len(answers), len(observed), -1)
        changes.append((path[-1] - path[0]).mean(1))
        paths.append(path.exp().mean(2))
    return (
        torch.stack(changes).double().numpy(),
        torch.stack(paths).double().numpy(),
    )


def mean_softmax(
    network: nn.Module, observed: Observed
) -> tuple[Float[np.ndarray, "observed label"], float]:
    """Mean pi(y | o) over the images of each class, and the share answered right."""
    pi = _log_pi(network, observed.flatten(0, 1)).exp()
    by_class = pi.view(len(observed), -1, CLASSES)
    labels = torch.arange(len(observed))[:, None]
    right = (by_class.argmax(-1) == labels).double().mean()
    return by_class.mean(1).double().numpy(), float(right)


def _log_pi(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).log_softmax(-1)


def _loss(network: nn.Module, images: Tensor, label: int) -> Tensor:
    labels = torch.full((len(images),), label)
    return nn.functional.cross_entropy(network(images), labels)


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, label: int
) -> None:
    optimizer.zero_grad()
    _loss(network, images, label).backward()
    optimizer.step()


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None  # every layer takes part in the answer
    return parameter.grad


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}
