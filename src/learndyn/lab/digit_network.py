"""The network of the paper's first figure and its training.

LeNet with tanh: convolutions of 6 and 16 channels, dense layers of 60, 42 and 10 (the
authors' notebook `squeeze_effect.ipynb`). Kernels are 5 x 5, and 3 x 3 for images of
less than 16 pixels. SGD with momentum 0.9, weight decay 5e-4 and a cosine to zero, as
there. The authors take 100 epochs at a rate of 1e-3, after which the network is half
learnt; ours are fewer and larger, and go on until the bumps have gone down again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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
