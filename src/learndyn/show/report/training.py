"""The figure of the trainer's own numbers: loss, rewards, learning rate and others."""

import math
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import figures
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import INK, WIDE, Chart, Grid, Heading, points, shortened


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


def training_figure(trajectory: Trajectory, *, width: int = WIDE) -> Chart | None:
    """Small multiples of what the trainer logged; None if it logged nothing."""
    series = _metric_series(trajectory.train_log)
    if not series:
        return None
    shown = list(series)[:_MOST_METRICS]
    columns = 2 if width < 600 else 3
    room = int((width / columns - 30) / (7.3 if columns == 2 else 8.4))
    last = {key: figures(series[key][1][-1]) for key in shown}
    left_out = len(series) - len(shown)
    more = f"; {left_out} further keys not drawn" if left_out else ""
    grid = Grid(
        width,
        [Heading(shortened(k, room - len(v)), value=v) for k, v in last.items()],
        title=_training_finding(series),
        unit=f"As logged, by update{more}",
        columns=3,
        phone=2,
        tall=98,
        foot=38,
    )
    for index, key in enumerate(shown):
        axes = grid.axes(index)
        steps, values = series[key]
        if len(steps) == 1:
            axes.plot(steps, values, "o", color=INK, markersize=3)
        axes.plot(steps, values, color=INK, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: figures(v)))
        axes.tick_params(labelsize=points(10.5))
    return grid.chart


def _metric_series(
    log: list[dict[str, Any]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each numeric key, the usual ones first.

    Keys with a single value are left out if any key has more: they sum up the run.
    """
    points_of: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        step = row.get("step")
        if not isinstance(step, int | float):
            continue
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in ("step", "epoch") and number and math.isfinite(value):
                points_of.setdefault(key, []).append((step, value))
    longest = max((len(pairs) for pairs in points_of.values()), default=0)
    lasting = {k: v for k, v in points_of.items() if len(v) > 1 or longest == 1}
    usual = [key for key in _FIRST_METRICS if key in lasting]
    order = usual + sorted(set(lasting) - set(usual))
    arrays = {key: np.array(lasting[key], dtype=np.float64) for key in order}
    return {key: (pairs[:, 0], pairs[:, 1]) for key, pairs in arrays.items()}


def _training_finding(series: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    if "loss" not in series:
        return "What the trainer logged"
    loss = series["loss"][1]
    return f"The logged loss went from {figures(loss[0])} to {figures(loss[-1])}"
