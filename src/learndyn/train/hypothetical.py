"""One update that is not made: what would this loss, on these rows, do to the answers?

A model from disk, a batch of preference data and a loss give a gradient; a new
optimizer takes one step with it, in memory alone. What the step does to the probes is
written as a run of one update, so that all that reads runs can read it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedTokenizerBase

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import norm, parameters_of, plus
from learndyn.forces.explain import (
    ExplainSettings,
    Gradients,
    explain_update,
)
from learndyn.forces.losses import Loss, loss_named
from learndyn.forces.losses.loss import Responses
from learndyn.forces.predict import Method, Predictor
from learndyn.forces.split import sign_gradients
from learndyn.forces.step import Step, capture_step
from learndyn.measure.forward import context_of
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.build import build_probes, load_probes
from learndyn.probes.data import Data, Row, read_data
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import PairTokenizer, TokenizedPair, tokenize
from learndyn.record.run_directory import RunDirectory, refuse_taken
from learndyn.train.provenance import describe


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
    """Rows to train on; rows of watched prompts come first."""
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
                f"optimizer={self.optimizer!r}: choose "
                f"{', '.join(get_args(Optimizer))}."
            )
        for name in ("prompts", "batch"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: give 1 or more.")
        if self.lr is not None and not self.lr > 0:
            raise BadInput(f"lr={self.lr:g}: give a learning rate above 0.")


def _read_rows(settings: Hypothetical, tokenizer: PreTrainedTokenizerBase) -> Data:
    """The data to train on."""
    return read_data(
        settings.data,
        split=settings.split,
        aliases=AUTHORS_KINDS,
        empty=settings.empty,
        mismatched=settings.mismatched,
        tokenizer=tokenizer,
    )


def _watched_probes(
    settings: Hypothetical, data: Data, tokenizer: PreTrainedTokenizerBase
) -> ProbeSet:
    """The probes of a file, or those that the data give."""
    if settings.probes is None:
        return build_probes(
            data,
            prompts=settings.prompts,
            or_fewer=True,
            seed=settings.seed,
            kinds=settings.kinds,
        )
    probes = load_probes(
        settings.probes,
        aliases=AUTHORS_KINDS,
        empty=settings.empty,
        tokenizer=tokenizer,
    )
    first = set(probes.prompt_ids[: settings.prompts])
    return ProbeSet(tuple(p for p in probes if p.prompt_id in first), probes.manifest)


def _training_rows(
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
    # a stable sort: watched rows first, and within either part the data's own order
    watched = {probe.prompt for probe in probes}
    return sorted(usable, key=lambda row: row.prompt not in watched)[:count]


def _reference_sums(
    settings: Hypothetical, pairs: Sequence[TokenizedPair]
) -> Float[np.ndarray, " response"] | None:
    """log pi of each response under the reference, nats; None: the model itself."""
    if settings.reference is None:
        return None
    model = load_model(
        settings.reference,
        dtype=getattr(torch, settings.dtype),
        trust_remote_code=settings.trust_remote_code,
    )
    return Scorer.attach(model, pairs).observe().logp


def _check_cut(
    pairs: Sequence[TokenizedPair], length: int, settings: Hypothetical, what: str
) -> None:
    """Refuse to cut what nobody asked to cut: a cut answer lacks its end."""
    cut = sum(pair.truncated for pair in pairs)
    if cut and settings.max_length is None:
        raise BadInput(
            f"{cut} of {len(pairs)} {what} are longer than {length} tokens (prompts "
            f"longer than {length // 2}). Give max_length={length} to cut them, "
            "shorter texts, or a model with a longer context."
        )


def _unfreeze_adapter(model: Any) -> None:
    """An adapter comes frozen from disk, its base with it: let the adapter move."""
    if any(p.requires_grad for p in model.parameters()):
        return
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    if prefix is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(prefix in name)


def _roles_of(loss: Loss) -> tuple[str, ...]:
    """Which responses of a row the loss trains on: both; or, where it treats all that
    it gets alike, the chosen to raise them or the rejected to lower them."""
    if len(loss.roles) > 1:
        return ("chosen", "rejected")
    # Where the sign of the push is the same for any response, one response shows it.
    one = torch.ones(1, dtype=torch.float64)
    alone = Responses(
        n_tokens=torch.ones(1, dtype=torch.long),
        chosen=torch.ones(1, dtype=torch.bool),
        reference=-one,
        old_logp=-one,
        advantage=one,
    )
    return ("chosen",) if float(loss.push(-one, alone)) < 0 else ("rejected",)


_SHARE = 1e-5
"""Length of an SGD step as a share of ||theta||, where no lr is given: large enough to
stand out of rounding, small enough to be of first order."""

_LR = 1e-6
"""Learning rate of the others, where none is given: TRL's for DPO."""


