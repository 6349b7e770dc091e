"""Writes a run directory whose truth is known, as the measure wing would."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learndyn.probes.kinds import family
from learndyn.record.forces import Forces, Influence
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory


DPO_DRIFT = {"chosen": -6.0, "rejected": -40.0, "irrelevant_train": -8.0}
"""Change of each kind over the whole run, nats per response."""

TOKENS = 8


def probe_table(
    kinds: Sequence[str],
    prompts: int,
    *,
    texts: Mapping[str, str] | None = None,
    tokens: int = TOKENS,
) -> pa.Table:
    """What `TokenizedProbes.to_table` makes."""
    keys = [(f"p{i:03d}", kind) for i in range(prompts) for kind in kinds]
    n = len(keys)
    return pa.table(
        {
            "probe_id": list(range(n)),
            "prompt_id": [prompt for prompt, _ in keys],
            "kind": [kind for _, kind in keys],
            "prompt": [(texts or {}).get("prompt", f"ask {p}") for p, _ in keys],
            "response": [(texts or {}).get("response", f"{k} of {p}") for p, k in keys],
            "split": ["train"] * n,
            "rendered": [False] * n,
            "n_tokens": [tokens] * n,
            "truncated": [False] * n,
            "has_eos": [True] * n,
            "prompt_ids": [[1, 2]] * n,
            "response_ids": [[7] * tokens] * n,
        }
    )


def information(**changes: Any) -> dict[str, Any]:
    """A run.json as a finished DPO run has it."""
    return {
        "method": "dpo",
        "finished": True,
        "probe_fingerprint": "f" * 64,
        "model": "tiny-llama",
        "dtype": "float32",
        "seed": 0,
        "settings": {"beta": 0.1, "learning_rate": 5e-7},
        "versions": {"learndyn": "0.1.0", "torch": "2.13.0"},
    } | changes


def write_run(
    path: Path,
    *,
    drift: Mapping[str, float] | None = None,
    greedy: float = 4.0,
    off_target: float = 0.5,
    prompts: int = 24,
    steps: Sequence[int] = (0, 25, 50, 75, 100),
    start: Mapping[str, float] | None = None,
    noise: float = 0.3,
    seed: int = 0,
    texts: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
    log: bool = True,
    shape: float = 1.0,
    levels: float = 1.0,
) -> Path:
    """Write a run in which every kind drifts linearly from its start.

    Args:
        path: the new run directory.
        drift: change of each kind over the whole run, nats per response.
        greedy: change of the argmax log-probability of every response.
        off_target: change per off-target token; every second token is off-target.
        prompts: number of prompts.
        steps: updates at the observations.
        start: first logp of a kind, -60 where not given.
        noise: spread of the drift between prompts, as a share of it.
        seed: draws that spread.
        texts: one prompt and one response for all probes.
        info: changes to run.json.
        log: whether to write train.jsonl.
        shape: the share of the drift at time t of 0..1 is t ** shape.
        levels: spread of the starts between prompts, nats.
    """
    drift = DPO_DRIFT if drift is None else drift
    kinds = list(drift)
    run = RunDirectory.create(
        path, probe_table(kinds, prompts, texts=texts), information(**(info or {}))
    )
    generator = np.random.default_rng(seed)
    spread = 1 + noise * generator.standard_normal((prompts, len(kinds)))
    begin = np.array([(start or {}).get(kind, -60.0) for kind in kinds])
    begin = begin + levels * generator.standard_normal((prompts, len(kinds)))
    total = np.array(list(drift.values())) * spread
    rise = greedy * (1 + noise * generator.standard_normal(prompts * len(kinds)))
    final = max(steps) or 1
    for step in steps:
        time = (step / final) ** shape
        run.write_observation(
            _observe(
                step, (begin + time * total).ravel(), rise * time, time * off_target
            )
        )
        if log and step:
            run.append_log(
                {
                    "step": step,
                    "loss": 0.7 - 0.5 * time,
                    "grad_norm": 2.0 + time,
                    "rewards/chosen": -0.6 * time,
                    "rewards/rejected": -4.0 * time,
                    "rewards/margins": 3.4 * time,
                    "learning_rate": 5e-7 * (1 - time),
                }
            )
    return path


def _observe(
    step: int, logp: np.ndarray, risen: np.ndarray, off_target: float
) -> Observation:
    n = len(logp)
    token = np.repeat(logp / TOKENS, TOKENS).astype(np.float32)
    argmax = -12.0 + risen
    astray = np.tile(np.arange(TOKENS) % 2 == 0, n)
    return Observation(
        step=step,
        n_tokens=np.full(n, TOKENS, np.int32),
        logp=logp,
        argmax_logp=argmax,
        rest_logp=np.full(n, -9.0),
        entropy=np.full(n, 2.0),
        p_norm2=np.full(n, 0.2),
        p_gap=np.full(n, 0.9),
        energy=np.full(n, 0.8),
        top1=np.full(n, 0.5),
        token_logp=token,
        token_argmax_logp=np.repeat(argmax / TOKENS, TOKENS).astype(np.float32),
        token_start_logp=np.where(astray, -1.5 + off_target, token).astype(np.float32),
        token_argmax_id=np.where(astray, 9, 7).astype(np.int32),
    )


PARTS = ("pull", "push", "other", "history", "decay")
"""Names of the parts of an update, in the order of a record."""

PULL_AND_PUSH = {
    "chosen": (0.136, -0.118),
    "rejected": (0.102, -0.171),
    "irrelevant_train": (0.033, -0.029),
    "irrelevant_test": (0.030, -0.031),
    "irrelevant_human": (0.011, -0.014),
    "random_permuted": (0.021, -0.012),
    "random_words": (0.006, -0.009),
}
"""What pull and push make of a kind in one update, nats per response: they nearly
cancel. A kind that is not listed is of its family's first, a little weaker."""

