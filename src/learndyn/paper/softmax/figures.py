"""The squeezing effect on one softmax in six figures, all computed when drawn.

They show the five scenes of the paper's Appendix E label by label, the ratio of Lemma
1, how the effect grows with peakiness and with how unlikely y is, and four optimizers.
Nothing is trained or read (`learndyn.paper.softmax.step` has the theory), so equal code
draws equal figures. Medians and bands are over random draws with fixed seeds.

In the scenes, labels stand in the order of their probability before the push. A stroke
leads from before to after on a log scale, which alone shows both a valley and a peak.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.paper.figures import PaperFigure
from learndyn.paper.softmax.scenes import (
    Scene,
    by_probability,
    paper_scenes,
    peakiness_sweep,
)
from learndyn.paper.softmax.step import (
    OPTIMIZERS,
    OptimizerName,
    SoftmaxStep,
    favourite,
    simulate,
)
from learndyn.show.chart import (
    DOWN,
    INK,
    LINE,
    MUTED,
    SOLID,
    TEXT,
    UP,
    WIDE,
    Chart,
    Dash,
    EndLabel,
    Grid,
    Heading,
    hairline,
    points,
)


_ABOUT = {
    "A": "A: pulled up",
    "B": "B: flat, pushed down",
    "C": "C: peaky, a label on a peak pushed down",
    "D": "D: peaky, a label in a valley pushed down",
    "E": "E: 1000 labels, an unlikely one pushed down",
}


def _scenes_figure(width: int = WIDE) -> Chart:
    """Grid A to D: 50 labels; pull up, push a flat one, a peak, a valley."""
    scenes = paper_scenes()[:4]
    steps = [scene.step for scene in scenes]
    valley = steps[3]
    grid = Grid(
        width,
        [_heading(scene, step) for scene, step in zip(scenes, steps, strict=True)],
        title=(
            f"Pushing down a label of probability {_probability(valley, valley.y)} "
            f"moves {100 * float(valley.gains[valley.favourite]):.0f} % of all "
            "probability to the favourite"
        ),
        unit=_UNIT,
    )
    for index, step in enumerate(steps):
        axes = grid.axes(index, "labels, likeliest first")
        _arrows(axes, step)
    return grid.chart


def _vocabulary_figure(width: int = WIDE) -> Chart:
    """Heading E: 1000 labels."""
    scene = paper_scenes()[4]
    step = scene.step
    others = step.rises.sum()
    grid = Grid(
        width,
        [_heading(scene, step)],
        title=(
            f"Over {len(step.before)} labels one push lifts {others}: y* goes from "
            f"{math.exp(step.before[step.favourite]):.2f} to "
            f"{math.exp(step.after[step.favourite]):.2f}"
        ),
        unit=_UNIT,
        columns=1,
        tall=300,
    )
    axes = grid.axes(0, "labels, likeliest first")
    _arrows(axes, step)
    return grid.chart


def _probability(step: SoftmaxStep, label: int, *, after: bool = False) -> str:
    """A label's probability in two or three figures."""
    return _written((step.after if after else step.before)[label])


def _written(logp: float) -> str:
    """A probability, given in nats, as 0.250 or 4.0·10⁻¹⁰."""
    value = math.exp(logp)
    if value >= 0.001:
        return f"{value:.3f}"
    power = math.floor(logp / math.log(10))
    return f"{math.exp(logp - power * math.log(10)):.1f}·{_power_of_ten(power)}"


