"""A plate: one figure of the paper's, drawn anew, for both widths of a page.

Small multiples of lines: one thin line per seed, one thick line for their mean.

Grid of one figure: side by side on a desk, one below the other on a phone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.show.chart import (
    INK,
    MUTED,
    NARROW,
    SOLID,
    WIDE,
    Pixels,
    Sheet,
    Style,
    points,
    save,
    shortened,
    spread_labels,
    wrapped,
)
from learndyn.show.page import figure, text


Run = tuple[Float[np.ndarray, " ..."], Float[np.ndarray, " ..."]]
"""Where and what: x and y of one seed's line."""


@dataclass(frozen=True, eq=False)
class Line:
    """One quantity on every seed."""

    name: str
    style: Style
    runs: tuple[Run, ...]

    @property
    def mean(self) -> Run:
        """Mean over seeds, where all of them have a value.

        At the first seed's points; the others are interpolated linearly between theirs.
        """
        x = self.runs[0][0]
        last = min(float(np.max(one)) for one, _ in self.runs)
        first = max(float(np.min(one)) for one, _ in self.runs)
        x = np.unique(np.append(x[(x >= first) & (x <= last)], last))
        values = []
        for one, y in self.runs:
            order = np.argsort(one, kind="stable")
            values.append(np.interp(x, one[order], y[order]))
        return x, np.mean(values, axis=0)


@dataclass(frozen=True)
class Panel:
    """One chart of a figure."""

    title: str
    lines: tuple[Line, ...]
    clock: str = "updates"
    digits: int = 1
    """Decimals of the values at the ends."""
    signed: bool = True
    """Whether values are changes, drawn around zero."""


class _NothingToDraw(Exception):
    """No run has what a figure would show."""


def small_multiples(
    width: int,
    title: str,
    unit: str,
    panels: Sequence[Panel],
    *,
    columns: int = 2,
    tall: Pixels = 250,
) -> Sheet:
    """Panels in rows; on a phone one below the other. Those without lines are left out.

    Raises:
        NothingToDraw: if none has a line.
    """
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        raise _NothingToDraw(title)
    columns = 1 if width < 600 else min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    if width < 600:
        tall = min(tall, 210)
    cell, gutter = tall + 74, 34
    sheet = Sheet(width, 14 + rows * cell, title, unit)
    wide = (width - gutter * (columns - 1)) / columns
    for index, panel in enumerate(panels):
        x = (index % columns) * (wide + gutter)
        y = sheet.top + 14 + (index // columns) * cell
        _panel(sheet, panel, (x, y, x + wide, y + tall + 22))
    return sheet


def _panel(
    sheet: Sheet, panel: Panel, box: tuple[Pixels, Pixels, Pixels, Pixels]
) -> None:
    left, top, right, bottom = box
    sheet.write(left, top + 12, panel.title, size=13, bold=True)
    room = (118 if sheet.narrow else 168) if _named(panel) else 60
    end = right - room
    top += 22
    axes = sheet.axes(left + 46, top, end, bottom)
    axes.set_xlabel(panel.clock, color=MUTED, fontsize=points(12))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    labels = []
    for line in panel.lines:
        labels.append((line, _drawn(axes, line)))
    if panel.signed:
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v)))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    first, last = axes.dataLim.intervalx
    if last > first:
        axes.set_xlim(first - 0.02 * (last - first), last)
    _labels(sheet, axes, panel, (end, top, bottom, right), labels)


def _named(panel: Panel) -> bool:
    return any(line.name for line in panel.lines)


def _drawn(axes: Axes, line: Line) -> float:
    """Draw a line; its last value."""
    style = line.style
    if len(line.runs) > 1:
        for x, y in line.runs:
            axes.plot(x, y, color=style.line, linewidth=0.7, alpha=0.45)
    x, y = line.mean
    marker = "o" if len(x) == 1 else ""
    (mean,) = axes.plot(
        x,
        y,
        color=style.line,
        linewidth=points(style.width + 0.4),
        marker=marker,
        markersize=4,
    )
    if style.dash:
        mean.set_dashes(style.dash)
    return float(y[-1])


def _labels(
    sheet: Sheet,
    axes: Axes,
    panel: Panel,
    box: tuple[Pixels, Pixels, Pixels, Pixels],
    labels: Sequence[tuple[Line, float]],
) -> None:
    """The last value, then the name, beside the end of each line."""
    left, top, bottom, right = box
    low, high = axes.get_ylim()
    known = [(line, value) for line, value in labels if math.isfinite(value)]
    if not known:
        return
    size = 10.5 if sheet.narrow else 12
    ends = np.array([value for _, value in known])
    wanted = top + (high - ends) / (high - low) * (bottom - top)
    places = spread_labels(wanted, 1.4 * size, top, bottom)
    for (line, value), end, y in zip(known, wanted, places, strict=True):
        style = line.style
        sheet.stroke(
            [left + 1, left + 8],
            [end, y],
            Style(style.line, style.text, (), 0.5, 0.0),
            0.5,
        )
        text = (signed if panel.signed else plain)(value, panel.digits)
        name = shortened(line.name, int((right - left - 10) / (0.57 * size)))
        base = y + 0.35 * size
        if not name:
            sheet.write(left + 11, base, text, size=size, colour=style.text)
            continue
        sheet.write(left + 11, base, name, size=size, colour=style.text)
        if not sheet.narrow:
            sheet.write(right, base, text, size=size, colour=INK, align="right")


