"""The figures of kinds: over one run, and two runs side by side.

Each is drawn for one width in CSS pixels, so that a phone gets its own drawing instead
of a shrunken one. Titles are findings made from the data; the unit stands below.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from learndyn.diagnose.changes import Curve, Per, change_curves
from learndyn.diagnose.intervals import Interval, known
from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import GREEDY, Paths, mean_path, outside_panel
from learndyn.diagnose.two_runs.compare import together
from learndyn.diagnose.two_runs.words import names
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import (
    MUTED,
    SOLID,
    WIDE,
    Chart,
    EndLabel,
    Grid,
    Heading,
    changes_axis,
    draw_line,
    end_at_labels,
    end_labels,
    points,
    shortened,
    style_of,
)


def curves_figure(
    trajectory: Trajectory,
    per: Per = "response",
    *,
    width: int = WIDE,
    curves: dict[str, Curve] | None = None,
) -> Chart:
    """Change of every kind since the first observation, with 95 % bands.

    `curves` are what `change_curves` gave, so that two widths need it once.
    """
    curves = change_curves(trajectory, per=per) if curves is None else curves
    digits = 1 if per == "response" else 2
    unit = "nats per response" if per == "response" else "nats per token (pooled)"
    narrow = width < 600
    labels = [
        EndLabel(
            c.kind,
            float(c.mean[-1]),
            style_of(c.kind),
            "" if narrow else nats(float(c.mean[-1]), digits),
        )
        for c in curves.values()
    ]
    tall = max(300 if narrow else 430, 17 * len(labels) + 40)
    chart = Chart(
        width,
        tall + 58,
        _finding(curves),
        f"Change of log π(response) since {trajectory.unit} "
        f"{trajectory.steps[0]}, {unit}{_bands(curves)}"
        f"{_of_panel(trajectory, curves, digits)}{_label(trajectory)}",
    )
    left, labels_room = (40, 150) if narrow else (52, 250)
    axes = chart.axes(left, chart.top, width - labels_room, chart.top + tall)
    axes.set_xlabel(f"{trajectory.unit}s", color=MUTED, fontsize=points(12))
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))
    for curve in curves.values():
        style = style_of(curve.kind)
        draw_line(axes, curve.steps, curve.mean, style)
        axes.fill_between(
            curve.steps, curve.low, curve.high, color=style.line, alpha=style.band, lw=0
        )
    changes_axis(axes)
    end_at_labels(axes)
    _name_directions(axes)
    size, sample = (10.5, 14) if narrow else (12.5, 32)
    end_labels(chart, axes, labels, edge=width, sample=sample, size=size)
    return chart


def comparison_figure(a: Trajectory, b: Trajectory, *, width: int = WIDE) -> Chart:
    """Chosen, rejected and greedy path of two runs, by updates and, where both have
    one, by margin.

    Colour is the kind; run a is dashed, run b is solid. Both are over one set of
    prompts.
    """
    one, other = (shortened(name, 22) for name in names(a, b))
    both = together(Paths.of(a), Paths.of(b))
    shown, of = len(both[0].prompts), len(set(a.prompt_of))
    alongs = [f"{a.unit}s"]
    if all(paths.margin is not None for paths in both):
        alongs.append("margin, nats")
    grid = Grid(
        width,
        [Heading("") for _ in alongs],
        title=f"{other} (solid) against {one} (dashed)",
        unit="Change since each run's own start, nats per response"
        + (f"; {shown} of {of} prompts" if shown < of else "")
        + _label(a, b),
        tall=380,
        labels=130,
    )
    for index, along in enumerate(alongs):
        axes = grid.axes(index, along)
        labels = []
        for paths, dash in ((both[0], (5.0, 2.5)), (both[1], SOLID)):
            margin = None if paths.margin is None else mean_path(paths.margin)
            at = paths.steps if index == 0 or margin is None else margin
            for kind in ("chosen", "rejected", GREEDY):
                values = paths.with_greedy().get(kind)
                if values is None:
                    continue
                change = mean_path(values - values[0])
                style = replace(style_of(kind), dash=dash, width=2.0)
                draw_line(axes, at, change, style)
                if dash == SOLID:
                    labels.append(EndLabel(kind, float(change[-1]), style))
        changes_axis(axes)
        size, sample = (10.5, 14) if width < 600 else (12.5, 32)
        grid.end_labels(axes, labels, sample=sample, size=size)
    return grid.chart


def _bands(curves: dict[str, Curve]) -> str:
    """What the bands are, where there are any."""
    drawn = any(np.isfinite(curve.low[-1:]).any() for curve in curves.values())
    return "; bands: 95 % over prompts" if drawn else ""


def _label(*trajectories: Trajectory) -> str:
    """What must stand beside numbers that are not exact."""
    labels = {t.approximate for t in trajectories if t.approximate is not None}
    return f"; approximate ({', '.join(sorted(labels))})" if labels else ""


def _of_panel(trajectory: Trajectory, curves: dict[str, Curve], digits: int) -> str:
    """Whose curves these are and how sure, where they are of a panel."""
    panel = trajectory.panel
    if panel is None:
        return ""
    ends = [float(curve.se[-1]) for curve in curves.values()]
    largest = max((se for se in ends if math.isfinite(se)), default=math.nan)
    but = " where they have that kind" if outside_panel(trajectory) else ""
    return (
        f"; {panel.size} of {panel.of} prompts{but}, standard error at the end "
        f"≤ {largest:.{digits}f}"
    )


def _finding(curves: dict[str, Curve]) -> str:
    ends = {
        kind: Interval(float(c.mean[-1]), float(c.low[-1]), float(c.high[-1]))
        for kind, c in curves.items()
    }
    if all(len(c.steps) < 2 for c in curves.values()):
        return "One observation: no change to show yet"
    kinds = {kind: end for kind, end in ends.items() if kind != GREEDY}
    movements = [f"{k} {nats(ends[k].mean)}" for k in ("chosen", GREEDY) if k in ends]
    if not any(map(known, kinds.values())):
        ended = f": {', '.join(movements)} nats" if movements else ""
        return f"{len(kinds)} kinds, without intervals{ended}"
    fell = sum(end.below_zero for end in kinds.values())
    rose = sum(end.above_zero for end in kinds.values())
    text = f"{fell} of {len(kinds)} kinds fell, {rose} rose"
    if "chosen" in ends:
        text += f"; chosen {_verb(ends['chosen'])}"
    if GREEDY in ends:
        text += f", the greedy path {_verb(ends[GREEDY])}"
    return text


def _verb(end: Interval) -> str:
    if end.below_zero:
        return "fell"
    return "rose" if end.above_zero else "did not clearly move"


def _name_directions(axes: Axes) -> None:
    """Write what up and down mean, where there is room for it."""
    low, high = axes.get_ylim()
    room = 0.09 * (high - low)
    if high > room:
        _note(axes, 1.0, "top", "more likely than at the start ↑")
    if -low > room:
        _note(axes, 0.0, "bottom", "less likely ↓")


def _note(axes: Axes, y: float, align: Any, text: str) -> None:
    axes.text(
        0.01,
        y,
        text,
        transform=axes.transAxes,
        fontsize=points(11),
        color=MUTED,
        verticalalignment=align,
    )
