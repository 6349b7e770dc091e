"""The figure of the trainer's own numbers: loss, rewards, learning rate and others."""

import math
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import figures
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import INK, MUTED, WIDE, Sheet, points, shortened


_FIRST_METRICS = (
    "loss",
    "grad_norm",
    "learning_rate",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)
_MOST_METRICS = 15
"""Panels in the training figure; further keys are counted, not drawn."""


def training_figure(trajectory: Trajectory, *, width: int = WIDE) -> Sheet | None:
    """Small multiples of what the trainer logged; None if it logged nothing."""
    series = _metric_series(trajectory.train_log)
    if not series:
        return None
    shown = list(series)[:_MOST_METRICS]
    columns = 2 if width < 600 else 3
    rows = math.ceil(len(shown) / columns)
    gutter, panel = (18, 118) if columns == 2 else (44, 132)
    cell = (width - gutter * (columns - 1)) / columns
    left_out = len(series) - len(shown)
    more = f"; {left_out} further keys not drawn" if left_out else ""
    sheet = Sheet(
        width,
        16 + rows * (panel + 40),
        _training_finding(series),
        f"As logged, by update{more}",
    )
    top = sheet.top + 16
    for index, key in enumerate(shown):
        x = (index % columns) * (cell + gutter)
        y = top + (index // columns) * (panel + 40)
        steps, values = series[key]
        last, size = figures(values[-1]), 11.5 if sheet.narrow else 12.5
        room = int((cell - 8) / (0.6 * size)) - len(last)
        sheet.write(x, y, shortened(key, room), size=size, colour=INK)
        sheet.write(x + cell, y, last, size=size, colour=MUTED, align="right")
        axes = sheet.axes(x + 52, y + 8, x + cell - 8, y + panel - 16)
        if len(steps) == 1:
            axes.plot(steps, values, "o", color=INK, markersize=3)
        axes.plot(steps, values, color=INK, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: figures(v)))
        axes.tick_params(labelsize=points(10.5))
    return sheet


def _metric_series(
    log: list[dict[str, Any]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each numeric key, the usual ones first.

    Keys with a single value are left out if any key has more: they sum up the run.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        step = row.get("step")
        if not isinstance(step, int | float):
            continue
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in ("step", "epoch") and number and math.isfinite(value):
                found.setdefault(key, []).append((step, value))
    longest = max((len(pairs) for pairs in found.values()), default=0)
    kept = {k: v for k, v in found.items() if len(v) > 1 or longest == 1}
    usual = [key for key in _FIRST_METRICS if key in kept]
    order = usual + sorted(set(kept) - set(usual))
    arrays = {key: np.array(kept[key], dtype=np.float64) for key in order}
    return {key: (pairs[:, 0], pairs[:, 1]) for key, pairs in arrays.items()}


def _training_finding(series: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    if "loss" not in series:
        return "What the trainer logged"
    loss = series["loss"][1]
    return f"The logged loss went from {figures(loss[0])} to {figures(loss[-1])}"