WORDS = (
    *(" the", " hay", " should", " be", " dry", ",", " not", " green", "\n", " Give"),
    *(" it", " twice", " a", " day", ".", " I", " don't", " know", " maybe", " 日本"),
)


def make_forces(
    probes: pa.Table,
    step: int = 25,
    *,
    error: float = 0.01,
    history: float = 0.004,
    size: float = 1.0,
    layers: int = 6,
    influence: bool = True,
    seed: int = 0,
) -> Forces:
    """Forces of one update on all probes of a run: parts and layers add up.

    Args:
        probes: the run's table of probes.
        step: the step that the update led to.
        error: relative L2 error of the prediction, about.
        history: what the optimizer's memory makes, nats per response.
        size: a factor on all changes.
        layers: transformer layers; embedding and head come to these.
        influence: whether to make up training tokens too.
        seed: draws the spread between prompts and tokens.
    """
    generator = np.random.default_rng([seed, step])
    counts = np.array(probes["n_tokens"].to_pylist(), np.int32)
    kinds = probes["kind"].to_pylist()
    n, total = len(counts), int(counts.sum())
    mean = np.array([_pull_and_push(kind) for kind in kinds])
    rest = np.array([0.0004, history, -0.0009])
    target = size * np.hstack([mean, np.tile(rest, (n, 1))])
    target = target * (1 + 0.4 * generator.standard_normal(target.shape))
    # each part of a probe spread unevenly over its tokens, its sum kept
    share = generator.gamma(0.5, size=total)
    owner = np.repeat(np.arange(n), counts)
    share /= np.bincount(owner, share, minlength=n)[owner]
    tokens = {name: target[owner, i] * share for i, name in enumerate(PARTS)}
    predicted, token_predicted = target.sum(axis=1), np.sum(list(tokens.values()), 0)
    spread = np.sqrt(np.mean(predicted**2))
    off = error * spread * generator.standard_normal(n)
    token_off = (off / np.maximum(counts, 1))[owner]
    weights = generator.dirichlet(np.arange(1, layers + 3, dtype=float), size=n)
    names = ["embedding", *(f"layer {i}" for i in range(layers)), "head"]
    return Forces(
        step,
        np.arange(n, dtype=np.int32),
        counts,
        actual=predicted + off,
        predicted=predicted,
        noise=np.full(n, 1e-3 * spread),
        token_actual=(token_predicted + token_off).astype(np.float32),
        token_predicted=token_predicted.astype(np.float32),
        token_text=tuple(generator.choice(WORDS, size=total).tolist()),
        parts={name: target[:, i] for i, name in enumerate(PARTS)},
        token_parts={k: v.astype(np.float32) for k, v in tokens.items()},
        groups={name: predicted * weights[:, i] for i, name in enumerate(names)},
        info={
            "loss": "dpo",
            "optimizer": "AdamW",
            "lr": 5e-7,
            "method": "forward-mode",
            "dtype": "float32",
            "seconds": 3.2,
            "notes": [],
            "kernel": {"rank_correlation": 0.97, "self_cosine": 0.99, "since": 0},
        },
        influence=make_influence(sorted(set(kinds)), size, seed) if influence else None,
    )


def make_influence(kinds: list[str], size: float = 1.0, seed: int = 0) -> Influence:
    """Training tokens of four pairs, 24 tokens each: a few matter much."""
    generator = np.random.default_rng([seed, 1])
    rows, long = 8, 24
    chosen = np.repeat(np.arange(rows) % 2 == 0, long)
    scale = np.array([sum(map(abs, _pull_and_push(kind))) for kind in kinds])
    strength = generator.gamma(0.2, size=(rows * long, 1)) / long
    sign = np.where(chosen, 1.0, -1.0)[:, None]
    return Influence(
        tuple(kinds),
        example=np.repeat(np.arange(rows), long),
        position=np.tile(np.arange(long), rows),
        role=tuple("chosen" if c else "rejected" for c in chosen),
        token=tuple(generator.choice(WORDS, size=rows * long).tolist()),
        push=np.where(chosen, -0.05, 0.05),
        change=size * sign * strength * scale,
        example_text={i: f"… What do horses eat? Answer {i}" for i in range(rows)},
    )


def _pull_and_push(kind: str) -> tuple[float, float]:
    if kind in PULL_AND_PUSH:
        return PULL_AND_PUSH[kind]
    pull, push = PULL_AND_PUSH.get(family(kind), (0.02, -0.02))
    return 0.7 * pull, 0.75 * push
