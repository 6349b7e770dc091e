"""Maps of ten digits by ten: numbers in cells, on a colour that says the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.colors import Colormap, LinearSegmentedColormap

from learndyn.show.canvas import Pixels, Sheet, points, wrapped
from learndyn.show.palette import DOWN, INK, MUTED, PAPER, UP, contrast
from learndyn.show.panels import plain


MORE = LinearSegmentedColormap.from_list("more", [PAPER, "#9DBBDD", UP])
BOTH_WAYS = LinearSegmentedColormap.from_list(
    "both_ways", [DOWN, "#E9B48A", PAPER, "#9DBBDD", UP]
)


@dataclass(frozen=True, eq=False)
class DigitMap:
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


def maps_figure(width: int, title: str, unit: str, maps: Sequence[DigitMap]) -> Sheet:
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
    sheet = Sheet(width, row * (len(maps) // columns), title, unit)
    for index, one in enumerate(maps):
        x = (index % columns) * (each + gutter)
        y = sheet.top + (index // columns) * row
        for place, line in enumerate(wrapped(one.heading, each, 13.5)):
            sheet.write(x, y + 18 * (place + 1), line, size=13.5, bold=True)
        _map(sheet, one, (x + left, y + head), (cell, tall))
    return sheet


def _map(
    sheet: Sheet,
    one: DigitMap,
    corner: tuple[Pixels, Pixels],
    cell: tuple[Pixels, Pixels],
) -> None:
    (left, top), (wide, tall) = corner, cell
    axes = sheet.axes(left, top, left + 10 * wide, top + 10 * tall)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    colours = BOTH_WAYS if one.signed else MORE
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
    sheet.write(left, top - 24, f"{one.columns} →", size=12, colour=MUTED)
    sheet.figure.text(
        (left - 34) / sheet.width,
        1 - (top + 10 * tall) / sheet.height,
        f"{one.rows} →",
        rotation=-90,
        fontsize=points(12),
        color=MUTED,
        horizontalalignment="left",
        verticalalignment="bottom",
    )
    size = 9.5 if sheet.narrow else 12
    for i in range(10):
        y = top + tall * (i + 0.5) + 0.35 * size
        sheet.write(left - 10, y, str(i), size=13, align="right")
        sheet.write(left + wide * (i + 0.5), top - 6, str(i), size=13, align="center")
        for j in range(10):
            sheet.write(
                left + wide * (j + 0.5),
                y,
                plain(one.scale * float(one.values[i, j]), one.digits),
                size=size,
                align="center",
                bold=i == j,
                colour=_ink(colours, float(shares[i, j]), one.signed),
            )


def _shares(one: DigitMap) -> Float[np.ndarray, "row column"]:
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
