"""report.html: one page that says what a run did, opened from disk, loading nothing."""

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.diagnose.changes import Per, kind_table
from learndyn.diagnose.numbers import nats, rounded_by
from learndyn.diagnose.paths import GREEDY
from learndyn.diagnose.words import outside_panel, what_happened
from learndyn.errors import BadInput
from learndyn.record.atomic import write_whole
from learndyn.record.trajectory import Trajectory
from learndyn.show.canvas import NARROW, WIDE, Sheet, save
from learndyn.show.comparison import comparisons
from learndyn.show.figures import curves_figure
from learndyn.show.forces import forces_section
from learndyn.show.page import (
    coloured,
    cut,
    document,
    figure,
    interval_cell,
    page_in,
    plain_table,
    sentences,
    table,
    text as escaped,
)
from learndyn.show.training import training_figure


EXAMPLE_PROMPTS = 2


def write_report(
    runs: Sequence[str | Path],
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
    if not runs:
        raise BadInput("no run to report on. Name one or more run directories.")
    if len(runs) > 1 and out is None:
        raise BadInput(
            f"{len(runs)} runs were given, so the report belongs to none of them. "
            "Name a folder for it with --out."
        )
    loaded = [Trajectory.load(run) for run in runs]
    folder = Path(runs[0]) if out is None else Path(out)
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
    heading = f"{_name(trajectory)}: what happened" if prefix else "What happened"
    splits = sorted(set(trajectory.split_of.tolist()))
    looks, full = len(trajectory.steps), trajectory.covered.all(axis=1).sum()
    prompts = len(set(trajectory.prompt_of.tolist()))
    facts = " · ".join(
        [
            str(info.get("model", "unknown model")),
            str(info.get("method", "unknown method")),
            f"{looks} observation{'s' if looks > 1 else ''}"
            + (f", {full} of all prompts" if full < looks else ""),
            f"{prompts} prompts × {len(trajectory.kinds)} kinds",
            *([f"splits pooled: {', '.join(splits)}"] if len(splits) > 1 else []),
        ]
    )
    parts = [
        f"<section><h2>{escaped(heading)}</h2>",
        f"<p class='muted'>{escaped(facts)}</p>",
        *(f"<p class='note'>{escaped(note)}</p>" for note in _notes(trajectory)),
        sentences(what_happened(trajectory)),
        *(f"<p>{escaped(sentence)}</p>" for sentence in _panel(trajectory)),
        _curves(trajectory, folder / f"{prefix}curves"),
        "<h3>First, peak and last of every kind</h3>",
        _kinds(trajectory),
        _drawn(
            curves_figure, trajectory, folder / f"{prefix}curves_per_token", "token"
        ),
        forces_section(
            trajectory.run, trajectory.probes, folder / f"{prefix}forces", text=text
        ),
        _drawn(training_figure, trajectory, folder / f"{prefix}training"),
        _examples(trajectory) if text else "",
        "<h3>Data</h3>",
        plain_table(_data(trajectory)),
        "<h3>Settings and provenance</h3>",
        _provenance(info),
        "</section>",
    ]
    return "".join(parts)


def _notes(trajectory: Trajectory) -> list[str]:
    notes = []
    if trajectory.approximate is not None:
        notes.append(
            f"Approximate: this run was scored {rounded_by(trajectory.approximate)}, "
            "so every number on this page carries its rounding."
        )
    if trajectory.run.info.get("finished") is False:
        notes.append(
            f"This run is not finished: its last observation is at update "
            f"{trajectory.steps[-1]}."
        )
    if not trajectory.train_log:
        notes.append("The trainer logged nothing (no train.jsonl).")
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
    if len(trajectory.steps) == 1:
        return ""
    return _drawn(curves_figure, trajectory, stem, per)


def _drawn(make: Any, trajectory: Trajectory, stem: Path, *arguments: Any) -> str:
    """Draw one figure for both widths and write its files."""
    wide: Sheet | None = make(trajectory, *arguments, width=WIDE)
    if wide is None:
        return ""
    save(wide, stem)
    narrow = make(trajectory, *arguments, width=NARROW)
    return figure(wide, narrow, f"{wide.title}. The numbers are in the table of kinds.")


def _kinds(trajectory: Trajectory) -> str:
    rows = [
        [
            coloured(row.kind),
            interval_cell(row.change),
            nats(row.first),
            f"{nats(row.peak)} at {row.peak_step}",
            nats(row.last),
            f"{100 * row.fell:.0f} %" if row.prompts else "unknown",
            str(row.prompts),
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
    for _, (prompt_id, group) in zip(range(EXAMPLE_PROMPTS), groups, strict=False):
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


def _data(trajectory: Trajectory) -> list[tuple[str, str]]:
    probes = trajectory.probes
    total = len(probes)
    rows = [
        ("probes", f"{total}"),
        ("splits", _counts(trajectory.split_of.tolist())),
        (
            "observations",
            f"{len(trajectory.steps)}, updates {trajectory.steps[0]} to "
            f"{trajectory.steps[-1]}",
        ),
        *_full_observations(trajectory),
        (
            "tokens per response",
            f"median {np.median(trajectory.n_tokens):.0f}, "
            f"{trajectory.n_tokens.min()} to {trajectory.n_tokens.max()}",
        ),
    ]
    counted = {
        "truncated": ("truncated", True, "part of prompt or response was cut"),
        "has_eos": ("without end token", False, "cut, or the template has none"),
        "response": ("empty responses", "", "only the end token is scored"),
    }
    for column, (name, value, meaning) in counted.items():
        if column in probes.column_names:
            found = sum(item == value for item in probes[column].to_pylist())
            rows.append((name, f"{found} of {total}" + (f" ({meaning})" * bool(found))))
    lost = int(np.sum(trajectory.lost))
    if lost:
        rows.append(("not finite", f"{lost} log-probabilities, left out of all means"))
    return rows


def _full_observations(trajectory: Trajectory) -> list[tuple[str, str]]:
    if trajectory.panel is None:
        return []
    full = trajectory.steps[trajectory.covered.all(axis=1)]
    listed = cut(", ".join(map(str, full)), 200)
    return [("full observations", f"{len(full)}, at updates {listed}")]


def _counts(values: list[str]) -> str:
    return ", ".join(f"{values.count(v)} {v}" for v in sorted(set(values)))


def _provenance(info: dict[str, Any]) -> str:
    """run.json: single values in one table, each group of values behind its name."""
    groups = {k: v for k, v in info.items() if isinstance(v, dict) and v}
    single = [(key, _value(info[key])) for key in info if key not in groups]
    parts = [plain_table(single)]
    for name, group in groups.items():
        rows = [(str(key), _value(value)) for key, value in group.items()]
        parts.append(
            f"<details><summary>{escaped(name)}</summary>{plain_table(rows)}</details>"
        )
    return "".join(parts)


def _value(value: Any) -> str:
    return cut(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def _name(trajectory: Trajectory) -> str:
    name = trajectory.run.path.resolve().name
    return re.sub(r"\s+", " ", name) or "run"
