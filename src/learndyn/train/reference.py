"""Step 0 of DPO: policy and reference must be the same model on every training pair.

If they are not, the margin does not start at 0, and the loss pushes on a difference
that no update made. TRL's default reference is loaded anew from the policy's name, so
it is another model whenever the policy was changed in memory; half-precision references
do the same, more quietly.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from learndyn.errors import BadInput
from learndyn.measure.frozen import kept_sums
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair


TOLERANCE = 1e-4
"""Nats per response. Two float32 scorings of one model differ by about 1e-5."""

SLICE = 2048
"""Responses whose tokens are held at once: training sets are larger than probe sets."""


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
    reference's own scores are kept between runs (`measure.frozen`); the policy is
    always scored anew.

    Raises:
        BadInput: if it exceeds `TOLERANCE`; the message names the probable cause.
    """
    ours = _sums(policy, pairs, batch_size, progress)
    frozen, disabled = reference, nullcontext
    if frozen is None:
        frozen, disabled = policy, getattr(policy, "disable_adapter", nullcontext)
    with disabled():
        theirs = kept_sums(
            frozen, pairs, lambda: _sums(frozen, pairs, batch_size, progress)
        )
    gaps = np.abs(ours - theirs)
    worst = int(gaps.argmax())
    if not float(gaps[worst]) <= TOLERANCE:
        raise BadInput(
            f"policy and reference disagree before the first update on "
            f"{int((~(gaps <= TOLERANCE)).sum())} of {len(pairs)} training responses: "
            f"response {worst} has log pi {float(ours[worst]):.4f} and log pi_ref "
            f"{float(theirs[worst]):.4f} nats, {float(gaps[worst]):.2g} apart "
            f"(allowed: {TOLERANCE:g}). {_cause(policy, reference)}"
        )
    return float(gaps[worst])


def _sums(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    batch_size: int,
    progress: Callable[[Iterable[Any]], Iterable[Any]],
) -> Float[np.ndarray, " pair"]:
    scorer = Scorer.attach(model, pairs, batch_size=batch_size)
    sums = np.zeros(len(pairs))
    for first in progress(range(0, len(pairs), SLICE)):
        rows = range(len(pairs))[first : first + SLICE]
        logp = scorer.select(rows).rows().logp
        parts = logp.split([len(pairs[i].response_ids) for i in rows])
        sums[first : first + SLICE] = [float(part.sum()) for part in parts]
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
