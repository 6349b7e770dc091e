"""Why one update moved what it moved: explain.html, and its section of the report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding
from learndyn.diagnose.findings.signs.recorded_updates import RecordedUpdates
from learndyn.diagnose.updates.update import Explanation, explain
from learndyn.diagnose.updates.words import force_sentences
from learndyn.errors import BadInput
from learndyn.record.files import to_plain, visible, write_whole
from learndyn.record.forces import Forces
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import NARROW, WIDE, save
from learndyn.show.explain.figures import layers_figure, parts_figure
from learndyn.show.explain.strips import token_strips
from learndyn.show.explain.tables import (
    facts,
    kind_rows,
    kinds_table,
    steps_table,
    top_tokens,
)
from learndyn.show.page import (
    document,
    figure,
    page_in,
    plain_table,
    sentences,
    text as escaped,
)


@dataclass(frozen=True, eq=False)
class Explained:
    """One update, explained: the page, and what it says."""

    page: Path
    run: Path
    explanation: Explanation
    sentences: list[str]
    """The page's sentences."""
    problem: str | None
    """Why the training tokens could not be read, if they could not."""
    text: bool
    """Whether it may hold texts of training data."""

    def to_text(self) -> str:
        """For a terminal: sentences, the table of kinds, and where the page is."""
        rows = kind_rows(self.explanation)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        problem = [] if self.problem is None else [self.problem]
        whole = [*self.sentences, *problem, "", *lines, "", f"page: {self.page}"]
        return visible("\n".join(whole))

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON, all numbers in nats; what is not finite is null."""
        return to_plain(
            {
                "run": str(self.run),
                "page": str(self.page),
                "sentences": self.sentences,
                "problem": self.problem,
                **self.explanation.to_dict(text=self.text),
            }
        )


def explain_run(
    run: RunDirectory | str | Path,
    step: int | None = None,
    out: str | Path | None = None,
    *,
    text: bool = True,
    overwrite: bool = False,
) -> Explained:
    """Write `explain.html` and its figures about one recorded update of a run.

    The last recorded one, unless `step` names another; into the run's own directory,
    unless `out` names a folder. With `text` false nothing of prompts, answers or
    training data is on the page.

    Raises:
        BadInput: if the run or the record cannot be read, there is none (of this step),
            or a page that is not ours is there and `overwrite` is false.
    """
    opened = RunDirectory.of(run)
    steps = opened.forces_steps
    if not steps:
        raise BadInput(
            f"{opened.path} has no recorded forces (no complete file in "
            f"{opened.path / 'forces'}). Record them while it trains, with `learndyn "
            "run --forces K` or LearningDynamicsCallback(forces=K): K counts "
            "observations after update 0. Or explain a hypothetical update with "
            "--model."
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise BadInput(
            f"{opened.path} has no forces of the update to step {step}. Recorded: "
            f"{', '.join(map(str, steps[-20:]))}{' (the last 20)' * (len(steps) > 20)}."
        )
    folder = opened.path if out is None else Path(out)
    page = page_in(folder, "explain.html", overwrite=overwrite)
    probes = opened.read_probes()
    forces, problem = _read(opened, step)
    explanation = explain(forces, probes)
    in_words = force_sentences(explanation, text=text)
    if "hypothetical" not in explanation.info:
        in_words += _of_the_whole(opened)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = [
        "<section>",
        sentences(in_words),
        *_note(problem),
        _figures(explanation, folder / "figures" / f"explain-{step:08d}"),
        "<h3>Every kind in numbers</h3>",
        kinds_table(explanation),
        token_strips(forces, explanation, probes) if text else "",
        top_tokens(explanation, text),
        steps_table(opened, probes, steps) if len(steps) > 1 else "",
        "<h3>How it was measured</h3>",
        plain_table(facts(explanation)),
        "</section>",
    ]
    whole = _document(opened, explanation, "".join(parts))
    write_whole(page, lambda path: path.write_text(whole, encoding="utf-8"))
    return Explained(page, opened.path, explanation, in_words, problem, text)


def forces_section(
    run: RunDirectory,
    probes: pa.Table,
    findings: Sequence[Finding],
    stem: Path,
    *,
    text: bool,
) -> str:
    """The part of report.html about the recorded updates; "" where none is: what all
    add up to, as the findings say it, then the last one. Its figure is written beside
    `stem`."""
    steps = run.forces_steps
    if not steps:
        return ""
    title = _why(findings) + f"<h3>Update {steps[-1]}: which forces moved what</h3>"
    try:
        forces, problem = _read(run, steps[-1])
        explanation = explain(forces, probes)
    except BadInput as error:
        return title + "".join(_note(str(error)))
    return "".join(
        [
            title,
            sentences(force_sentences(explanation, text=text)),
            *_note(problem),
            _figures(explanation, stem, layers=False),
            kinds_table(explanation),
            steps_table(run, probes, steps) if len(steps) > 1 else "",
        ]
    )


def _of_the_whole(run: RunDirectory) -> list[str]:
    """What the recorded updates make of the whole change, where that can be told."""
    try:
        finding = RecordedUpdates.detect(Facts(Trajectory.of(run)))
    except BadInput:  # the update is explained all the same
        return []
    return [] if finding is None else [finding.says]


def _why(findings: Sequence[Finding]) -> str:
    """What the recorded updates make of the whole change; "" where not known."""
    says = [f.says for f in findings if isinstance(f, RecordedUpdates)]
    if not says:
        return ""
    return (
        f"<h3>Why: the recorded updates over the run</h3>{sentences(says)}"
        "<p class='muted'>Between recorded updates their effect on chosen is "
        "interpolated; the interval is over prompts and over which updates were "
        "recorded. One update alone says nothing about the run.</p>"
    )


def _read(run: RunDirectory, step: int) -> tuple[Forces, str | None]:
    """The record, without its training tokens if only those cannot be read."""
    try:
        return run.read_forces(step), None
    except BadInput as error:
        forces = run.read_forces(step, influence=False)
        return forces, f"The training tokens are left out: {error}"


def _note(problem: str | None) -> list[str]:
    return [] if problem is None else [f"<p class='note'>{escaped(problem)}</p>"]


def _figures(explanation: Explanation, stem: Path, *, layers: bool = True) -> str:
    makers = {"parts": parts_figure} | ({"layers": layers_figure} if layers else {})
    drawn = []
    for name, make in makers.items():
        wide, narrow = make(explanation, width=WIDE), make(explanation, width=NARROW)
        if wide is None or narrow is None:
            continue
        save(wide, stem.with_name(f"{stem.name}_{name}"))
        alt = f"{wide.title}. The numbers are in the table of kinds."
        drawn.append(figure(wide, narrow, alt))
    return "".join(drawn)


def _document(run: RunDirectory, explanation: Explanation, body: str) -> str:
    name = re.sub(r"\s+", " ", run.path.resolve().name) or "run"
    above = " · ".join(
        [
            "learndyn",
            name,
            run.info.model or "unknown model",
            run.info.method or "unknown method",
        ]
    )
    below = (
        "Actual: log π of the watched answers after this update minus before it. "
        "Predicted: its derivative along the weights' real displacement, which the "
        "parts add up to. pull: training tokens the loss raises. push: those it "
        "lowers. history: what the optimizer remembers of earlier gradients. decay: "
        "weight decay. other: gradient that does not come through log-probabilities."
    )
    title = f"Update to step {explanation.step}: what moved, and which forces moved it"
    return document(title, f"<div>{escaped(above)}</div>", body, below)
