"""Whether two runs can be compared, and over which prompts."""

from typing import Any

import numpy as np

from learndyn.diagnose.paths import Paths
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


def together(a: Paths, b: Paths) -> tuple[Paths, Paths]:
    """Both runs on the prompts that each of them scored at every observation.

    With fewer than two such prompts: on all prompts, at their full observations.
    """
    shared = a.panel & b.panel
    if shared.sum() < 2:
        return a.cut(steps=a.full), b.cut(steps=b.full)
    return a.cut(shared), b.cut(shared)


def together_at(a: Paths, b: Paths, step: float) -> tuple[Paths, Paths]:
    """Both runs on the prompts that each scored first and around `step`."""
    shared = np.ones(len(a.prompts), dtype=bool)
    for side in (a, b):
        after = min(int(np.searchsorted(side.steps, step)), len(side.steps) - 1)
        exact = side.steps[after] <= step
        around = [after] if exact else [max(after - 1, 0), after]
        shared &= side.scored[[0, *around]].all(axis=0)
    return together(a, b) if shared.sum() < 2 else (a.cut(shared), b.cut(shared))


def is_sft(info: dict[str, Any]) -> bool:
    """Whether run.json says that the run only pushes answers up."""
    return str(info.get("method", "")).lower().endswith("sft")


def same_probes(a: Trajectory, b: Trajectory) -> None:
    """Refuse runs that watched other answers.

    Raises:
        BadInput: if their probe fingerprints differ or are unknown.
    """
    prints = [t.run.info.get("probe_fingerprint") for t in (a, b)]
    if prints[0] is None or prints[0] != prints[1]:
        raise BadInput(
            f"{a.run.path} and {b.run.path} cannot be compared: they watched other "
            f"answers (probe fingerprints {str(prints[0])[:12]} and "
            f"{str(prints[1])[:12]}). Use runs with the same probe set."
        )


def same_tokens(a: Trajectory, b: Trajectory) -> None:
    """A log-probability is of tokens: the same text as other tokens has another.

    Raises:
        BadInput: if the runs scored the same texts as other tokens.
    """
    hashes = [str(t.run.info.get("tokenizer_sha256"))[:12] for t in (a, b)]
    where = f"{a.run.path} and {b.run.path} cannot be compared:"
    if hashes[0] != hashes[1]:
        raise BadInput(
            f"{where} their tokenizers differ (SHA-256 {hashes[0]} and {hashes[1]}), "
            "and log-probabilities of other tokens are not comparable. Use runs of "
            "models with one tokenizer."
        )
    keys = [("prompt_id", "ascending"), ("kind", "ascending")]
    one, other = (t.probes.sort_by(keys) for t in (a, b))
    ids = ["prompt_ids", "response_ids"]
    if one.select(ids).equals(other.select(ids)):
        return
    names = ["prompt_id", "kind", "n_tokens", *ids]
    rows, others = (table.select(names).to_pylist() for table in (one, other))
    of = {(row["prompt_id"], row["kind"]): row for row in others}
    pairs = [(row, of.get((row["prompt_id"], row["kind"]), row)) for row in rows]
    differ = [(x, y) for x, y in pairs if x != y]
    if not differ:
        return
    x, y = differ[0]
    lengths = [t.run.info.get("max_length") for t in (a, b)]
    raise BadInput(
        f"{where} {len(differ)} of {len(one)} probes have other token ids. Of "
        f"{x['kind']} of prompt {x['prompt_id']} they scored {x['n_tokens']} and "
        f"{y['n_tokens']} tokens after prompts of {len(x['prompt_ids'])} and "
        f"{len(y['prompt_ids'])}; max_length was {lengths[0]} and {lengths[1]}. Give "
        "both runs the same limits, or score one model anew with `learndyn score "
        "MODEL --run RUN`."
    )
