"""The figures of kinds: over one run, and two runs side by side.

Each is drawn for one width in CSS pixels, so that a phone gets its own drawing instead
of a shrunken one. Titles are findings made from the data; the unit stands below.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.changes import Curve, Per, change_curves
from learndyn.diagnose.compare import together
from learndyn.diagnose.compare_words import names
from learndyn.diagnose.intervals import Interval, known
from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import GREEDY, Paths, mean_path, outside_panel
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import (
    MUTED,
    SOLID,
    WIDE,
    Pixels,
    Sheet,
    Style,
    points,
    shortened,
    spread_labels,
    style_of,
)


Label = tuple[str, float, Style]
"""Text, value at the right end, style."""


def curves_figure(
    trajectory: Trajectory,
    per: Per = "response",
    *,
    width: int = WIDE,
    curves: dict[str, Curve] | None = None,
) -> Sheet:
    """Change of every kind since the first observation, with 95 % bands.

    `curves` are what `change_curves` gave, so that two widths need it once.
    """
    curves = change_curves(trajectory, per=per) if curves is None else curves
    digits = 1 if per == "response" else 2
    unit = "nats per response" if per == "response" else "nats per token (pooled)"
    labels = [
        (c.kind, float(c.mean[-1]), style_of(c.kind))
        for c in curves.values()
        if math.isfinite(c.mean[-1])
    ]
    tall = max(300 if width < 600 else 430, 17 * len(labels) + 40)
    sheet = Sheet(
        width,
        tall + 58,
        _finding(curves),
        f"Change of log π(response) since {trajectory.unit} "
        f"{trajectory.steps[0]}, {unit}{_bands(curves)}"
        f"{_of_panel(trajectory, curves, digits)}{_label(trajectory)}",
    )
    axes = _chart(sheet, tall, f"{trajectory.unit}s")
    for curve in curves.values():
        style = style_of(curve.kind)
        _line(axes, curve.steps, curve.mean, style)
        axes.fill_between(
            curve.steps, curve.low, curve.high, color=style.line, alpha=style.band, lw=0
        )
    _finish(sheet, axes, tall, labels, digits)
    return sheet


def comparison_figure(a: Trajectory, b: Trajectory, *, width: int = WIDE) -> Sheet:
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
    sheet = Sheet(
        width,
        445 * len(alongs) if width < 600 else 450,
        f"{other} (solid) against {one} (dashed)",
        "Change since each run's own start, nats per response"
        + (f"; {shown} of {of} prompts" if shown < of else "")
        + _label(a, b),
    )
    sides = [(both[0], (5.0, 2.5)), (both[1], SOLID)]
    for index, along in enumerate(alongs):
        if sheet.narrow:
            begin, left, right = sheet.top + index * 445, 46.0, width - 130.0
        else:
            half = (width + 40) / len(alongs) - 40
            begin, left = sheet.top, 52 + index * (half + 40)
            right = left - 52 + half - 130
        axes = sheet.axes(left, begin + 8, right, begin + 388)
        labels: list[Label] = []
        for paths, dash in sides:
            margin = None if paths.margin is None else mean_path(paths.margin)
            at = paths.steps if index == 0 or margin is None else margin
            for kind in ("chosen", "rejected", GREEDY):
                values = paths.with_greedy().get(kind)
                if values is None:
                    continue
                change = mean_path(values - values[0])
                base = style_of(kind)
                style = Style(base.line, base.text, dash, 2.0, base.band)
                _line(axes, at, change, style)
                if dash == SOLID:
                    labels.append((kind, float(change[-1]), style))
        axes.set_xlabel(along, color=MUTED, fontsize=points(12))
        _zero(axes)
        _labels(sheet, axes, (right, begin + 8, begin + 388), labels)
    return sheet


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
    told = [f"{k} {nats(ends[k].mean)}" for k in ("chosen", GREEDY) if k in ends]
    if not any(map(known, kinds.values())):
        ended = f": {', '.join(told)} nats" if told else ""
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


def _chart(sheet: Sheet, tall: Pixels, along: str) -> Axes:
    left = 40 if sheet.narrow else 52
    right = sheet.width - (150 if sheet.narrow else 250)
    axes = sheet.axes(left, sheet.top, right, sheet.top + tall)
    axes.set_xlabel(along, color=MUTED, fontsize=points(12))
    axes.xaxis.set_major_locator(MaxNLocator(4 if sheet.narrow else 8, integer=True))
    return axes


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, style: Style) -> None:
    marker = "o" if len(x) == 1 else ""
    (line,) = axes.plot(
        x, y, color=style.line, linewidth=points(style.width), marker=marker
    )
    if style.dash:
        line.set_dashes(style.dash)


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=MUTED, linewidth=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), max(high, 0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _tick(value: float) -> str:
    text = f"{abs(value):g}"
    return text if value == 0 else ("+" if value > 0 else "−") + text


def _finish(
    sheet: Sheet, axes: Axes, tall: Pixels, labels: list[Label], digits: int
) -> None:
    _zero(axes)
    first, last = axes.dataLim.intervalx
    if last > first:  # the lines end where their labels begin
        axes.set_xlim(first - 0.02 * (last - first), last)
    low, high = axes.get_ylim()
    room = 0.09 * (high - low)
    if high > room:
        _note(axes, 1.0, "top", "more likely than at the start ↑")
    if -low > room:
        _note(axes, 0.0, "bottom", "less likely ↓")
    right = sheet.width - (150 if sheet.narrow else 250)
    box = (right, sheet.top, sheet.top + tall)
    _labels(sheet, axes, box, labels, None if sheet.narrow else digits)


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


def _labels(
    sheet: Sheet,
    axes: Axes,
    box: tuple[Pixels, Pixels, Pixels],
    labels: list[Label],
    digits: int | None = None,
) -> None:
    """Names right of the chart, each beside the end of its line.

    With `digits` the last values stand at the right edge of the sheet.
    """
    if not labels:
        return
    right, top, bottom = box
    low, high = axes.get_ylim()
    ends = np.array([value for _, value, _ in labels])
    wanted = top + (high - ends) / (high - low) * (bottom - top)
    size, sample = (10.5, 12) if sheet.narrow else (12.5, 30)
    places = spread_labels(wanted, 1.35 * size, top, bottom)
    begin = right + 8 + sample + 5
    room = min(sheet.width, right + 250) - begin - (0 if digits is None else 60)
    for (name, value, style), end, y in zip(labels, wanted, places, strict=True):
        sheet.stroke([right + 1, right + 8], [end, y], _thin(style), 0.5)
        sheet.stroke([right + 8, begin - 5], [y, y], style, points(style.width))
        base = y + 0.35 * size
        sheet.write(
            begin,
            base,
            shortened(name, int(room / (0.62 * size))),
            size=size,
            colour=style.text,
            bold=style.width > 2.2,
        )
        if digits is not None:
            sheet.write(
                sheet.width, base, nats(value, digits), size=size, align="right"
            )


def _thin(style: Style) -> Style:
    return Style(style.line, style.text, SOLID, 0.5, style.band)
