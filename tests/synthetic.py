"""Writes a run directory whose truth is known, as the measure wing would."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

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
