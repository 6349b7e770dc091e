"""The figures of one update: its parts kind by kind, and the layers they came through.

Like those of runs, each is drawn for one width in CSS pixels, its title is the finding,
and the unit stands below. All numbers are in the page's one unit.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.updates.update import Explanation, KindForces
from learndyn.diagnose.updates.words import layers_title, parts_title
from learndyn.show.chart import (
    INK,
    MUTED,
    PAPER,
    SOLID,
    UP_AND_DOWN,
    WIDE,
    Chart,
    Pixels,
    Style,
    part_colour,
    points,
    shortened,
    signed,
    style_of,
)


_FAINT = 0.25
"""Opacity of parts that are not to be trusted."""


def parts_figure(explanation: Explanation, *, width: int = WIDE) -> Chart | None:
    """Every kind's parts as stacked signed bars, with predicted and actual.

    None where nothing is known of any kind.
    """
    if not explanation.kinds:
        return None
    narrow, scale = width < 600, explanation.scale
    row = 46 if narrow else 30
    legend = _legend_rows(explanation.parts, width)
    head, tall = 20 * len(legend) + 12, row * len(explanation.kinds)
    chart = Chart(
        width,
        head + tall + 54,
        shortened(parts_title(explanation), 160),
        f"Mean change of log π(response) by this one update, {_unit(explanation)}; "
        "diamond: predicted, the sum of the parts; dot: actual, with its 95 % interval "
        "over prompts" + ("" if narrow else "; numbers: actual"),
    )
    _legend(chart, legend)
    top = chart.top + head
    left, right = (8, width - 8) if narrow else (176, width - 190)
    axes = chart.axes(left, top, right, top + tall)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(explanation.kinds) - 0.5, -0.5)
    axes.set_yticks([])
    for index, kind in enumerate(explanation.kinds):
        # on a phone the name stands above its bar, so the bar hangs lower in its row
        _bars(axes, explanation, kind, index + (0.2 if narrow else 0.0), narrow)
        y = top + row * index + (15 if narrow else 0.5 * row + 4.5)
        size, style = (12.5, style_of(kind.kind))
        name = shortened(kind.kind, 30 if narrow else 21)
        chart.write(0, y, name, size=size, colour=style.text, bold=style.width > 2.2)
        best = kind.actual if math.isfinite(kind.actual.mean) else kind.predicted
        value = scale.value(best.mean)
        limits = scale.limits(best) if math.isfinite(best.low) else ""
        where = width if narrow else right + 66
        chart.write(where, y, value, size=size, align="right")
        if not narrow:
            chart.write(where + 8, y, limits, size=size, colour=MUTED)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v, 3)))
    axes.set_xlabel(
        f"← less likely · {scale.unit} · more likely →",
        color=MUTED,
        fontsize=points(12),
    )
    return chart


def layers_figure(explanation: Explanation, *, width: int = WIDE) -> Chart | None:
    """Layers by kinds: through which group of weights each kind's change came.

    None where the record has no groups.
    """
    names = list(explanation.layers)
    if not (explanation.kinds and names):
        return None
    narrow = width < 600
    row, left = (24, 122) if narrow else (28, 176)
    cell = (width - left) / len(names)
    turned = max(len(shortened(name, 14)) for name in names) * 7.2 > cell
    foot = 104 if turned else 26
    tall = row * len(explanation.kinds)
    chart = Chart(
        width,
        tall + foot + 56,
        shortened(layers_title(explanation), 160),
        "Predicted change of each kind (row) by layer group (column), from the "
        f"embedding to the head, {_unit(explanation)}",
    )
    top = chart.top + 10
    axes = chart.axes(left, top, width, top + tall)
    axes.grid(visible=False)
    values = explanation.scale.factor * np.array(
        [[kind.groups[name] for name in names] for kind in explanation.kinds]
    )
    limit = float(np.abs(values).max()) or 1.0
    faint = 1.0 if explanation.fit.trusted else _FAINT
    _mesh(axes, faint * values, limit)
    axes.set_ylim(len(explanation.kinds), 0)
    axes.set_yticks([])
    every = math.ceil(12 / cell)
    axes.set_xticks(
        [i + 0.5 for i in range(0, len(names), every)],
        [shortened(name, 14) for name in names[::every]],
        rotation=90 if turned else 0,
        parse_math=False,
    )
    for index, kind in enumerate(explanation.kinds):
        style, y = style_of(kind.kind), top + row * index + 0.5 * row + 4.5
        name = shortened(kind.kind, 17 if narrow else 21)
        chart.write(0, y, name, size=11.5 if narrow else 12.5, colour=style.text)
    _numbers(chart, explanation, (left, top, cell, row), faint * values / limit)
    _colour_bar(chart, explanation, (left, top + tall + foot + 8), limit)
    return chart


def _bars(
    axes: Axes, explanation: Explanation, kind: KindForces, y: float, narrow: bool
) -> None:
    """One row: positive parts to the right of zero, negative ones to the left."""
    factor, high = explanation.scale.factor, 0.36 if narrow else 0.56
    ends = {True: 0.0, False: 0.0}
    for name, part in kind.parts.items():
        value = factor * part.mean
        axes.barh(
            y,
            value,
            left=ends[value > 0],
            height=high,
            color=part_colour(name),
            edgecolor=PAPER,
            linewidth=0.6,
            alpha=1.0 if explanation.fit.trusted else _FAINT,
        )
        ends[value > 0] += value
    actual = explanation.scale.of_interval(kind.actual)
    if math.isfinite(actual.low):
        axes.plot([actual.low, actual.high], [y, y], color=PAPER, linewidth=3.6)
        axes.plot([actual.low, actual.high], [y, y], color=INK, linewidth=1.5)
    marks = {"markeredgecolor": PAPER, "markeredgewidth": 1.2, "zorder": 4}
    size = 6.5
    predicted = factor * kind.predicted.mean
    axes.plot([predicted], [y], "D", color=MUTED, markersize=size + 1.5, **marks)
    axes.plot([actual.mean], [y], "o", color=INK, markersize=size - 1, **marks)


def _legend_rows(parts: list[str], width: int) -> list[list[tuple[float, str]]]:
    """Where each part's name stands: lines of (x, name) that fit the width."""
    rows: list[list[tuple[float, str]]] = []
    x = math.inf
    for part in parts:
        wide = 24 + 7.6 * len(shortened(part, 24)) + 20
        if x + wide > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, part))
        x += wide
    return rows


