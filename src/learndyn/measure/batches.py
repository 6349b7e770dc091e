"""From pairs of token ids to padded batches, refusing what a model cannot read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.measure.head import output_embedding
from learndyn.probes.tokenize import TokenizedPair


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of sequences.

    Raises:
        BadInput: if it is below 1.
    """
    if batch_size < 1:
        raise BadInput(
            f"batch_size is {batch_size}; it must be at least 1: how many sequences "
            "are scored at once."
        )


def check_fits(model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    """Refuse token sequences that the model cannot read.

    Raises:
        BadInput: as `score`.
    """
    output_embedding(model)
    if not pairs:
        raise BadInput("there is nothing to score: the list of pairs is empty.")
    bare = [i for i, p in enumerate(pairs) if not (p.prompt_ids and p.response_ids)]
    if bare:
        raise BadInput(
            f"{len(bare)} of {len(pairs)} pairs lack a prompt token or a response "
            f"token, the first at position {bare[0]}. Tokenize them with "
            "learndyn.probes.tokenize, which says why, or leave them out."
        )
    config: Any = model.config
    context = getattr(config, "max_position_embeddings", None)
    longest = max(len(p.prompt_ids) + len(p.response_ids) for p in pairs)
    if context is not None and longest > context:
        raise BadInput(
            f"the longest probe has {longest} tokens, the model's context is {context} "
            f"({type(model).__name__}.config.max_position_embeddings). Tokenize with "
            f"max_length={context} or less."
        )
    largest = max(max((*p.prompt_ids, *p.response_ids)) for p in pairs)
    embedding: Any = getattr(model, "get_input_embeddings")()  # noqa: B009
    known = embedding.weight.shape[0]
    if largest >= known:
        raise BadInput(
            f"a probe holds token id {largest}, the model knows {known} tokens. The "
            "probes were tokenized for another model: use the tokenizer of this one."
        )


@dataclass(frozen=True, slots=True)
class Padded:
    """Sequences side by side, and where their response tokens are predicted."""

    ids: Int[Tensor, "batch time"]
    attention: Int[Tensor, "batch time"]
    predicts: Bool[Tensor, "batch time"]
    """True where the next token is a response token."""
    labels: Int[Tensor, " row"]
    """The response tokens, batch row after batch row."""


def pad(pairs: Sequence[TokenizedPair], device: torch.device, side: str) -> Padded:
    """Pad a batch. The padding id is 0: it is masked, so any known id does."""
    time = max(len(p.prompt_ids) + len(p.response_ids) for p in pairs)
    ids = torch.zeros(len(pairs), time, dtype=torch.long)
    attention = torch.zeros(len(pairs), time, dtype=torch.long)
    predicts = torch.zeros(len(pairs), time, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        sequence = (*pair.prompt_ids, *pair.response_ids)
        start = 0 if side == "right" else time - len(sequence)
        end = start + len(sequence)
        ids[row, start:end] = torch.tensor(sequence)
        attention[row, start:end] = 1
        predicts[row, end - 1 - len(pair.response_ids) : end - 1] = True
    labels = torch.tensor([i for pair in pairs for i in pair.response_ids])
    return Padded(
        ids.to(device), attention.to(device), predicts.to(device), labels.to(device)
    )
