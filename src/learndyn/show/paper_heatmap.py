"""The heat map of influence: what learning one kind of answer does to every other.

Columns are what was trained on, rows what was observed. A cell is the notebook's
SignDelta, summed over the run and averaged over seeds. Each column is divided by its
own largest minus smallest value, as the paper does: colours compare rows, not columns.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap

from learndyn.diagnose.proxies import notebook_sign_delta
from learndyn.lab.recorded import Recorded, change, learnt_by, path_of, probed_split
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.show.canvas import Pixels, Sheet
from learndyn.show.palette import DOWN, INK, PAPER, UP, contrast
from learndyn.show.panels import plain


DIVERGING = LinearSegmentedColormap.from_list(
    "learndyn", [DOWN, "#E9B48A", PAPER, "#9DBBDD", UP]
)
"""Brown is less likely, blue more, as in the strips of tokens."""

Table = tuple[list[str], list[str], Float[np.ndarray, "row column"]]
"""Rows, columns and values."""


def influence(seeds: Sequence[Recorded], *, normalised: bool) -> Table:
    """Accumulated SignDelta by observed kind and trained kind, mean over seeds.

    Not normalised: the mean change of log pi over the run itself, in nats.
    """
    columns = [f"learn-{kind}" for kind in learnt_by(seeds)]
    columns += ["dpo"] if all("dpo" in one.runs for one in seeds) else []
    rows = [
        kind
        for kind in PAPER_KINDS
        if all(kind in one.runs[c].kinds for one in seeds for c in columns)
    ]
    values = np.zeros((len(rows), len(columns)))
    for one in seeds:
        for j, column in enumerate(columns):
            for i, kind in enumerate(rows):
                values[i, j] += _moved(one, column, kind, normalised) / len(seeds)
    if normalised and len(rows) > 1:
        spread = values.max(axis=0) - values.min(axis=0)
        values = values / np.where(spread > 0, spread, 1.0)
    return rows, columns, values


def _moved(one: Recorded, role: str, kind: str, proxy: bool) -> float:
    run = one.runs[role]
    if not proxy or one.vocabulary is None:
        return change(path_of(run, kind)).mean
    split = probed_split(run)
    return float(notebook_sign_delta(run, kind, one.vocabulary, split=split).sum())


def heat_map(seeds: Sequence[Recorded], width: int, *, normalised: bool) -> Sheet:
    """One cell per observed and trained kind, its value printed in it."""
    rows, columns, values = influence(seeds, normalised=normalised)
    narrow = width < 600
    left, head = (118 if narrow else 190), (120 if narrow else 46)
    cell = 25 if narrow else 36
    unit = (
        "SignDelta summed over the run, each column over its own range"
        if normalised
        else "Change of log π over the whole run, nats per response"
    )
    unit += "; columns: trained on, rows: observed"
    sheet = Sheet(
        width, head + cell * len(rows) + 16, _told(rows, columns, values), unit
    )
    top = sheet.top + head
    axes = sheet.axes(left, top, width, top + cell * len(rows))
    limit = float(np.abs(values).max()) or 1.0
    axes.pcolormesh(
        np.arange(len(columns) + 1),
        np.arange(len(rows) + 1),
        values,
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        edgecolors=PAPER,
        linewidth=1.0,
    )
    axes.set_ylim(len(rows), 0)
    axes.set_xlim(0, len(columns))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    wide = (width - left) / len(columns)
    size = 8.5 if narrow else 12
    digits = 2 if normalised else 1 if not narrow else 0
    for i, kind in enumerate(rows):
        y = top + cell * (i + 0.5) + 0.35 * size
        sheet.write(left - 8, y, kind, size=10 if narrow else 12.5, align="right")
        for j, column in enumerate(columns):
            own = column == f"learn-{kind}"
            sheet.write(
                left + wide * (j + 0.5),
                y,
                plain(values[i, j], digits),
                size=size,
                bold=own,
                align="center",
                colour=_ink(values[i, j] / limit),
            )
    _heads(sheet, columns, (left, top, wide))
    return sheet


def _heads(
    sheet: Sheet, columns: Sequence[str], where: tuple[Pixels, Pixels, Pixels]
) -> None:
    left, top, wide = where
    for j, column in enumerate(columns):
        name = column.removeprefix("learn-") if column != "dpo" else "DPO"
        x = left + wide * (j + 0.5)
        if sheet.narrow:
            sheet.figure.text(
                x / sheet.width,
                1 - (top - 6) / sheet.height,
                name,
                rotation=90,
                fontsize=7.5,
                color=INK,
                horizontalalignment="center",
                verticalalignment="bottom",
            )
            continue
        for place, part in enumerate(reversed(name.split("_", 1))):
            part = part if place or "_" not in name else f"{part}"
            sheet.write(x, top - 8 - 16 * place, part, size=12, align="center")


def _ink(share: float) -> str:
    """Ink or paper, whichever is easier to read on a cell's colour."""
    colour = DIVERGING((share + 1) / 2)
    shown = "#" + "".join(f"{round(255 * part):02X}" for part in colour[:3])
    return INK if contrast(INK, shown) >= contrast(PAPER, shown) else PAPER


def _told(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Float[np.ndarray, "row column"],
) -> str:
    learnt = [c.removeprefix("learn-") for c in columns if c != "dpo"]
    compared = [i for i, kind in enumerate(rows) if kind in learnt]
    own = sum(
        rows[max(compared, key=lambda i: values[i, j])] == kind
        for j, kind in enumerate(learnt)
    )
    return f"In {own} of {len(learnt)} SFT runs the trained kind gains most"