def _power_of_ten(exponent: int) -> str:
    """1,000 for 3 and 10⁻¹⁰ for -10."""
    if -4 < exponent < 4:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _probability_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis from `low` to `high`, both in nats, labelled with probabilities."""
    axes.set_ylim(low, high)
    decades = [k for k in range(-400, 1) if low <= k * math.log(10) <= high]
    if len(decades) >= 2:
        every = -(-len(decades) // 6)
        shown = decades[::-1][::every]
        ticks = [k * math.log(10) for k in shown]
        names = [_power_of_ten(k) for k in shown]
    else:
        inside = MaxNLocator(4).tick_values(math.exp(low), math.exp(high))
        ticks = [math.log(v) for v in inside if v > 0 and low <= math.log(v) <= high]
        names = [f"{math.exp(t):.3g}" for t in ticks]
    axes.set_yticks(ticks, names)


_UNIT = (
    "Probability of every label before (end of the stroke) and after (dot) one "
    "gradient step, log scale; y: the label it is about, y*: the likeliest other; "
    "blue: gains, grey: loses"
)


def _heading(scene: Scene, step: SoftmaxStep) -> Heading:
    others = len(step.before) - 1
    rise = int(step.rises.sum()) - bool(step.rises[step.y])
    many = f"{rise} of {others} others rise" if rise else f"all {others} others fall"
    best = step.favourite
    return Heading(
        f"{_ABOUT[scene.name]}: {many}",
        f"y {_probability(step, step.y)} → "
        f"{_probability(step, step.y, after=True)}, "
        f"y* {_probability(step, best)} → {_probability(step, best, after=True)}",
    )


def _arrows(axes: Axes, step: SoftmaxStep) -> None:
    order = np.argsort(-step.before, kind="stable")
    place = np.empty(len(order), int)
    place[order] = np.arange(1, len(order) + 1)
    y, best, many = step.y, step.favourite, len(order) > 100
    others = np.ones(len(order), bool)
    others[y] = False
    both = np.concatenate([step.before, step.after[others]])
    span = float(both.max() - both.min())
    low, high = float(both.min()) - 0.08 * span, float(both.max()) + 0.1 * span
    high = max(high, float(step.after[y]) + 0.1 * span)
    for rises, colour in ((False, MUTED), (True, UP)):
        chosen = others & (step.rises == rises)
        at = place[chosen]
        before, after = step.before[chosen], step.after[chosen]
        if many and not rises:
            by = np.argsort(at)
            at, before, after = at[by], before[by], after[by]
            axes.fill_between(at, before, after, color=colour, alpha=0.2, lw=0)
            axes.plot(at, after, color=colour, lw=1)
            continue
        axes.vlines(at, before, after, color=colour, lw=1.4, alpha=0.6)
        axes.plot(at, after, "o", color=colour, ms=3, mew=0)
    for label, name, colour in ((y, "y", DOWN), (best, "y*", INK)):
        pulled = label == y and step.strength < 0
        _highlight(axes, step, label, int(place[label]), (low, high))
        before, end = float(step.before[label]), float(step.after[label])
        beside = label == y and end < before  # its lower end stands free
        axes.annotate(
            name,
            (place[label], max(end, low) if beside else max(before, end)),
            xytext=(points(7), 0) if beside else (0, points(6)),
            ha="left" if beside else "center",
            textcoords="offset points",
            color=UP if pulled else colour,
            fontsize=points(13),
            fontweight="bold",
            va="bottom",
        )
    axes.set_xlim(-0.02 * len(order) - 1, 1.04 * len(order))
    _probability_axis(axes, low, high)
    axes.set_xticks(_ranks(len(order)))


def _highlight(
    axes: Axes, step: SoftmaxStep, label: int, at: int, limits: Sequence[float]
) -> None:
    """A thick stroke; where it leaves the chart it ends in an arrow."""
    colour = INK
    if label == step.y:
        colour = DOWN if step.strength > 0 else UP
    end = float(step.after[label])
    axes.plot(
        [at, at],
        [step.before[label], max(end, limits[0])],
        color=colour,
        lw=2.2,
        solid_capstyle="butt",
    )
    leaves = end < limits[0]
    axes.plot(
        [at],
        [limits[0] if leaves else end],
        "v" if leaves else "o",
        color=colour,
        ms=6,
        mew=0,
        clip_on=False,
    )


def _ranks(labels: int) -> list[int]:
    every = 10 if labels <= 100 else 200
    return [1, *range(every, labels + 1, every)]


_STDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations of the logits, from flat to peaky."""

_UNLIKELY = tuple(np.geomspace(0.5, 1e-4, 16).tolist())
"""Probabilities of y before the push."""


def _peakiness_figure(width: int = WIDE) -> Chart:
    """Who rises and what y* gets, from flat to peaky."""
    sweep = peakiness_sweep(_STDS)
    rise = [one.others_rise for one in sweep]
    share = [np.log10(one.to_favourite) for one in sweep]
    means = [float(np.mean(r)) for r in rise]
    grid = Grid(
        width,
        [
            Heading(
                f"Of 49 others {means[0]:.0f} rise where π is flat, {means[-2]:.1f} "
                "at logit std 4",
                "mean; band: 5 to 95 % of draws",
            ),
            Heading(
                f"At logit std 4, y* gains {10 ** float(np.median(share[-2])):,.0f} "
                "times what y lost: the others pay",
                "median gain of y* per unit that y lost; band: 5 to 95 % of draws",
            ),
        ],
        title="The peakier the distribution, the fewer gain from a push",
        unit="50 labels, a random one pushed down with s = 1",
        tall=250,
    )
    axes = grid.axes(0, "standard deviation of the logits")
    _band(axes, _STDS, rise, MUTED, np.mean)
    axes.set_ylim(0, 50)
    axes = grid.axes(1, "standard deviation of the logits")
    _band(axes, _STDS, share, INK, np.median)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _power_of_ten(round(v))))
    return grid.chart


