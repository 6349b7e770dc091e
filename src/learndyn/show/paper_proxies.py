"""The paper's Figure 8: LBK and SignDelta of every kind, run by run.

Left the curves, thin as measured and thick smoothed over updates; right the sums over
the run with the range over seeds. As in the authors' notebook, see
`learndyn.diagnose.proxies`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import FuncFormatter, MaxNLocator

from learndyn.diagnose.proxies import notebook_lbk, notebook_sign_delta
from learndyn.lab.recorded import Recorded, probed_split
from learndyn.show.canvas import Pixels, Sheet, points
from learndyn.show.palette import INK, MUTED, style_of
from learndyn.show.panels import plain, signed


ROWS = {
    "learn-chosen": "SFT on chosen",
    "learn-chosen_semantic": "SFT on chosen_semantic",
    "learn-rejected": "SFT on rejected",
    "learn-rejected_semantic": "SFT on rejected_semantic",
    "learn-random_words": "SFT on random_words",
    "sft": "SFT on chosen",
    "dpo": "DPO",
}
"""The figure's rows, where there are such runs; "sft" where no kind has its own."""

KINDS = (
    *("chosen", "chosen_semantic", "rejected", "rejected_semantic"),
    *("irrelevant_train", "irrelevant_human", "random_words"),
)

SMOOTHING = 0.6
"""Weight of what was before in the moving average. The authors take 0.9 over 50
evaluations; with ten that would leave the start alone."""

Proxy = Callable[..., Float[np.ndarray, " change"]]


def proxies(seeds: Sequence[Recorded], width: int, *, signs: bool) -> Sheet:
    """Curves and sums of LBK, or with `signs` of SignDelta, for each run."""
    proxy: Proxy = notebook_sign_delta if signs else notebook_lbk
    roles = roles_of(seeds)
    name = "SignDelta" if signs else "LBK"
    narrow = width < 600
    tall = 118 if narrow else 138
    cell = tall + 58
    sheet = Sheet(
        width,
        30 + cell * len(roles),
        _told(seeds, roles, proxy, name),
        f"The notebook's {name} between observations, nats / √‖A‖; left: curves, thin "
        "raw, thick smoothed; right: sum over the run, whiskers: range over runs",
    )
    for index, role in enumerate(roles):
        top = sheet.top + 24 + index * cell
        found = {
            kind: [_values(one, role, kind, proxy) for one in seeds]
            for kind in KINDS
            if all(kind in one.runs[role].kinds for one in seeds)
        }
        sheet.write(0, top - 4, ROWS[role], size=13, bold=True)
        middle = width * (0.5 if narrow else 0.56)
        _curves(sheet, seeds[0], role, found, (44, top + 6, middle - 8, top + tall))
        _sums(sheet, found, (middle, top + 6, width, top + tall + 24), signs)
    return sheet


def roles_of(seeds: Sequence[Recorded]) -> list[str]:
    """Runs that every seed has, with two observations or more."""
    there = [
        role
        for role in ROWS
        if all(role in one.runs and len(one.runs[role].steps) > 1 for one in seeds)
    ]
    alone = any(role.startswith("learn-") for role in there)
    return [role for role in there if not (role == "sft" and alone)]


def _values(
    one: Recorded, role: str, kind: str, proxy: Proxy
) -> Float[np.ndarray, " change"]:
    run = one.runs[role]
    split = probed_split(run)
    assert one.vocabulary is not None
    return proxy(run, kind, one.vocabulary, split=split)


def smoothed(values: Float[np.ndarray, " change"]) -> Float[np.ndarray, " change"]:
    """Exponential moving average, from the first value on."""
    out = np.array(values, dtype=np.float64)
    for i in range(1, len(out)):
        out[i] = SMOOTHING * out[i - 1] + (1 - SMOOTHING) * out[i]
    return out


def _curves(
    sheet: Sheet,
    one: Recorded,
    role: str,
    found: dict[str, list[Float[np.ndarray, " change"]]],
    box: tuple[Pixels, Pixels, Pixels, Pixels],
) -> None:
    axes = sheet.axes(*box)
    steps = one.runs[role].steps[1:]
    for kind, runs in found.items():
        style = style_of(kind)
        shown = [run for run in runs if len(run) == len(steps)]
        raw = np.mean(shown, axis=0)
        axes.plot(steps, raw, color=style.line, linewidth=0.6, alpha=0.6)
        (line,) = axes.plot(
            steps, smoothed(raw), color=style.line, linewidth=points(style.width)
        )
        if style.dash:
            line.set_dashes(style.dash)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    axes.set_xlabel("updates", color=MUTED, fontsize=points(11))


def _sums(
    sheet: Sheet,
    found: dict[str, list[Float[np.ndarray, " change"]]],
    box: tuple[Pixels, Pixels, Pixels, Pixels],
    signs: bool,
) -> None:
    left, top, right, bottom = box
    names = 84 if sheet.narrow else 130
    axes = sheet.axes(left + names, top, right - (0 if sheet.narrow else 56), bottom)
    row = (bottom - top) / max(1, len(found))
    for index, (kind, runs) in enumerate(found.items()):
        totals = np.array([run.sum() for run in runs])
        style = style_of(kind)
        axes.barh(index, totals.mean(), color=style.line, height=0.62)
        axes.plot([totals.min(), totals.max()], [index, index], color=INK, linewidth=1)
        y = top + row * (index + 0.5) + 4
        size = 8.8 if sheet.narrow else 11.5
        sheet.write(left + names - 6, y, kind, size=size, align="right")
        if not sheet.narrow:
            text = (signed if signs else plain)(float(totals.mean()), 2)
            sheet.write(right, y, text, size=11.5, align="right")
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.axvline(0, color=MUTED, linewidth=1)


def _told(
    seeds: Sequence[Recorded], roles: Sequence[str], proxy: Proxy, name: str
) -> str:
    role = roles[0]
    kinds = [k for k in KINDS if all(k in one.runs[role].kinds for one in seeds)]
    total = {
        kind: np.mean([_values(one, role, kind, proxy).sum() for one in seeds])
        for kind in kinds
    }
    best = max(total, key=lambda kind: float(total[kind]))
    least = min(total, key=lambda kind: float(total[kind]))
    return f"{ROWS[role]}: {name} is largest for {best}, smallest for {least}"