def _legend(chart: Chart, rows: list[list[tuple[float, str]]]) -> None:
    for line, row in enumerate(rows):
        y = chart.top + 20 * line + 16
        for x, part in row:
            swatch = Style(part_colour(part), INK, SOLID, 9.0, 0.0)
            chart.stroke([x, x + 14], [y - 4, y - 4], swatch, 8)
            chart.write(x + 24, y, shortened(part, 24), size=12.5)


def _mesh(axes: Axes, values: np.ndarray, limit: float) -> None:
    axes.pcolormesh(
        values,
        cmap=UP_AND_DOWN,
        vmin=-limit,
        vmax=limit,
        edgecolors=PAPER,
        linewidth=0.8,
    )


def _numbers(
    chart: Chart,
    explanation: Explanation,
    box: tuple[Pixels, Pixels, Pixels, Pixels],
    levels: np.ndarray,
) -> None:
    """The values in the cells, where all of them fit."""
    left, top, cell, row = box
    words = [
        [explanation.scale.value(value) for value in kind.groups.values()]
        for kind in explanation.kinds
    ]
    if max(len(word) for line in words for word in line) * 6.6 + 4 > cell:
        return
    for i, line in enumerate(words):
        for j, word in enumerate(line):
            chart.write(
                left + cell * (j + 0.5),
                top + row * (i + 0.5) + 4,
                word,
                size=11,
                colour=PAPER if abs(levels[i, j]) > 0.62 else INK,
                align="center",
            )


def _colour_bar(
    chart: Chart, explanation: Explanation, corner: tuple[Pixels, Pixels], limit: float
) -> None:
    left, top = corner
    right = min(chart.width - 30, left + 260)
    axes = chart.axes(left, top, right, top + 12)
    axes.grid(visible=False)
    edges = np.linspace(-limit, limit, 65)
    middles = (edges[:-1] + edges[1:]) / 2
    axes.pcolormesh(
        edges,
        [0, 1],
        middles[None],
        cmap=UP_AND_DOWN,
        vmin=-limit,
        vmax=limit,
        edgecolors="face",  # else the paper shows between the steps
        linewidth=0.5,
    )
    axes.set_yticks([])
    ticks = [-limit, 0.0, limit]
    axes.set_xticks(ticks, [signed(value, 3) for value in ticks])
    chart.write(0, top + 11, explanation.scale.unit, size=12, colour=MUTED)


def _unit(explanation: Explanation) -> str:
    words = f" ({explanation.scale.words})" if explanation.scale.words else ""
    return f"{explanation.scale.unit}{words} per response"
