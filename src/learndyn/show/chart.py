"""What all figures share: colours, sizes, grids of panels, labels at line ends, files.

Colour is the family of a kind and the dash its member, the same in every figure. Any
two families differ by an OKLab distance of 10 or more for normal, protan, deutan and
tritan sight; lines have a contrast of 3 and text of 4.5 on `PAPER`. A family that is
not listed is drawn as `other`: nothing from a file names a colour.

Only matplotlib's objects are used, never pyplot, whose global state belongs to the
user. SVG files carry no date and no random id, so equal runs give equal bytes.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from learndyn.diagnose.paths import GREEDY
from learndyn.probes.kinds import FAMILIES, family
from learndyn.record.files import visible, write_whole


PAPER = "#FCFCFA"
INK = "#14171C"
MUTED = "#59616E"
HAIRLINE = "#E3E4E0"

LINE: dict[str, str] = {
    "chosen": "#0A4A9E",
    "rejected": "#B4380A",
    "irrelevant": "#2A9468",
    "random": "#A86CBB",
    "greedy": INK,
    "other": "#6B7280",
}
TEXT: dict[str, str] = LINE | {
    "irrelevant": "#1B7A53",
    "random": "#8B4AA0",
    "other": MUTED,
}

_PART: dict[str, str] = {
    "pull": LINE["chosen"],
    "push": LINE["rejected"],
    "history": "#9B59C6",
    "decay": "#3A3F47",
    "other": "#8A9099",
    "gradient": LINE["irrelevant"],
}
"""Colours of the parts of an update, as far from each other as those of families, but
for `gradient`, which is pull, push and other in one. A part that is not listed is
drawn as `other`."""

UP, DOWN = LINE["chosen"], LINE["rejected"]
"""Directions, in figures where colour is a number."""
UP_AND_DOWN = LinearSegmentedColormap.from_list(
    "up_and_down", [DOWN, "#E9B48A", PAPER, "#9DBBDD", UP]
)
"""Brown is less likely, blue more, as in the strips of tokens."""

Dash = tuple[float, ...]
SOLID: Dash = ()
_DASHES: dict[str, Dash] = {
    "semantic": (6.0, 3.0),
    "test": (6.0, 3.0),
    "words": (6.0, 3.0),
    "format": (2.0, 2.5),
    "human": (2.0, 2.5),
    "initial": (10.0, 3.0, 2.0, 3.0),
}
"""Dash of a member, the part of a kind after the first underscore; lengths in pt."""

_MAIN_WIDTH = 2.4
_THIN_WIDTH = 1.4


@dataclass(frozen=True, slots=True)
class Style:
    """How one kind is drawn."""

    line: str
    text: str
    """Darker than `line` where that is too light to read."""
    dash: Dash
    width: float
    band: float
    """Opacity of the interval."""


def style_of(kind: str) -> Style:
    """The style of a kind, or of the greedy path."""
    if kind == GREEDY:
        return Style(LINE["greedy"], TEXT["greedy"], SOLID, 2.8, 0.2)
    name = family(kind)
    member = kind.partition("_")[2]
    main = kind in FAMILIES
    return Style(
        LINE[name],
        TEXT[name],
        SOLID if main else _DASHES.get(member, SOLID),
        _MAIN_WIDTH if main else _THIN_WIDTH,
        0.2 if main else 0.12,
    )


def hairline(colour: str) -> Style:
    """A thin solid line, its text in the same colour."""
    return Style(colour, colour, SOLID, 0.5, 0.2)


def part_colour(name: str) -> str:
    """The colour of a part of an update."""
    return _PART.get(name, _PART["other"])


def mixed(colour: str, share: float, paper: str = PAPER) -> str:
    """`colour` laid thinly over `paper`: 0 is the paper, 1 the colour."""
    pairs = ((int(c[i : i + 2], 16) for c in (colour, paper)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02X}" for a, b in pairs)


def contrast(colour: str, paper: str = PAPER) -> float:
    """WCAG 2 contrast ratio of two `#RRGGBB` colours, 1 to 21."""
    light, dark = sorted((_luminance(colour), _luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


WIDE = 1104
"""Width of a figure on a desktop page, in CSS pixels."""
NARROW = 354
"""Width of a figure on a phone."""
_DPI = 96
_FONTS = (
    "Inter, 'Segoe UI', system-ui, -apple-system, Roboto, 'Noto Sans', "
    "'DejaVu Sans', sans-serif"
)

Pixels = int | float
"""A length on the page, in CSS pixels."""

_RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,  # a kind may hold a dollar sign
    "axes.unicode_minus": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "learndyn",
}


class Chart:
    """A figure measured in CSS pixels, `y` growing downwards as on a page."""

    def __init__(self, width: int, body: Pixels, title: str, unit: str) -> None:
        self.width = width
        self.title = title
        """The finding, at the top; the unit stands below it."""
        head = 15 if self.narrow else 18
        titles, units = wrapped(title, width, head), wrapped(unit, width, 12.5)
        self.top = 26 + 1.3 * head * len(titles) + 17 * len(units)
        """First free pixel below the heading."""
        self.height = round(self.top + body)
        self.figure = Figure(
            figsize=(width / _DPI, self.height / _DPI), dpi=_DPI, facecolor=PAPER
        )
        FigureCanvasAgg(self.figure)
        self.rendered: str | None = None
        y = 4.0
        for line in titles:
            y += 1.3 * head
            self.write(0, y, line, size=head, bold=True)
        for line in units:
            y += 17
            self.write(0, y + 3, line, size=12.5, colour=MUTED)

    @property
    def narrow(self) -> bool:
        """Whether it is drawn for a phone."""
        return self.width < 600

    def axes(self, left: Pixels, top: Pixels, right: Pixels, bottom: Pixels) -> Axes:
        """Axes whose data area lies between these pixels."""
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - bottom / self.height,
                (right - left) / self.width,
                (bottom - top) / self.height,
            ),
            facecolor=PAPER,
        )
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(
            length=0, labelsize=points(11 if self.narrow else 12), colors=MUTED
        )
        axes.grid(axis="y", color=HAIRLINE, linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def box(self, axes: Axes) -> tuple[Pixels, Pixels, Pixels, Pixels]:
        """Left, top, right and bottom pixel of the data area of axes."""
        area = axes.get_position()
        left, right = area.x0 * self.width, area.x1 * self.width
        return left, (1 - area.y1) * self.height, right, (1 - area.y0) * self.height

    def write(
        self,
        x: Pixels,
        y: Pixels,
        text: str,
        *,
        size: Pixels = 13,
        colour: str = INK,
        bold: bool = False,
        align: str = "left",
    ) -> None:
        """Put text with its baseline at pixel (x, y)."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=points(size),
            color=colour,
            fontweight="bold" if bold else "normal",
            horizontalalignment=align,
            verticalalignment="baseline",
            parse_math=False,
        )

    def stroke(
        self, x: Sequence[Pixels], y: Sequence[Pixels], style: Style, width: Pixels
    ) -> None:
        """Draw a line through pixels, for instance the sample beside a label."""
        line = Line2D(
            [v / self.width for v in x],
            [1 - v / self.height for v in y],
            transform=self.figure.transFigure,
            color=style.line,
            linewidth=width,
        )
        line.set_dashes(style.dash) if style.dash else line.set_linestyle("-")
        self.figure.add_artist(line)