def _unlikely_figure(width: int = WIDE) -> Chart:
    """Claim 4: what a less likely y does to the rest, and to y*."""
    others = 2 * np.random.default_rng(0).standard_normal((200, 49))
    rest, best = by_probability(others, _UNLIKELY)
    ends = {"rest": np.median(rest, axis=0), "y*": np.median(best, axis=0)}
    grid = Grid(
        width,
        [
            Heading(
                f"From π(y) = 0.5 to 0.0001: all others together "
                f"{nats(float(ends['rest'][0]), 2)} → "
                f"{nats(float(ends['rest'][-1]), 2)} nats, y* "
                f"{nats(float(ends['y*'][0]), 2)} → {nats(float(ends['y*'][-1]), 2)}",
                "median over draws; bands: 5 to 95 %",
            )
        ],
        title="The less likely the pushed label, the worse for the rest; but y* gains "
        "less, not more",
        unit=(
            "Change of log π by one push of s = 1, nats, with the distribution of all "
            "labels but y held fixed"
        ),
        columns=1,
        tall=280,
        labels=84 if width < 600 else 110,
    )
    axes = grid.axes(0, "π(y) before the push: less likely →")
    at = -np.log10(_UNLIKELY)
    _band(axes, at, list(best.T), INK, np.median)
    _band(axes, at, list(rest.T), LINE["other"], np.median)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: nats(v, 1)))
    axes.set_xlim(at[0], at[-1])
    axes.set_xticks([1, 2, 3, 4], ["0.1", "0.01", "0.001", "0.0001"])
    labels = [
        EndLabel("y*", float(ends["y*"][-1]), hairline(INK)),
        EndLabel("all others", float(ends["rest"][-1]), hairline(TEXT["other"])),
    ]
    grid.end_labels(axes, labels)
    return grid.chart


def _band(
    axes: Axes,
    at: Sequence[float] | Float[np.ndarray, " at"],
    values: Sequence[np.ndarray],
    colour: str,
    middle: Callable[..., Any],
) -> None:
    """A line through a mean or median, and a band over 5 to 95 % of draws."""
    low, high = np.percentile(np.array(values), [5, 95], axis=1)
    axes.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(at, [middle(v) for v in values], color=colour, lw=points(2.4))


_STYLES: dict[OptimizerName, tuple[str, str, Dash]] = {
    "sgd": (LINE["chosen"], "SGD", SOLID),
    "momentum": (LINE["chosen"], "momentum", (5.0, 2.5)),
    "rmsprop": (LINE["rejected"], "RMSprop", SOLID),
    "adam": (LINE["rejected"], "Adam", (5.0, 2.5)),
}
_FALL = 20.0
"""Nats of log pi(y) up to which optimizers are compared."""
_RATES: dict[OptimizerName, float] = {
    "sgd": 0.01,
    "momentum": 0.002,
    "rmsprop": 0.01,
    "adam": 0.05,
}
"""Learning rates small enough that the curves are those of a flow."""


def softmax_figures() -> list[PaperFigure]:
    """The figures of the paper's Appendix E and what belongs beside them."""
    return [
        PaperFigure(
            "softmax_scenes",
            "Appendix E, panels A to D",
            _scenes_figure,
            "50 labels, 4 features, the draws of the authors' notebook. Its panel D "
            "mixed a second, positive update in; this one is the push alone.",
        ),
        PaperFigure(
            "softmax_vocabulary",
            "Appendix E, panel E",
            _vocabulary_figure,
            "1000 labels, 50 features, one step of learning rate 1.",
        ),
        PaperFigure(
            "softmax_ratio",
            "Appendix E, Lemma 1",
            _ratio_figure,
            "Line: closed form. Dots: the gradient step taken on the weights.",
        ),
        PaperFigure(
            "softmax_peakiness",
            "Appendix E, Claims 3A to 3C",
            _peakiness_figure,
            "400 draws of 50 normal logits at each standard deviation; a random label "
            "is pushed down with s = 1.",
        ),
        PaperFigure(
            "softmax_unlikely",
            "Appendix E, Claim 4",
            _unlikely_figure,
            "200 draws of 49 other labels, logit std 2; s = 1.",
        ),
        PaperFigure(
            "softmax_optimizers",
            "Appendix E, beyond SGD",
            _optimizers_figure,
            "Each curve is a run of many small updates. In a network the labels share "
            "weights; this layer has a row of its own for each.",
        ),
    ]


