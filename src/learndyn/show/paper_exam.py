"""Table 1 as a figure: which share of held-out questions is answered right."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter

from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.lab.recorded import GRADED, Recorded
from learndyn.show.canvas import Sheet, points
from learndyn.show.palette import INK, LINE, MUTED


STAGES = {
    "sft": "SFT on chosen",
    "dpo": "SFT, then DPO",
    "extend-sft": "extend: SFT on both",
    "extend-dpo": "extend, then DPO",
}
COLOUR = {"sft": "other", "dpo": "rejected", "extend-sft": "other"}


def exam(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Share answered right after each stage, with its interval, for every seed."""
    stages = [s for s in GRADED if any(s in one.right for one in seeds)]
    row = 22 * len(seeds) + 26
    means = {s: _mean(seeds, s) for s in stages}
    sheet = Sheet(width, len(stages) * row + 50, _told(means), _unit(seeds, stages))
    left = 150 if sheet.narrow else 210
    bottom = sheet.top + 10 + len(stages) * row
    axes = sheet.axes(left, sheet.top + 10, width - 60, bottom)
    axes.grid(axis="x", color="#E3E4E0", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.02)  # a dot at 100 % is a whole dot
    axes.set_ylim(len(stages) * row, 0)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    for index, stage in enumerate(stages):
        colour = LINE[COLOUR.get(stage, "chosen")]
        name = STAGES.get(stage, stage)
        y = sheet.top + 10 + index * row + row / 2
        size = 11.5 if sheet.narrow else 13
        sheet.write(0, y + 4, name, size=size, bold=True)
        sheet.write(width, y + 4, f"{means[stage]:.0%}", size=13, align="right")
        for place, one in enumerate(seeds):
            if stage not in one.right:
                continue
            found = _share(one.right[stage])
            at = index * row + 24 + 22 * place
            axes.plot([found.low, found.high], [at, at], color=colour, linewidth=1.6)
            axes.plot([found.mean], [at], "o", color=colour, markersize=5)
            axes.text(
                0.01,
                at,
                f"seed {one.seed}",
                fontsize=points(10),
                color=MUTED,
                verticalalignment="center",
            )
    axes.axvline(1, color=INK, linewidth=0.5)
    return sheet


def _share(right: Sequence[bool]) -> Interval:
    return paired_bootstrap(np.array(right, dtype=np.float64)).at()


def _mean(seeds: Sequence[Recorded], stage: str) -> float:
    shares = [np.mean(one.right[stage]) for one in seeds if stage in one.right]
    return float(np.mean(shares))


def _told(means: dict[str, float]) -> str:
    if not {"dpo", "extend-dpo"} <= set(means):
        return "Answers that are right"
    return (
        f"After DPO {means['dpo']:.0%} of the answers are right, with extend "
        f"{means['extend-dpo']:.0%}"
    )


def _unit(seeds: Sequence[Recorded], stages: Sequence[str]) -> str:
    asked = {len(one.right[s]) for one in seeds for s in stages if s in one.right}
    many = " or ".join(map(str, sorted(asked)))
    return f"Share of {many} held-out questions, greedy; bars: 95 % over questions"
