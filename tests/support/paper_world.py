"""Runs in which everything that the paper says holds, and ways to spoil each of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from synthetic import information, probe_table

from learndyn.diagnose.paths import GREEDY
from learndyn.paper.finetuning.recorded import LEARNT, Recorded
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


REST = "rest"
STEPS = (0, 25, 50, 75, 100)
TOKENS = 2
PROMPTS = 20
VOCABULARY = 50

Changes = Mapping[str, Sequence[float]]
"""Kind, `GREEDY` or `REST` -> mean change at each of `STEPS`, nats."""

OTHERS = {
    "chosen_semantic": (0, -1, -2, -4, -6),
    "chosen_format": (0, -1, -3, -5, -7),
    "rejected_semantic": (0, -4, -9, -14, -20),
    "rejected_format": (0, -3, -8, -12, -18),
    "irrelevant_train": (0, -1, -2, -3, -5),
    "irrelevant_test": (0, -1, -2, -3, -4),
    "irrelevant_human": (0, -1, -2, -3, -6),
    "random_permuted": (0, -2, -4, -6, -8),
    "random_words": (0, -2, -4, -6, -9),
}

DPO: dict[str, Sequence[float]] = {
    "chosen": (0, 1, 0.5, -1, -3),
    "rejected": (0, -10, -25, -40, -55),
    **OTHERS,
    GREEDY: (0, 2, 4, 5, 6),
    REST: (0, -1, -2, -3, -4),
}

SFT: dict[str, Sequence[float]] = {
    "chosen": (0, 10, 15, 18, 20),
    "chosen_semantic": (0, 5, 8, 9, 10),
    "chosen_format": (0, 2, 3, 3, 3),
    "rejected": (0, 3, 2, 0, -2),
    "rejected_semantic": (0, 2, 1, -1, -3),
    "rejected_format": (0, 1, 0, -2, -4),
    "irrelevant_train": (0, 1, 2, 3, 4),
    "irrelevant_test": (0, -1, -1, -2, -2.5),
    "irrelevant_human": (0, -2, -4, -6, -8),
    "random_permuted": (0, -3, -6, -8, -9),
    "random_words": (0, -4, -7, -9, -10),
    GREEDY: (0, 3, 5, 6, 7),
    REST: (0, 0, 0, 0, 0),
}


def learnt(kind: str) -> dict[str, Sequence[float]]:
    """SFT on one kind alone: it rises most, its rephrase half as much."""
    moved: dict[str, Sequence[float]] = {k: (0, -1, -1, -2, -2) for k in SFT}
    other = {
        "chosen": "chosen_semantic",
        "rejected": "rejected_semantic",
        "chosen_semantic": "chosen",
        "rejected_semantic": "rejected",
    }
    if kind in other:
        moved[other[kind]] = (0, 4, 6, 8, 10)
    moved[kind] = (0, 8, 12, 16, 20)
    return moved


GOOD: dict[str, Changes] = {
    "sft": SFT,
    "extend-sft": SFT | {"rejected": (0, 5, 8, 10, 12)},
    "dpo": DPO,
    "extend-dpo": {
        **DPO,
        "chosen": (0, 1, 1, 0.5, 0.2),
        **dict.fromkeys(OTHERS, (0, -0.1, -0.2, -0.4, -0.5)),
        GREEDY: (0, 0.5, 1, 1.2, 1.5),
    },
    "on-policy": {
        **dict.fromkeys(DPO, (0, 0, 0, 0, 0)),
        "rejected": (0, -1, -2, -3, -4),
        GREEDY: (0, 0.1, 0.1, 0.2, 0.2),
    },
    **{f"learn-{kind}": learnt(kind) for kind in LEARNT},
}
"""Role -> what every kind does in it."""

RIGHT = {
    "sft": [True] * 80 + [False] * 20,
    "dpo": [True] * 40 + [False] * 60,
    "extend-sft": [True] * 78 + [False] * 22,
    "extend-dpo": [True] * 85 + [False] * 15,
}


def write(
    folder: Path,
    role: str,
    changes: Changes,
    *,
    held_out: Changes | None = None,
    margin: float | None = 0.0,
) -> Trajectory:
    """One run directory; its second half of prompts is held out, and does as trained.

    Args:
        folder: where the run directory `role` goes.
        role: its name; says the method too.
        changes: what the kinds do on training prompts.
        held_out: what they do on the others, where that differs.
        margin: the reward margin logged with the first update; None logs nothing.
    """
    kinds = [kind for kind in changes if kind not in (GREEDY, REST)]
    table = probe_table(kinds, 2 * PROMPTS, tokens=TOKENS)
    split = ["train"] * PROMPTS * len(kinds) + ["test"] * PROMPTS * len(kinds)
    place = table.schema.get_field_index("split")
    table = table.set_column(place, "split", [split])
    method = "dpo" if "dpo" in role or role == "on-policy" else "sft"
    run = RunDirectory.create(folder / role, table, information(method=method))
    for index, step in enumerate(STEPS):
        both = [
            _levels(changes, kinds, index),
            _levels(held_out or changes, kinds, index),
        ]
        run.write_observation(_observation(step, both))
    if margin is not None:
        run.append_log({"step": 1, "rewards/margins": margin, "loss": 0.69})
    return Trajectory.load(run.path)


def world(
    folder: Path,
    spoilt: Mapping[str, Trajectory | None] | None = None,
    *,
    good: Mapping[str, Trajectory],
    right: Mapping[str, list[bool]] = RIGHT,
) -> Recorded:
    """The good runs with some replaced; None takes one away."""
    runs = {**good, **(spoilt or {})}
    kept = {role: run for role, run in runs.items() if run is not None}
    return Recorded(0, kept, dict(right), VOCABULARY)


def _levels(changes: Changes, kinds: Sequence[str], index: int) -> np.ndarray:
    """logp, argmax and rest of `PROMPTS` prompts x kinds, spread between prompts."""
    generator = np.random.default_rng(7)
    spread = 1 + 0.1 * generator.standard_normal((PROMPTS, 1))
    wobble = 0.02 * generator.standard_normal((PROMPTS, len(kinds)))
    moved = np.array([changes[kind][index] for kind in kinds])
    logp = -60 + moved * spread + wobble * (index > 0)
    top = -40 + changes.get(GREEDY, (0,) * 5)[index] * spread + 0 * logp
    rest = -30 + changes.get(REST, (0,) * 5)[index] * spread + 0 * logp
    return np.stack([logp, np.maximum(top, logp), rest])


def _observation(step: int, both: Sequence[np.ndarray]) -> Observation:
    logp, top, rest = (
        np.concatenate([part[i].ravel() for part in both]) for i in range(3)
    )
    n = len(logp)
    tokens = np.stack([logp / 2, logp / 2], axis=1).astype(np.float32).ravel()
    tops = np.stack([top / 2, top / 2], axis=1).astype(np.float32).ravel()
    return Observation(
        step,
        np.full(n, TOKENS, dtype=np.int32),
        logp,
        top,
        rest,
        entropy=np.ones(n),
        p_norm2=np.full(n, 0.5),
        p_gap=np.full(n, 0.7),
        energy=np.full(n, 0.5),
        top1=np.full(n, 0.5),
        token_logp=tokens,
        token_argmax_logp=tops,
        token_start_logp=tops,
        token_argmax_id=np.full(n * TOKENS, 8, dtype=np.int32),
    )
