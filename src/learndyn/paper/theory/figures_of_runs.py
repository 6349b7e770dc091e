"""The figures of runs and kernels that test the paper's theory.

Runs: the walk of y+ and y-, peaks, and who rises under a push. Kernels: whether they
keep their order while the model learns, and what LBK says of their size.
"""

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

from learndyn.diagnose.numbers import nats
from learndyn.paper.figures import plain
from learndyn.paper.theory.result import RunPeakiness, SignRule, TheoryResult, Walk
from learndyn.show.chart import (
    DOWN,
    INK,
    LINE,
    MUTED,
    PAPER,
    UP,
    WIDE,
    Chart,
    EndLabel,
    Grid,
    Heading,
    hairline,
    points,
)


Results = Sequence[TheoryResult]

_STAGES = {"sft": ("SFT", UP), "dpo": ("DPO", DOWN)}
"""Name and colour of a stage."""


def walk_figure(results: Results, width: int = WIDE) -> Chart:
    """Log-probability of y- against that of y+, from SFT through DPO."""
    up, down = (_walks(results, role) for role in ("sft", "dpo"))
    turned, fell = (
        float(np.mean([getattr(walk, side)[0] for walk in down]))
        for side in ("turn", "fall")
    )
    raised = [float(np.mean([getattr(w, s)[0] for w in up])) for s in ("turn", "fall")]
    grid = Grid(
        width,
        [
            Heading(
                f"SFT: y⁺ {nats(raised[0], 0)}, y⁻ {nats(raised[1], 0)} nats, then DPO",
                "log π(y⁻) against log π(y⁺), mean over prompts; a line per seed",
            ),
            Heading(
                f"DPO from near: y⁺ {nats(turned)}, y⁻ {nats(fell)} nats",
                "changes since DPO's start",
            ),
        ],
        title=(
            f"SFT lifts y⁻ with y⁺, then the path turns: DPO lowers y⁻ by "
            f"{abs(fell):.0f} nats and moves y⁺ by {nats(turned)}"
            if fell < 0 < raised[1]
            else f"Over DPO y⁻ moved by {nats(fell)} and y⁺ by {nats(turned)} nats"
        ),
        unit="Log-probability of the response, nats; arrows show the direction",
        tall=300,
        labels=12,
    )
    axes = grid.axes(0, "log π(y⁺), nats")
    for role, walks in (("sft", up), ("dpo", down)):
        for walk in walks:
            _arrowed(axes, np.array(walk.chosen), np.array(walk.rejected), role)
    _name(axes, up, down)
    axes = grid.axes(1, "change of log π(y⁺), nats")
    for walk in down:
        x, y = np.array(walk.chosen), np.array(walk.rejected)
        _arrowed(axes, x - x[0], y - y[0], "dpo")
    axes.axhline(0, color=MUTED, lw=1)
    axes.axvline(0, color=MUTED, lw=1)
    for each in grid.chart.figure.axes:
        each.xaxis.set_major_locator(MaxNLocator(5))
        each.yaxis.set_major_locator(MaxNLocator(6))
    return grid.chart


def _walks(results: Results, role: str) -> list[Walk]:
    return [w for result in results for w in result.walks if w.role == role]


def _arrowed(axes: Axes, x: np.ndarray, y: np.ndarray, role: str) -> None:
    """A path with a dot per observation and an arrow at its end."""
    colour = _STAGES[role][1]
    axes.plot(x, y, "o-", color=colour, lw=points(1.6), ms=3, mew=0)
    axes.annotate(
        "",
        (x[-1], y[-1]),
        (x[-2], y[-2]),
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.2},
    )


def _name(axes: Axes, up: Sequence[Walk], down: Sequence[Walk]) -> None:
    """Write each stage beside its path."""
    places = (("sft", up, 0, (10, -14)), ("dpo", down, None, (-40, -4)))
    for role, walks, first, offset in places:
        name, colour = _STAGES[role]
        walk = walks[0]
        at = len(walk.chosen) // 2 if first is None else first
        after = min(at + 1, len(walk.chosen) - 1)
        axes.annotate(
            name,
            (
                (walk.chosen[at] + walk.chosen[after]) / 2,
                (walk.rejected[at] + walk.rejected[after]) / 2,
            ),
            xytext=offset,
            textcoords="offset points",
            fontsize=points(13),
            fontweight="bold",
            color=colour,
        )


