"""The paper's first figure, drawn anew from what was measured on images of digits.

Maps of ten digits by ten have numbers in cells, on a colour that says the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from learndyn.diagnose.numbers import nats
from learndyn.paper.digits.claims import RISE, SIMILAR, pull_up
from learndyn.paper.digits.result import DigitsResult, OneUpdate, off_diagonal
from learndyn.paper.figures import PaperFigure, plain
from learndyn.show.chart import (
    INK,
    LINE,
    MUTED,
    PAPER,
    TEXT,
    UP,
    UP_AND_DOWN,
    Chart,
    EndLabel,
    Grid,
    Heading,
    Pixels,
    contrast,
    hairline,
    points,
    wrapped,
)


_MORE = LinearSegmentedColormap.from_list("more", [PAPER, "#9DBBDD", UP])


@dataclass(frozen=True, eq=False)
class _DigitMap:
    """One map of a figure."""

    heading: str
    values: Float[np.ndarray, "row column"]
    rows: str
    """What the digits on the left are."""
    columns: str
    """What the digits above are."""
    digits: int
    signed: bool
    """Whether zero is the middle of the colours."""
    scale: float = 1.0
    """By which the printed numbers are multiplied."""


def _maps_figure(width: int, title: str, unit: str, maps: Sequence[_DigitMap]) -> Chart:
    """Maps side by side, on a phone one below the other.

    Colours stretch over different digits: the diagonal is drawn no darker than those.
    """
    columns = 1 if width < 600 else len(maps)
    gutter, left = 44, 44
    each = (width - gutter * (columns - 1)) / columns
    cell = (each - left) / 10
    tall = min(cell, 34 if columns == 1 else 44)
    lines = max(len(wrapped(one.heading, each, 13.5)) for one in maps)
    head = 18 * lines + 52
    foot = 24
    row = head + 10 * tall + foot
    chart = Chart(width, row * (len(maps) // columns), title, unit)
    for index, one in enumerate(maps):
        x = (index % columns) * (each + gutter)
        y = chart.top + (index // columns) * row
        for place, line in enumerate(wrapped(one.heading, each, 13.5)):
            chart.write(x, y + 18 * (place + 1), line, size=13.5, bold=True)
        _map(chart, one, (x + left, y + head), (cell, tall))
    return chart


def _map(
    chart: Chart,
    one: _DigitMap,
    corner: tuple[Pixels, Pixels],
    cell: tuple[Pixels, Pixels],
) -> None:
    (left, top), (wide, tall) = corner, cell
    axes = chart.axes(left, top, left + 10 * wide, top + 10 * tall)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    colours = UP_AND_DOWN if one.signed else _MORE
    shares = _shares(one)
    axes.pcolormesh(
        shares,
        cmap=colours,
        vmin=-1 if one.signed else 0,
        vmax=1,
        edgecolors=PAPER,
        linewidth=0.8,
    )
    axes.set_ylim(10, 0)
    chart.write(left, top - 24, f"{one.columns} →", size=12, colour=MUTED)
    chart.figure.text(
        (left - 34) / chart.width,
        1 - (top + 10 * tall) / chart.height,
        f"{one.rows} →",
        rotation=-90,
        fontsize=points(12),
        color=MUTED,
        horizontalalignment="left",
        verticalalignment="bottom",
    )
    size = 9.5 if chart.narrow else 12
    for i in range(10):
        y = top + tall * (i + 0.5) + 0.35 * size
        chart.write(left - 10, y, str(i), size=13, align="right")
        chart.write(left + wide * (i + 0.5), top - 6, str(i), size=13, align="center")
        for j in range(10):
            chart.write(
                left + wide * (j + 0.5),
                y,
                plain(one.scale * float(one.values[i, j]), one.digits),
                size=size,
                align="center",
                bold=i == j,
                colour=_ink(colours, float(shares[i, j]), one.signed),
            )


def _shares(one: _DigitMap) -> Float[np.ndarray, "row column"]:
    """Where each value stands on the colours: of different digits, at most 1."""
    others = one.values[~np.eye(10, dtype=bool)]
    if one.signed:
        return np.clip(one.values / (np.abs(others).max() or 1.0), -1, 1)
    low, high = min(0.0, others.min()), others.max()
    return np.clip((one.values - low) / ((high - low) or 1.0), 0, 1)


def _ink(colours: Colormap, share: float, signed: bool) -> str:
    """Ink or paper, whichever is easier to read on a cell's colour."""
    colour = colours((share + 1) / 2 if signed else share)
    shown = "#" + "".join(f"{round(255 * part):02X}" for part in colour[:3])
    return INK if contrast(INK, shown) >= contrast(PAPER, shown) else PAPER


