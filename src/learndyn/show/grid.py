"""Grid of one figure: side by side on a desk, one below the other on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from learndyn.show.canvas import (
    Pixels,
    Sheet,
    points,
    spread_labels,
    wrapped,
)
from learndyn.show.palette import MUTED, SOLID, Style


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
    for (text, _, colour), end, y in zip(labels, wanted, places, strict=True):
        thin = Style(colour, colour, SOLID, 0.5, 0.2)
        sheet.stroke([right + 1, right + 8], [float(end), float(y)], thin, 0.5)
        sheet.write(right + 11, float(y) + 4, text, size=12, colour=colour)
