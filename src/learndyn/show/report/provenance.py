"""The end of a run's page: what was watched, with which settings, by which versions."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from learndyn.record.trajectory import Trajectory
from learndyn.show.page import cut, plain_table, text as escaped


def data_of(trajectory: Trajectory) -> list[tuple[str, str]]:
    """What was watched and when, and what of it is not as it should be: name, value."""
    probes = trajectory.probes
    total = len(probes)
    rows = [
        ("probes", f"{total}"),
        ("splits", _counts(trajectory.split_of.tolist())),
        (
            "observations",
            f"{len(trajectory.steps)}, {trajectory.unit}s {trajectory.steps[0]} to "
            f"{trajectory.steps[-1]}",
        ),
        *_full_observations(trajectory),
        *_tokens(trajectory),
    ]
    counted = {
        "truncated": ("truncated", True, "part of prompt or response was cut"),
        "has_eos": ("without end token", False, "cut, or the template has none"),
        "response": ("empty responses", "", "only the end token is scored"),
    }
    for column, (name, value, meaning) in counted.items():
        if column in probes.column_names:
            count = sum(item == value for item in probes[column].to_pylist())
            rows.append((name, f"{count} of {total}" + (f" ({meaning})" * bool(count))))
    lost = int(np.sum(trajectory.lost))
    if lost:
        rows.append(("not finite", f"{lost} log-probabilities, left out of all means"))
    return rows


def _tokens(trajectory: Trajectory) -> list[tuple[str, str]]:
    """How long responses are; nothing where it is not known, as of an imported run."""
    counts = trajectory.n_tokens[trajectory.n_tokens > 0]
    if not len(counts):
        return []
    lengths = f"median {np.median(counts):.0f}, {counts.min()} to {counts.max()}"
    return [("tokens per response", lengths)]


def _full_observations(trajectory: Trajectory) -> list[tuple[str, str]]:
    if trajectory.panel is None:
        return []
    full = trajectory.steps[trajectory.covered.all(axis=1)]
    listed = cut(", ".join(map(str, full)), 200)
    return [("full observations", f"{len(full)}, at {trajectory.unit}s {listed}")]


def _counts(values: list[str]) -> str:
    return ", ".join(f"{values.count(v)} {v}" for v in sorted(set(values)))


def provenance(info: Mapping[str, Any]) -> str:
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
