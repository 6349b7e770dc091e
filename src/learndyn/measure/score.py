"""Log-probabilities of every probe: the one scoring function of the house.

The callback, `learndyn score`, reference checks and judges all call `score`, so that
what is seen online equals what is seen offline.

This is the plain route: sequences of similar length are padded into batches, the
model's own forward runs once over each, and the vocabulary projection runs over
response positions a few rows at a time.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.measure.batches import Padded, check_batch_size, check_fits, pad
from learndyn.measure.head import Head, learn_head, tapped
from learndyn.measure.neutral import undisturbed
from learndyn.measure.statistics import RowStatistics, row_statistics
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes
from learndyn.record.observation import Observation


ROW_CHUNK_BYTES = 2**26
"""Most bytes of logits that exist at once; about three times that is touched."""


_WARNED: set[str] = set()
"""Model classes of which `_warn_of_logits` has spoken in this process."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a model is scored, for `run.json`."""

    name: str
    """"plain": padded batches through the model's own forward."""
    head: str
    """What follows the vocabulary projection, or "logits" if that is unknown and the
    model's own logits are used."""
    error: float
    """Largest difference of the head to the model's own logits on one sequence, as a
    share of the largest logit; of the best head where "logits" are used, and NaN where
    there is none."""


def find_route(model: nn.Module, probes: TokenizedProbes) -> Route:
    """How `score` scores `probes` with this model.

    Raises:
        BadInput: as `score`.
    """
    check_fits(model, probes.pairs)
    shortest = min(probes.pairs, key=lambda p: len(p.prompt_ids) + len(p.response_ids))
    with undisturbed(model):
        reader = _Reader.of(model, shortest, next(model.parameters()).device)
    name = "logits" if reader.head is None else reader.head.name
    return Route("plain", name, reader.error)