def signed(value: float, digits: int | None = None) -> str:
    """A number with its sign, a true minus and no negative zero."""
    text = f"{abs(value):g}" if digits is None else f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else "−") + text


def plain(value: float, digits: int | None = None) -> str:
    """A number with a true minus."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Plate:
    """One figure, and which of the paper's it answers to."""

    name: str
    """Stem of its files, such as `dpo_chosen_and_rejected`; unique."""
    paper: str
    """The paper's figure or section, such as "Figure 4"."""
    draw: Callable[[int], Sheet]
    """Draws it at a width in CSS pixels; its title says what is seen, from the data."""
    about: str = ""
    """What is shown and from which data, for the line below the figure."""

    @cached_property
    def wide(self) -> Sheet:
        """For a desktop page and for print."""
        return self.draw(WIDE)

    @property
    def narrow(self) -> Sheet:
        """For a phone."""
        return self.draw(NARROW)

    @property
    def is_empty(self) -> bool:
        """Whether no run has what it would show."""
        try:
            return self.wide is None
        except _NothingToDraw:
            return True


def embedded(plate: Plate, folder: Path) -> str:
    """A figure as HTML, for both widths; its files go to `folder`, which must exist."""
    wide = plate.wide
    save(wide, folder / plate.name)
    return figure(wide, plate.narrow, wide.title)


def drawn(plate: Plate, folder: Path) -> str:
    """`embedded`, and what the figure is below it."""
    about = f"{text(plate.paper)}. {text(plate.about)}"
    return f"{embedded(plate, folder)}<p class='muted'>{about}</p>"


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above one panel."""

    finding: str
    below: str = ""
    """One muted line: numbers, or what the panel is."""


class Grid:
    """The panels of one sheet, each headed by its finding."""

    def __init__(
        self,
        width: int,
        headings: Sequence[Heading],
        *,
        title: str,
        unit: str,
        columns: int = 2,
        tall: Pixels = 220,
        labels: Pixels = 0,
    ) -> None:
        """`tall` is the height of a panel's data, `labels` the room right of it."""
        self.columns = 1 if width < 600 else columns
        self.each = (width - 36 * (self.columns - 1)) / self.columns
        self.headings, self.tall, self.right = headings, tall, labels
        lines = [self._lines(heading) for heading in headings]
        self.head = 20 + max(18 * len(a) + 17 * len(b) for a, b in lines)
        self.row = self.head + tall + 54
        rows = -(-len(headings) // self.columns)
        self.sheet = Sheet(width, self.row * rows, title, unit)

    def axes(self, index: int, x: str) -> tuple[Axes, tuple[Pixels, Pixels, Pixels]]:
        """The axes of one panel, headed, and its right, top and bottom pixel."""
        row, column = divmod(index, self.columns)
        left = column * (self.each + 36)
        top = self.sheet.top + row * self.row
        findings, below = self._lines(self.headings[index])
        y: Pixels = top + 2
        for line in findings:
            y += 18
            self.sheet.write(left, y, line, size=13.5, bold=True)
        for line in below:
            y += 17
            self.sheet.write(left, y, line, size=12, colour=MUTED)
        right = left + self.each - max(self.right, 10)  # half of the last tick's label
        top += self.head
        axes = self.sheet.axes(left + 48, top, right, top + self.tall)
        axes.set_xlabel(x, color=MUTED, fontsize=points(12))
        return axes, (right, top, top + self.tall)

    def _lines(self, heading: Heading) -> tuple[list[str], list[str]]:
        return wrapped(heading.finding, int(self.each), 13.5), wrapped(
            heading.below, int(self.each), 12
        )


EndLabel = tuple[str, float, str]
"""Text, value of the line at its right end, colour of the text."""


def end_labels(
    sheet: Sheet,
    axes: Axes,
    box: tuple[Pixels, Pixels, Pixels],
    labels: Sequence[EndLabel],
) -> None:
    """Names right of a panel, each beside the end of its line; none overlaps."""
    right, top, bottom = box
    _, low = axes.transData.transform((axes.get_xlim()[1], axes.get_ylim()[0]))
    ends = np.array(
        [axes.transData.transform((axes.get_xlim()[1], v))[1] for _, v, _ in labels]
    )
    scale = (bottom - top) / (
        axes.transData.transform((axes.get_xlim()[1], axes.get_ylim()[1]))[1] - low
    )
    wanted = np.clip(bottom - (ends - low) * scale, top, bottom)
    places = spread_labels(wanted, 17, top, bottom)
    for (name, _, colour), end, y in zip(labels, wanted, places, strict=True):
        thin = Style(colour, colour, SOLID, 0.5, 0.2)
        sheet.stroke([right + 1, right + 8], [float(end), float(y)], thin, 0.5)
        sheet.write(right + 11, float(y) + 4, name, size=12, colour=colour)
