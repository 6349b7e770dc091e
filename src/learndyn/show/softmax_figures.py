"""The squeezing effect on one softmax in six figures, all computed when drawn.

The theory is `lab/softmax.py`. Nothing here is trained and nothing is read: equal code
draws equal figures.
"""

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.lab.softmax import (
    OPTIMIZERS,
    OptimizerName,
    Step,
    favourite,
    simulate,
)
from learndyn.lab.softmax_scenes import Scene, paper_scenes
from learndyn.show.canvas import WIDE, Sheet, points
from learndyn.show.grid import EndLabel, Grid, Heading, end_labels
from learndyn.show.palette import DOWN, INK, LINE, MUTED, SOLID, Dash
from learndyn.show.plates import Plate
from learndyn.show.softmax_scenes import scenes_figure, vocabulary_figure
from learndyn.show.softmax_trends import peakiness_figure, unlikely_figure


STYLES: dict[OptimizerName, tuple[str, str, Dash]] = {
    "sgd": (LINE["chosen"], "SGD", SOLID),
    "momentum": (LINE["chosen"], "momentum", (5.0, 2.5)),
    "rmsprop": (LINE["rejected"], "RMSprop", SOLID),
    "adam": (LINE["rejected"], "Adam", (5.0, 2.5)),
}
FALL = 20.0
"""Nats of log pi(y) up to which optimizers are compared."""
RATES: dict[OptimizerName, float] = {
    "sgd": 0.01,
    "momentum": 0.002,
    "rmsprop": 0.01,
    "adam": 0.05,
}
"""Learning rates small enough that the curves are those of a flow."""


def softmax_plates() -> list[Plate]:
    """The figures of the paper's Appendix E and what belongs beside them."""
    return [
        Plate(
            "softmax_scenes",
            "Appendix E, panels A to D",
            scenes_figure,
            "50 labels, 4 features, the draws of the authors' notebook. Its panel D "
            "mixed a second, positive update in; this one is the push alone.",
        ),
        Plate(
            "softmax_vocabulary",
            "Appendix E, panel E",
            vocabulary_figure,
            "1000 labels, 50 features, one step of learning rate 1.",
        ),
        Plate(
            "softmax_ratio",
            "Appendix E, Lemma 1",
            ratio_figure,
            "Line: closed form. Dots: the gradient step taken on the weights.",
        ),
        Plate(
            "softmax_peakiness",
            "Appendix E, Claims 3A to 3C",
            peakiness_figure,
            "400 draws of 50 normal logits at each standard deviation; a random label "
            "is pushed down with s = 1.",
        ),
        Plate(
            "softmax_unlikely",
            "Appendix E, Claim 4",
            unlikely_figure,
            "200 draws of 49 other labels, logit std 2; s = 1.",
        ),
        Plate(
            "softmax_optimizers",
            "Appendix E, beyond SGD",
            optimizers_figure,
            "Each curve is a run of many small updates. In a network the labels share "
            "weights; this layer has a row of its own for each.",
        ),
    ]


def ratio_figure(width: int = WIDE) -> Sheet:
    """log(pi'/pi) against pi, with the threshold tau, in three distributions."""
    scenes = paper_scenes()
    shown = {
        "Flat (B)": scenes[1],
        "In between": between(),
        "Peaky (D)": scenes[3],
    }
    steps = [scene.step for scene in shown.values()]
    grid = Grid(
        width,
        [
            Heading(
                f"{name}: {_rising(found)} of {len(found.before) - 1} others rise",
                f"τ = {found.threshold:.3f}, s = {found.strength:.2f}",
            )
            for name, found in zip(shown, steps, strict=True)
        ],
        title="A label gains if and only if its probability exceeds τ; a peak lifts τ",
        unit=(
            "log of π after / π before, in nats, of every label but y, against its "
            "probability; dashed: τ; line: closed form, dots: the step taken"
        ),
        columns=3,
        tall=250,
    )
    for index, (scene, found) in enumerate(zip(shown.values(), steps, strict=True)):
        axes, _ = grid.axes(index, "π before the push")
        _ratios(axes, scene, found)
    return grid.sheet


