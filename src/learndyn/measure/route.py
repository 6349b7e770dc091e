"""Which way a model is read, found by trying on its own weights.

Every fast way is right for some families of models and silently wrong for others. So
each is compared with the plain forward (`selftest`). The first that agrees is used;
what disagreed is dropped, with one warning that names the family and the error.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from learndyn.errors import BadInput
from learndyn.measure.forward import Forward, base_of, learn_head
from learndyn.measure.linear import onednn_is_faster
from learndyn.measure.neutral import device_of
from learndyn.measure.plan import ProbePlan
from learndyn.measure.reader import Reader, most_rows
from learndyn.measure.selftest import (
    PlainForward,
    coarsest,
    few_ids,
    sample_of,
)
from learndyn.measure.tiers import ALONE, TIERS, Limits, Tier
from learndyn.measure.tiles import Tiles


Exactness = Literal["auto", "strict"]

_SHARES = (1, 2, 4, 8)
"""Packs are tried whole, then in these parts of their size."""

_WARNED: set[tuple[str, ...]] = set()
"""Families and ways of scoring that this process has warned of."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a model is scored, for `run.json`."""

    name: str
    """The tier: "tree", "masked", "cached", "padded" or "alone"."""
    head: str
    """How the vocabulary projection is read: "tiles", "rows" of logits made from hidden
    states, or the model's own "logits"."""
    after: str
    """What the model does after the projection: "identity", "scale 0.0625", "softcap
    30"; "" where its own logits are used."""
    error: float
    """Largest error of the self-test, in nats per token; NaN where the plain forward
    itself gives NaN, so that nothing could be tested."""
    dropped: dict[str, str]
    """Faster ways that were not taken, and why."""
    approximate: str | None = None
    """The precision of a scoring that is not exact: "bfloat16"; otherwise None."""
    approximation: float = 0.0
    """What that precision cost in the self-test, in nats per token."""
    weights: str | None = None
    """The dtype of the model's own weights where that is below float32: then exactness
    is up to their rounding."""

    @property
    def is_exact(self) -> bool:
        """False where a lower precision was asked for."""
        return self.approximate is None

    @property
    def in_words(self) -> str:
        """One line for people."""
        text = (
            f"scored by {self.name} with {self.head}, {self.error:.1e} nats per token "
            "from the plain forward in the self-test"
        )
        if math.isnan(self.error):
            text = f"scored by {self.name} with {self.head}, untested: it gives NaN"
        if self.weights is not None:
            text += (
                f"; its weights are {self.weights}, whose rounding all numbers carry"
            )
        if self.is_exact:
            return text
        return (
            f"APPROXIMATE: {text}, and {self.approximation:.1e} for {self.approximate}"
        )

    @property
    def label(self) -> str | None:
        """What must stand beside every number; None where all are exact."""
        if self.approximate is not None or self.weights is None:
            return self.approximate
        return f"{self.weights} weights"


