"""Trajectories made in memory, many in a second: nothing is written or measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import information

from learndyn.record.observation import (
    _TOKEN_COLUMNS,
    PROBE_COLUMNS,
    Observation,
)
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


TOKENS = 8


def simulated(
    logp: Mapping[str, np.ndarray],
    greedy: np.ndarray | None = None,
    *,
    steps: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    panel: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Trajectory:
    """A run with these values, axes step x prompt.

    Args:
        logp: values of each kind. A kind with one column only is of the prompt "mean".
        greedy: argmax_logp along chosen.
        steps: updates at the observations; 0, 10, 20 ... where not given.
        prompts: their ids.
        panel: columns that are scored at each step; the others at first and last only.
        splits: of each prompt.
        info: of run.json.
    """
    length, wide = max((v.shape for v in logp.values()), key=lambda shape: shape[1])
    names = list(prompts or (f"p{i:04d}" for i in range(wide)))
    whole = [v.shape[1] == wide for v in logp.values()]
    keys = [
        (kind, name)
        for kind, full in zip(logp, whole, strict=True)
        for name in (names if full else ["mean"])
    ]
    columns = {name: np.full((length, len(keys)), np.nan) for name in PROBE_COLUMNS}
    columns["logp"] = np.hstack(list(logp.values())).astype(np.float64)
    columns["argmax_logp"] = 0.2 * columns["logp"]
    if greedy is not None:
        rows = np.array([kind == "chosen" for kind, _ in keys])
        columns["argmax_logp"][:, rows] = greedy
    scored = None
    if panel is not None:
        within = {names[i] for i in panel}
        scored = np.ones((length, len(keys)), dtype=bool)
        scored[1:-1] = [name in within for _, name in keys]
        columns = {k: np.where(scored, v, np.nan) for k, v in columns.items()}
    split_of = dict(zip(names, splits or ["train"] * wide, strict=True))
    probes = pa.table(
        {
            "prompt_id": [name for _, name in keys],
            "kind": [kind for kind, _ in keys],
            "split": [split_of.get(name, "train") for _, name in keys],
        }
    )
    return Trajectory(
        RunDirectory(Path("simulated"), dict(info or {})),
        probes,
        np.array(steps if steps is not None else np.arange(length) * 10),
        np.full(len(keys), TOKENS, np.int32),
        columns,
        scored,
    )


def drifting(
    ends: Mapping[str, float],
    greedy: float | None,
    *,
    start: float = -60.0,
    greedy_start: float = -20.0,
    prompts: int = 40,
    observations: int = 11,
    spread: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> Trajectory:
    """A run whose mean relative changes grow linearly to `ends` and `greedy`.

    `spread` is the standard deviation over prompts of the relative change at the end,
    with its mean over these prompts taken out, so that the means are exact.
    """
    generator = np.random.default_rng(seed)
    time = np.linspace(0, 1, observations)[:, None]

    def path(begin: float, share: float) -> np.ndarray:
        noise = generator.standard_normal(prompts)
        own = share + spread * (noise - noise.mean())
        return begin + abs(begin) * own * time

    logp = {kind: path(start, share) for kind, share in ends.items()}
    risen = None if greedy is None else path(greedy_start, greedy)
    return simulated(logp, risen, **options)


def write_token_run(
    path: Path,
    logits: Sequence[Mapping[tuple[str, str], np.ndarray]],
    labels: Mapping[tuple[str, str], np.ndarray],
    *,
    panel: Sequence[str] | None = None,
    ends: bool = True,
) -> Trajectory:
    """Write a run whose observations are those of these logits.

    Args:
        path: the new run directory.
        logits: of each observation: (prompt id, kind) -> axes position x vocabulary.
        labels: (prompt id, kind) -> ids of the response.
        panel: prompts that observations between first and last are of.
        ends: whether the responses end in end-of-text.
    """
    keys = list(labels)
    counts = [len(labels[key]) for key in keys]
    table = pa.table(
        {
            "probe_id": range(len(keys)),
            "prompt_id": [prompt for prompt, _ in keys],
            "kind": [kind for _, kind in keys],
            "prompt": [f"ask {prompt}" for prompt, _ in keys],
            "response": [f"{kind} of {prompt}" for prompt, kind in keys],
            "split": ["train"] * len(keys),
            "rendered": [False] * len(keys),
            "n_tokens": counts,
            "truncated": [False] * len(keys),
            "has_eos": [ends] * len(keys),
            "prompt_ids": [[1]] * len(keys),
            "response_ids": [labels[key].tolist() for key in keys],
        }
    )
    info = information()
    if panel is not None:
        info["panel"] = {
            "prompts": list(panel),
            "of": len({prompt for prompt, _ in keys}),
            "full_every": 10 * (len(logits) - 1),
            "seed": 0,
        }
    run = RunDirectory.create(path, table, info)
    start = {key: logits[0][key].argmax(axis=1) for key in keys}
    for index, now in enumerate(logits):
        whole = panel is None or index in (0, len(logits) - 1)
        rows = [i for i, key in enumerate(keys) if whole or key[0] in panel]
        seen = [_seen(now[keys[i]], labels[keys[i]], start[keys[i]]) for i in rows]
        run.write_observation(_observation(10 * index, rows, seen, whole))
    return Trajectory.load(path)


def _seen(logits: np.ndarray, label: np.ndarray, start: np.ndarray) -> dict[str, Any]:
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    at = np.arange(len(label))
    return {
        "token_logp": logp[at, label],
        "token_argmax_logp": logp.max(axis=1),
        "token_start_logp": logp[at, start],
        "token_argmax_id": logp.argmax(axis=1),
    }


def _observation(
    step: int, rows: list[int], seen: list[dict[str, Any]], whole: bool
) -> Observation:
    flat = {
        name: np.concatenate([one[name] for one in seen]).astype(
            np.int32 if name == "token_argmax_id" else np.float32
        )
        for name in _TOKEN_COLUMNS
    }
    sums = {
        name: np.array([one[f"token_{name}"].sum() for one in seen])
        for name in ("logp", "argmax_logp")
    }
    rest = dict.fromkeys(set(PROBE_COLUMNS) - set(sums), np.full(len(rows), 0.5))
    return Observation(
        step,
        np.array([len(one["token_logp"]) for one in seen], np.int32),
        **sums,
        **rest,
        **flat,
        probe_ids=None if whole else np.array(rows, np.int32),
    )


def write_answers(
    path: Path,
    answers: Mapping[str, Sequence[tuple[float, float]]],
    *,
    prompts: int = 12,
    noise: float = 0.05,
    cut: bool = False,
    seed: int = 0,
) -> Trajectory:
    """Write a run of two observations from the log-probabilities of answers' tokens.

    Args:
        path: the new run directory.
        answers: of each kind, nats of each token at the first and last observation; the
            last token is end-of-text, id 0.
        prompts: how many.
        noise: spread of these between prompts, as a share.
        cut: whether the answers lack end-of-text.
        seed: draws the spread.
    """
    generator = np.random.default_rng(seed)
    size = 12
    run: list[dict[tuple[str, str], np.ndarray]] = [{}, {}]
    labels = {}
    for i in range(prompts):
        for kind, tokens in answers.items():
            key = f"p{i:03d}", kind
            ids = generator.integers(1, size, len(tokens))
            labels[key] = ids if cut else np.append(ids[:-1], 0)
            own = np.array(tokens) * (1 + noise * generator.standard_normal((1, 2)))
            for when, now in enumerate(run):
                odds = np.exp(own[:, when]) / -np.expm1(own[:, when])
                logits = np.zeros((len(tokens), size))
                logits[np.arange(len(tokens)), labels[key]] = np.log(odds * (size - 1))
                now[key] = logits
    return write_token_run(path, run, labels, ends=not cut)
