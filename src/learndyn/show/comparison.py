"""The part of the page that sets runs side by side."""

from pathlib import Path

from learndyn.diagnose.comparable import is_sft
from learndyn.diagnose.compare import By, Comparison, Difference
from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import GREEDY
from learndyn.diagnose.two_runs import compare_all, compare_in_words, names
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory
from learndyn.show.canvas import NARROW, save
from learndyn.show.figures import comparison_figure
from learndyn.show.page import (
    coloured,
    figure,
    interval_cell,
    sentences,
    table,
    text as escaped,
)


OFF_TARGET = "off-target, per token"

TITLES: dict[By, str] = {
    "updates": "At equal updates",
    "margin": "At matched DPO margin",
    "gap": "At matched absolute gap",
}


def comparisons(loaded: list[Trajectory], folder: Path) -> str:
    """The first run that pushes answers down against each other one, if comparable."""
    candidates = [t for t in loaded if not is_sft(t.run.info) and len(t.steps) > 1]
    if len(candidates) < 2:
        return ""
    baseline, parts = candidates[0], []
    for index, other in enumerate(candidates[1:], start=2):
        one, two = names(baseline, other)
        parts.append(f"<section><h2>{escaped(two)} against {escaped(one)}</h2>")
        try:
            found = compare_all(baseline, other)
        except BadInput as error:
            parts.append(f"<p class='note'>{escaped(error)}</p></section>")
            continue
        parts.append(sentences(compare_in_words(baseline, other, found)))
        wide = comparison_figure(baseline, other)
        save(wide, folder / f"comparison_{index}")
        narrow = comparison_figure(baseline, other, width=NARROW)
        parts.append(figure(wide, narrow, f"{two} against {one}"))
        parts += [_comparison(result, one, two) for result in found.values()]
        parts.append("</section>")
    return "".join(parts)


def _comparison(result: Comparison, one: str, two: str) -> str:
    title = TITLES[result.by]
    if result.at is None:
        return f"<h3>{title}</h3><p class='muted'>{escaped(result.reason)}</p>"
    what = "logp" if result.by == "gap" else "change"
    found: dict[str, Difference | None] = dict(result.kinds)
    found |= {GREEDY: result.greedy, OFF_TARGET: result.off_target}
    rows = [
        [
            coloured(name),
            interval_cell(item.difference, 2 if name == OFF_TARGET else 1),
            nats(item.a, 2 if name == OFF_TARGET else 1),
            nats(item.b, 2 if name == OFF_TARGET else 1),
        ]
        for name, item in found.items()
        if item is not None
    ]
    head = ("kind", "difference [95 %]", f"{what}, {one}", f"{what}, {two}")
    return f"<h3>{title}: {escaped(_where(result, one, two))}</h3>" + table(head, rows)


def _where(result: Comparison, one: str, two: str) -> str:
    fewer = f"; {result.prompts} of {result.of} prompts"
    fewer = fewer if result.prompts < result.of else ""
    if result.by == "updates":
        return f"{result.at:g}{fewer}"
    lost = f"; {100 * result.lost_share:.1f} % of resamples lost"
    return (
        f"{nats(result.at or 0.0)} nats, at update {result.step_a:.0f} of {one} and "
        f"{result.step_b:.0f} of {two}{fewer}{lost if result.lost_share else ''}"
    )