def choose(
    model: nn.Module,
    plan: ProbePlan,
    limits: Limits,
    *,
    exactness: Exactness = "auto",
    tier: str | None = None,
    precision: str | None = None,
) -> tuple[Reader, Route]:
    """The fastest reader that is right, and how right it is.

    `tier` names the only one to try. Where none is right, the plain forward's logits
    are read. Must be called where the model is undisturbed.

    Raises:
        BadInput: if `exactness` is "strict" and a tier or head disagrees with the plain
            forward, or if `tier` cannot be used.
    """
    # Tested on some of the probes themselves: windows, caps and long positions only
    # matter at lengths that the run really has.
    sample = ProbePlan(sample_of(plan.pairs))
    truth = PlainForward.of(Forward.of(model, None), sample)
    rejected = _Rejections({}, {}, {})
    trial = _Trial(model, sample, truth, plan, rejected)
    reader, after = _find_head(trial, limits)
    taken: tuple[Reader, float] | None = None
    for candidate in TIERS if tier is None else _named(tier):
        taken = trial.of(replace(reader, tier=candidate))
        if taken is not None:
            break
    if taken is None and tier is not None:
        raise BadInput(
            f"{type(model).__name__} cannot be scored by the tier {tier!r}: "
            f"{rejected.dropped.get(tier, rejected.dropped)}. Leave tier out."
        )
    if taken is None:
        reader, after = _logits_of(trial, limits), ""
        taken = reader, truth.error(reader, sample)
    reader, error = taken
    if np.isnan(truth.values).any():
        error = math.nan  # two NaNs agree about nothing
        if exactness == "strict":
            raise BadInput(
                f"{type(model).__name__} has diverged: its log-probabilities are not "
                "numbers, which exactness='strict' refuses. Take an earlier checkpoint."
            )
    name = reader.tier.name
    rejected.tell(model, f"{name} with {reader.head_name}", exactness)
    info = coarsest(model)
    weights = None if info.bits >= 32 else info.dtype
    route = Route(
        name, reader.head_name, after, error, rejected.dropped, weights=weights
    )
    if precision is None:
        return reader, route
    # The exact way first, then the same in bfloat16: what that costs is then rounding
    # alone, and no error of the way.
    lowered = replace(reader, autocast=torch.bfloat16)
    cost = truth.error(lowered, sample)
    return lowered, replace(route, approximate=precision, approximation=cost)


@dataclass(frozen=True, slots=True)
class _Rejections:
    """Ways of reading that were not taken, while a route was looked for."""

    dropped: dict[str, str]
    """Reason by name of tier or head."""
    wrong: dict[str, str]
    """Those that ran and were wrong, each with the words of the warning."""
    slow: dict[str, str]
    """Those that cannot run, where a user will notice it."""

    def off(self, name: str, error: float, tolerance: float) -> None:
        """Note a way that disagrees with the plain forward."""
        self.dropped[name] = f"off by {error:.2g} nats per token"
        self.wrong[name] = (
            f"scoring by {name} is off by {error:.2g} nats per token against its plain "
            f"forward (allowed: {tolerance:.2g})"
        )

    def tell(self, model: nn.Module, taken: str, exactness: Exactness) -> None:
        """Refuse, or warn once, where something was wrong."""
        messages = self.wrong | self.slow
        if not messages:
            return
        family = type(base_of(model)).__name__
        text = f"{family}: {'; '.join(messages.values())}"
        if self.wrong and exactness == "strict":
            raise BadInput(
                f"{text}. Exactness strict refuses to go on, even where a slower way "
                f"is right; auto, the default, would score by {taken}, which agrees."
            )
        if (family, *messages) not in _WARNED:
            _WARNED.add((family, *messages))
            warnings.warn(f"{text}. It is scored by {taken}.", stacklevel=2)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Tries readers on a sample, and once on a piece of real size."""

    model: nn.Module
    sample: ProbePlan
    truth: PlainForward
    plan: ProbePlan
    rejected: _Rejections

    def of(self, reader: Reader) -> tuple[Reader, float] | None:
        """A reader that is right and its error; None, and the reason noted, if it is
        not. It may read less at once than the one that was given."""
        name = reader.tier.name
        reason = reader.tier.why_not(self.model)
        if reason is None:
            try:
                right, error = self.error(reader)
                if error <= self.truth.tolerance:
                    return self._at_size(right), error
            except Exception as failure:  # models refuse masks and caches in many ways
                reason = _in_a_line(failure)
                # Worth a warning: without the tree most of the speed is lost. The ways
                # after it fail for many models, and little is lost with each.
                if name == "tree" or isinstance(failure, torch.OutOfMemoryError):
                    self.rejected.slow[name] = f"scoring by {name} failed ({reason})"
            else:
                self.rejected.off(name, error, self.truth.tolerance)
                return None
        self.rejected.dropped[name] = reason
        return None

    def error(self, reader: Reader) -> tuple[Reader, float]:
        """A reader and its error on the sample.

        oneDNN adds up in another order than MKL and a little less exactly: where that
        is too much, the same reader without it.
        """
        error = self.truth.error(reader, self.sample)
        if error <= self.truth.tolerance or not (reader.fast and onednn_is_faster()):
            return reader, error
        exact = replace(reader, fast=False)
        return exact, self.truth.error(exact, self.sample)

    def _at_size(self, reader: Reader) -> Reader:
        """The same, with packs small enough for memory and for the model's buffers.

        Raises what the model raises where even the smallest fail.
        """
        if len(self.plan.pairs) <= len(self.sample.pairs):
            return reader  # the sample was all there is
        # The first piece has the longest prompts and responses: if it fits, all should.
        for share in _SHARES:
            limits = replace(reader.limits, tokens=reader.limits.tokens // share)
            smaller = replace(reader, limits=limits)
            pieces = reader.tier.pieces(self.plan, limits)
            try:
                smaller.read_all(self.plan, pieces[:1])
            except Exception:
                if share == _SHARES[-1]:
                    raise
            else:
                return smaller
        raise AssertionError("SHARES is empty")


def _in_a_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".split("\n", 1)[0][:200]


def _logits_of(trial: _Trial, limits: Limits) -> Reader:
    """Reads the model's own logits, in bounded numbers."""
    rows = most_rows(trial.truth.vocabulary, device_of(trial.model))
    plain = Forward.of(trial.model, None)
    return Reader(plain, ALONE, replace(limits, rows=rows), None, False)


