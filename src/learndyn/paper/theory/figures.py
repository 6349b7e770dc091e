"""The figures of the paper's theory: one step, its residuals, and all others by name.

All are drawn from the numbers of `TheoryResult`, one for each seed: thin lines are
seeds, thick lines their mean. `figures_of_runs` draws those of kernels and runs.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import GREEDY
from learndyn.paper.figures import PaperFigure, plain
from learndyn.paper.theory.figures_of_runs import (
    kernel_figure,
    lbk_figure,
    log_ticks,
    peakiness_figure,
    rest_figure,
    sign_figure,
    walk_figure,
)
from learndyn.paper.theory.result import Kernels, Order, Residuals, TheoryResult
from learndyn.show.chart import (
    DOWN,
    INK,
    LINE,
    MUTED,
    PAPER,
    SOLID,
    UP,
    WIDE,
    Chart,
    EndLabel,
    Grid,
    Heading,
    Style,
    hairline,
    part_colour,
    points,
    shortened,
    style_of,
)


Results = Sequence[TheoryResult]

_LOSSES = {
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


def _residuals_figure(results: Results, width: int = WIDE) -> Chart:
    """dL/dlogp of y+ and y- over the margin, loss by loss."""
    residuals = results[0].residuals
    names = list(residuals.chosen)
    lowers = [name for name in names if max(residuals.rejected[name]) > 0]
    off = [_LOSSES[n] for n, miss in residuals.misses.items() if miss > 1e-9]
    grid = Grid(
        width,
        [Heading(_LOSSES.get(name, name), _when(residuals, name)) for name in names],
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
        axes = grid.axes(index, "margin, nats")
        margins = np.array(residuals.margins)
        pushed = np.array(residuals.rejected[name])
        axes.fill_between(
            margins, 0, np.maximum(pushed, 0), color=DOWN, alpha=0.12, lw=0
        )
        axes.plot(margins, residuals.chosen[name], color=LINE["chosen"], lw=points(2.4))
        axes.plot(margins, pushed, color=LINE["rejected"], lw=points(2.4))
        for printed in _misprinted(residuals, name):
            axes.plot(margins, printed, color=INK, lw=points(1.8), dashes=(3, 3))
        axes.axhline(0, color=MUTED, lw=1)
        axes.set_xlim(margins[0], margins[-1])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    return grid.chart


def _when(residuals: Residuals, name: str) -> str:
    """When a loss lowers y-, in words."""
    margins, pushed = np.array(residuals.margins), np.array(residuals.rejected[name])
    lowered = margins[pushed > 0]
    if not len(lowered):
        return "never lowers y⁻"
    if len(lowered) == len(margins):
        return "lowers y⁻ at every margin"
    return f"lowers y⁻ up to a margin of {lowered[-1]:.0f}"


def _misprinted(residuals: Residuals, name: str) -> list[list[float]]:
    """What the paper prints for y+ and y-, where it is not what the loss asks for."""
    printed = residuals.printed.get(name, {})
    sides = (("chosen", residuals.chosen[name]), ("rejected", residuals.rejected[name]))
    return [
        printed[role]
        for role, true in sides
        if role in printed and not np.allclose(printed[role], true)
    ]


_Figure = Callable[[Results, int], Chart]


def theory_figures(results: Results) -> list[PaperFigure]:
    """Every figure of the theory; none of no seed."""
    if not results:
        return []
    return [
        PaperFigure(name, paper, partial(_at_width, figure, results), about)
        for name, paper, figure, about in _DRAWN
    ]


def _at_width(figure: _Figure, results: Results, width: int = WIDE) -> Chart:
    return figure(results, width)


def _order_figure(results: Results, width: int = WIDE) -> Chart:
    """The error of the first-order prediction against the step, log-log."""
    shown = [(model, loss) for model in ("tiny", "trained") for loss in ("sft", "dpo")]
    orders = {key: _orders(results, *key) for key in shown}
    slopes = [order.slope for seeds in orders.values() for order in seeds]
    second = sum(abs(slope - 2) <= 0.1 for slope in slopes)
    grid = Grid(
        width,
        [
            Heading(
                f"{_LOSSES[loss]}, {model} model: "
                f"power {_span(o.slope for o in seeds)}",
                f"clear of rounding over {_span((o.decades for o in seeds), 1)} "
                "decades",
            )
            for (model, loss), seeds in orders.items()
        ],
        title=(
            "A K G predicts one step: the error falls with its square in "
            f"{second} of {len(slopes)} cases, without A only in proportion"
        ),
        unit=(
            "Size of all changes together, nats, against the step as a share of the "
            "longest; both logarithmic"
        ),
        tall=210,
        labels=76,
    )
    for index, seeds in enumerate(orders.values()):
        axes = grid.axes(index, "step, share of the longest")
        axes.set_xscale("log")
        axes.set_yscale("log")
        labels = [
            _series(axes, seeds, "changes", "change", MUTED),
            _series(axes, seeds, "errors", "error", UP),
        ]
        if seeds[0].without_a:
            labels.append(_series(axes, seeds, "without_a", "without A", DOWN))
        noise = float(np.mean([order.noise for order in seeds]))
        if noise:
            axes.axhline(noise, color=MUTED, lw=1, dashes=(4, 3))
            labels.append(EndLabel("rounding", noise, hairline(MUTED)))
        axes.set_xlim(min(seeds[0].steps), 1)
        log_ticks(axes)
        grid.end_labels(axes, labels)
    return grid.chart


def _orders(results: Results, model: str, loss: str) -> list[Order]:
    return [
        order
        for result in results
        for order in result.orders
        if (order.model, order.loss) == (model, loss)
    ]


def _series(
    axes: Axes, orders: Sequence[Order], what: str, name: str, colour: str
) -> EndLabel:
    """One quantity of all seeds, and their geometric mean."""
    values = np.array([getattr(order, what) for order in orders])
    for each in values:
        axes.plot(orders[0].steps, each, color=colour, lw=0.7, alpha=0.5)
    mean = np.exp(np.log(values).mean(axis=0))
    axes.plot(orders[0].steps, mean, color=colour, lw=points(2.4))
    return EndLabel(name, float(mean[0]), hairline(colour))


def _span(values: Iterable[float], digits: int = 2) -> str:
    """Least to greatest, or the one number where both are written alike."""
    listed = list(values)
    low, high = plain(min(listed), digits), plain(max(listed), digits)
    return low if low == high else f"{low} to {high}"


def _two_kernels_figure(results: Results, width: int = WIDE) -> Chart:
    """What K(o, u+) and K(o, u-) do to every kind, beside the actual change."""
    kernels = [result.kernels for result in results]
    kinds = [k for k in kernels[0].kinds if all(k in one.kinds for one in kernels)]
    rows = [*kinds, GREEDY]
    narrow = width < 600
    row, head = (46 if narrow else 30), 34
    chart = Chart(
        width,
        head + row * len(rows) + 54,
        _title(kernels),
        "Mean change of log π(response), thousandths of a nat, by one step of SGD on "
        f"DPO that adds {kernels[0].margin:g} nats of margin; bars: first order, mean "
        "over seeds; dots: actual, one per seed",
    )
    for x, name in ((0, "pull"), (150 if narrow else 220, "push")):
        swatch = Style(part_colour(name), INK, SOLID, 9.0, 0.0)
        chart.stroke([x, x + 14], [chart.top + 12] * 2, swatch, 8)
        text = "pull on y⁺, K(o, u⁺)" if name == "pull" else "push on y⁻, K(o, u⁻)"
        chart.write(x + 22, chart.top + 16, text, size=11 if narrow else 12.5)
    top = chart.top + head
    left, right = (8, width - 52) if narrow else (176, width - 96)
    axes = chart.axes(left, top, right, top + row * len(rows))
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    for index, kind in enumerate(rows):
        actual = [_parts(one, kind)[2] for one in kernels]
        means = np.mean([_parts(one, kind)[:2] for one in kernels], axis=0)
        _stack(axes, index + (0.2 if narrow else 0.0), means, actual, narrow)
        y = top + row * index + (15 if narrow else 0.5 * row + 4.5)
        style = style_of(kind)
        chart.write(0, y, shortened(kind, 22), size=12.5, colour=style.text)
        text = nats(float(np.mean(actual)))
        chart.write(width, y, text, size=12.5, align="right")
    axes.axvline(0, color=MUTED, lw=1)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.set_xlabel(
        "← less likely · nats / 1000 · more likely →", color=MUTED, fontsize=points(12)
    )
    return chart


def _parts(kernels: Kernels, kind: str) -> tuple[float, float, float]:
    """Pull, push and actual of a kind or of the greedy path, thousandths of a nat."""
    if kind == GREEDY:
        parts = kernels.greedy_pull, kernels.greedy_push, kernels.greedy_actual
    else:
        at = kernels.kinds.index(kind)
        parts = kernels.pull[at], kernels.push[at], kernels.actual[at]
    pull, push, actual = (1000 * value for value in parts)
    return pull, push, actual


def _title(kernels: Sequence[Kernels]) -> str:
    pulled, pushed, _ = np.mean([_parts(one, GREEDY) for one in kernels], axis=0)
    miss = max(one.relative_error for one in kernels)
    how = "raises" if pushed > 0 else "lowers"
    return (
        f"The push on y⁻ {how} the greedy path by {abs(pushed):.1f} thousandths of a "
        f"nat, the pull on y⁺ moves it by {nats(float(pulled))}; both together are "
        f"within {miss:.0%} of the actual change"
    )


def _stack(
    axes: Axes, y: float, parts: np.ndarray, actual: Sequence[float], narrow: bool
) -> None:
    """Positive parts to the right of zero, negative ones to the left."""
    ends = {True: 0.0, False: 0.0}
    for name, value in zip(("pull", "push"), parts.tolist(), strict=True):
        axes.barh(
            y,
            value,
            left=ends[value > 0],
            height=0.36 if narrow else 0.56,
            color=part_colour(name),
            edgecolor=PAPER,
            linewidth=0.6,
        )
        ends[value > 0] += value
    axes.plot(actual, [y] * len(actual), "o", color=INK, ms=5, mec=PAPER, mew=1)


_DRAWN: tuple[tuple[str, str, _Figure, str], ...] = (
    (
        "theory_order",
        "Proposition 1; Eq. 5 and 7",
        _order_figure,
        "Tiny: a random GPT-2 in float64, A, K and G written out. Trained: the "
        "model before SFT (SFT's gradient) and after it (DPO's), in float32.",
    ),
    (
        "theory_two_kernels",
        "Section 3.2, Eq. 7",
        _two_kernels_figure,
        "One step of SGD on 32 pairs, none of them probed, at the SFT checkpoint; "
        "as long as adds 0.02 nats of margin to the probes.",
    ),
    (
        "theory_residuals",
        "Appendix B.2; Figure 2",
        _residuals_figure,
        "Both log-ratios move by half of the margin. SimPO and KTO with this "
        "package's defaults; responses of 20 tokens.",
    ),
    ("theory_walk", "Figures 3 and 4 as one path", walk_figure, ""),
    (
        "theory_kernel",
        "Appendix C.1, Figures 6 and 7",
        kernel_figure,
        "Start and ends are the runs' own weights. Those after 10, 20 and 40 "
        "updates are of short runs over the probed prompts, with the runs' "
        "optimizers. The random vectors are the same at all checkpoints.",
    ),
    (
        "theory_lbk",
        "Appendix C.2, Eq. 23 to 31",
        lbk_figure,
        "Each dot is a pair (o, u), u trained on by one small step of SGD.",
    ),
    (
        "theory_peakiness",
        "Figure 9, left",
        peakiness_figure,
        "A root mean square over tokens, then a mean over prompts.",
    ),
    ("theory_rest", "Figure 9, right", rest_figure, "Dots are observations."),
    (
        "theory_sign",
        "Section 3.3; Appendix E",
        sign_figure,
        "By a derivative of all V log-probabilities at the SFT checkpoint, along "
        "the step that pushes down one token of y−, or all of them.",
    ),
)
"""Name, place in the paper, figure, and what it is of."""
