r"""Learning one kind of answer: LBK, SignDelta and the heat map of influence.

All are computed from finished runs as the authors' notebook does. Their figures (Fig. 8
of Ren & Sutherland 2025) come from `cal_ratio` of the notebook `iclr_rebuttal`, not
from what the paper defines (App. C.2, Eq. 23-31), for which see
`learndyn.forces.kernel.lbk`. With l_i(t) the summed log-probability of the response to
prompt i of one kind at observation t:

    notebook LBK        sqrt( sum_i (l_i(t+1) - l_i(t))^2 )  /  (a(t+1) g(t+1))
    notebook SignDelta        mean_i (l_i(t+1) - l_i(t))     /  (a(t+1) g(t+1))

    a  =  sqrt( mean_i ||A_i||_F )      g  =  mean_i p_e(i)

Differences to the paper: only the label's log-probability counts, not all V; changes
are over all updates between two observations, and over prompts; their norm is not
squared; of the norm of A, which is a root already, a root is taken again, of its mean
over prompts; p_e = ||pi - e_y|| is that of the probes, of one kind whatever was trained
on, and stands for the push of the trained response; A and p_e are those after the
change; the learning rate is in neither. The order of kinds is much the same, the values
are not. One thing differs from the notebook, too: it has (mean ||pi||)^2 over tokens
where an observation keeps the mean of ||pi||^2, which is never smaller.

Curves stand left, thin as measured and thick smoothed over updates; right of them the
sums over the run, with the range over seeds. In the heat map columns are what was
trained on and rows what was observed. A cell is the notebook's SignDelta, summed over
the run and averaged over seeds. Each column is divided by its own largest minus
smallest value, as the paper does: colours compare rows, not columns.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.numbers import nats
from learndyn.errors import BadInput
from learndyn.paper.figures import plain
from learndyn.paper.finetuning.recorded import (
    Recorded,
    change,
    learnt_by,
    path_of,
    probed_split,
)
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import (
    INK,
    MUTED,
    PAPER,
    UP_AND_DOWN,
    Chart,
    Pixels,
    contrast,
    draw_line,
    points,
    style_of,
)


def notebook_lbk(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    *,
    error_kind: str = "chosen",
    split: str | None = None,
) -> Float[np.ndarray, " change"]:
    """The notebook's LBK of one kind, one number from each observation to the next.

    `vocabulary` is V, the number of logits (with padding, as the model has it).
    `error_kind` is the kind whose p_e divides; the notebook always takes "chosen". Over
    prompts that were scored at every observation. No unit: nats / sqrt(||A||_F).

    Raises:
        BadInput: if there are fewer than two observations, no prompt was scored at all
            of them, a kind is not there, or `vocabulary` is below 2.
    """
    change = np.diff(_scored(trajectory, "logp", kind, split), axis=0)
    divisor = _divisor(trajectory, kind, vocabulary, error_kind, split)
    return np.linalg.norm(change, axis=1) / divisor


def notebook_sign_delta(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    *,
    error_kind: str = "chosen",
    split: str | None = None,
) -> Float[np.ndarray, " change"]:
    """The notebook's SignDelta of one kind, from each observation to the next.

    Unlike the paper's it is a mean over prompts of label log-probabilities, and divided
    as `notebook_lbk` is, whose arguments it takes.

    Raises:
        BadInput: as `notebook_lbk`.
    """
    change = np.diff(_scored(trajectory, "logp", kind, split), axis=0)
    divisor = _divisor(trajectory, kind, vocabulary, error_kind, split)
    return change.mean(1) / divisor


def _divisor(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    error_kind: str,
    split: str | None,
) -> Float[np.ndarray, " change"]:
    """Root of the mean norm of A, times the mean p_e: both after each change."""
    if vocabulary < 2:
        raise BadInput(
            f"vocabulary is {vocabulary}: give the number of logits of the model, its "
            "config's vocab_size."
        )
    p_norm2 = _scored(trajectory, "p_norm2", kind, split)
    a_norm = np.sqrt(vocabulary - 2 + vocabulary * p_norm2)
    p_e = _scored(trajectory, "p_gap", error_kind, split)
    return (np.sqrt(a_norm.mean(1)) * p_e.mean(1))[1:]


def _scored(
    trajectory: Trajectory, column: str, kind: str, split: str | None
) -> Float[np.ndarray, "step prompt"]:
    """One column, of prompts that were scored at every observation.

    Raises:
        BadInput: if there is only one observation, or no such prompt.
    """
    if len(trajectory.steps) < 2:
        raise BadInput(
            f"{trajectory.run.path} has one observation, at {trajectory.unit} "
            f"{trajectory.steps[0]}: a change needs two."
        )
    rows: Int[np.ndarray, " prompt"] = trajectory.rows(kind, split)
    always = trajectory.covered[:, rows].all(axis=0)
    if not always.any():
        raise BadInput(
            f"no prompt of kind {kind} in {trajectory.run.path} was scored at every "
            f"observation: the panel has none of its {len(rows)}. Score the run again "
            "without a panel."
        )
    return trajectory.columns[column][:, rows[always]]


_ROWS = {
    "learn-chosen": "SFT on chosen",
    "learn-chosen_semantic": "SFT on chosen_semantic",
    "learn-rejected": "SFT on rejected",
    "learn-rejected_semantic": "SFT on rejected_semantic",
    "learn-random_words": "SFT on random_words",
    "sft": "SFT on chosen",
    "dpo": "DPO",
}
"""The figure's rows, where there are such runs; "sft" where no kind has its own."""

