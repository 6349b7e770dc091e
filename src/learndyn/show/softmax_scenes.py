"""One push on one softmax, label by label: the five panels of the paper's Appendix E.

Labels stand in the order of their probability before the push; a stroke leads from
before to after, on a log scale: the only one on which a valley and a peak both show.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from learndyn.lab.softmax import Step
from learndyn.lab.softmax_scenes import Scene, paper_scenes
from learndyn.show.canvas import WIDE, Sheet, points
from learndyn.show.grid import Grid, Heading
from learndyn.show.palette import DOWN, INK, MUTED, UP


ABOUT = {
    "A": "A: pulled up",
    "B": "B: flat, pushed down",
    "C": "C: peaky, a label on a peak pushed down",
    "D": "D: peaky, a label in a valley pushed down",
    "E": "E: 1000 labels, an unlikely one pushed down",
}


def scenes_figure(width: int = WIDE) -> Sheet:
    """Grid A to D: 50 labels; pull up, push a flat one, a peak, a valley."""
    scenes = paper_scenes()[:4]
    steps = [scene.step for scene in scenes]
    valley = steps[3]
    grid = Grid(
        width,
        [_heading(scene, found) for scene, found in zip(scenes, steps, strict=True)],
        title=(
            f"Pushing down a label of probability {probability(valley, valley.y)} "
            f"moves {100 * float(valley.gains[valley.favourite]):.0f} % of all "
            "probability to the favourite"
        ),
        unit=_UNIT,
    )
    for index, found in enumerate(steps):
        axes, _ = grid.axes(index, "labels, likeliest first")
        _arrows(axes, found)
    return grid.sheet


def vocabulary_figure(width: int = WIDE) -> Sheet:
    """Heading E: 1000 labels."""
    scene = paper_scenes()[4]
    found = scene.step
    others = found.rises.sum()
    grid = Grid(
        width,
        [_heading(scene, found)],
        title=(
            f"Over {len(found.before)} labels one push lifts {others}: y* goes from "
            f"{math.exp(found.before[found.favourite]):.2f} to "
            f"{math.exp(found.after[found.favourite]):.2f}"
        ),
        unit=_UNIT,
        columns=1,
        tall=300,
    )
    axes, _ = grid.axes(0, "labels, likeliest first")
    _arrows(axes, found)
    return grid.sheet


def probability(found: Step, label: int, *, after: bool = False) -> str:
    """A label's probability in two or three figures."""
    return written((found.after if after else found.before)[label])


def written(logp: float) -> str:
    """A probability, given in nats, as 0.250 or 4.0·10⁻¹⁰."""
    value = math.exp(logp)
    if value >= 0.001:
        return f"{value:.3f}"
    power = math.floor(logp / math.log(10))
    return f"{math.exp(logp - power * math.log(10)):.1f}·{power_of_ten(power)}"


def power_of_ten(exponent: int) -> str:
    """1,000 for 3 and 10⁻¹⁰ for -10."""
    if -4 < exponent < 4:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def probability_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis from `low` to `high`, both in nats, labelled with probabilities."""
    axes.set_ylim(low, high)
    decades = [k for k in range(-400, 1) if low <= k * math.log(10) <= high]
    if len(decades) >= 2:
        every = -(-len(decades) // 6)
        shown = decades[::-1][::every]
        ticks = [k * math.log(10) for k in shown]
        names = [power_of_ten(k) for k in shown]
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


def _heading(scene: Scene, found: Step) -> Heading:
    others = len(found.before) - 1
    rise = int(found.rises.sum()) - bool(found.rises[found.y])
    many = f"{rise} of {others} others rise" if rise else f"all {others} others fall"
    best = found.favourite
    return Heading(
        f"{ABOUT[scene.name]}: {many}",
        f"y {probability(found, found.y)} → {probability(found, found.y, after=True)}, "
        f"y* {probability(found, best)} → {probability(found, best, after=True)}",
    )


def _arrows(axes: Axes, found: Step) -> None:
    order = np.argsort(-found.before, kind="stable")
    place = np.empty(len(order), int)
    place[order] = np.arange(1, len(order) + 1)
    y, best, many = found.y, found.favourite, len(order) > 100
    others = np.ones(len(order), bool)
    others[y] = False
    both = np.concatenate([found.before, found.after[others]])
    span = float(both.max() - both.min())
    low, high = float(both.min()) - 0.08 * span, float(both.max()) + 0.1 * span
    high = max(high, float(found.after[y]) + 0.1 * span)
    for rises, colour in ((False, MUTED), (True, UP)):
        chosen = others & (found.rises == rises)
        at = place[chosen]
        before, after = found.before[chosen], found.after[chosen]
        if many and not rises:
            by = np.argsort(at)
            at, before, after = at[by], before[by], after[by]
            axes.fill_between(at, before, after, color=colour, alpha=0.2, lw=0)
            axes.plot(at, after, color=colour, lw=1)
            continue
        axes.vlines(at, before, after, color=colour, lw=1.4, alpha=0.6)
        axes.plot(at, after, "o", color=colour, ms=3, mew=0)
    for label, name, colour in ((y, "y", DOWN), (best, "y*", INK)):
        pulled = label == y and found.strength < 0
        _highlight(axes, found, label, int(place[label]), (low, high))
        before, end = float(found.before[label]), float(found.after[label])
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
    probability_axis(axes, low, high)
    axes.set_xticks(_ranks(len(order)))


def _highlight(
    axes: Axes, found: Step, label: int, at: int, limits: Sequence[float]
) -> None:
    """A thick stroke; where it leaves the chart it ends in an arrow."""
    colour = INK
    if label == found.y:
        colour = DOWN if found.strength > 0 else UP
    end = float(found.after[label])
    axes.plot(
        [at, at],
        [found.before[label], max(end, limits[0])],
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
