"""One update, explained: which part of it moved which answer, beside what happened.

`explain_update` takes an optimizer's real step and the gradient of the batch by the
sign of its push, and follows each part to every probe:

    pull      training tokens that the loss raises        (push < 0)
    push      training tokens that the loss lowers        (push > 0: negative gradient)
    other     gradient that did not come through log-probabilities
    history   what the optimizer remembers of earlier batches
    decay     weight decay
    rounding  of the parameters' own dtype

The parts sum to the update. Where the optimizer's rule is not known there is one part,
"update". `_influence_on_kinds` goes down to single training tokens: what each did to
every kind of probe, with its text.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from learndyn.forces.batch import Batch
from learndyn.forces.direction import Direction, norm, placed, plus, scaled
from learndyn.forces.predict import Change, Predictor, change_noise, fit
from learndyn.forces.split import (
    Decomposition,
    Descend,
    group_changes,
    group_directions,
    influence,
    inner,
)
from learndyn.forces.step import Step, check_moved
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.forces import Forces, Influence


Decode = Callable[[Sequence[int]], str]
"""The text of token ids."""

_SMALL = 1e-6
"""A gradient that is this much smaller than the whole counts as rounding; so does one
below the rounding of the gradient's own dtype."""

_MISSING = 0.1
"""Share of the update that its parts may miss; beyond it the update is not split."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """The batch's gradient by the sign of push, before clipping, and its tokens."""

    pull: dict[str, Tensor]
    push: dict[str, Tensor]
    batch: Batch | None
    """None where training tokens cannot be read apart (packed rows, dropout)."""
    note: str = ""
    """Why there is no batch."""


@dataclass(frozen=True)
class ExplainSettings:
    """The settings of one explanation."""

    step: int
    """Optimizer updates after the update that is explained."""
    loss: str = ""
    layers: bool = True
    """Whether to split by layers: one pass over the probes for each."""
    influence: bool = True
    """Whether to split by training tokens: two passes for each kind."""


def explain_update(
    predictor: Predictor,
    probes: TokenizedProbes,
    step: Step,
    gradients: Gradients | None,
    settings: ExplainSettings,
    decode: Decode,
) -> Forces:
    """Follow each part of an update to every probe; the update has been made.

    The model stands at theta_after; it is put at theta_before for the prediction and is
    bit-identical afterwards. `predictor` is attached to the probes' pairs.

    Raises:
        BadInput: if the step moved nothing, or is not finite.
    """
    began = time.perf_counter()
    check_moved(step)
    # A first-order change is along d from theta_before: at theta_after its error would
    # have the other sign.
    after = predictor.scorer.rows().logp.numpy()
    with placed(predictor.model, step.before):
        followed = _follow(predictor, probes, step, gradients, settings, decode)
    actual = after - followed.before
    sums = predictor.logps.summed(actual)
    agreement = fit(followed.whole.logp, sums, followed.noise)
    return Forces(
        step=settings.step,
        probe_ids=np.arange(len(probes), dtype=np.int32),
        n_tokens=np.diff(predictor.logps.offsets).astype(np.int32),
        actual=sums,
        predicted=followed.whole.logp,
        noise=followed.noise,
        token_actual=actual.astype(np.float32),
        token_predicted=followed.whole.token.astype(np.float32),
        token_text=tuple(
            text for p in probes.pairs for text in _texts_of(p.response_ids, decode)
        ),
        parts={name: part.logp for name, part in followed.parts.items()},
        token_parts={
            name: part.token.astype(np.float32) for name, part in followed.parts.items()
        },
        groups=followed.groups,
        info={
            "loss": settings.loss,
            **_about(step),
            "method": followed.whole.method,
            "why_not_forward_mode": predictor.why,
            "clip": followed.clip,
            "completeness": followed.completeness,
            **asdict(agreement),
            "scored": predictor.scorer.route.label or "exactly",
            "seconds": round(time.perf_counter() - began, 2),
            "notes": followed.notes,
            "kernel": None,
        },
        influence=followed.tokens,
    )


@dataclass(frozen=True, eq=False)
class _Followed:
    """What was measured with the model at theta_before."""

    before: Float[np.ndarray, " token"]
    noise: Float[np.ndarray, " probe"]
    whole: Change
    parts: dict[str, Change]
    groups: dict[str, Float[np.ndarray, " probe"]]
    tokens: Influence | None
    clip: float
    notes: list[str]
    completeness: float
    """Share of the update that the parts miss."""


def _follow(
    predictor: Predictor,
    probes: TokenizedProbes,
    step: Step,
    gradients: Gradients | None,
    settings: ExplainSettings,
    decode: Decode,
) -> _Followed:
    before = predictor.scorer.rows().logp.numpy()
    directions, clip, notes = _directions_of(step, gradients)
    tokens = None
    batch = None if gradients is None else gradients.batch
    if settings.influence and batch is not None and step.scale is not None:

        def descend(gradient: Direction) -> dict[str, Tensor]:
            return step.preconditioned(_among(scaled(gradient, clip), step))

        tokens = _influence_on_kinds(predictor, probes, batch, descend, decode)
    if gradients is not None and gradients.note:
        notes = [gradients.note, *notes]
    cut = sum(pair.truncated for pair in probes.pairs)
    if cut:
        notes.append(f"{cut} of {len(probes)} probes are cut and lack their end.")
    # `whole` is measured and not summed, so that `missed` can catch parts that sum to
    # another update than the real one.
    whole = predictor.along(step.direction)
    parts = {name: predictor.along(part) for name, part in directions.items()}
    missed = Decomposition(parts, whole).residual
    if missed > _MISSING:
        parts, tokens = {"update": whole}, None
        notes.append(
            f"not split: the parts miss {missed:.0%} of the update, which the rounding "
            f"of its weights hides (the parts leave {step.unexplained:.0%} of the "
            "displacement unexplained). Explain it with float32 weights."
        )
    return _Followed(
        before=before,
        noise=change_noise(predictor.scorer, before),
        whole=whole,
        parts=parts,
        groups=_layers(predictor, step.direction) if settings.layers else {},
        tokens=tokens,
        clip=clip,
        completeness=missed,
        notes=notes,
    )


