"""What every fast way is held against: the plain forward, on a few of the very probes.

One sequence at a time, without padding, with the model's own logits. Compared are the
four statistics that are in nats, on up to seven responses to two prompts: the longest
(sliding windows bite only beyond their length), short ones, and one of a single token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from learndyn.measure.forward import Forward
from learndyn.measure.plan import ProbePlan
from learndyn.measure.reader import Reader
from learndyn.measure.statistics import RowStatistics, row_statistics
from learndyn.probes.tokenize import TokenizedPair


TOLERANCE = 2e-5
"""Largest error of a route in nats per token. Right ones stay below 1e-5 in float32,
wrong ones are off by 0.01 to 1."""

CHECKED = 32
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
    tolerance: float
    """`TOLERANCE`, or for half precision the rounding of its largest logit."""

    @classmethod
    def of(cls, forward: Forward, sample: ProbePlan) -> "PlainForward":
        """`forward` hands out the model's own logits."""
        values, positions, response = [], [], []
        largest, vocabulary, rounding = 1.0, 1, 0.0
        for i, pair in enumerate(sample.pairs):
            n = len(pair.response_ids)
            kept = np.unique([*range(n)[: CHECKED // 2], *range(n)[-CHECKED // 2 :]])
            ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
            at = torch.from_numpy(kept) + len(pair.prompt_ids) - 1
            ids, at = ids.to(forward.device), at.to(forward.device)
            logits = forward(ids, at, attention_mask=torch.ones_like(ids))
            vocabulary = logits.shape[-1]
            if logits.dtype.itemsize < 4:
                rounding = torch.finfo(logits.dtype).eps
            finite = logits.abs().nan_to_num(0.0, posinf=0.0)
            largest = max(largest, float(finite.max()))
            labels = torch.tensor(pair.response_ids, device=logits.device)[kept]
            wide = torch.promote_types(logits.dtype, torch.float32)
            found = row_statistics(logits.to(wide, copy=True), labels)
            values.append(_in_nats(found))
            positions.append(sample.starts[i] + kept)
            response.append(np.full(len(kept), i))
        return cls(
            vocabulary,
            np.concatenate(positions),
            np.concatenate(response),
            np.concatenate(values, axis=1),
            max(TOLERANCE, rounding * largest),
        )

    def error(self, reader: Reader, sample: ProbePlan) -> float:
        """Largest mean error of a response, in nats per token."""
        rows = reader.read_all(sample, reader.tier.pieces(sample, reader.limits))
        found = _in_nats(rows)[:, self.positions]
        with np.errstate(invalid="ignore"):
            gaps = np.abs(found - self.values)
        # The same infinity, or NaN in both: agreement about a model that has diverged.
        same = (found == self.values) | (np.isnan(found) & np.isnan(self.values))
        gaps = np.where(same, 0.0, np.nan_to_num(gaps, nan=math.inf)).max(0)
        counts = np.bincount(self.response)
        return float((np.bincount(self.response, gaps) / counts).max())


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
    single = chosen[-1]
    return (*chosen, replace(single, response_ids=single.response_ids[:1]))
