"""`learndyn compare`: runs against a baseline, in sentences, numbers and a page.

The report of several runs has the same comparison as its first section.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learndyn.diagnose.findings.cautions import missing_in_words
from learndyn.diagnose.numbers import nats
from learndyn.diagnose.paths import GREEDY, Paths, mean_path
from learndyn.diagnose.two_runs.compare import By, Comparison, Difference, together
from learndyn.diagnose.two_runs.words import compare_all, compare_in_words, names
from learndyn.errors import BadInput
from learndyn.probes.notebook import sentences_html
from learndyn.record.files import write_whole
from learndyn.record.trajectory import AnyRun, Trajectory
from learndyn.show.chart import NARROW, save
from learndyn.show.page import (
    coloured,
    document,
    figure,
    interval_cell,
    page_in,
    sentences,
    table,
    text as escaped,
)
from learndyn.show.report.curves import comparison_figure


_OFF_TARGET = "off-target, per token"


def _title(by: By, baseline: Trajectory) -> str:
    """What is said of a way to match two runs."""
    return {
        "updates": f"At equal {baseline.unit}s",
        "margin": "At matched DPO margin",
        "gap": "At matched absolute gap",
    }[by]


def comparisons(loaded: list[Trajectory], folder: Path) -> str:
    """The first run that pushes answers down against each other one, if comparable."""
    candidates = [t for t in loaded if not t.run.info.sft and len(t.steps) > 1]
    if len(candidates) < 2:
        return ""
    baseline, parts = candidates[0], []
    for index, other in enumerate(candidates[1:], start=2):
        try:
            results = compare_all(baseline, other)
        except BadInput as error:
            one, two = names(baseline, other)
            parts.append(
                f"<section><h2>{escaped(two)} against {escaped(one)}</h2>"
                f"<p class='note'>{escaped(error)}</p></section>"
            )
            continue
        in_words = compare_in_words(baseline, other, results)
        stem = folder / f"comparison_{index}"
        parts.append(_compared_section(baseline, other, results, in_words, stem))
    return "".join(parts)


def _compared_section(
    baseline: Trajectory,
    other: Trajectory,
    results: dict[By, Comparison],
    in_words: list[str],
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
            sentences(in_words),
            figure(wide, narrow, f"{two} against {one}"),
            *(_comparison(result, baseline, other) for result in results.values()),
            "</section>",
        ]
    )


def _comparison(result: Comparison, baseline: Trajectory, other: Trajectory) -> str:
    heading = _title(result.by, baseline)
    if result.at is None:
        return (
            f"<h3>{escaped(heading)}</h3><p class='muted'>{escaped(result.reason)}</p>"
        )
    one, two = names(baseline, other)
    what = "logp" if result.by == "gap" else "change"
    items: dict[str, Difference | None] = dict(result.kinds)
    items |= {GREEDY: result.greedy, _OFF_TARGET: result.off_target}
    rows = [
        [
            coloured(name),
            interval_cell(item.difference, 2 if name == _OFF_TARGET else 1),
            nats(item.a, 2 if name == _OFF_TARGET else 1),
            nats(item.b, 2 if name == _OFF_TARGET else 1),
        ]
        for name, item in items.items()
        if item is not None
    ]
    head = ("kind", "difference [95 %]", f"{what}, {one}", f"{what}, {two}")
    heading += f": {_where(result, one, two, baseline.unit)}"
    why = f"<p class='muted'>{escaped(result.reason)}</p>" if result.reason else ""
    return f"<h3>{escaped(heading)}</h3>{why}{table(head, rows)}"


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


_PAGE = "compare.html"


@dataclass(frozen=True, eq=False)
class Compared:
    """One run against the baseline."""

    baseline: Trajectory
    run: Trajectory
    results: dict[By, Comparison]
    sentences: list[str]

    @property
    def names(self) -> tuple[str, str]:
        """Of the baseline and of the run."""
        return names(self.baseline, self.run)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "baseline": str(self.baseline.run.path),
            "run": str(self.run.run.path),
            "by": {
                by: {"title": _title(by, self.baseline), **_numbers(result)}
                for by, result in self.results.items()
            },
            "curves": _curves(self.baseline, self.run),
            "sentences": self.sentences,
        }

    def to_text(self) -> str:
        """For people."""
        one, two = self.names
        return "\n".join([f"{two} against {one}", *(f"  {s}" for s in self.sentences)])


@dataclass(frozen=True, eq=False)
class ComparedRuns:
    """Every run against the first, and the page if one was written."""

    pairs: tuple[Compared, ...]
    page: Path | None = None

    def __repr__(self) -> str:
        one = self.pairs[0].names[0]
        others = ", ".join(pair.names[1] for pair in self.pairs)
        return f"ComparedRuns({others} against {one})"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "".join(
            sentences_html(f"{pair.names[1]} against {pair.names[0]}", pair.sentences)
            for pair in self.pairs
        )

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "comparisons": [pair.to_dict() for pair in self.pairs],
            "page": None if self.page is None else str(self.page),
        }

    def to_text(self) -> str:
        """For people."""
        parts = [pair.to_text() for pair in self.pairs]
        if self.page is not None:
            parts.append(f"page: {self.page}")
        return "\n\n".join(parts)


def compare(
    *runs: AnyRun, out: str | Path | None = None, overwrite: bool = False
) -> ComparedRuns:
    """Compare runs with the first of them; with `out`, write `compare.html` there.

        print(learndyn.compare("runs/dpo", "runs/extend/dpo"))

    At equal updates; and, where both runs push answers down, at matched margin and
    matched absolute gap (see `learndyn.diagnose.two_runs.compare`). All is compared
    before anything is written. A page of ours is replaced, one of another program only
    with `overwrite`.

    Raises:
        BadInput: if fewer than two runs are given or one twice, if a run cannot be
            read or has one observation, if two watched other answers or scored them as
            other tokens, or if a page that is not ours is there and `overwrite` is
            false.
    """
    if len(runs) < 2:
        raise BadInput(
            f"{len(runs)} run{'s' * (len(runs) != 1)} given: a comparison needs the "
            "baseline and at least one other run directory."
        )
    loaded = [Trajectory.of(run) for run in runs]
    paths = [trajectory.run.path for trajectory in loaded]
    twice = [p for i, p in enumerate(paths) if p.resolve() in _resolved(paths[:i])]
    if twice:
        raise BadInput(f"{twice[0]} is given twice: name each run once.")
    for trajectory in loaded:
        if len(trajectory.steps) < 2:
            raise BadInput(
                f"{trajectory.run.path} has one observation, at {trajectory.unit} "
                f"{trajectory.steps[0]}: a comparison of changes needs two."
            )
    pairs = tuple(_compared(loaded[0], other) for other in loaded[1:])
    if out is None:
        return ComparedRuns(pairs)
    return ComparedRuns(pairs, _write(pairs, Path(out), overwrite))


def _resolved(paths: Sequence[Path]) -> set[Path]:
    return {path.resolve() for path in paths}


def _compared(baseline: Trajectory, other: Trajectory) -> Compared:
    results = compare_all(baseline, other)
    in_words = compare_in_words(baseline, other, results)
    for name, trajectory in zip(names(baseline, other), (baseline, other), strict=True):
        in_words += [f"{name}: {left_out}" for left_out in trajectory.unreadable]
        gaps = missing_in_words(trajectory)
        in_words += [] if gaps is None else [f"{name}: {gaps}"]
    return Compared(baseline, other, results, in_words)


def _write(pairs: Sequence[Compared], folder: Path, overwrite: bool) -> Path:
    page = page_in(folder, _PAGE, overwrite=overwrite)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    parts = [
        _compared_section(
            p.baseline, p.run, p.results, p.sentences, figures / f"comparison_{index}"
        )
        for index, p in enumerate(pairs, start=2)
    ]
    one = pairs[0].names[0]
    *some, last = [one, *(pair.names[1] for pair in pairs)]
    whole = document(
        f"{', '.join(some)} and {last}",
        f"<div>learndyn · {len(pairs) + 1} runs compared</div>",
        "".join(parts),
        "Nats are natural-log units of log π(response | prompt), summed over the "
        "response's tokens, its end included. Intervals are 95 % paired bootstrap over "
        "prompts, the matched point looked up anew in each resample: they hold for "
        "other prompts, not for other training seeds.",
    )
    write_whole(page, lambda path: path.write_text(whole, encoding="utf-8"))
    return page


def _numbers(result: Comparison) -> dict[str, Any]:
    return {
        "at": result.at,
        "step_a": result.step_a,
        "step_b": result.step_b,
        "kinds": {kind: _difference(item) for kind, item in result.kinds.items()},
        "greedy": _difference(result.greedy),
        "off_target": _difference(result.off_target),
        "prompts": result.prompts,
        "of": result.of,
        "lost_share": result.lost_share,
        "reason": result.reason,
    }


def _difference(item: Difference | None) -> dict[str, Any] | None:
    if item is None:
        return None
    between = item.difference
    return {
        "a": item.a,
        "b": item.b,
        "difference": [between.mean, between.low, between.high],
    }


def _curves(a: Trajectory, b: Trajectory) -> dict[str, Any]:
    """Mean changes of both runs since their own starts, over one set of prompts."""
    sides = dict(zip(("a", "b"), together(Paths.of(a), Paths.of(b)), strict=True))
    return {name: _curve(paths) for name, paths in sides.items()}


def _curve(paths: Paths) -> dict[str, Any]:
    shown = {
        kind: mean_path(values - values[0]).tolist()
        for kind, values in paths.with_greedy().items()
        if kind in ("chosen", "rejected", GREEDY)
    }
    margin = None if paths.margin is None else mean_path(paths.margin).tolist()
    return {
        "steps": paths.steps.tolist(),
        "margin": margin,
        "change": shown,
        "prompts": len(paths.prompts),
    }
