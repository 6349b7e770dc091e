"""extend, SFT on both answers before DPO (Section 4.3, Figure 5, Table 1).

Claims compare at equal updates and, because extend moves at another speed, at a matched
DPO margin. The figures show both stages, and Table 1: the share of held-out questions
that are answered right.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.diagnose.paths import GREEDY
from learndyn.diagnose.squeeze_index import squeeze_index
from learndyn.diagnose.two_runs.compare import By, Difference, compare
from learndyn.paper.claims import Absent, Measured, Statement
from learndyn.paper.figures import LinePanel, small_multiples
from learndyn.paper.finetuning.dpo import ROLES, compared
from learndyn.paper.finetuning.lines import ends, in_words, line, lines, sentence
from learndyn.paper.finetuning.recorded import (
    GRADED,
    Recorded,
    difference,
    probed_split,
)
from learndyn.paper.finetuning.sft import of_seeds
from learndyn.paper.finetuning.statements import (
    Measure,
    above,
    along_chosen,
    below,
    measured,
    rises,
    run_of,
    values,
)
from learndyn.show.chart import INK, LINE, MUTED, Chart, Style, points, style_of


FIGURE = "Section 4.3, Figure 5"
TABLE = "Section 4.3, Table 1"

MARGIN = 0.05
"""Share of prompts by which extend may at most be better where it is "no better"."""


def rejected_higher_after_sft(one: Recorded) -> Measured:
    """log pi(rejected) after extend's SFT minus that after plain SFT."""
    extended, plain = (values(one, r, "rejected") for r in ("extend-sft", "sft"))
    between = difference(extended[-1], plain[-1])
    return measured(one, between, above(between))


def argmax_rises_less(one: Recorded) -> Measured:
    """Change of the argmax along chosen in DPO, extend minus plain."""
    extended, plain = (values(one, r, GREEDY) for r in ("extend-dpo", "dpo"))
    between = difference(extended[-1] - extended[0], plain[-1] - plain[0])
    return measured(one, between, below(between))


def squeezes_less(one: Recorded) -> Measured:
    """Squeeze index of DPO after extend minus that of plain DPO."""
    indices = []
    for role in ("extend-dpo", "dpo"):
        run = run_of(one, role)
        along_chosen(run)
        index = squeeze_index(run, probed_split(run))
        if index is None:
            raise Absent("a dpo run has no greedy path")
        indices.append(index.end)
    extended, plain = indices
    if not (math.isfinite(extended.mean) and math.isfinite(plain.mean)):
        raise Absent("a dpo run has no greedy path")
    return Measured(one.seed, extended.mean - plain.mean, extended.high < plain.low)


def chosen_higher(by: By) -> Measure:
    """Change of chosen, extend minus plain DPO, at a matched point."""

    def measure(one: Recorded) -> Measured:
        chosen = _compared(one, by).get("chosen")
        if chosen is None:
            raise Absent("the dpo runs have no chosen probes")
        return measured(one, chosen.difference, above(chosen.difference))

    return measure


def others_fall_less(one: Recorded) -> Measured:
    """Change of all other kinds, extend minus plain, mean over kinds."""
    paths = []
    kinds = set(run_of(one, "dpo").kinds) & set(run_of(one, "extend-dpo").kinds)
    others = sorted(kinds - {"chosen", "rejected"})
    if not others:
        raise Absent("the dpo runs probe only chosen and rejected")
    for role in ("extend-dpo", "dpo"):
        moved = [values(one, role, k) for k in others]
        paths.append(np.mean([path[-1] - path[0] for path in moved], axis=0))
    between = difference(*paths)
    return measured(one, between, above(between))


def answers_better(one: Recorded) -> Measured:
    """Share of held-out prompts answered right after DPO, extend minus plain."""
    between = _right(one, "extend-dpo", "dpo")
    return measured(one, between, above(between))


def starts_no_better(one: Recorded) -> Measured:
    """The same after SFT, before any DPO. An interval that merely holds zero says
    little: the upper limit decides."""
    between = _right(one, "extend-sft", "sft")
    if all(one.right["sft"]):
        raise Absent("plain SFT answers all right already: nothing could be better")
    return measured(one, between, below(between, MARGIN))