def _find_head(trial: _Trial, limits: Limits) -> tuple[Reader, str]:
    """The fastest way to read logits that agrees, tried on one sequence at a time."""
    rejected, logits = trial.rejected, _logits_of(trial, limits)
    more = "so its own logits are read, which takes more time and memory"
    try:
        head = learn_head(trial.model, few_ids(trial.sample, logits.forward.device))
    except Exception as failure:  # heads are called in more ways than one
        head = None
        rejected.dropped["rows"] = _in_a_line(failure)
        rejected.slow["rows"] = f"its head cannot be called alone, {more}"
    if head is None:
        reason = "output embedding sharded, or not called just once"
        rejected.dropped.setdefault("rows", reason)
        rejected.slow.setdefault(
            "rows",
            "its output embedding is sharded, or is not called just once in a "
            f"forward, {more}",
        )
        return logits, ""
    if not head.is_exact:
        text = (
            "its output embedding is followed by more than a scale or a soft cap (the "
            f"best, {head.name}, misses by {head.error:.1e} of the largest logit)"
        )
        rejected.dropped["rows"] = text
        if not math.isnan(head.error):  # where nothing is finite, no head is to blame
            rejected.wrong["rows"] = f"{text}, {more}"
        return logits, ""
    rows = Reader(Forward.of(trial.model, head.module), ALONE, limits, head, False)
    ways = [rows]
    if Tiles.of(head.module, head.after) is not None:
        ways = [replace(rows, tiled=True), rows]
    else:
        kind = type(head.module)
        rejected.dropped["tiles"] = (
            f"the output embedding is not a plain linear layer: {kind.__module__}."
            f"{kind.__qualname__}"
        )
    for reader in ways:
        try:
            right, error = trial.error(reader)
        except Exception as failure:  # a head on another device, for one
            rejected.dropped[reader.head_name] = _in_a_line(failure)
            continue
        if error <= trial.truth.tolerance:
            return right, head.name
        rejected.off(reader.head_name, error, trial.truth.tolerance)
    return logits, ""


def _named(tier: str) -> list[Tier]:
    matches = [candidate for candidate in TIERS if candidate.name == tier]
    if not matches:
        names = ", ".join(candidate.name for candidate in TIERS)
        raise BadInput(f"unknown tier {tier!r}. Tiers: {names}.")
    return matches