def _ratio_figure(width: int = WIDE) -> Chart:
    """log(pi'/pi) against pi, with the threshold tau, in three distributions."""
    scenes = paper_scenes()
    shown = {
        "Flat (B)": scenes[1],
        "In between": _between(),
        "Peaky (D)": scenes[3],
    }
    steps = [scene.step for scene in shown.values()]
    grid = Grid(
        width,
        [
            Heading(
                f"{name}: {_rising(step)} of {len(step.before) - 1} others rise",
                f"τ = {step.threshold:.3f}, s = {step.strength:.2f}",
            )
            for name, step in zip(shown, steps, strict=True)
        ],
        title="A label gains if and only if its probability exceeds τ; a peak lifts τ",
        unit=(
            "log of π after / π before, in nats, of every label but y, against its "
            "probability; dashed: τ; line: closed form, dots: the step taken"
        ),
        columns=3,
        tall=250,
    )
    for index, (scene, step) in enumerate(zip(shown.values(), steps, strict=True)):
        axes = grid.axes(index, "π before the push")
        _ratios(axes, scene, step)
    return grid.chart


def _between() -> Scene:
    """Panel A's distribution, neither flat nor peaky; y is unlikely and goes down."""
    a, _, _, d, _ = paper_scenes()
    return Scene("", a.weights, a.x, d.y, 0.1)


def _optimizers_figure(width: int = WIDE) -> Chart:
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
                f"when y has fallen by {_FALL:.0f} nats",
            )
            for label, path in zip(shown, paths, strict=True)
        ],
        title=(
            f"SGD squeezes ({nats(ends['sgd'])} nats), momentum alike "
            f"({nats(ends['momentum'])}); RMSprop and Adam hardly do "
            f"({nats(ends['rmsprop'])}, {nats(ends['adam'])}) where every label has "
            "weights of its own"
        ),
        unit="Change of log π(y*) minus change of all other labels together, nats",
        tall=270,
        labels=84,
    )
    for index, path in enumerate(paths):
        axes = grid.axes(index, "how far log π(y) has fallen, nats")
        labels = []
        for name, (fallen, gained) in path.items():
            colour, label, dash = _STYLES[name]
            (line,) = axes.plot(fallen, gained, color=colour, lw=points(2.4))
            if dash:
                line.set_dashes(dash)
            labels.append(EndLabel(label, float(gained[-1]), hairline(colour)))
        axes.set_xlim(0, _FALL)
        axes.axhline(0, color=MUTED, linewidth=1)
        grid.end_labels(axes, labels)
    return grid.chart


@cache
def _paths() -> dict[str, dict[OptimizerName, Any]]:
    """Both panels' curves; both widths ask."""
    scenes = {"Peaky (D)": paper_scenes()[3], "In between": _between()}
    return {
        name: {one: _path(scene, one) for one in OPTIMIZERS}
        for name, scene in scenes.items()
    }


def _path(
    scene: Scene, name: OptimizerName
) -> tuple[Float[np.ndarray, " at"], Float[np.ndarray, " at"]]:
    """Nats that y has fallen, and what y* has gained on all others together."""
    logp = simulate(
        scene.weights, scene.x, scene.y, lr=_RATES[name], steps=1200, optimizer=name
    )
    best = favourite(logp[0], scene.y)
    keep = np.ones(logp.shape[1], bool)
    keep[[scene.y, best]] = False
    gap = logp[:, best] - np.logaddexp.reduce(logp[:, keep], axis=1)
    fallen = logp[0, scene.y] - logp[:, scene.y]
    at = np.linspace(0, _FALL, 81)
    return at, np.interp(at, fallen, gap - gap[0])


def _rising(step: SoftmaxStep) -> int:
    return int(np.delete(step.rises, step.y).sum())


def _ratios(axes: Axes, scene: Scene, step: SoftmaxStep) -> None:
    others = np.arange(len(step.before)) != step.y
    pi = np.exp(step.before)
    taken = simulate(scene.weights, scene.x, scene.y, lr=scene.lr, steps=1)
    high = 1.14 * float(pi[others].max())
    low = min(float(pi[others].min()), high / 2)
    low = low - 0.05 * (high - low)
    line = np.linspace(max(low, 0), high, 100)
    axes.plot(
        line,
        step.strength * (line - step.threshold),
        color=LINE["other"],
        lw=points(2),
    )
    moved = taken[1] - taken[0]
    rises = moved > 0
    for chosen, colour in ((others & rises, LINE["chosen"]), (others & ~rises, DOWN)):
        axes.plot(pi[chosen], moved[chosen], "o", color=colour, ms=4, alpha=0.75, mew=0)
    best = step.favourite
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
    if low <= step.threshold <= high:
        axes.axvline(step.threshold, color=MUTED, lw=1, dashes=(5, 3))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    digits = 2 if np.ptp(moved[others]) < 2 else 0
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: nats(v, digits)))