def _right(one: Recorded, stage: str, other: str) -> Interval:
    if stage not in one.right or other not in one.right:
        raise Absent("answers are graded only in the embedded world")
    return difference(*(np.array(one.right[s], dtype=float) for s in (stage, other)))


def _compared(one: Recorded, by: By) -> dict[str, Difference]:
    plain, extended = run_of(one, "dpo"), run_of(one, "extend-dpo")
    comparison = compare(plain, extended, by)
    if comparison.at is None:
        raise Absent(f"the runs cannot be matched by {by}: {comparison.reason}")
    return comparison.kinds


EXTEND_STATEMENTS = (
    Statement(
        "extend-sft-rejected-rises",
        FIGURE,
        "SFT on both answers makes rejected more likely.",
        "change of log π(rejected) over extend's SFT > 0, 95 % interval above 0",
        rises("extend-sft", "rejected"),
        "extend_sft",
    ),
    Statement(
        "extend-sft-rejected-higher",
        FIGURE,
        "DPO then starts from more likely rejected answers.",
        "log π(rejected) after SFT, extend minus plain, 95 % interval above 0",
        rejected_higher_after_sft,
        "extend_sft",
    ),
    Statement(
        "extend-argmax-rises-less",
        FIGURE,
        "After extend the favourites rise less during DPO.",
        "change of the argmax along chosen, extend minus plain, at equal updates, "
        "95 % interval below 0",
        argmax_rises_less,
        "extend_dpo",
    ),
    Statement(
        "extend-squeezes-less",
        FIGURE,
        "Extend weakens the squeezing effect.",
        "squeeze index, extend minus plain < 0, the two 95 % intervals apart",
        squeezes_less,
        "extend_dpo",
        unit="share",
    ),
    Statement(
        "extend-others-fall-less",
        FIGURE,
        "After extend the other answers fall less.",
        "change of all kinds but chosen and rejected, mean over kinds, extend minus "
        "plain, at equal updates, 95 % interval above 0",
        others_fall_less,
        "extend_dpo",
    ),
    Statement(
        "extend-chosen-higher",
        FIGURE,
        "After extend chosen keeps more of its probability.",
        "change of chosen, extend minus plain, at equal updates, 95 % interval above 0",
        chosen_higher("updates"),
        "extend_dpo",
    ),
    Statement(
        "extend-chosen-higher-at-margin",
        FIGURE,
        "The same holds where both have moved equally far.",
        "the same at a matched DPO margin, 95 % interval above 0",
        chosen_higher("margin"),
        "extend_matched",
        note="The paper compares at equal updates; this takes speed out of it.",
    ),
    Statement(
        "extend-answers-better",
        TABLE,
        "DPO after extend gives better answers than DPO alone.",
        "share of held-out prompts answered right (greedy, strict), extend minus "
        "plain, 95 % interval above 0",
        answers_better,
        "table_1",
        unit="share",
        note="The paper asks ChatGPT and Claude which answer is better; here code "
        "checks whether it is right.",
    ),
    Statement(
        "extend-starts-no-better",
        TABLE,
        "Before DPO extend is no better than plain SFT.",
        f"the same after SFT: 95 % interval below +{MARGIN:g}",
        starts_no_better,
        "table_1",
        unit="share",
    ),
)

_DASHED = (5.0, 2.5)


def extend_sft(seeds: Sequence[Recorded], width: int) -> Chart:
    """Levels of chosen and rejected during the two ways of SFT."""
    panels = []
    for kind in ("chosen", "rejected"):
        base = style_of(kind)
        plain = Style(base.line, base.text, _DASHED, 1.6, base.band)
        solid = Style(base.line, base.text, (), 2.2, base.band)
        options: Any = {"clock": "share", "level": True, "skip": 1}
        curves = lines(
            line(seeds, "sft", kind, name="plain", style=plain, **options),
            line(seeds, "extend-sft", kind, name="extend", style=solid, **options),
        )
        if curves:
            panels.append(LinePanel(kind, curves, "% of the updates", signed=False))
    rejected = [
        in_words(name, ends(seeds, role, "rejected"))
        for name, role in (("extend", "extend-sft"), ("plain SFT", "sft"))
    ]
    title = f"Rejected during SFT: {sentence(*rejected)} nats"
    unit = f"log π, nats per response, without its jump at the start{of_seeds(seeds)}"
    return small_multiples(width, title, unit, panels)


