"""What every fast way is held against: the plain forward, on a few of the very probes.

One sequence at a time, without padding, with the model's own logits. Compared are the
four statistics that are in nats, on up to seven responses to two prompts: the longest
(sliding windows bite only beyond their length), short ones, and one of a single token.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.measure.forward import Forward, input_embedding
from learndyn.measure.plan import ProbePlan
from learndyn.measure.reader import Reader
from learndyn.measure.statistics import RowStatistics, row_statistics
from learndyn.probes.tokenize import TokenizedPair


_TOLERANCE = 2e-5
"""Largest error of a route in nats per token. Right ones stay below 1e-5 in float32,
wrong ones are off by 0.01 to 1."""

_ROUNDINGS = 2
"""A right way may be off by this many times what one rounding of the input embeddings
does. On 29 families right ones had at most 0.5 in bfloat16, and in float32 2.0 (where
that is far below `_TOLERANCE`); wrong ones had 10 or more."""

_CHECKED = 32
"""Most positions of a response that the self-test compares: half from each end."""


@dataclass(frozen=True, eq=False)
class PlainForward:
    """Log-probabilities of the plain forward, at some tokens of each response."""

    vocabulary: int
    positions: Int[np.ndarray, " checked"]
    """In the flat order of the sample."""
    response: Int[np.ndarray, " checked"]
    """Which response each belongs to."""
    values: Float[np.ndarray, "column checked"]
    noise: float
    """Largest mean change of a response, in nats per token, where each number of the
    input embeddings is changed by one rounding of the model's coarsest weights."""

    @property
    def tolerance(self) -> float:
        """What a right way may be off by, in nats per token."""
        return max(_TOLERANCE, _ROUNDINGS * self.noise)

    @classmethod
    def of(cls, forward: Forward, sample: ProbePlan) -> "PlainForward":
        """`forward` hands out the model's own logits."""
        values, positions, response = [], [], []
        vocabulary = 0
        for i, pair in enumerate(sample.pairs):
            n = len(pair.response_ids)
            # Both ends: an ignored window shows late in a response, a prompt that is
            # out of sight at its start.
            at = np.unique([*range(n)[: _CHECKED // 2], *range(n)[-_CHECKED // 2 :]])
            statistics, vocabulary = _read(forward, pair, at)
            values.append(statistics)
            positions.append(sample.starts[i] + at)
            response.append(np.full(len(at), i))
        truth = cls(
            vocabulary,
            np.concatenate(positions),
            np.concatenate(response),
            np.concatenate(values, axis=1),
            0.0,
        )
        # How much of a difference is rounding, on these weights: in bfloat16 a right
        # way may be off by more than a wrong one is in float32.
        with rounded_embeddings(forward.model):
            again = [
                _read(forward, pair, positions[i] - sample.starts[i])[0]
                for i, pair in enumerate(sample.pairs)
            ]
        noise = truth._distance(np.concatenate(again, axis=1))
        return replace(truth, noise=noise if math.isfinite(noise) else 0.0)

    def error(self, reader: Reader, sample: ProbePlan) -> float:
        """Largest mean error of a response, in nats per token."""
        rows = reader.read_all(sample, reader.tier.pieces(sample, reader.limits))
        return self._distance(_in_nats(rows)[:, self.positions])

    def _distance(self, values: Float[np.ndarray, "column checked"]) -> float:
        with np.errstate(invalid="ignore"):
            gaps = np.abs(values - self.values)
        # The same infinity, or NaN in both: agreement about a model that has diverged.
        same = (values == self.values) | (np.isnan(values) & np.isnan(self.values))
        # A mean over each response's tokens: one token's rounding says little.
        gaps = np.where(same, 0.0, np.nan_to_num(gaps, nan=math.inf)).max(0)
        counts = np.bincount(self.response)
        return float((np.bincount(self.response, gaps) / counts).max())


def _read(
    forward: Forward, pair: TokenizedPair, at: Int[np.ndarray, " checked"]
) -> tuple[Float[np.ndarray, "column checked"], int]:
    """What is compared of some tokens of a response, and the size of the vocabulary."""
    ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)], device=forward.device)
    predicts = torch.from_numpy(at).to(forward.device) + len(pair.prompt_ids) - 1
    logits = forward(ids, predicts, attention_mask=torch.ones_like(ids))
    labels = torch.tensor(pair.response_ids, device=logits.device)[at]
    wide = torch.promote_types(logits.dtype, torch.float32)
    statistics = row_statistics(logits.to(wide, copy=True), labels)
    return _in_nats(statistics), logits.shape[-1]


@contextmanager
def rounded_embeddings(
    model: nn.Module, precision: torch.dtype | None = None
) -> Iterator[None]:
    """Within the block every input embedding is off by one rounding, up or down: of the
    model's coarsest weights, or of the `precision` that it is computed in."""
    step = coarsest(model).eps
    if precision is not None:
        step = max(step, torch.finfo(precision).eps)
    chance = torch.Generator().manual_seed(0)

    def change(_module: nn.Module, _given: Any, out: Tensor) -> Tensor:
        # Drawn on the CPU, so that all devices round the same numbers.
        signs = torch.randint(0, 2, out.shape, generator=chance) * 2 - 1
        return out * (1 + step * signs.to(out.device, out.dtype))

    handle = input_embedding(model).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def coarsest(model: nn.Module) -> torch.finfo:
    """Precision of the model's coarsest floating-point weights, at best float32."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    infos = [torch.finfo(kind) for kind in kinds | {torch.float32}]
    return max(infos, key=lambda info: info.eps)


def _in_nats(rows: RowStatistics) -> Float[np.ndarray, "column row"]:
    """What is compared: all that is in nats."""
    columns = (rows.logp, rows.argmax_logp, rows.rest_logp, rows.entropy)
    return torch.stack(columns).cpu().numpy()


def sample_of(pairs: Sequence[TokenizedPair]) -> tuple[TokenizedPair, ...]:
    """Up to seven pairs of two prompts: long, short, and one of a single token."""
    by_prompt: dict[tuple[int, ...], list[TokenizedPair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt_ids, []).append(pair)

    def longest(responses: list[TokenizedPair]) -> int:
        first = max(responses, key=lambda p: len(p.response_ids))
        return len(first.prompt_ids) + len(first.response_ids)

    ordered = sorted(by_prompt.values(), key=longest)
    chosen: list[TokenizedPair] = []
    for responses in [ordered[-1], ordered[0]][: len(ordered)]:
        by_length = sorted(responses, key=lambda p: len(p.response_ids))
        middle = by_length[len(by_length) // 2]
        chosen += dict.fromkeys([by_length[-1], middle, by_length[0]])
    # One token: its label is the response's end, and the prompt's last position is all
    # that is read of the pair.
    single = chosen[-1]
    return (*chosen, replace(single, response_ids=single.response_ids[:1]))


def few_ids(sample: ProbePlan, device: torch.device) -> Int[Tensor, "1 time"]:
    """Eight tokens, so that all logits of a large vocabulary stay small."""
    pair = min(sample.pairs, key=lambda p: len(p.prompt_ids) + len(p.response_ids))
    return torch.tensor([(*pair.prompt_ids, *pair.response_ids)[:8]], device=device)
