"""The figures about the kernel: whether it keeps its order, and what LBK says of it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from learndyn.lab.theory_result import TheoryResult
from learndyn.show.canvas import WIDE, Sheet, points
from learndyn.show.grid import Grid, Heading
from learndyn.show.palette import DOWN, INK, LINE, MUTED, PAPER, UP
from learndyn.show.panels import plain


Results = Sequence[TheoryResult]

ALIKE = LinearSegmentedColormap.from_list("alike", [PAPER, UP])


def kernel_figure(results: Results, width: int = WIDE) -> Sheet:
    """Rank correlations between checkpoints, the kernel's size, and its change."""
    paths = [result.kernel_path for result in results]
    first = paths[0]
    ranks = np.mean([path.ranks for path in paths], axis=0)
    names = [_short(name) for name in first.checkpoints]
    sizes = np.array([[np.mean(look) for look in path.norms] for path in paths])
    drift = np.array([np.diagonal(path.drift, 1) for path in paths])
    end = first.checkpoints.index("SFT end")
    sft, dpo = (
        np.array([p.ranks[i][j] for p in paths]).mean()
        for i, j in ((0, end), (end, len(names) - 1))
    )
    grid = Grid(
        width,
        [
            Heading(
                "Order of ‖K(o, u)‖ over o",
                "Spearman's correlation between checkpoints, mean over seeds",
            ),
            Heading(
                f"Mean size: {plain(float((sizes[:, -1] / sizes[:, 0]).mean()), 1)} "
                "times its start at the end",
                "mean ‖K(o, u)‖ as a share of that at the start",
            ),
            Heading(
                "Change since the checkpoint before",
                "‖K − K before‖ as a share of their sizes; 1.4 if nothing is alike",
            ),
        ],
        title=(
            "From start to end the kernel's order has a rank correlation of "
            f"{plain(float(sft), 2)} over SFT and {plain(float(dpo), 2)} over DPO"
        ),
        unit=(
            f"K(o, u) of {len(first.kinds)} observed and {len(first.norms[0])} trained "
            "responses; S: updates of SFT, D: updates of DPO"
        ),
        columns=3,
        tall=300,
        labels=12,
    )
    axes, _ = grid.axes(0, "checkpoint")
    _table(axes, ranks, names)
    for index, values in ((1, sizes / sizes[:, :1]), (2, drift)):
        axes, _ = grid.axes(index, "checkpoint")
        at = np.arange(len(names))[len(names) - values.shape[1] :]
        for each in values:
            axes.plot(at, each, color=UP, lw=0.7, alpha=0.5)
        axes.plot(at, values.mean(axis=0), "o-", color=UP, lw=points(2.4), ms=4)
        axes.axvline(end, color=MUTED, lw=1, dashes=(4, 3))
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.tick_params(axis="x", labelsize=points(10))
        axes.set_ylim(0, 1.1 * float(values.max()))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return grid.sheet


def _short(name: str) -> str:
    """ "SFT 40" as "S40", "SFT end" as "SFT"."""
    stage, _, when = name.partition(" ")
    return stage if when in ("", "end") else stage[0] + when


def _table(axes: Axes, values: Float[np.ndarray, "row row"], names: list[str]) -> None:
    """A heat map with its values printed, the least at the paper's colour."""
    low = min(0.5, float(values.min()))
    axes.pcolormesh(values, cmap=ALIKE, vmin=low, vmax=1, edgecolors=PAPER, lw=1)
    axes.grid(visible=False)
    axes.set_ylim(len(names), 0)
    middles = np.arange(len(names)) + 0.5
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.tick_params(labelsize=points(9.5))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            strong = (value - low) / (1 - low) > 0.55
            axes.text(
                j + 0.5,
                i + 0.5,
                plain(float(value), 2).replace("0.", "."),
                ha="center",
                va="center",
                fontsize=points(9.5),
                color=PAPER if strong else INK,
            )


def lbk_figure(results: Results, width: int = WIDE) -> Sheet:
    """LBK against the kernel it bounds, and the notebook's beside it."""
    bounds = [result.bounds for result in results]
    exact = _ratios([(b.exact_lbk, b.exact_kernel) for b in bounds])
    trained = _ratios([(b.lbk, b.kernel) for b in bounds])
    rank, other = (
        float(np.mean([getattr(b, name) for b in bounds]))
        for name in ("rank_lbk", "rank_notebook")
    )
    broken = int((exact > 1).sum() + (trained > 1).sum())
    grid = Grid(
        width,
        [
            Heading(
                f"Tiny model, exact: at most {exact.max():.2g} of the bound",
                "K written out, float64",
            ),
            Heading(
                f"SFT checkpoint: at most {trained.max():.2g} of the bound",
                f"rank correlation {plain(rank, 2)}; ‖K‖ by random vectors",
            ),
            Heading(
                f"The notebook's LBK: rank correlation {plain(other, 2)}",
                "from the labels' log-probabilities alone; its own unit",
            ),
        ],
        title=(
            f"LBK is below η²‖K‖² on {_all_but(broken, exact.size + trained.size)} "
            f"pairs; its order has a rank correlation of {plain(rank, 2)} with ‖K‖"
        ),
        unit="LBK / η² against ‖K(o, u)‖², both logarithmic; line: both are equal",
        columns=3,
        tall=240,
        labels=12,
    )
    drawn = (
        [(b.exact_kernel, b.exact_lbk) for b in bounds],
        [(b.kernel, b.lbk) for b in bounds],
        [(b.kernel, b.notebook) for b in bounds],
    )
    for index, sides in enumerate(drawn):
        axes, _ = grid.axes(index, "‖K(o, u)‖²")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for x, y in sides:
            colour = LINE["other"] if index == 2 else UP
            axes.plot(x, y, "o", color=colour, ms=3.5, alpha=0.6, mew=0)
        if index < 2:
            x = np.array([v for side in sides for v in side[0]])
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, ends, color=DOWN, lw=points(2))
        log_ticks(axes)
    return grid.sheet


def _ratios(
    sides: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> Float[np.ndarray, " pair"]:
    return np.concatenate([np.array(a) / np.array(b) for a, b in sides])


def _all_but(broken: int, count: int) -> str:
    return f"{count - broken} of {count}" if broken else f"all {count}"


def log_ticks(axes: Axes) -> None:
    """Few powers of ten on both axes, written without mathematical markup."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    exponent = round(float(np.log10(value))) if value > 0 else 0
    raised = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if exponent == 0 else f"10{raised}"
