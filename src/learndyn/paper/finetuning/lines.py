"""Lines of the paper's figures from the runs of some seeds, and words for titles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import mean_path
from learndyn.paper.figures import Line, LinePanel, Run
from learndyn.paper.finetuning.recorded import Recorded, path_of
from learndyn.show.chart import Style, style_of


Clock = str
""" "updates", "share" (of the run), "margin" or "gap" (nats)."""


def line(
    seeds: Sequence[Recorded],
    role: str,
    kind: str,
    *,
    name: str | None = None,
    style: Style | None = None,
    split: str = "train",
    clock: Clock = "updates",
    level: bool = False,
    skip: int = 0,
) -> Line | None:
    """Mean change of a kind over the runs of a role; None where no seed has it.

    With `level` log-probabilities themselves instead of changes, in nats. The first
    `skip` observations are left out.
    """
    runs = []
    for one in seeds:
        run = _run(one, role, kind, split, clock, level)
        if run is not None:
            runs.append((run[0][skip:], run[1][skip:]))
    if not runs:
        return None
    label = kind if name is None else name
    return Line(label, style or style_of(kind), tuple(runs))


def panel(
    seeds: Sequence[Recorded], title: str, curves: Sequence[Line], **options: Any
) -> LinePanel:
    """A panel over updates; of imported runs, over evaluations."""
    units = {run.unit for s in seeds for run in s.runs.values()}
    clock = "evaluations" if "evaluation" in units else "updates"
    return LinePanel(title, tuple(curves), **{"clock": clock, **options})


def lines(*some: Line | None) -> tuple[Line, ...]:
    """Those that there are."""
    return tuple(one for one in some if one is not None)


def kinds_lines(
    seeds: Sequence[Recorded], role: str, kinds: Sequence[str], **options: Any
) -> tuple[Line, ...]:
    """One line per kind."""
    return lines(*(line(seeds, role, kind, **options) for kind in kinds))


def mean_line(
    seeds: Sequence[Recorded], role: str, kinds: Sequence[str], name: str, style: Style
) -> Line | None:
    """Mean over kinds of their mean changes."""
    runs: list[Run] = []
    for one in seeds:
        all_runs = [_run(one, role, kind, "train", "updates", False) for kind in kinds]
        known = [run for run in all_runs if run is not None]
        if known:
            runs.append((known[0][0], np.mean([y for _, y in known], axis=0)))
    return Line(name, style, tuple(runs)) if runs else None


def ends(
    seeds: Sequence[Recorded], role: str, kind: str, split: str = "train"
) -> float | None:
    """Mean over seeds of the change of a kind over the whole run, in nats."""
    path = line(seeds, role, kind, split=split)
    return None if path is None else float(np.mean([y[-1] for _, y in path.runs]))


def in_words(name: str, value: float | None, unit: str = "") -> str:
    """ "chosen +9.1", or nothing where it is unknown."""
    return "" if value is None else f"{name} {nats(value)}{unit}"


def sentence(*parts: str) -> str:
    """Parts that are not empty, with commas."""
    return ", ".join(part for part in parts if part)


def _run(
    one: Recorded, role: str, kind: str, split: str, clock: Clock, level: bool
) -> Run | None:
    run = one.runs.get(role)
    if run is None or len(run.steps) < 2:
        return None
    try:
        path = path_of(run, kind, split)
    except KeyError:
        return None
    y = mean_path(path if level else path - path[0])
    x = _clocks(split)[clock](one, role, len(y))
    if x is None or not np.isfinite(y).all():
        return None
    return x, y


def _clocks(split: str) -> dict[str, Callable[[Recorded, str, int], np.ndarray | None]]:
    def updates(one: Recorded, role: str, points: int) -> np.ndarray | None:
        steps = one.runs[role].steps.astype(np.float64)
        return steps if len(steps) == points else None

    def share(one: Recorded, role: str, points: int) -> np.ndarray | None:
        steps = updates(one, role, points)
        return None if steps is None else 100 * steps / steps[-1]

    def gap(one: Recorded, role: str, points: int) -> np.ndarray | None:
        run = one.runs[role]
        try:
            both = [path_of(run, kind, split) for kind in ("chosen", "rejected")]
        except KeyError:
            return None
        return mean_path(both[0]) - mean_path(both[1])

    def margin(one: Recorded, role: str, points: int) -> np.ndarray | None:
        gaps = gap(one, role, points)
        return None if gaps is None else gaps - gaps[0]

    return {"updates": updates, "share": share, "gap": gap, "margin": margin}
