"""report.html: one page that says what a run did, opened from disk, loading nothing.

`summaries` has the numbers behind the page, for `learndyn report --json`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.diagnose.changes import Curve, Per, change_curves, kind_table
from learndyn.diagnose.findings.cautions import missing_in_words
from learndyn.diagnose.numbers import nats, rounded_by
from learndyn.diagnose.paths import GREEDY, outside_panel
from learndyn.diagnose.updates.update import explain
from learndyn.diagnose.verdict import diagnose
from learndyn.errors import BadInput
from learndyn.record.files import write_whole
from learndyn.record.trajectory import AnyRun, Trajectory
from learndyn.show.chart import NARROW, WIDE, Chart, save
from learndyn.show.compare import comparisons
from learndyn.show.explain.explain import forces_section
from learndyn.show.page import (
    coloured,
    cut,
    document,
    figure,
    interval_cell,
    page_in,
    plain_table,
    section,
    table,
    text as escaped,
)
from learndyn.show.report.curves import curves_figure
from learndyn.show.report.prompts import prompts_section
from learndyn.show.report.provenance import data_of, provenance
from learndyn.show.report.training import training_figure
from learndyn.show.report.verdict import verdict_section


_EXAMPLE_PROMPTS = 2


def write_report(
    runs: AnyRun | Sequence[AnyRun],
    out: str | Path | None = None,
    *,
    text: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write `report.html` and `figures/` about one run or several; returns the page.

    One run: into its own directory, unless `out` names another folder. Several: into
    the folder `out`. An unfinished run gives what there is, with a note. With `text`
    false no prompt and no response is on the page. A page of ours is replaced, one of
    another program only with `overwrite`.

    Raises:
        BadInput: if a run cannot be read, several are given without `out`, or a page
            that is not ours is there and `overwrite` is false.
    """
    runs = [runs] if isinstance(runs, AnyRun) else runs
    if not runs:
        raise BadInput("no run to report on. Name one or more run directories.")
    if len(runs) > 1 and out is None:
        raise BadInput(
            f"{len(runs)} runs were given, so the report belongs to none of them. "
            "Name a folder for it with --out."
        )
    loaded = [Trajectory.of(run) for run in runs]
    folder = loaded[0].run.path if out is None else Path(out)
    page = page_in(folder, "report.html", overwrite=overwrite)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = []
    for index, trajectory in enumerate(loaded):
        prefix = "" if len(loaded) == 1 else f"run-{index + 1}_"
        parts.append(_run(trajectory, folder / "figures", prefix, text))
    if len(loaded) > 1:
        parts.insert(0, comparisons(loaded, folder / "figures"))
    whole = _page(loaded, "".join(parts))
    write_whole(page, lambda path: path.write_text(whole, encoding="utf-8"))
    return page


def _page(loaded: list[Trajectory], body: str) -> str:
    found = [_name(trajectory) for trajectory in loaded]
    above = f"<div>learndyn · {len(loaded)} run{'s' if len(loaded) > 1 else ''}</div>"
    below = (
        "Nats are natural-log units of log π(response | prompt), summed over the "
        "response's tokens, its end included. Intervals are 95 % paired bootstrap "
        "over prompts: they hold for other prompts, not for other training seeds."
    )
    title = " and ".join([", ".join(found[:-1]), found[-1]] if found[1:] else found)
    return document(title, above, body, below)


