"""The paper's figures drawn anew, for both widths of a page.

Most are small multiples of lines: one thin line per seed, one thick for their mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.show.chart import (
    NARROW,
    WIDE,
    Chart,
    EndLabel,
    Grid,
    Heading,
    Pixels,
    Style,
    changes_axis,
    draw_line,
    end_at_labels,
    save,
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
class LinePanel:
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
    panels: Sequence[LinePanel],
    *,
    columns: int = 2,
    tall: Pixels = 250,
) -> Chart:
    """Panels in rows; on a phone one below the other. Those without lines are left out.

    Raises:
        NothingToDraw: if none has a line.
    """
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        raise _NothingToDraw(title)
    narrow = width < 600
    named = any(line.name for panel in panels for line in panel.lines)
    grid = Grid(
        width,
        [Heading(panel.title) for panel in panels],
        title=title,
        unit=unit,
        columns=min(columns, len(panels)),
        tall=min(tall, 210) if narrow else tall,
        labels=(118 if narrow else 168) if named else 60,
    )
    for index, panel in enumerate(panels):
        axes = grid.axes(index, panel.clock)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        labels = [_drawn(axes, panel, line, narrow) for line in panel.lines]
        if panel.signed:
            changes_axis(axes)
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
        end_at_labels(axes)
        grid.end_labels(axes, labels, size=10.5 if narrow else 12)
    return grid.chart


def _drawn(axes: Axes, panel: LinePanel, line: Line, narrow: bool) -> EndLabel:
    """Draw a line; its label. On a phone there is room for a name or a number."""
    style = replace(line.style, width=line.style.width + 0.4)
    if len(line.runs) > 1:
        for x, y in line.runs:
            axes.plot(x, y, color=style.line, linewidth=0.7, alpha=0.45)
    x, y = line.mean
    draw_line(axes, x, y, style)
    end = float(y[-1])
    value = (nats if panel.signed else plain)(end, panel.digits)
    if not line.name:
        return EndLabel(value, end, line.style)
    return EndLabel(line.name, end, line.style, "" if narrow else value)


def plain(value: float, digits: int | None = None) -> str:
    """A number with a true minus."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class PaperFigure:
    """One figure, and which of the paper's it answers to."""

    name: str
    """Stem of its files, such as `dpo_chosen_and_rejected`; unique."""
    paper: str
    """The paper's figure or section, such as "Figure 4"."""
    draw: Callable[[int], Chart]
    """Draws it at a width in CSS pixels; its title says what is seen, from the data."""
    about: str = ""
    """What is shown and from which data, for the line below the figure."""

    @cached_property
    def wide(self) -> Chart:
        """For a desktop page and for print."""
        return self.draw(WIDE)

    @property
    def narrow(self) -> Chart:
        """For a phone."""
        return self.draw(NARROW)

    @property
    def is_empty(self) -> bool:
        """Whether no run has what it would show."""
        try:
            return self.wide is None
        except _NothingToDraw:
            return True


def embedded(paper_figure: PaperFigure, folder: Path) -> str:
    """A figure as HTML, for both widths; its files go to `folder`, which must exist."""
    wide = paper_figure.wide
    save(wide, folder / paper_figure.name)
    return figure(wide, paper_figure.narrow, wide.title)


def drawn(paper_figure: PaperFigure, folder: Path) -> str:
    """`embedded`, and what the figure is below it."""
    about = f"{text(paper_figure.paper)}. {text(paper_figure.about)}"
    return f"{embedded(paper_figure, folder)}<p class='muted'>{about}</p>"