def _layers(
    predictor: Predictor, direction: Direction
) -> dict[str, Float[np.ndarray, " probe"]]:
    """By layer: a pass along each, or, without forward mode, a gradient per probe,
    which is exact where a difference along one layer would be mostly rounding."""
    groups = group_directions(predictor.model, direction)
    if predictor.forward_mode is None:
        return group_changes(predictor.logps, groups)
    return {
        name: predictor.along(part).logp
        for name, part in groups.items()
        if norm(part.values()) > 0
    }


def _about(step: Step) -> dict[str, Any]:
    rates = sorted(set(step.lr.values()))
    return {
        "optimizer": step.rule,
        "lr": rates[0] if len(rates) == 1 else rates,
        "unexplained": step.unexplained,
    }


def _directions_of(
    step: Step, gradients: Gradients | None
) -> tuple[dict[str, Direction], float, list[str]]:
    """The update's parts, the clipping coefficient, and notes for the reader.

    Clipping scaled the gradient by one number, which the optimizer does not report: it
    is fitted, so that the batch's gradient is most like the one that the optimizer was
    given. What is left of that is "other", or rounding if it is SMALL.
    """
    if step.scale is None:
        return {"update": step.direction}, 1.0, [f"not split: {step.why}"]
    parts: dict[str, Direction] = {**step.parts()}
    clip, notes = 1.0, []
    if gradients is not None:
        given = parts.pop("gradient")
        raw = _among(plus(gradients.pull, gradients.push), step)
        # Least squares: argmin_c ||c raw - given||.
        clip = inner(raw, step.gradient) / (inner(raw, raw) or 1.0)
        signs = {
            name: step.preconditioned(_among(scaled(part, clip), step))
            for name, part in (("pull", gradients.pull), ("push", gradients.push))
        }
        left = plus(given, *(scaled(part, -1.0) for part in signs.values()))
        # Of the gradient, not of the step: Adam's first step makes all elements equal,
        # those too that are nothing but rounding.
        rest = plus(step.gradient, scaled(raw, -clip))
        share = norm(rest.values()) / (norm(step.gradient.values()) or 1.0)
        eps = [torch.finfo(part.dtype).eps for part in step.gradient.values()]
        if share > max([_SMALL, *eps]):
            signs["other"] = left
        else:
            parts["rounding"] = plus(parts["rounding"], left)
        parts = {**signs, **parts}
        if share > 0.05:  # e.g. an auxiliary loss of a mixture of experts
            notes.append(
                f"{share:.0%} of the gradient did not come through log-probabilities "
                "of response tokens: it is in the part called other."
            )
    moving = {n: part for n, part in parts.items() if norm(part.values()) > 0}
    return moving, clip, notes


def _among(gradient: Direction, step: Step) -> dict[str, Tensor]:
    """Only parameters whose gradient the optimizer was given."""
    # A parameter may have a gradient here and none there: frozen by a schedule, or
    # zeroed to None. The optimizer passed over it.
    return {name: part for name, part in gradient.items() if name in step.gradient}


_LETTER = 4
"""Most tokens of one letter: UTF-8 has at most four bytes."""


def _kind_weights(
    probes: TokenizedProbes, offsets: Any
) -> dict[str, Float[np.ndarray, " token"]]:
    """For each kind, what makes the mean over its probes of their summed logp."""
    # A mean over probes, not tokens: a long answer counts as one, as in the report.
    kind_of = np.repeat([probe.kind for probe in probes.probes], np.diff(offsets))
    counts = {k: sum(p.kind == k for p in probes.probes) for k in probes.probes.kinds}
    return {kind: (kind_of == kind) / count for kind, count in counts.items()}


def _influence_on_kinds(
    predictor: Predictor,
    probes: TokenizedProbes,
    batch: Batch,
    descend: Descend,
    decode: Decode,
) -> Influence:
    """What each training token did to the mean log-probability of each kind of probe.

    `descend` makes the update of a part of the gradient, clipping included. Two passes
    for each kind.
    """
    weights = _kind_weights(probes, predictor.logps.offsets)
    rows = np.stack(list(weights.values()))
    change = influence(predictor, batch, descend, rows)
    return Influence(
        kinds=tuple(weights),
        example=batch.example.astype(np.int32),
        position=batch.position.astype(np.int32),
        role=tuple(batch.roles[i] for i in batch.example),
        token=tuple(
            text for p in batch.pairs for text in _texts_of(p.response_ids, decode)
        ),
        push=batch.push,
        change=change.T,
        example_text={
            i: _shown(pair.prompt_ids, pair.response_ids, decode)
            for i, pair in enumerate(batch.pairs)
        },
    )


def _shown(prompt: Sequence[int], response: Sequence[int], decode: Decode) -> str:
    """The end of a prompt and the start of its response."""
    return decode([*prompt[-24:], *response[:24]])


def _texts_of(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of each token. A letter of several tokens stands at the last of them,
    and the ones before it are empty."""
    texts: list[str] = []
    open_ids: list[int] = []
    for token in ids:
        open_ids.append(int(token))
        text = decode(open_ids)
        # Byte-level tokens cut letters: what decodes to U+FFFD waits for the rest.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(open_ids) < _LETTER:
            texts.append("")
            continue
        texts.append(text)
        open_ids = []
    return texts