def _run(trajectory: Trajectory, folder: Path, prefix: str, text: bool) -> str:
    info = trajectory.run.info
    splits = sorted(set(trajectory.split_of.tolist()))
    looks, full = len(trajectory.steps), trajectory.covered.all(axis=1).sum()
    facts = " · ".join(
        [
            info.model or "unknown model",
            info.method or "unknown method",
            f"{looks} observation{'s' if looks > 1 else ''}"
            + (f", {full} of all prompts" if full < looks else ""),
            f"{_prompts(trajectory)} × {len(trajectory.kinds)} kinds",
            *([f"splits pooled: {', '.join(splits)}"] if len(splits) > 1 else []),
        ]
    )
    anchor = prefix.replace("_", "-")
    stem, run = folder / f"{prefix}curves", trajectory.run
    about = f"<p class='muted'>{escaped(facts)}</p>" + "".join(
        f"<p class='note'>{escaped(note)}</p>" for note in _notes(trajectory)
    )
    panel = "".join(f"<p>{escaped(said)}</p>" for said in _panel(trajectory))
    name = _name(trajectory) if prefix else ""
    forces, diagnosis = folder / f"{prefix}forces", diagnose(trajectory)
    parts = {
        "verdict": verdict_section(diagnosis, about, anchor, name),
        "curves": panel + _curves(trajectory, stem),
        "kinds": "<h3>First, peak and last of every kind</h3>"
        + _kinds(trajectory)
        + _curves(trajectory, folder / f"{prefix}curves_per_token", "token"),
        "prompts": prompts_section(trajectory, text=text),
        "forces": forces_section(
            run, trajectory.probes, diagnosis.findings, forces, text=text
        ),
        "training": _drawn(training_figure, trajectory, folder / f"{prefix}training")
        or "<p class='note'>The trainer logged nothing (no train.jsonl).</p>",
        "data": (_examples(trajectory) if text else "")
        + f"<h3>Data</h3>{plain_table(data_of(trajectory))}"
        + f"<h3>Settings and provenance</h3>{provenance(info)}",
    }
    inner = [section(f"{anchor}{key}", part) for key, part in parts.items()]
    return f"<section>{''.join(inner)}</section>"


def _prompts(trajectory: Trajectory) -> str:
    """How many prompts, or that means over them are all that is known."""
    if trajectory.means_only == set(trajectory.kinds):
        return "means over prompts alone"
    return f"{len(set(trajectory.prompt_of.tolist()))} prompts"


def _notes(trajectory: Trajectory) -> list[str]:
    gaps = missing_in_words(trajectory)
    notes = [*trajectory.unreadable, *([] if gaps is None else [gaps])]
    if trajectory.approximate is not None:
        notes.append(
            f"Approximate: this run was scored {rounded_by(trajectory.approximate)}, "
            "so every number on this page carries its rounding."
        )
    if trajectory.run.info.finished is False:
        notes.append(
            f"This run is not finished: its last observation is at "
            f"{trajectory.unit} {trajectory.steps[-1]}."
        )
    return notes


def _panel(trajectory: Trajectory) -> list[str]:
    """What was scored when, where that was not everything every time."""
    panel = trajectory.panel
    if panel is None:
        return []
    ends = f"all {panel.of}" if trajectory.covered[-1].all() else "those too"
    others = " or ".join(outside_panel(trajectory))
    where = " where they have that kind" if others else ""
    said = (
        f"Between full observations {panel.size} of {panel.of} prompts were scored, "
        f"the same ones throughout (a fixed panel, seed {panel.seed}). Curves and "
        f"peaks are of those {panel.size}{where}; first, last and change are of {ends}."
    )
    but = (
        f"None of those {panel.size} has {others}: there curve and peak are of all "
        "prompts that do, at the full observations alone."
    )
    return [said, but] if others else [said]


def _curves(trajectory: Trajectory, stem: Path, per: Per = "response") -> str:
    counted = (trajectory.n_tokens > 0).any()
    if len(trajectory.steps) == 1 or (per == "token" and not counted):
        return ""
    curves = change_curves(trajectory, per=per)  # once for both widths
    return _drawn(partial(curves_figure, per=per, curves=curves), trajectory, stem)


def _drawn(make: Any, trajectory: Trajectory, stem: Path) -> str:
    """Draw one figure for both widths and write its files."""
    wide: Chart | None = make(trajectory, width=WIDE)
    if wide is None:
        return ""
    save(wide, stem)
    narrow = make(trajectory, width=NARROW)
    return figure(wide, narrow, f"{wide.title}. The numbers are in the table of kinds.")


