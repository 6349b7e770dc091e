"""One update that is not made: what would this loss, on these rows, do to the answers?

A model from disk, a batch of preference data and a loss give a gradient; an optimizer
that has seen nothing yet takes one step with it, in memory alone. What that does to the
probes is written as a run of one update, so that all that reads runs can read it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import norm, parameters_of, plus
from learndyn.forces.explain import ExplainSettings, Gradients, explain_update
from learndyn.forces.losses import Loss, loss_named
from learndyn.forces.predict import Predictor
from learndyn.forces.split import sign_gradients
from learndyn.forces.step import Step, capture_step
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.data import Row
from learndyn.probes.tokenize import (
    PairTokenizer,
    tokenize,
)
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.train.hypothetical_inputs import (
    Hypothetical,
    check_cut,
    context_of,
    read_rows,
    reference_sums,
    roles_of,
    training_rows,
    unfreeze_adapter,
    watched_probes,
)
from learndyn.train.provenance import describe
from learndyn.train.resume import refuse_taken


SHARE = 1e-5
"""Length of an SGD step as a share of ||theta||, where no lr is given: large enough to
stand out of rounding, small enough to be of first order."""

LR = 1e-6
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
    _check_free(settings.out, overwrite)
    trust = {"trust_remote_code": settings.trust_remote_code}
    tokenizer = load_tokenizer(settings.model, **trust)
    data = read_rows(settings, tokenizer)
    probes = watched_probes(settings, data, tokenizer)
    rows = training_rows(data, probes, roles_of(loss), settings.batch)
    model = load_model(settings.model, dtype=getattr(torch, settings.dtype), **trust)
    unfreeze_adapter(model)
    length = settings.max_length or context_of(model)
    watched = tokenize(probes, tokenizer, max_length=length)
    check_cut(watched.pairs, length, settings, "probes")
    info = describe(model, None)  # as it is before the step
    predictor = Predictor.of(Scorer.attach(model, watched.pairs), settings.method)
    encode = PairTokenizer(tokenizer, length)
    batch = _batch(settings, loss, rows, encode, predictor)
    signs = sign_gradients(predictor.reader, batch)
    first = predictor.scorer.observe(step=0)
    step = one_step(model, plus(*signs.values()), settings.optimizer, settings.lr)
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
    forces.info["hypothetical"] = _told(settings, loss, step)
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
    roles = roles_of(loss)
    chosen, rejected = (
        [encode(r.prompt, r.responses[kind], r.rendered) for r in rows]
        if kind in roles
        else []
        for kind in ("chosen", "rejected")
    )
    check_cut([*chosen, *rejected], encode.max_length, settings, "training texts")
    reference = reference_sums(settings, (*chosen, *rejected))
    return Batch.of(predictor.reader, chosen, rejected, loss, reference=reference)


def _check_size(step: Step, settings: Hypothetical) -> None:
    """Refuse a step that its weights cannot hold.

    Raises:
        BadInput: if half of it or more is rounding.
    """
    if step.scale is not None and step.unexplained > 0.5:
        raise BadInput(
            f"the update is lost in the rounding of {settings.dtype} weights: "
            f"{step.unexplained:.0%} of what they moved is not what the optimizer "
            f"asked for (lr {max(step.lr.values()):.2g}). Leave --dtype out, or give "
            "a larger --lr."
        )


def _check_free(out: Path, overwrite: bool) -> None:
    """Find out that `out` is taken before a model is loaded."""
    if is_run(out) and not overwrite:
        raise BadInput(
            f"{out} holds a run already. Choose another --out, or replace it with "
            "--overwrite."
        )
    refuse_taken(out, replaceable=overwrite)


def _told(settings: Hypothetical, loss: Loss, step: Step) -> str:
    """One sentence that says what was made up."""
    lr = max(step.lr.values())
    size = f"lr {lr:.2g}"
    if settings.lr is None and settings.optimizer == "sgd":
        size += (
            f", chosen here so that the weights move by {SHARE:g} of their norm, "
            "whatever the loss: sizes of different losses cannot be compared"
        )
    return (
        f"This update is hypothetical: one step of {loss.name} by {step.rule} on "
        f"{settings.batch} rows at most, taken in memory alone ({size})."
    )


def one_step(
    model: nn.Module, gradient: dict[str, Any], optimizer: str, lr: float | None
) -> Step:
    """The first step that a new optimizer takes with a gradient.

    Raises:
        BadInput: if the gradient is zero, or the update not finite.
    """
    parameters = parameters_of(model)
    length = norm(gradient.values())
    if length == 0:
        raise BadInput(
            "the gradient is zero: the loss asks nothing of this batch. Preference "
            "losses do this beyond their margin; take other rows or another reference."
        )
    if lr is None:
        lr = SHARE * norm(parameters.values()) / length if optimizer == "sgd" else LR
    made = {
        "sgd": lambda: torch.optim.SGD(parameters.values(), lr=lr),
        "adamw": lambda: torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=0),
        "rmsprop": lambda: torch.optim.RMSprop(parameters.values(), lr=lr),
    }[optimizer]()
    for name, parameter in parameters.items():
        parameter.grad = gradient[name].to(parameter)
    with capture_step(made, model) as captured:
        made.step()
    made.zero_grad()
    return captured.step
