"""The figure of what losses ask of y+ and y-, beside what the paper prints."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from learndyn.lab.theory_result import Residuals, TheoryResult
from learndyn.show.canvas import WIDE, Sheet, points
from learndyn.show.grid import Grid, Heading
from learndyn.show.palette import DOWN, INK, LINE, MUTED


Results = Sequence[TheoryResult]

LOSSES = {
    "sft": "SFT",
    "dpo": "DPO",
    "cdpo": "cDPO",
    "ipo": "IPO",
    "slic": "SLiC",
    "simpo": "SimPO",
    "kto": "KTO",
    "sppo": "SPPO",
}
"""How losses are written."""


def residuals_figure(results: Results, width: int = WIDE) -> Sheet:
    """dL/dlogp of y+ and y- over the margin, loss by loss."""
    found = results[0].residuals
    names = list(found.chosen)
    lowers = [name for name in names if max(found.rejected[name]) > 0]
    off = [LOSSES[n] for n, miss in found.misses.items() if miss > 1e-9]
    grid = Grid(
        width,
        [Heading(LOSSES.get(name, name), _when(found, name)) for name in names],
        title=(
            f"{len(lowers)} of {len(names)} losses push y⁻ down, SPPO among them; the "
            f"printed residual is not the loss's for {', '.join(off)}"
        ),
        unit=(
            "dL/dlog π of one token of y⁺ (blue) and of y⁻ (brown), against the margin "
            "in nats; above 0 the token is lowered; dashed: as the paper prints it, "
            "where that differs"
        ),
        columns=4,
        tall=120 if width < 600 else 170,
        labels=12,
    )
    for index, name in enumerate(names):
        axes, _ = grid.axes(index, "margin, nats")
        margins = np.array(found.margins)
        pushed = np.array(found.rejected[name])
        axes.fill_between(
            margins, 0, np.maximum(pushed, 0), color=DOWN, alpha=0.12, lw=0
        )
        axes.plot(margins, found.chosen[name], color=LINE["chosen"], lw=points(2.4))
        axes.plot(margins, pushed, color=LINE["rejected"], lw=points(2.4))
        for said in _misprinted(found, name):
            axes.plot(margins, said, color=INK, lw=points(1.8), dashes=(3, 3))
        axes.axhline(0, color=MUTED, lw=1)
        axes.set_xlim(margins[0], margins[-1])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    return grid.sheet


def _when(found: Residuals, name: str) -> str:
    """When a loss lowers y-, in words."""
    margins, pushed = np.array(found.margins), np.array(found.rejected[name])
    lowered = margins[pushed > 0]
    if not len(lowered):
        return "never lowers y⁻"
    if len(lowered) == len(margins):
        return "lowers y⁻ at every margin"
    return f"lowers y⁻ up to a margin of {lowered[-1]:.0f}"


def _misprinted(found: Residuals, name: str) -> list[list[float]]:
    """What the paper prints for y+ and y-, where it is not what the loss asks for."""
    printed = found.printed.get(name, {})
    sides = (("chosen", found.chosen[name]), ("rejected", found.rejected[name]))
    return [
        printed[role]
        for role, true in sides
        if role in printed and not np.allclose(printed[role], true)
    ]
