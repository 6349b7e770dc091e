"""What a hypothetical update is made from: settings, rows, probes, reference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from learndyn.errors import BadInput
from learndyn.forces.losses import Loss
from learndyn.forces.losses.loss import Responses
from learndyn.forces.predict import Method
from learndyn.measure.load import load_model
from learndyn.measure.score import Scorer
from learndyn.probes.build import build_probes, load_probes
from learndyn.probes.data import Data, Row, read_data
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedPair
from learndyn.record.authors import AUTHORS_KINDS


Optimizer = Literal["sgd", "adamw", "rmsprop"]


@dataclass(frozen=True)
class Hypothetical:
    """All of one hypothetical update."""

    model: str
    data: str
    out: Path
    loss: str = "dpo"
    options: dict[str, str] = field(default_factory=dict)
    """Of the loss: {"beta": "0.05"}."""
    probes: str | None = None
    """File of probes; by default built from the data."""
    kinds: list[str] | None = None
    """Of the probes that are built; by default all that can be."""
    prompts: int = 16
    """To watch; the first ones of a file."""
    batch: int = 16
    """Rows to train on: those of watched prompts first."""
    optimizer: Optimizer = "sgd"
    lr: float | None = None
    reference: str | None = None
    """Model that the loss compares with; by default the model itself, as at the first
    update of a run."""
    method: Method = "auto"
    split: str = "train"
    empty: Literal["error", "keep", "drop"] = "error"
    mismatched: Literal["error", "drop"] = "error"
    max_length: int | None = None
    """Cut prompt + response to so many tokens; by default nothing may be cut."""
    dtype: str = "float32"
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(Optimizer):
            raise BadInput(
                f"there is no optimizer {self.optimizer!r} here: choose "
                f"{', '.join(get_args(Optimizer))}."
            )
        for name in ("prompts", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}: give 1 or more.")
        if self.lr is not None and not self.lr > 0:
            raise BadInput(f"lr is {self.lr}: an update needs one above 0.")


def read_rows(settings: Hypothetical, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The data to train on.

    Raises:
        BadInput: as `read_data`.
    """
    return read_data(
        settings.data,
        split=settings.split,
        aliases=AUTHORS_KINDS,
        empty=settings.empty,
        mismatched=settings.mismatched,
        tokenizer=tokenizer,
    )


def watched_probes(
    settings: Hypothetical, data: Data, tokenizer: PreTrainedTokenizerBase
) -> ProbeSet:
    """The probes of a file, or those that the data give.

    Raises:
        BadInput: as `load_probes` and `build_probes`.
    """
    if settings.probes is None:
        return build_probes(
            data,
            prompts=settings.prompts,
            or_fewer=True,
            seed=settings.seed,
            kinds=settings.kinds,
        )
    found = load_probes(
        settings.probes,
        aliases=AUTHORS_KINDS,
        empty=settings.empty,
        tokenizer=tokenizer,
    )
    kept = set(found.prompt_ids[: settings.prompts])
    return ProbeSet(tuple(p for p in found if p.prompt_id in kept), found.manifest)


def training_rows(
    data: Data, probes: ProbeSet, kinds: Sequence[str], count: int
) -> list[Row]:
    """Rows to train on: first those whose prompt is watched, in the data's order."""
    usable = [row for row in data.rows if all(kind in row.responses for kind in kinds)]
    if not usable:
        have = sorted({kind for row in data.rows for kind in row.responses})
        raise BadInput(
            f"no row of {data.source} has {' and '.join(kinds)} to train on; the rows "
            f"have {', '.join(have)}. Name the column {kinds[0]!r}, or choose a loss "
            "that trains on what there is."
        )
    watched = {probe.prompt for probe in probes}
    return sorted(usable, key=lambda row: row.prompt not in watched)[:count]


def reference_sums(
    settings: Hypothetical, pairs: Sequence[TokenizedPair]
) -> Float[np.ndarray, " response"] | None:
    """log pi of each response under the reference, nats; None: the model itself.

    Raises:
        BadInput: if it cannot be loaded, or cannot read the responses.
    """
    if settings.reference is None:
        return None
    model = load_model(
        settings.reference,
        dtype=getattr(torch, settings.dtype),
        trust_remote_code=settings.trust_remote_code,
    )
    return Scorer.attach(model, pairs).observe().logp


def context_of(model: nn.Module) -> int:
    """Most tokens that a model reads; 1024 where it does not say, or reads more."""
    config: Any = getattr(model, "config")  # noqa: B009
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(1024, known or 1024)


def check_cut(
    pairs: Sequence[TokenizedPair], length: int, settings: Hypothetical, what: str
) -> None:
    """Refuse to cut what nobody asked to cut: a cut answer lacks its end."""
    cut = sum(pair.truncated for pair in pairs)
    if cut and settings.max_length is None:
        raise BadInput(
            f"{cut} of {len(pairs)} {what} are longer than {length} tokens (prompts "
            f"longer than {length // 2}). Give --max-length {length} to cut them, "
            "shorter texts, or a model with a longer context."
        )


def unfreeze_adapter(model: Any) -> None:
    """An adapter comes frozen from disk, its base with it: let the adapter move."""
    if any(p.requires_grad for p in model.parameters()):
        return
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    if prefix is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(prefix in name)


def roles_of(loss: Loss) -> tuple[str, ...]:
    """Which responses of a row the loss trains on: both; or, where it treats all that
    it gets alike, the chosen to raise them or the rejected to lower them."""
    if len(loss.roles) > 1:
        return ("chosen", "rejected")
    one = torch.ones(1, dtype=torch.float64)
    alone = Responses(
        n_tokens=torch.ones(1, dtype=torch.long),
        chosen=torch.ones(1, dtype=torch.bool),
        reference=-one,
        old_logp=-one,
        advantage=one,
    )
    return ("chosen",) if float(loss.push(-one, alone)) < 0 else ("rejected",)