def peakiness_figure(results: Results, width: int = WIDE) -> Chart:
    """||A||_F along chosen over SFT and DPO."""
    by_role = {role: _peaks(results, role) for role in _STAGES}
    rises = {
        role: float(np.mean([p.rise[0] for p in peaks]))
        for role, peaks in by_role.items()
    }
    grid = Grid(
        width,
        [
            Heading(
                f"{_STAGES[role][0]}: {nats(rises[role], 2)}",
                f"above 0 by its 95 % interval on {sum(p.rise[1] > 0 for p in peaks)} "
                f"of {len(peaks)} seeds",
            )
            for role, peaks in by_role.items()
        ],
        title=(
            "Distributions along y⁺ get peakier: ‖A‖ changes by "
            f"{nats(rises['sft'], 1)} over SFT and by {nats(rises['dpo'], 2)} over DPO"
            if min(rises.values()) > 0
            else f"‖A‖ along y⁺ changes by {nats(rises['sft'], 1)} over SFT and by "
            f"{nats(rises['dpo'], 2)} over DPO"
        ),
        unit="‖A‖ = √(V − 2 + V‖π‖²) along chosen; bands: 95 % over prompts, per seed",
        tall=230,
        labels=12,
    )
    for index, (role, peaks) in enumerate(by_role.items()):
        axes = grid.axes(index, "updates")
        colour = _STAGES[role][1]
        for one in peaks:
            axes.fill_between(
                one.steps, one.low, one.high, color=colour, alpha=0.1, lw=0
            )
            axes.plot(one.steps, one.a_norm, color=colour, lw=points(1.8))
        axes.set_xlim(0, max(one.steps[-1] for one in peaks))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return grid.chart


def _peaks(results: Results, role: str) -> list[RunPeakiness]:
    return [p for result in results for p in result.peaks if p.role == role]


def rest_figure(results: Results, width: int = WIDE) -> Chart:
    """log pi of the argmax against that of all else, over SFT and DPO."""
    by_role = {role: _peaks(results, role) for role in _STAGES}
    falls = {
        role: sum(p.slope < 0 and p.r2 >= 0.8 for p in peaks)
        for role, peaks in by_role.items()
    }
    grid = Grid(
        width,
        [
            Heading(
                f"{_STAGES[role][0]}: slope {_range([p.slope for p in peaks])}",
                f"r² of the line {_range([p.r2 for p in peaks])}",
            )
            for role, peaks in by_role.items()
        ],
        title=(
            "As the argmax gains, all else loses along a line: over SFT on "
            f"{falls['sft']} of {len(by_role['sft'])} seeds, over DPO on "
            f"{falls['dpo']} of {len(by_role['dpo'])}"
        ),
        unit=(
            "Mean of log(1 − π*) against mean of log π*, nats per token of chosen; "
            "lines: least squares over all observations of a seed"
        ),
        tall=250,
        labels=12,
    )
    for index, (role, peaks) in enumerate(by_role.items()):
        axes = grid.axes(index, "log π* per token, nats")
        colour = _STAGES[role][1]
        for one in peaks:
            x, y = np.array(one.argmax), np.array(one.rest)
            axes.plot(x, y, "o", color=colour, ms=4, alpha=0.7, mew=0)
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, y.mean() + one.slope * (ends - x.mean()), color=INK, lw=0.9)
            axes.plot(x[0], y[0], "o", mfc="none", mec=INK, ms=8)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    first = grid.chart.figure.axes[0]
    first.text(
        0.99,
        0.99,
        "○ start",
        transform=first.transAxes,
        ha="right",
        va="top",
        fontsize=points(12),
        color=MUTED,
    )
    return grid.chart