def between() -> Scene:
    """Panel A's distribution, neither flat nor peaky; y is unlikely and goes down."""
    a, _, _, d, _ = paper_scenes()
    return Scene("", a.weights, a.x, d.y, 0.1)


def optimizers_figure(width: int = WIDE) -> Sheet:
    """What y* gains on the rest while y falls, under four optimizers."""
    shown = _paths()
    paths = list(shown.values())
    ends = {name: float(path[1][-1]) for name, path in paths[0].items()}
    grid = Grid(
        width,
        [
            Heading(
                f"{label}: SGD {nats(float(path['sgd'][1][-1]))} nats, "
                f"Adam {nats(float(path['adam'][1][-1]))}",
                f"when y has fallen by {FALL:.0f} nats",
            )
            for label, path in zip(shown, paths, strict=True)
        ],
        title=(
            f"SGD squeezes ({nats(ends['sgd'])} nats), momentum alike "
            f"({nats(ends['momentum'])}); RMSprop and Adam hardly do "
            f"({nats(ends['rmsprop'])}, {nats(ends['adam'])}) where every label has "
            "weights of its own"
        ),
        unit="Change of log π(y*) minus that of all other labels together, nats",
        tall=270,
        labels=84,
    )
    for index, path in enumerate(paths):
        axes, box = grid.axes(index, "how far log π(y) has fallen, nats")
        labels: list[EndLabel] = []
        for name, (fallen, gained) in path.items():
            colour, said, dash = STYLES[name]
            (line,) = axes.plot(fallen, gained, color=colour, lw=points(2.4))
            if dash:
                line.set_dashes(dash)
            labels.append((said, float(gained[-1]), colour))
        axes.set_xlim(0, FALL)
        axes.axhline(0, color=MUTED, linewidth=1)
        end_labels(grid.sheet, axes, box, labels)
    return grid.sheet


@cache
def _paths() -> dict[str, dict[OptimizerName, Any]]:
    """Both panels' curves; both widths ask."""
    scenes = {"Peaky (D)": paper_scenes()[3], "In between": between()}
    return {
        name: {one: _path(scene, one) for one in OPTIMIZERS}
        for name, scene in scenes.items()
    }


def _path(
    scene: Scene, name: OptimizerName
) -> tuple[Float[np.ndarray, " at"], Float[np.ndarray, " at"]]:
    """Nats that y has fallen, and what y* has gained on all others together."""
    logp = simulate(
        scene.weights, scene.x, scene.y, lr=RATES[name], steps=1200, optimizer=name
    )
    best = favourite(logp[0], scene.y)
    keep = np.ones(logp.shape[1], bool)
    keep[[scene.y, best]] = False
    gap = logp[:, best] - np.logaddexp.reduce(logp[:, keep], axis=1)
    fallen = logp[0, scene.y] - logp[:, scene.y]
    at = np.linspace(0, FALL, 81)
    return at, np.interp(at, fallen, gap - gap[0])


def _rising(found: Step) -> int:
    return int(np.delete(found.rises, found.y).sum())


def _ratios(axes: Axes, scene: Scene, found: Step) -> None:
    others = np.arange(len(found.before)) != found.y
    pi = np.exp(found.before)
    taken = simulate(scene.weights, scene.x, scene.y, lr=scene.lr, steps=1)
    high = 1.14 * float(pi[others].max())
    low = min(float(pi[others].min()), high / 2)
    low = low - 0.05 * (high - low)
    line = np.linspace(max(low, 0), high, 100)
    axes.plot(
        line,
        found.strength * (line - found.threshold),
        color=LINE["other"],
        lw=points(2),
    )
    moved = taken[1] - taken[0]
    rises = moved > 0
    for chosen, colour in ((others & rises, LINE["chosen"]), (others & ~rises, DOWN)):
        axes.plot(pi[chosen], moved[chosen], "o", color=colour, ms=4, alpha=0.75, mew=0)
    best = found.favourite
    axes.annotate(
        "y*",
        (pi[best], moved[best]),
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
        fontsize=points(13),
        fontweight="bold",
        color=INK,
    )
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_xlim(low, high)
    if low <= found.threshold <= high:
        axes.axvline(found.threshold, color=MUTED, lw=1, dashes=(5, 3))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    digits = 2 if np.ptp(moved[others]) < 2 else 0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: nats(v, digits)))