def points(pixels: Pixels) -> Pixels:
    """Font and line sizes are in points, the page is in CSS pixels."""
    return pixels * 72 / _DPI


def wrapped(text: str, width: Pixels, size: Pixels) -> list[str]:
    """Break a text into lines that fit `width` pixels."""
    return textwrap.wrap(text, max(10, int(width / (size * 0.6))))


def shortened(text: str, length: int) -> str:
    """At most `length` characters on one line, the cut shown by an ellipsis."""
    text = visible(" ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"


def _spread_labels(
    ends: Float[np.ndarray, " label"], gap: Pixels, low: Pixels, high: Pixels
) -> Float[np.ndarray, " label"]:
    """Move labels as little as possible until any two are `gap` apart.

    Least squares under the order of `ends`: each crowd is centred on its mean (pool
    adjacent violators). Between `low` and `high` where there is room.
    """
    order = np.argsort(ends, kind="stable")
    ideal = ends[order] - gap * np.arange(len(ends))
    crowds: list[tuple[float, int]] = []
    for value in ideal.tolist():
        total, count = value, 1
        while crowds and crowds[-1][0] / crowds[-1][1] > total / count:
            before = crowds.pop()
            total, count = total + before[0], count + before[1]
        crowds.append((total, count))
    settled = np.concatenate([np.full(n, total / n) for total, n in crowds])
    room = max(low, high - gap * (len(ends) - 1))
    out = np.empty(len(ends))
    out[order] = np.clip(settled, low, room) + gap * np.arange(len(ends))
    return out


@dataclass(frozen=True, slots=True)
class EndLabel:
    """What stands right of a panel, beside the end of one line."""

    name: str
    at: float
    """Value of the line at its right end."""
    style: Style
    value: str = ""
    """Written at the right edge of the labels."""


def end_labels(
    chart: Chart,
    axes: Axes,
    labels: Sequence[EndLabel],
    *,
    edge: Pixels | None = None,
    sample: Pixels = 0,
    size: Pixels = 12,
) -> None:
    """Name lines beside their right ends, moved apart where they would overlap.

    A line that has no last value gets no label. Names are shortened to fit before
    `edge`, where values are written; without an edge they are written in full.
    `sample` is the length of a piece of the line before its name.
    """
    labels = [label for label in labels if math.isfinite(label.at)]
    if not labels:
        return
    _, top, right, bottom = chart.box(axes)
    last = axes.get_xlim()[1]
    axes.get_ylim()  # settles the limits, which `transData` alone does not
    pixels = [axes.transData.transform((last, label.at))[1] for label in labels]
    ends = np.clip(chart.height - np.array(pixels), top, bottom)
    begin = right + 11 + sample
    places = _spread_labels(ends, 1.4 * size, top, bottom)
    for label, end, y in zip(labels, ends.tolist(), places.tolist(), strict=True):
        style, base = label.style, y + 0.35 * size
        chart.stroke([right + 1, right + 8], [end, y], hairline(style.line), 0.5)
        if sample:
            width = points(style.width)
            chart.stroke([right + 8, begin - 5], [y, y], style, width)
        name, bold = label.name, style.width > 2.2
        if edge is not None:
            chart.write(edge, base, label.value, size=size, align="right")
            room = edge - begin - 0.6 * size * len(label.value)
            name = shortened(name, int(room / (0.57 * size)))
        chart.write(begin, base, name, size=size, colour=style.text, bold=bold)


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above one panel."""

    finding: str
    below: str = ""
    """One muted line: numbers, or what the panel is."""
    value: str = ""
    """A number at the right end of the first line."""


class Grid:
    """The panels of one figure, each headed by its finding.

    On a phone they stand one below the other, or `phone` side by side.
    """

    def __init__(
        self,
        width: int,
        headings: Sequence[Heading],
        *,
        title: str,
        unit: str,
        columns: int = 2,
        phone: int = 1,
        tall: Pixels = 220,
        foot: Pixels = 54,
        labels: Pixels = 0,
    ) -> None:
        """`tall` is the height of a panel's data, `foot` the room below it for ticks
        and the name of the x axis, `labels` the room right of it."""
        self.columns = phone if width < 600 else columns
        self.each = (width - 36 * (self.columns - 1)) / self.columns
        self.size = 13.5 if self.each > 250 else 11.5
        self.headings, self.tall, self.right = headings, tall, labels
        lines = [self._lines(heading) for heading in headings]
        self.head = 20 + max(18 * len(a) + 17 * len(b) for a, b in lines)
        self.row = self.head + tall + foot
        rows = math.ceil(len(headings) / self.columns)
        self.chart = Chart(width, self.row * rows, title, unit)

    def axes(self, index: int, x: str = "") -> Axes:
        """The axes of one panel below its heading; `x` names what runs across."""
        row, column = divmod(index, self.columns)
        left = column * (self.each + 36)
        top = self.chart.top + row * self.row
        heading = self.headings[index]
        findings, below = self._lines(heading)
        end = left + self.each
        self.chart.write(
            end, top + 20, heading.value, size=self.size, colour=MUTED, align="right"
        )
        y: Pixels = top + 2
        for line in findings:
            y += 18
            self.chart.write(left, y, line, size=self.size, bold=True)
        for line in below:
            y += 17
            self.chart.write(left, y, line, size=12, colour=MUTED)
        right = end - max(self.right, 10)  # half of the last tick's label
        top += self.head
        axes = self.chart.axes(left + 52, top, right, top + self.tall)
        axes.set_xlabel(x, color=MUTED, fontsize=points(12))
        return axes

    def end_labels(
        self, axes: Axes, labels: Sequence[EndLabel], **options: Pixels
    ) -> None:
        """`end_labels` in the room that this grid has for them."""
        edge = self.chart.box(axes)[2] + self.right
        end_labels(self.chart, axes, labels, edge=edge, **options)

    def _lines(self, heading: Heading) -> tuple[list[str], list[str]]:
        return wrapped(heading.finding, int(self.each), self.size), wrapped(
            heading.below, int(self.each), 12
        )


def draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, style: Style) -> None:
    """Draw a line in a style; a single point becomes a dot."""
    marker = "o" if len(x) == 1 else ""
    width = points(style.width)
    (line,) = axes.plot(
        x, y, color=style.line, linewidth=width, marker=marker, markersize=4
    )
    if style.dash:
        line.set_dashes(style.dash)


def end_at_labels(axes: Axes) -> None:
    """Let lines end at the right edge, where their labels begin."""
    first, last = axes.dataLim.intervalx
    if last > first:
        axes.set_xlim(first - 0.02 * (last - first), last)


def changes_axis(axes: Axes) -> None:
    """Mark zero, and write the sign of every number on the y axis."""
    axes.axhline(0, color=MUTED, linewidth=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), max(high, 0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v)))


def signed(value: float, figures: int = 6) -> str:
    """A tick: a number with its sign, a true minus and no negative zero."""
    text = f"{abs(value):.{figures}g}"
    return text if value == 0 else ("+" if value > 0 else "−") + text


def svg_of(chart: Chart) -> str:
    """The figure as SVG text; the reader's own sans serif, no date, stable ids.

    Rendered once, when first asked for: a figure stands in a file and on a page.
    """
    if chart.rendered is None:
        buffer = io.BytesIO()
        with matplotlib.rc_context(_RC):
            chart.figure.savefig(buffer, format="svg", metadata={"Date": None})
        text = buffer.getvalue().decode("utf-8")
        chart.rendered = text.replace("'DejaVu Sans'", _FONTS)
    return chart.rendered


def save(chart: Chart, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.png, at twice the size for print, and `stem`.svg, each whole."""
    png, svg = (stem.with_name(stem.name + end) for end in (".png", ".svg"))

    def write_png(path: Path) -> None:
        with matplotlib.rc_context(_RC):
            chart.figure.savefig(
                path, format="png", dpi=2 * _DPI, metadata={"Software": None}
            )

    write_whole(png, write_png)
    text = svg_of(chart)
    write_whole(svg, lambda path: path.write_text(text, encoding="utf-8"))
    return png, svg