def explain_hypothetical(
    settings: Hypothetical, *, overwrite: bool = False
) -> RunDirectory:
    """Explain one update that a loss would make, into a run directory.

    Nothing is written to the model.

    Raises:
        BadInput: if something cannot be read or does not fit, or `out` holds a run and
            `overwrite` is false.
    """
    loss = loss_named(settings.loss, **settings.options)
    refuse_taken(settings.out, overwrite, resume=None)  # before a model is loaded
    trust = {"trust_remote_code": settings.trust_remote_code}
    tokenizer = load_tokenizer(settings.model, **trust)
    data = _read_rows(settings, tokenizer)
    probes = _watched_probes(settings, data, tokenizer)
    rows = _training_rows(data, probes, _roles_of(loss), settings.batch)
    model = load_model(settings.model, dtype=getattr(torch, settings.dtype), **trust)
    _unfreeze_adapter(model)
    length = settings.max_length or context_of(model)
    watched = tokenize(probes, tokenizer, max_length=length)
    _check_cut(watched.pairs, length, settings, "probes")
    info = describe(model, None)  # as it is before the step
    predictor = Predictor.of(Scorer.attach(model, watched.pairs), settings.method)
    encode = PairTokenizer(tokenizer, length)
    batch = _batch(settings, loss, rows, encode, predictor)
    signs = sign_gradients(predictor.logps, batch)  # of the model before its step
    first = predictor.scorer.observe(step=0)
    step = _one_step(model, plus(*signs.values()), settings.optimizer, settings.lr)
    _check_size(step, settings)
    last = predictor.scorer.observe(step=1, start_ids=first.token_argmax_id)
    forces = explain_update(
        predictor,
        watched,
        step,
        Gradients(signs["pull"], signs["push"], batch),
        ExplainSettings(1, loss=loss.name),
        lambda tokens: str(tokenizer.decode(list(tokens))),
    )
    forces.info["hypothetical"] = _sentence(settings, loss, step)
    info |= {
        "method": "explain",
        "loss": loss.name,
        "rows": [row.row_id for row in rows],
        "data": {"source": data.source, "sha256": data.sha256},
        "settings": {**asdict(settings), "out": str(settings.out)},
        "probe_fingerprint": probes.fingerprint,
        "probe_manifest": probes.manifest,
        "tokenizer_sha256": watched.tokenizer_hash,
        "route": asdict(predictor.scorer.route),
        "every": 1,
        "finished": True,
    }
    table = watched.to_table()
    run = RunDirectory.create(settings.out, table, info, overwrite=overwrite)
    run.write_forces(forces)
    for observation in (first, last):
        run.write_observation(observation)
    return run


def _batch(
    settings: Hypothetical,
    loss: Loss,
    rows: Sequence[Row],
    encode: PairTokenizer,
    predictor: Predictor,
) -> Batch:
    """The rows' responses that the loss trains on, and what it asks of them."""
    roles = _roles_of(loss)
    chosen, rejected = (
        [encode(r.prompt, r.responses[kind], r.rendered) for r in rows]
        if kind in roles
        else []
        for kind in ("chosen", "rejected")
    )
    _check_cut([*chosen, *rejected], encode.max_length, settings, "training texts")
    reference = _reference_sums(settings, (*chosen, *rejected))
    return Batch.of(predictor.logps, chosen, rejected, loss, reference=reference)


def _check_size(step: Step, settings: Hypothetical) -> None:
    """Refuse a step that its weights cannot hold."""
    if step.scale is not None and step.unexplained > 0.5:
        raise BadInput(
            f"the update is lost in the rounding of {settings.dtype} weights: "
            f"{step.unexplained:.0%} of what they moved is not what the optimizer "
            f"asked for (lr {max(step.lr.values()):.2g}). Leave dtype= out, or give "
            "a larger lr=."
        )


def _sentence(settings: Hypothetical, loss: Loss, step: Step) -> str:
    """What the update is, and how large."""
    lr = max(step.lr.values())
    size = f"lr {lr:.2g}"
    if settings.lr is None and settings.optimizer == "sgd":
        size += (
            f", chosen here so that the weights move by {_SHARE:g} of their norm, "
            "whatever the loss: sizes of different losses cannot be compared"
        )
    return (
        f"This update is hypothetical: one step of {loss.name} by {step.rule} on "
        f"{settings.batch} rows at most, taken in memory alone ({size})."
    )


def _one_step(
    model: nn.Module, gradient: dict[str, Any], optimizer: str, lr: float | None
) -> Step:
    """The first step that a new optimizer takes with a gradient."""
    parameters = parameters_of(model)
    length = norm(gradient.values())
    if length == 0:
        raise BadInput(
            "the gradient is zero, so the update would move nothing. A preference loss "
            "has none beyond its margin: take other rows or another reference."
        )
    if lr is None:
        lr = _SHARE * norm(parameters.values()) / length if optimizer == "sgd" else _LR
    # weight_decay=0: decay is no part of what the loss does
    made = {
        "sgd": lambda: torch.optim.SGD(parameters.values(), lr=lr),
        "adamw": lambda: torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0),
        "rmsprop": lambda: torch.optim.RMSprop(parameters.values(), lr=lr),
    }[optimizer]()
    for name, parameter in parameters.items():
        parameter.grad = gradient[name].to(parameter)
    with capture_step(made, model) as captured:
        made.step()
    made.zero_grad()  # a gradient as large as the model, before the probes are scored
    return captured.step
