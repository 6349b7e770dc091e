"""How the squeezing effect grows with peakiness, and with how unlikely y is.

Medians and bands are over random draws, made when the figure is drawn.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.lab.softmax_scenes import by_probability, peakiness_sweep
from learndyn.show.canvas import WIDE, Sheet, points
from learndyn.show.grid import EndLabel, Grid, Heading, end_labels
from learndyn.show.palette import INK, LINE, MUTED, TEXT
from learndyn.show.softmax_scenes import power_of_ten


STDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations of the logits, from flat to peaky."""

UNLIKELY = tuple(np.geomspace(0.5, 1e-4, 16).tolist())
"""Probabilities of y before the push."""


def peakiness_figure(width: int = WIDE) -> Sheet:
    """Who rises and what y* gets, from flat to peaky."""
    found = peakiness_sweep(STDS)
    rise = [one.others_rise for one in found]
    share = [np.log10(one.to_favourite) for one in found]
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
    axes, _ = grid.axes(0, "standard deviation of the logits")
    _band(axes, STDS, rise, MUTED, np.mean)
    axes.set_ylim(0, 50)
    axes, _ = grid.axes(1, "standard deviation of the logits")
    _band(axes, STDS, share, INK, np.median)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: power_of_ten(round(v))))
    return grid.sheet


def unlikely_figure(width: int = WIDE) -> Sheet:
    """Claim 4: what a less likely y does to the rest, and to y*."""
    others = 2 * np.random.default_rng(0).standard_normal((200, 49))
    rest, best = by_probability(others, UNLIKELY)
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
        labels=70 if width < 600 else 110,
    )
    axes, box = grid.axes(0, "π(y) before the push: less likely →")
    at = -np.log10(UNLIKELY)
    _band(axes, at, list(best.T), INK, np.median)
    _band(axes, at, list(rest.T), LINE["other"], np.median)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: nats(v, 1)))
    axes.set_xlim(at[0], at[-1])
    axes.set_xticks([1, 2, 3, 4], ["0.1", "0.01", "0.001", "0.0001"])
    labels: list[EndLabel] = [
        ("y*", float(ends["y*"][-1]), INK),
        ("all others", float(ends["rest"][-1]), TEXT["other"]),
    ]
    end_labels(grid.sheet, axes, box, labels)
    return grid.sheet


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
