"""Scores of a model that never changes, kept between runs.

A reference model is frozen: the same weights give the same log-probabilities to the
same tokens, in this run and in the next one that starts from them. They are computed
once and kept as one small file per (weights, tokens), under `$LEARNDYN_CACHE`, or
`~/.cache/learndyn` where that is not set; `LEARNDYN_CACHE=` (empty) keeps nothing.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from learndyn.measure.load import weights_hash
from learndyn.measure.neutral import device_of, is_sharded
from learndyn.probes.tokenize import TokenizedPair
from learndyn.record.atomic import StorageFull, write_whole


def kept_sums(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    compute: Callable[[], Float[np.ndarray, " pair"]],
) -> Float[np.ndarray, " pair"]:
    """log pi of each response under `model`, in nats: as kept, or from `compute`.

    The key holds all that decides the numbers: parameters and buffers, config, kind of
    device, the versions of torch, transformers and learndyn, and every token id. A file
    that cannot be read or written only costs time.
    """
    folder = cache_folder()
    if folder is None or is_sharded(model):
        return compute()  # a sharded model's weights are not all here
    path = folder / "frozen" / f"{_key(model, pairs)}.npy"
    kept = _read(path, len(pairs))
    if kept is None:
        kept = compute()
        _write(path, kept)
    return kept


def cache_folder() -> Path | None:
    """Where scores are kept; None if the user wants none kept."""
    chosen = os.environ.get("LEARNDYN_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "learndyn"


def _key(model: nn.Module, pairs: Sequence[TokenizedPair]) -> str:
    config: Any = getattr(model, "config", None)
    parts = [
        type(model).__qualname__,
        config.to_json_string() if config is not None else "",
        f"{config._attn_implementation}" if config is not None else "",
        *(version(name) for name in ("torch", "transformers", "learndyn")),
        device_of(model).type,
        _weights(model),
        *sorted({_adapters(module) for module in model.modules()}),
    ]
    digest = hashlib.sha256("\n".join(parts).encode())
    for pair in pairs:
        digest.update(np.array([len(pair.prompt_ids), len(pair.response_ids)]).data)
        digest.update(np.array([*pair.prompt_ids, *pair.response_ids]).data)
    return digest.hexdigest()


def _weights(model: nn.Module) -> str:
    """Hash of the weights that are used: adapters that are switched off are not."""
    unused = tuple(
        f"{name}.{part}."
        for name, module in model.named_modules()
        if getattr(module, "disable_adapters", False) is True
        for part in getattr(module, "adapter_layer_names", ())
    )
    return weights_hash(model, without=unused)


def _adapters(module: nn.Module) -> str:
    """Which PEFT adapters a layer applies: the same weights, but another model."""
    if not hasattr(module, "disable_adapters"):
        return ""
    return f"{module.disable_adapters} {getattr(module, 'active_adapters', None)}"


def _read(path: Path, pairs: int) -> Float[np.ndarray, " pair"] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    right = found.shape == (pairs,) and found.dtype == np.float64
    return found if right else None


def _write(path: Path, sums: Float[np.ndarray, " pair"]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, sums.astype(np.float64), allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_bytes(buffer.getvalue()))
    except (OSError, StorageFull):
        return  # the scores are right without being kept