_KINDS = (
    *("chosen", "chosen_semantic", "rejected", "rejected_semantic"),
    *("irrelevant_train", "irrelevant_human", "random_words"),
)

_SMOOTHING = 0.6
"""Weight of what was before in the moving average. The authors take 0.9 over 50
evaluations; with ten that would leave the start alone."""

_Proxy = Callable[..., Float[np.ndarray, " change"]]


def _proxies(seeds: Sequence[Recorded], width: int, *, signs: bool) -> Chart:
    """Curves and sums of LBK, or with `signs` of SignDelta, for each run."""
    proxy: _Proxy = notebook_sign_delta if signs else notebook_lbk
    roles = _roles_of(seeds)
    name = "SignDelta" if signs else "LBK"
    narrow = width < 600
    tall = 118 if narrow else 138
    cell = tall + 58
    chart = Chart(
        width,
        30 + cell * len(roles),
        _title(seeds, roles, proxy, name),
        f"The notebook's {name} between observations, nats / √‖A‖; left: curves, thin "
        "raw, thick smoothed; right: sum over the run, whiskers: range over runs",
    )
    for index, role in enumerate(roles):
        top = chart.top + 24 + index * cell
        by_kind = {
            kind: [_values(one, role, kind, proxy) for one in seeds]
            for kind in _KINDS
            if all(kind in one.runs[role].kinds for one in seeds)
        }
        chart.write(0, top - 4, _ROWS[role], size=13, bold=True)
        middle = width * (0.5 if narrow else 0.56)
        _curves(chart, seeds[0], role, by_kind, (44, top + 6, middle - 8, top + tall))
        _sums(chart, by_kind, (middle, top + 6, width, top + tall + 24), signs)
    return chart


def _roles_of(seeds: Sequence[Recorded]) -> list[str]:
    """Runs that every seed has, with two observations or more."""
    there = [
        role
        for role in _ROWS
        if all(role in one.runs and len(one.runs[role].steps) > 1 for one in seeds)
    ]
    alone = any(role.startswith("learn-") for role in there)
    return [role for role in there if not (role == "sft" and alone)]


def _values(
    one: Recorded, role: str, kind: str, proxy: _Proxy
) -> Float[np.ndarray, " change"]:
    run = one.runs[role]
    split = probed_split(run)
    assert one.vocabulary is not None
    return proxy(run, kind, one.vocabulary, split=split)


def _smoothed(values: Float[np.ndarray, " change"]) -> Float[np.ndarray, " change"]:
    """Exponential moving average, from the first value on."""
    out = np.array(values, dtype=np.float64)
    for i in range(1, len(out)):
        out[i] = _SMOOTHING * out[i - 1] + (1 - _SMOOTHING) * out[i]
    return out


def _curves(
    chart: Chart,
    one: Recorded,
    role: str,
    by_kind: dict[str, list[Float[np.ndarray, " change"]]],
    box: tuple[Pixels, Pixels, Pixels, Pixels],
) -> None:
    axes = chart.axes(*box)
    steps = one.runs[role].steps[1:]
    for kind, runs in by_kind.items():
        style = style_of(kind)
        shown = [run for run in runs if len(run) == len(steps)]
        raw = np.mean(shown, axis=0)
        axes.plot(steps, raw, color=style.line, linewidth=0.6, alpha=0.6)
        draw_line(axes, steps, _smoothed(raw), style)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    axes.set_xlabel("updates", color=MUTED, fontsize=points(11))


