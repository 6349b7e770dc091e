"""The part of the page that sets runs side by side."""

from pathlib import Path

from learndyn.diagnose.comparable import is_sft
from learndyn.diagnose.compare import By, Comparison, Difference
from learndyn.diagnose.finding import clock
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


def title(by: By, baseline: Trajectory) -> str:
    """What is said of a way to match two runs."""
    return {
        "updates": f"At equal {clock(baseline)}s",
        "margin": "At matched DPO margin",
        "gap": "At matched absolute gap",
    }[by]


def comparisons(loaded: list[Trajectory], folder: Path) -> str:
    """The first run that pushes answers down against each other one, if comparable."""
    candidates = [t for t in loaded if not is_sft(t.run.info) and len(t.steps) > 1]
    if len(candidates) < 2:
        return ""
    baseline, parts = candidates[0], []
    for index, other in enumerate(candidates[1:], start=2):
        try:
            found = compare_all(baseline, other)
        except BadInput as error:
            one, two = names(baseline, other)
            parts.append(
                f"<section><h2>{escaped(two)} against {escaped(one)}</h2>"
                f"<p class='note'>{escaped(error)}</p></section>"
            )
            continue
        said = compare_in_words(baseline, other, found)
        stem = folder / f"comparison_{index}"
        parts.append(compared_section(baseline, other, found, said, stem))
    return "".join(parts)


def compared_section(
    baseline: Trajectory,
    other: Trajectory,
    found: dict[By, Comparison],
    said: list[str],
    stem: Path,
) -> str:
    """One run against another: sentences, curves and a table for each way of matching.

    Writes the figure's files.
    """
    one, two = names(baseline, other)
    wide = comparison_figure(baseline, other)
    save(wide, stem)
    narrow = comparison_figure(baseline, other, width=NARROW)
    return "".join(
        [
            f"<section><h2>{escaped(two)} against {escaped(one)}</h2>",
            sentences(said),
            figure(wide, narrow, f"{two} against {one}"),
            *(_comparison(result, baseline, other) for result in found.values()),
            "</section>",
        ]
    )


def _comparison(result: Comparison, baseline: Trajectory, other: Trajectory) -> str:
    heading = title(result.by, baseline)
    if result.at is None:
        return (
            f"<h3>{escaped(heading)}</h3><p class='muted'>{escaped(result.reason)}</p>"
        )
    one, two = names(baseline, other)
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
    heading += f": {_where(result, one, two, clock(baseline))}"
    return f"<h3>{escaped(heading)}</h3>" + table(head, rows)


def _where(result: Comparison, one: str, two: str, unit: str) -> str:
    fewer = f"; {result.prompts} of {result.of} prompts"
    fewer = fewer if result.prompts < result.of else ""
    if result.by == "updates":
        return f"{result.at:g}{fewer}"
    lost = f"; {100 * result.lost_share:.1f} % of resamples lost"
    return (
        f"{nats(result.at or 0.0)} nats, at {unit} {result.step_a:.0f} of {one} and "
        f"{result.step_b:.0f} of {two}{fewer}{lost if result.lost_share else ''}"
    )