Results = Sequence[DigitsResult]

_FAMILIES = ("chosen", "rejected", "irrelevant", "random")
"""Whose colours lines of digits borrow."""


def digit_figures(results: Results) -> list[PaperFigure]:
    """The figures of these results, at least one; means over seeds unless said."""
    source = results[0].source
    seeds = f"{source}; {len(results)} seed{'s' if len(results) > 1 else ''}"
    first = f"{source}; seed {results[0].seed}"
    figures = (
        ("one_update", _one_update, f"{first}. A K G is computed in float64."),
        (
            "first_order",
            _first_order,
            f"{seeds}. Left: float64, one image learnt. Right: predicted on other "
            "images than the actual changes, which are learnt and observed for real.",
        ),
        (
            "influence",
            _influence,
            f"{seeds}. Sums over {len(results[0].looks)} moments of training; "
            f"{results[0].facts['updates on one class']:.0f} updates each.",
        ),
        ("confusion", _confusion, f"{seeds}. Observed images were never learnt."),
        (
            "paths",
            _paths,
            f"{seeds}; thin: each seed, thick: their mean. A dot is an epoch.",
        ),
        ("pull_up", _pull_up, f"{seeds}. From a quarter of training on."),
    )
    return [
        PaperFigure(f"digits_{name}", "Figure 1", partial(draw, results), about)
        for name, draw, about in figures
    ]


def _one_update(results: Results, width: int) -> Chart:
    one = results[0].one_update
    rows = range(len(one.classes))
    grid = Grid(
        width,
        [Heading(_observed(one, row), _effect(one, row)) for row in rows],
        title=f"One update on a {one.label} moves log π({one.label}) by "
        + ", ".join(
            f"{nats(float(one.actual[row, one.label]), 3)} on "
            + _observed(one, row).lower()
            for row in rows[1:]
        ),
        unit="Change of log π(y | image) by one SGD step, nats; bar: actual, diamond: "
        f"predicted by −η A K G; η = {one.lr:g}",
        tall=170,
    )
    low = min(float(one.actual[1:].min()), 0.0)
    high = float(one.actual[1:].max())
    for row in rows:
        axes = grid.axes(row, "answer y")
        colours = [UP if y == one.label else LINE["other"] for y in range(10)]
        axes.bar(range(10), one.actual[row], color=colours, width=0.7)
        marks = {"markeredgecolor": PAPER, "markeredgewidth": 1}
        axes.plot(range(10), one.predicted[row], "D", color=INK, markersize=6, **marks)
        axes.set_xticks(range(10), [str(y) for y in range(10)])
        if row:  # the learnt image has a scale of its own
            room = 0.12 * (high - low)
            axes.set_ylim(low - room, high + room)
        _zero(axes)
        _, top, right, _ = grid.chart.box(axes)
        image = one.image if row == 0 else results[0].samples[one.classes[row]]
        _thumbnail(grid.chart, image, (right - 40, top - 46))
    return grid.chart


def _observed(one: OneUpdate, row: int) -> str:
    if row == 0:
        return f"The {one.label} that is learnt"
    digit = int(one.classes[row])
    return f"Other {digit}s" if digit == one.label else f"{digit}s"


def _effect(one: OneUpdate, row: int) -> str:
    own = one.actual[row, one.label]
    return f"log π({one.label}) moves by {nats(float(own), 4)}"


