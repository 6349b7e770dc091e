"""Step 0 of DPO: policy and reference must be the same model on every training pair.

If they are not, the margin does not start at 0, and the loss pushes on a difference
that no update made. TRL's default reference is loaded anew from the policy's name, so
it is another model whenever the policy was changed in memory; half-precision references
do the same, more quietly.

The reference never changes: the same weights give the same log-probabilities to the
same tokens, in this run and in the next one that starts from them. So its scores are
computed once and cached, one small file per (weights, tokens), under `$LEARNDYN_CACHE`,
or `~/.cache/learndyn` where that is not set; `LEARNDYN_CACHE=` (empty) caches nothing.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from learndyn.errors import BadInput
from learndyn.measure.load import weights_hash
from learndyn.measure.neutral import device_of, is_sharded
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair
from learndyn.record.files import StorageFull, write_whole


def _cached_sums(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    compute: Callable[[], Float[np.ndarray, " pair"]],
) -> Float[np.ndarray, " pair"]:
    """log pi of each response under `model`, in nats: cached, or from `compute`.

    The key holds all that decides the numbers: parameters and buffers, config, kind of
    device, the versions of torch, transformers and learndyn, and every token id. A file
    that cannot be read or written only costs time.
    """
    folder = _cache_folder()
    if folder is None or is_sharded(model):
        return compute()  # a sharded model's weights are not all here
    path = folder / "frozen" / f"{_key(model, pairs)}.npy"
    sums = _read(path, len(pairs))
    if sums is None:
        sums = compute()
        _write(path, sums)
    return sums


def _cache_folder() -> Path | None:
    """Where scores are cached; None if the user wants no cache."""
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
        # eager, sdpa and flash attention round differently; so do devices and versions
        f"{config._attn_implementation}" if config is not None else "",
        *(version(name) for name in ("torch", "transformers", "learndyn")),
        device_of(model).type,
        _weights(model),
        *sorted({_adapters(module) for module in model.modules()}),
    ]
    digest = hashlib.sha256("\n".join(parts).encode())
    for pair in pairs:
        # lengths first: without them a token that moves from prompt to response, which
        # changes the sum, would leave the key as it is
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
        sums = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    # float64, as they were summed: a hit and a miss give the same gap to the last bit
    right = sums.shape == (pairs,) and sums.dtype == np.float64
    return sums if right else None


def _write(path: Path, sums: Float[np.ndarray, " pair"]) -> None:
    buffer = io.BytesIO()  # np.save would add .npy to the name of the temporary file
    np.save(buffer, sums.astype(np.float64), allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_bytes(buffer.getvalue()))
    except (OSError, StorageFull):
        return  # the scores are right without a cache


_TOLERANCE = 1e-4
"""Nats per response. Two float32 scorings of one model differ by about 1e-5."""

_SLICE = 2048
"""Responses scored at once: training sets are larger than probe sets."""


def check_reference(
    policy: nn.Module,
    reference: nn.Module | None,
    pairs: Sequence[TokenizedPair],
    *,
    batch_size: int = 8,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> float:
    """Largest |log pi - log pi_ref| over all `pairs`, in nats per response.

    `reference` None means the policy with its PEFT adapter disabled, as TRL has it. The
    reference's own scores are cached between runs; the policy is always scored anew.

    Raises:
        BadInput: if it exceeds `_TOLERANCE`; the message names the probable cause.
    """
    ours = _sums(policy, pairs, batch_size, progress)
    frozen, disabled = reference, nullcontext
    if frozen is None:
        # PEFT's own way to the base model, and what TRL computes the margin with
        frozen, disabled = policy, getattr(policy, "disable_adapter", nullcontext)
    with disabled():
        theirs = _cached_sums(
            frozen, pairs, lambda: _sums(frozen, pairs, batch_size, progress)
        )
    gaps = np.abs(ours - theirs)
    worst = int(gaps.argmax())
    # `not <=`, since NaN > x is false; argmax prefers a NaN to any number.
    if not float(gaps[worst]) <= _TOLERANCE:
        raise BadInput(
            f"policy and reference disagree before the first update on "
            f"{int((~(gaps <= _TOLERANCE)).sum())} of {len(pairs)} training responses: "
            f"response {worst} has log pi {float(ours[worst]):.4f} and log pi_ref "
            f"{float(theirs[worst]):.4f} nats, {float(gaps[worst]):.2g} apart "
            f"(allowed: {_TOLERANCE:g}). {_cause(policy, reference)}"
        )
    return float(gaps[worst])


def _sums(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> Float[np.ndarray, " pair"]:
    # Both models through one scorer: two ways of computing log pi would differ by
    # rounding of their own.
    scorer = Scorer.attach(model, pairs, batch_size=batch_size)
    sums = np.zeros(len(pairs))
    for first in progress(range(0, len(pairs), _SLICE)):
        rows = range(len(pairs))[first : first + _SLICE]
        logp = scorer.select(rows).rows().logp
        parts = logp.split([len(pairs[i].response_ids) for i in rows])
        sums[first : first + _SLICE] = [float(part.sum()) for part in parts]
    return sums


def _cause(policy: nn.Module, reference: nn.Module | None) -> str:
    if reference is None:
        return (
            "The reference is the policy without its adapter, so the adapter is not "
            "neutral: start from a fresh one, or merge it into the model first."
        )
    theirs = dict(reference.named_parameters())
    for name, parameter in policy.named_parameters():
        other = theirs.get(name)
        if other is None or other.shape != parameter.shape:
            return f"The reference has no parameter {name} like the policy's."
        if other.dtype != parameter.dtype:
            return (
                f"The reference is in {other.dtype}, the policy in {parameter.dtype}: "
                "load both in one dtype."
            )
        gap = float((other.detach() - parameter.detach().to(other.device)).abs().max())
        if gap > 0:
            return (
                f"Their weights differ, first in {name} (by up to {gap:.2g}): load the "
                "reference from the very weights that training starts from."
            )
    return (
        "Their weights are equal, so their settings are not: compare attention "
        "implementation, tokenizer and config."
    )