def _sums(
    chart: Chart,
    by_kind: dict[str, list[Float[np.ndarray, " change"]]],
    box: tuple[Pixels, Pixels, Pixels, Pixels],
    signs: bool,
) -> None:
    left, top, right, bottom = box
    names = 84 if chart.narrow else 130
    axes = chart.axes(left + names, top, right - (0 if chart.narrow else 56), bottom)
    row = (bottom - top) / max(1, len(by_kind))
    for index, (kind, runs) in enumerate(by_kind.items()):
        totals = np.array([run.sum() for run in runs])
        style = style_of(kind)
        axes.barh(index, totals.mean(), color=style.line, height=0.62)
        axes.plot([totals.min(), totals.max()], [index, index], color=INK, linewidth=1)
        y = top + row * (index + 0.5) + 4
        size = 8.8 if chart.narrow else 11.5
        chart.write(left + names - 6, y, kind, size=size, align="right")
        if not chart.narrow:
            text = (nats if signs else plain)(float(totals.mean()), 2)
            chart.write(right, y, text, size=11.5, align="right")
    axes.set_ylim(len(by_kind) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.axvline(0, color=MUTED, linewidth=1)


def _title(
    seeds: Sequence[Recorded], roles: Sequence[str], proxy: _Proxy, name: str
) -> str:
    role = roles[0]
    kinds = [k for k in _KINDS if all(k in one.runs[role].kinds for one in seeds)]
    total = {
        kind: np.mean([_values(one, role, kind, proxy).sum() for one in seeds])
        for kind in kinds
    }
    best = max(total, key=lambda kind: float(total[kind]))
    least = min(total, key=lambda kind: float(total[kind]))
    return f"{_ROWS[role]}: {name} is largest for {best}, smallest for {least}"


_Table = tuple[list[str], list[str], Float[np.ndarray, "row column"]]
"""Rows, columns and values."""


def _influence(seeds: Sequence[Recorded], *, normalised: bool) -> _Table:
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


def _heat_map(seeds: Sequence[Recorded], width: int, *, normalised: bool) -> Chart:
    """One cell per observed and trained kind, its value printed in it."""
    rows, columns, values = _influence(seeds, normalised=normalised)
    narrow = width < 600
    left, head = (118 if narrow else 190), (120 if narrow else 46)
    cell = 25 if narrow else 36
    unit = (
        "SignDelta summed over the run, each column over its own range"
        if normalised
        else "Change of log π over the whole run, nats per response"
    )
    unit += "; columns: trained on, rows: observed"
    chart = Chart(
        width, head + cell * len(rows) + 16, _map_title(rows, columns, values), unit
    )
    top = chart.top + head
    axes = chart.axes(left, top, width, top + cell * len(rows))
    limit = float(np.abs(values).max()) or 1.0
    axes.pcolormesh(
        np.arange(len(columns) + 1),
        np.arange(len(rows) + 1),
        values,
        cmap=UP_AND_DOWN,
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
        chart.write(left - 8, y, kind, size=10 if narrow else 12.5, align="right")
        for j, column in enumerate(columns):
            own = column == f"learn-{kind}"
            chart.write(
                left + wide * (j + 0.5),
                y,
                plain(values[i, j], digits),
                size=size,
                bold=own,
                align="center",
                colour=_ink(values[i, j] / limit),
            )
    _heads(chart, columns, (left, top, wide))
    return chart


def _heads(
    chart: Chart, columns: Sequence[str], where: tuple[Pixels, Pixels, Pixels]
) -> None:
    left, top, wide = where
    for j, column in enumerate(columns):
        name = column.removeprefix("learn-") if column != "dpo" else "DPO"
        x = left + wide * (j + 0.5)
        if chart.narrow:
            chart.figure.text(
                x / chart.width,
                1 - (top - 6) / chart.height,
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
            chart.write(x, top - 8 - 16 * place, part, size=12, align="center")


def _ink(share: float) -> str:
    """Ink or paper, whichever is easier to read on a cell's colour."""
    colour = UP_AND_DOWN((share + 1) / 2)
    shown = "#" + "".join(f"{round(255 * part):02X}" for part in colour[:3])
    return INK if contrast(INK, shown) >= contrast(PAPER, shown) else PAPER


def _map_title(
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