def score(
    model: nn.Module,
    probes: TokenizedProbes,
    *,
    step: int = 0,
    start_ids: Int[np.ndarray, " token"] | None = None,
    batch_size: int = 8,
    padding_side: Literal["right", "left"] = "right",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Observation:
    """Observe all probes with a causal language model as it stands.

    Scores response tokens only (EOS included), in float32, or float64 if the model is.
    `start_ids` names the token that `token_start_logp` follows at each position, in the
    flat order of an observation; None follows this model's own argmax. The model, its
    training flags and all random states are left as they were. `progress` wraps the
    iterable of batches, as tqdm does.

    Raises:
        BadInput: if the model is no causal LM, if `batch_size` is below 1, or if a
            probe has no token, is longer than the context, or holds an unknown id.
    """
    rows = score_pairs(
        model,
        probes.pairs,
        start_ids=start_ids,
        batch_size=batch_size,
        padding_side=padding_side,
        progress=progress,
    )
    return _observation(step, np.array(probes.n_tokens, dtype=np.int32), rows)


def score_pairs(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    start_ids: Int[np.ndarray, " token"] | None = None,
    batch_size: int = 8,
    padding_side: Literal["right", "left"] = "right",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> RowStatistics:
    """Statistics of every response token of every pair, flat, in the pairs' order.

    Raises:
        BadInput: as `score`.
    """
    check_batch_size(batch_size)
    check_fits(model, pairs)
    device = next(model.parameters()).device
    lengths = np.array([len(p.prompt_ids) + len(p.response_ids) for p in pairs])
    order = np.argsort(-lengths, kind="stable")  # longest first: memory peaks at once
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    ends = np.cumsum([len(p.response_ids) for p in pairs])
    done: dict[int, RowStatistics] = {}
    with undisturbed(model):
        reader = _Reader.of(model, pairs[int(order[-1])], device)
        for batch in progress(batches):
            chosen = [pairs[int(i)] for i in batch]
            starts = None
            if start_ids is not None:
                spans = [
                    start_ids[ends[i] - len(pairs[i].response_ids) : ends[i]]
                    for i in map(int, batch)
                ]
                starts = torch.from_numpy(np.concatenate(spans)).long().to(device)
            padded = pad(chosen, device, padding_side)
            for i, rows in zip(batch, reader.read(chosen, padded, starts), strict=True):
                done[int(i)] = rows
    return RowStatistics.concatenate([done[i] for i in range(len(pairs))])


@dataclass(frozen=True, slots=True)
class _Reader:
    """Runs one model over padded batches."""

    model: nn.Module
    head: Head | None
    """None if the head cannot be taken apart: then real logits are used, one sequence
    at a time."""
    accepts: frozenset[str]
    error: float = math.nan
    """Of the best head that was found, also where it is too large for use."""

    @classmethod
    def of(
        cls, model: nn.Module, pair: TokenizedPair, device: torch.device
    ) -> "_Reader":
        accepts = frozenset(inspect.signature(model.forward).parameters)
        base = getattr(model, "get_base_model", lambda: model)()
        accepts |= frozenset(inspect.signature(type(base).forward).parameters)
        ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)], device=device)
        plain = cls(model, None, accepts)
        head = learn_head(
            model,
            lambda x: plain.forward(x, torch.ones_like(x), "right"),
            ids[:, :64],
        )
        if head is not None and head.is_exact:
            return cls(model, head, accepts, head.error)
        _warn_of_logits(type(base).__name__, head)
        return cls(model, None, accepts, math.nan if head is None else head.error)

    def forward(
        self,
        ids: Int[Tensor, "batch time"],
        attention: Int[Tensor, "batch time"],
        side: str,
    ) -> Float[Tensor, "batch time vocab"]:
        extra: dict[str, Any] = {}
        if "use_cache" in self.accepts:
            extra["use_cache"] = False
        if side == "left" and "position_ids" in self.accepts:
            extra["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
        return self.model(input_ids=ids, attention_mask=attention, **extra).logits

    def read(
        self,
        pairs: Sequence[TokenizedPair],
        batch: Padded,
        starts: Int[Tensor, " row"] | None,
    ) -> Iterator[RowStatistics]:
        """Statistics of each pair of one batch."""
        side = "right" if bool(batch.attention[:, 0].all()) else "left"
        if self.head is None:
            rows = self._from_logits(batch, side, starts)
        else:
            with tapped(self.head.module) as seen:
                self.forward(batch.ids, batch.attention, side)
            # virtual tokens of prompt tuning come first: the last `time` are ours
            hidden = seen[0][:, -batch.ids.shape[1] :][batch.predicts]
            rows = _in_chunks(self.head, hidden, batch.labels, starts)
        sizes = [len(pair.response_ids) for pair in pairs]
        return _split(rows, sizes)

    def _from_logits(
        self, batch: Padded, side: str, starts: Int[Tensor, " row"] | None
    ) -> RowStatistics:
        parts, done = [], 0
        for row in range(len(batch.ids)):
            logits = self.forward(batch.ids[[row]], batch.attention[[row]], side)
            logits = logits[0, -batch.ids.shape[1] :][batch.predicts[row]]
            if logits.dtype != torch.float64:
                logits = logits.float()
            span = slice(done, done + len(logits))
            start = None if starts is None else starts[span]
            parts.append(row_statistics(logits.clone(), batch.labels[span], start))
            done += len(logits)
        return RowStatistics.concatenate(parts)


def _warn_of_logits(model: str, head: Head | None) -> None:
    """Say that the slow way is taken, and why; once, not at every observation."""
    if model in _WARNED or (head is not None and math.isnan(head.error)):
        return  # where nothing is finite, no head is to blame
    why = "is sharded, or is not called just once in a forward"
    if head is not None:
        why = (
            f"is followed by more than a scale or a soft cap: the best, {head.name}, "
            f"misses the model's logits by {head.error:.1e} of the largest"
        )
    warnings.warn(
        f"{model} is scored from its own logits, one sequence at a time, which is "
        f"slower and takes more memory: its output embedding {why}.",
        stacklevel=2,
    )
    _WARNED.add(model)


def _in_chunks(
    head: Head,
    hidden: Float[Tensor, "row d"],
    labels: Int[Tensor, " row"],
    starts: Int[Tensor, " row"] | None,
) -> RowStatistics:
    vocabulary = head(hidden[:1]).shape[-1]
    size = max(1, ROW_CHUNK_BYTES // (4 * vocabulary))
    parts = []
    for i in range(0, len(hidden), size):
        chunk = slice(i, i + size)
        start = None if starts is None else starts[chunk]
        parts.append(row_statistics(head(hidden[chunk]), labels[chunk], start))
    return RowStatistics.concatenate(parts)


def _split(rows: RowStatistics, sizes: list[int]) -> Iterator[RowStatistics]:
    columns = {
        name: getattr(rows, name).cpu().split(sizes)
        for name in RowStatistics.__dataclass_fields__
    }
    for i in range(len(sizes)):
        yield RowStatistics(**{name: column[i] for name, column in columns.items()})


def _observation(
    step: int, n_tokens: Int[np.ndarray, " probe"], rows: RowStatistics
) -> Observation:
    probe_of = np.repeat(np.arange(len(n_tokens)), n_tokens)

    def summed(values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " probe"]:
        # reduceat would give a probe without tokens the first number of the next one
        return np.bincount(probe_of, values, minlength=len(n_tokens))

    def total(name: str) -> Float[np.ndarray, " probe"]:
        return summed(getattr(rows, name).numpy())

    def single(name: str) -> Float[np.ndarray, " token"]:
        return getattr(rows, name).numpy().astype(np.float32)

    at_top = (rows.logp == rows.argmax_logp).double().numpy()
    return Observation(
        step=step,
        n_tokens=n_tokens,
        logp=total("logp"),
        argmax_logp=total("argmax_logp"),
        rest_logp=total("rest_logp"),
        entropy=total("entropy") / n_tokens,
        p_norm2=total("p_norm2") / n_tokens,
        p_gap=total("p_gap") / n_tokens,
        energy=total("energy") / n_tokens,
        top1=summed(at_top) / n_tokens,
        token_logp=single("logp"),
        token_argmax_logp=single("argmax_logp"),
        token_start_logp=single("start_logp"),
        token_argmax_id=rows.argmax_id.numpy().astype(np.int32),
    )