def extend_dpo(seeds: Sequence[Recorded], width: int) -> Chart:
    """DPO after extend against plain DPO, at equal updates."""
    changes = [
        in_words(name, ends(seeds, role, kind))
        for kind, role, name in (
            ("chosen", "extend-dpo", "chosen"),
            ("chosen", "dpo", "plain"),
            (GREEDY, "extend-dpo", "the favourites"),
            (GREEDY, "dpo", "plain"),
        )
    ]
    pairs = [sentence(changes[0], changes[1]), sentence(changes[2], changes[3])]
    title = f"DPO after extend: {'; '.join(p for p in pairs if p)} nats"
    return compared(seeds, ("dpo", "extend-dpo"), title, width)


def extend_matched(seeds: Sequence[Recorded], width: int) -> Chart:
    """Chosen and the favourites at equal margin, and at equal gap."""
    panels = []
    for clock, level in (("margin", False), ("gap", True)):
        for kind in ("chosen", GREEDY):
            curves = []
            for role in ("dpo", "extend-dpo"):
                name, style = ROLES[role]
                curves.append(
                    line(
                        seeds,
                        role,
                        kind,
                        name="plain" if role == "dpo" else name,
                        style=style,
                        clock=clock,
                        level=level,
                    )
                )
            if lines(*curves):
                what = "log π" if level else "change"
                heading = f"{kind}: {what} by {clock}"
                panel = LinePanel(
                    heading, lines(*curves), f"{clock}, nats", 1, not level
                )
                panels.append(panel)
    title = "Extend against plain DPO where both have moved equally far"
    unit = (
        "nats per response; margin: change of log π(chosen) − log π(rejected), gap: "
        f"that difference itself{of_seeds(seeds)}"
    )
    return small_multiples(width, title, unit, panels)


_STAGES = {
    "sft": "SFT on chosen",
    "dpo": "SFT, then DPO",
    "extend-sft": "extend: SFT on both",
    "extend-dpo": "extend, then DPO",
}
_COLOUR = {"sft": "other", "dpo": "rejected", "extend-sft": "other"}


def _exam(seeds: Sequence[Recorded], width: int) -> Chart:
    """Share answered right after each stage, with its interval, for every seed."""
    stages = [s for s in GRADED if any(s in one.right for one in seeds)]
    row = 22 * len(seeds) + 26
    means = {s: _mean(seeds, s) for s in stages}
    chart = Chart(width, len(stages) * row + 50, _title(means), _unit(seeds, stages))
    left = 150 if chart.narrow else 210
    bottom = chart.top + 10 + len(stages) * row
    axes = chart.axes(left, chart.top + 10, width - 60, bottom)
    axes.grid(axis="x", color="#E3E4E0", linewidth=0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.02)  # a dot at 100 % is a whole dot
    axes.set_ylim(len(stages) * row, 0)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    for index, stage in enumerate(stages):
        colour = LINE[_COLOUR.get(stage, "chosen")]
        name = _STAGES.get(stage, stage)
        y = chart.top + 10 + index * row + row / 2
        size = 11.5 if chart.narrow else 13
        chart.write(0, y + 4, name, size=size, bold=True)
        chart.write(width, y + 4, f"{means[stage]:.0%}", size=13, align="right")
        for place, one in enumerate(seeds):
            if stage not in one.right:
                continue
            share = _share(one.right[stage])
            at = index * row + 24 + 22 * place
            axes.plot([share.low, share.high], [at, at], color=colour, linewidth=1.6)
            axes.plot([share.mean], [at], "o", color=colour, markersize=5)
            axes.text(
                0.01,
                at,
                f"seed {one.seed}",
                fontsize=points(10),
                color=MUTED,
                verticalalignment="center",
            )
    axes.axvline(1, color=INK, linewidth=0.5)
    return chart


def _share(right: Sequence[bool]) -> Interval:
    return paired_bootstrap(np.array(right, dtype=np.float64)).at()


def _mean(seeds: Sequence[Recorded], stage: str) -> float:
    shares = [np.mean(one.right[stage]) for one in seeds if stage in one.right]
    return float(np.mean(shares))


def _title(means: dict[str, float]) -> str:
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