def _first_order(results: Results, width: int) -> Chart:
    orders = ", ".join(f"{r.one_update.order:.2f}" for r in results)
    ranks = ", ".join(f"{r.accumulated['predicted, actual']:.2f}" for r in results)
    grid = Grid(
        width,
        [
            Heading("What A K G misses of one step", f"order {orders}"),
            Heading("Many steps, class on class", f"rank correlation {ranks}"),
        ],
        title=f"What first order misses shrinks with the learning rate to the power "
        f"{np.mean([r.one_update.order for r in results]):.2f}",
        unit="Left: norm of what is missed, nats. Right: change of log π(u | image of "
        "o) while class u is learnt, nats; a dot is a pair of different digits",
        tall=260,
    )
    axes = grid.axes(0, "learning rate η")
    for one in (result.one_update for result in results):
        axes.loglog(one.lrs, one.misses, "o-", color=UP, markersize=4, linewidth=1.2)
    one = results[0].one_update
    ends = one.lrs[[0, -1]]
    axes.loglog(ends, one.misses[-1] * (ends / ends[-1]) ** 2, "--", color=INK, lw=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0e}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)
    axes = grid.axes(1, "predicted from the kernel")
    for result in results:
        axes.plot(
            off_diagonal(result.predicted),
            off_diagonal(result.actual),
            "o",
            color=UP,
            markersize=4,
            alpha=0.45,
            markeredgewidth=0,
        )
    axes.axline((0, 0), slope=1, color=INK, linestyle="--", linewidth=1)
    axes.set_ylabel("actual", color=MUTED, fontsize=points(12), labelpad=1)
    return grid.chart


def _influence(results: Results, width: int) -> Chart:
    ranks = [r.accumulated["predicted, actual"] for r in results]
    return _maps_figure(
        width,
        "Influence of digit on digit, by the kernel and by real updates: rank "
        "correlation " + ", ".join(f"{rank:.2f}" for rank in ranks),
        "Change of log π(learnt digit | image of the observed one) while one digit "
        "alone is learnt, nats; mean over seeds",
        [
            _DigitMap(
                heading,
                np.mean([getattr(r, name) for r in results], axis=0),
                rows="learnt",
                columns="observed",
                digits=1,
                signed=True,
            )
            for heading, name in (
                ("From the kernel: −η A K G", "predicted"),
                ("By real updates on other images", "actual"),
            )
        ],
    )


def _confusion(results: Results, width: int) -> Chart:
    answers = np.mean([r.final for r in results], axis=0)
    norms = np.mean([look.norms for r in results for look in r.looks], axis=0)
    both = answers + answers.T
    pairs = [(a, b) for a in range(10) for b in range(a + 1, 10)]
    best = sorted(pairs, key=lambda pair: -both[pair])[:3]
    named = ", ".join(f"{a} and {b}" for a, b in best)
    return _maps_figure(
        width,
        f"Most confused at the end: {named}",
        "Left: mean π(answer | image) at the end of training, in percent. Right: mean "
        "||K|| of pairs of images; mean over seeds",
        [
            _DigitMap(
                "Mean answer to images of each digit",
                answers,
                rows="image",
                columns="answer",
                digits=0 if width < 600 else 1,
                signed=False,
                scale=100.0,
            ),
            _DigitMap(
                "Size of the kernel between images",
                norms.T,
                rows="observed",
                columns="learnt",
                digits=0,
                signed=False,
            ),
        ],
    )