def _kinds(trajectory: Trajectory) -> str:
    means = trajectory.means_only
    means |= {GREEDY} if "chosen" in means else set()
    rows = [
        [
            coloured(row.kind),
            interval_cell(row.change),
            nats(row.first),
            f"{nats(row.peak)} at {row.peak_step}",
            nats(row.last),
            f"{100 * row.fell:.0f} %"
            if row.prompts and row.kind not in means
            else "unknown",
            "mean" if row.kind in means else str(row.prompts),
        ]
        for row in kind_table(trajectory)
    ]
    head = ("kind", "change [95 %]", "first", "peak", "last", "fell", "prompts")
    peak = ""
    if trajectory.panel is not None:
        peak = (
            " peak: looked for on the curves above, so among the prompts that they are "
            "of; where its observation is not full, it is first plus the panel's mean "
            "change."
        )
    return table(head, rows) + (
        "<p class='muted'>Mean log π per response, in nats. "
        f"{escaped(GREEDY)}: sum of the largest log-probability along chosen. fell: "
        f"share of prompts that ended lower than they began.{peak}</p>"
    )


def _examples(trajectory: Trajectory) -> str:
    """The first prompts with all their answers and how each answer's logp moved."""
    columns = ["prompt_id", "kind", "prompt", "response"]
    rows = trajectory.probes.select(columns).to_pylist()
    logp = trajectory.columns["logp"]
    order = {kind: place for place, kind in enumerate(trajectory.kinds)}
    ended = trajectory.covered[-1]  # prompts whose last value is known come first
    indexed = sorted(
        enumerate(rows), key=lambda item: (not ended[item[0]], item[1]["prompt_id"])
    )
    parts = []
    groups = groupby(indexed, key=lambda item: item[1]["prompt_id"])
    for _, (prompt_id, group) in zip(range(_EXAMPLE_PROMPTS), groups, strict=False):
        members = sorted(group, key=lambda item: order[item[1]["kind"]])
        answers = "".join(
            f"<dt>{coloured(row['kind']).html} · "
            f"{nats(float(logp[0, index]))} → {nats(float(logp[-1, index]))} nats</dt>"
            f"<dd>{escaped(cut(row['response']) or '(empty: only the end is scored)')}"
            "</dd>"
            for index, row in members
        )
        parts.append(
            f"<details><summary>Prompt {escaped(prompt_id)}</summary>"
            f"<dl><dt>prompt</dt><dd>{escaped(cut(members[0][1]['prompt']))}</dd>"
            f"{answers}</dl></details>"
        )
    return "<h3>Examples</h3>" + "".join(parts)


def _name(trajectory: Trajectory) -> str:
    name = trajectory.run.path.resolve().name
    return re.sub(r"\s+", " ", name) or "run"


def summaries(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Of each run: what was scored, the table of kinds, and every curve with its 95 %
    interval and standard error, in nats per response; of each recorded update its
    forces, but none of its training tokens. A record that cannot be read has its error.

    Raises:
        BadInput: if a run cannot be read.
    """
    return [_summary(Trajectory.load(run)) for run in runs]


def _summary(trajectory: Trajectory) -> dict[str, Any]:
    panel = trajectory.panel
    return {
        "run": str(trajectory.run.path),
        "steps": trajectory.steps.tolist(),
        "full_steps": trajectory.steps[trajectory.covered.all(axis=1)].tolist(),
        "approximate": trajectory.approximate,
        "panel": None if panel is None else panel.to_info(),
        "kinds": [asdict(row) for row in kind_table(trajectory)],
        "curves": {k: _plain(curve) for k, curve in change_curves(trajectory).items()},
        "forces": [_forces(trajectory, step) for step in trajectory.run.forces_steps],
    }


def _forces(trajectory: Trajectory, step: int) -> dict[str, Any]:
    try:
        forces = trajectory.run.read_forces(step, influence=False)
        return explain(forces, trajectory.probes).to_dict(text=False)
    except BadInput as error:
        return {"step": step, "error": str(error)}


def _plain(curve: Curve) -> dict[str, Any]:
    values = {k: v for k, v in vars(curve).items() if isinstance(v, np.ndarray)}
    return {name: value.tolist() for name, value in values.items()}
