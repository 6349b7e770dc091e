"""Trajectories whose truth is known, made in memory: quick enough for many at once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


def planted(
    base: Trajectory,
    drift: Mapping[str, float],
    *,
    greedy: float = 0.0,
    noise: float = 0.3,
    spread: float = 0.0,
    shape: np.ndarray | None = None,
    seed: int = 0,
) -> Trajectory:
    """The trajectory `base` with other numbers of the same probes.

    Args:
        base: whose probes, steps and files are kept.
        drift: mean change of each kind over the run, nats; 0 where not given.
        greedy: mean change of the greedy path, nats; it starts at -30.
        noise: spread of the drift between prompts, as a share of it.
        spread: spread of the changes between prompts that is no share, nats.
        shape: share of the drift at each step; linear if not given.
        seed: draws it all.
    """
    generator = np.random.default_rng(seed)
    looks = len(base.steps)
    time = np.linspace(0, 1, looks) if shape is None else shape
    columns = {name: values.copy() for name, values in base.columns.items()}

    def path(start: float, total: float, rows: int) -> np.ndarray:
        begin = start + generator.standard_normal(rows)
        ends = total * (1 + noise * generator.standard_normal(rows))
        ends = ends + spread * generator.standard_normal(rows)
        return begin + time[:, None] * ends

    for kind in base.kinds:
        rows = base.rows(kind)
        columns["logp"][:, rows] = path(-60.0, drift.get(kind, 0.0), len(rows))
        columns["argmax_logp"][:, rows] = path(-30.0, greedy, len(rows))
    return dataclasses.replace(base, columns=columns)


def with_info(trajectory: Trajectory, **changes: Any) -> Trajectory:
    """The same with other entries of run.json."""
    run = trajectory.run
    info = {**run.info, **changes}
    return _kept(trajectory, run=RunDirectory(run.path, info))


def with_log(trajectory: Trajectory, rows: list[dict[str, Any]]) -> Trajectory:
    """The same with another training log."""
    copy = _kept(trajectory)
    copy.__dict__["train_log"] = rows
    return copy


def with_column(
    trajectory: Trajectory, name: str, kind: str, values: np.ndarray
) -> Trajectory:
    """The same with one column of one kind replaced, axes step x prompt."""
    columns = {key: column.copy() for key, column in trajectory.columns.items()}
    columns[name][:, trajectory.rows(kind)] = values
    return _kept(trajectory, columns=columns)


def with_splits(trajectory: Trajectory, names: np.ndarray) -> Trajectory:
    """The same with each probe in the split that `names` says."""
    copy = _kept(trajectory)
    copy.__dict__["split_of"] = names
    return copy


def with_tokens(trajectory: Trajectory, kind: str, counts: int) -> Trajectory:
    """The same with so many tokens in each answer of one kind."""
    tokens = trajectory.n_tokens.copy()
    tokens[trajectory.rows(kind)] = counts
    return _kept(trajectory, n_tokens=tokens)


def with_kinds(trajectory: Trajectory, kinds: Sequence[str]) -> Trajectory:
    """Only the probes of these kinds."""
    return _only(trajectory, np.isin(trajectory.kind_of, kinds))


def with_prompts(trajectory: Trajectory, count: int) -> Trajectory:
    """Only the first prompts."""
    first = np.unique(trajectory.prompt_of)[:count]
    return _only(trajectory, np.isin(trajectory.prompt_of, first))


def _only(trajectory: Trajectory, keep: np.ndarray) -> Trajectory:
    rows = np.flatnonzero(keep)
    columns = {name: values[:, rows] for name, values in trajectory.columns.items()}
    return dataclasses.replace(
        trajectory,
        probes=trajectory.probes.take(rows),
        n_tokens=trajectory.n_tokens[rows],
        columns=columns,
        scored=None,
    )


def _kept(trajectory: Trajectory, **changes: Any) -> Trajectory:
    """A copy that keeps a training log and splits that were planted."""
    copy = dataclasses.replace(trajectory, **changes)
    for name in ("train_log", "split_of"):
        if name in trajectory.__dict__:
            copy.__dict__[name] = trajectory.__dict__[name]
    return copy