def _paths(results: Results, width: int) -> Chart:
    nine = np.mean([r.softmax[:, 4, 9] for r in results], axis=0)
    grid = Grid(
        width,
        [Heading(f"{a}s and {b}s", _ends(results, a, b)) for a, b in SIMILAR],
        title=f"On images of 4, π(9) {_walked(nine)}",
        unit="Mean over observed images: across, π(right answer); up, π(the other "
        "digit); training goes from left to right",
        columns=3,
        tall=230,
        labels=14,
    )
    highest = max(
        float(max(r.softmax[:, a, b].max(), r.softmax[:, b, a].max()))
        for r in results
        for a, b in SIMILAR
    )
    for index, (a, b) in enumerate(SIMILAR):
        axes = grid.axes(index, "π(right answer)")
        for one, other, family in ((a, b, "chosen"), (b, a, "rejected")):
            runs = [(r.softmax[:, one, one], r.softmax[:, one, other]) for r in results]
            for x, y in runs:
                axes.plot(x, y, color=LINE[family], linewidth=0.7, alpha=0.5)
            x, y = np.mean(runs, axis=0)
            axes.plot(x, y, "o-", color=LINE[family], linewidth=1.8, markersize=3)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.12 * highest)
        axes.set_xticks([0.25, 0.5, 0.75, 1.0])
        _, top, right, _ = grid.chart.box(axes)
        for place, (one, family) in enumerate(((a, "chosen"), (b, "rejected"))):
            other = b if one == a else a
            y = top + 14 + 17 * place
            label, colour = f"π({other}) on {one}s", TEXT[family]
            grid.chart.write(right, y, label, size=12, colour=colour, align="right")
    return grid.chart


def _walked(path: Float[np.ndarray, " epoch"]) -> str:
    """Where a probability began, its peak if it rose first, and where it ended."""
    first, top, last = (float(value) for value in (path[0], path.max(), path[-1]))
    if top - max(first, last) < RISE:
        return f"went from {first:.2f} to {last:.2f}"
    return f"rose from {first:.2f} to {top:.2f} and ended at {last:.2f}"


def _ends(results: Results, a: int, b: int) -> str:
    peak = np.mean([r.softmax[:, a, b].max() for r in results])
    end = np.mean([r.softmax[-1, a, b] for r in results])
    return f"π({b}) on {a}s: at most {peak:.2f}, {end:.2f} at the end"


def _pull_up(results: Results, width: int) -> Chart:
    digits = (4, 9, 3, 5)
    mean = {u: np.mean([pull_up(r, u) for r in results], axis=0) for u in digits}
    grid = Grid(
        width,
        [Heading(f"While {u}s alone are learnt", _lifted(mean[u], u)) for u in digits],
        title=f"Learning 4s pulls the answer 4 up most on {_most(mean[4], 4)[0]}s",
        unit="Mean π(learnt digit | image) on other digits, over updates on one digit "
        "alone",
        tall=190,
        labels=46,
    )
    for index, u in enumerate(digits):
        axes = grid.axes(index, "updates")
        path = np.mean([r.looks[0].paths[u] for r in results], axis=0)
        at = results[0].facts["looked at every"] * np.arange(len(path))
        rises = path[-1] - path[0]
        rises[u] = -np.inf
        order = np.argsort(-rises, kind="stable")
        named = dict(zip(order[:4].tolist(), _FAMILIES, strict=True))
        for o in (*order[4:9].tolist(), *named):
            shown = o in named
            colour = LINE[named[o]] if shown else LINE["other"]
            wide, faint = (1.8, 1.0) if shown else (0.8, 0.6)
            axes.plot(at, path[:, o], color=colour, linewidth=wide, alpha=faint)
        axes.set_xlim(0, at[-1])
        axes.set_ylim(bottom=0)
        labels = [
            EndLabel(f"{o}s", float(path[-1, o]), hairline(TEXT[named[o]]))
            for o in named
        ]
        grid.end_labels(axes, labels)
    return grid.chart


def _most(rises: np.ndarray, digit: int) -> list[int]:
    """Other digits, those that rise most first."""
    return [o for o in np.argsort(-rises, kind="stable").tolist() if o != digit]


def _lifted(rises: np.ndarray, digit: int) -> str:
    most = _most(rises, digit)[:2]
    return "most on " + ", then ".join(f"{o}s" for o in most) + ", over all moments"


def _zero(axes: Axes) -> None:
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))


def _thumbnail(chart: Chart, image: np.ndarray, corner: tuple[Pixels, Pixels]) -> None:
    left, top = corner
    axes = chart.axes(left, top, left + 40, top + 40)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.imshow(image, cmap="Greys", vmin=0, vmax=255, interpolation="nearest")