def _range(values: Sequence[float]) -> str:
    """Least to greatest, or the one number where both are written alike."""
    low, high = plain(min(values), 2), plain(max(values), 2)
    return low if low == high else f"{low} to {high}"


def sign_figure(results: Results, width: int = WIDE) -> Chart:
    """Share of tokens that rise, against how far above tau they stand."""
    by_pushed = {
        pushed: [r for one in results for r in one.sign_rules if r.pushed == pushed]
        for pushed in ("one", "all")
    }
    headings = {"one": "Each position alone", "all": "The whole response at once"}
    grid = Grid(
        width,
        [
            Heading(
                f"{headings[pushed]}: y⁻ falls at {_mean(rules, 'label_falls')}, "
                f"y* rises at {_mean(rules, 'top_rises')} of positions",
                f"rule right for {_mean(rules, 'valley')} of the vocabulary in "
                f"valleys, {_mean(rules, 'peak')} at peaks; one sign for all would be "
                f"for {_mean(rules, 'flat')}",
            )
            for pushed, rules in by_pushed.items()
        ],
        title=(
            f"Where one position is pushed y⁻ falls at "
            f"{_mean(by_pushed['one'], 'label_falls')} and y* rises at "
            f"{_mean(by_pushed['one'], 'top_rises')}; where all are, at "
            f"{_mean(by_pushed['all'], 'label_falls')} and "
            f"{_mean(by_pushed['all'], 'top_rises')}"
        ),
        unit=(
            "Share of the tokens that rise, against log₁₀(π/τ), τ = ‖π‖² − π(y⁻) > 0; "
            "the rule of one softmax: none left of the dashed line, all right of it"
        ),
        tall=230,
        labels=62,
    )
    for index, rules in enumerate(by_pushed.values()):
        axes = grid.axes(index, "log₁₀(π/τ)")
        for rule in rules:
            axes.plot(rule.ratios, rule.rising, color=UP, lw=0.7, alpha=0.6)
        x, mean = _averaged(rules)
        axes.plot(x, mean, "o-", color=UP, lw=points(2.4), ms=4)
        axes.axvline(0, color=MUTED, lw=1, dashes=(5, 3))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(min(x), max(x))
        grid.end_labels(axes, [EndLabel("rise", float(mean[-1]), hairline(UP))])
    return grid.chart


def _averaged(rules: Sequence[SignRule]) -> tuple[list[float], np.ndarray]:
    """Mean over the seeds that have a bin."""
    bins = sorted({x for rule in rules for x in rule.ratios})
    each = [dict(zip(rule.ratios, rule.rising, strict=True)) for rule in rules]
    means = [np.mean([one[x] for one in each if x in one]) for x in bins]
    return bins, np.array(means)


def _mean(rules: Sequence[SignRule], what: str) -> str:
    """A share over the seeds that have it."""
    known = [getattr(rule, what) for rule in rules]
    known = [value for value in known if value is not None]
    return f"{np.mean(known):.0%}" if known else "none"


_ALIKE = LinearSegmentedColormap.from_list("alike", [PAPER, UP])


def kernel_figure(results: Results, width: int = WIDE) -> Chart:
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
    axes = grid.axes(0, "checkpoint")
    _table(axes, ranks, names)
    for index, values in ((1, sizes / sizes[:, :1]), (2, drift)):
        axes = grid.axes(index, "checkpoint")
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
    return grid.chart


def _short(name: str) -> str:
    """ "SFT 40" as "S40", "SFT end" as "SFT"."""
    stage, _, when = name.partition(" ")
    return stage if when in ("", "end") else stage[0] + when


def _table(axes: Axes, values: Float[np.ndarray, "row row"], names: list[str]) -> None:
    """A heat map with its values printed, the least at the paper's colour."""
    low = min(0.5, float(values.min()))
    axes.pcolormesh(values, cmap=_ALIKE, vmin=low, vmax=1, edgecolors=PAPER, lw=1)
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


def lbk_figure(results: Results, width: int = WIDE) -> Chart:
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
        axes = grid.axes(index, "‖K(o, u)‖²")
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
    return grid.chart


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
