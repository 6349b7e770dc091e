"""Which way a model is read, found by trying on its own weights.

Every fast way is right for some families of models and silently wrong for others. So
each is compared with the plain forward (`selftest`). The first that agrees is used;
what disagreed is dropped, with one warning that names the family and the error.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.measure.backbone import ALONE, TIERS, Limits, Tier
from learndyn.measure.forward import Forward
from learndyn.measure.head import learn_head
from learndyn.measure.plan import ProbePlan
from learndyn.measure.reader import ROW_CHUNK_BYTES, Reader
from learndyn.measure.selftest import PlainForward, sample_of
from learndyn.measure.tiles import Tiles
from learndyn.probes.tokenize import TokenizedPair


Exactness = Literal["auto", "strict"]

_WARNED: set[tuple[str, ...]] = set()
"""Families, and the ways of scoring of which users of this process were told."""


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
    """Largest error of the self-test, in nats per token."""
    dropped: dict[str, str]
    """Faster ways that were not taken, and why."""
    approximate: str | None = None
    """The precision of a scoring that is not exact: "bfloat16"; otherwise None."""
    approximation: float = 0.0
    """What that precision cost in the self-test, in nats per token."""

    @property
    def is_exact(self) -> bool:
        """False where a lower precision was asked for."""
        return self.approximate is None

    @property
    def in_words(self) -> str:
        """One line for people."""
        told = (
            f"scored by {self.name} with {self.head}, {self.error:.1e} nats per token "
            "from the plain forward in the self-test"
        )
        if self.is_exact:
            return told
        return (
            f"APPROXIMATE: {told}, and {self.approximation:.1e} for {self.approximate}"
        )


def choose(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    limits: Limits,
    *,
    exactness: Exactness = "auto",
    tier: str | None = None,
    precision: str | None = None,
) -> tuple[Reader, Route]:
    """The fastest reader that is right, and how right it is.

    `tier` names the only one to try. Must be called where the model is undisturbed.

    Raises:
        BadInput: if `exactness` is "strict" and a tier or head disagrees with the plain
            forward, or if `tier` cannot be used.
    """
    sample = ProbePlan(sample_of(pairs))
    truth = PlainForward.of(Forward.of(model, None), sample)
    found = _Findings({}, {}, {})
    reader, after = _find_head(model, sample, truth, limits, found)
    for candidate in TIERS if tier is None else _named(tier):
        reader = replace(reader, tier=candidate)
        error = _tried(reader, model, sample, truth, found)
        if error is not None:
            break
    else:
        raise BadInput(
            f"{type(model).__name__} cannot be scored by the tier {tier!r}: "
            f"{found.dropped.get(str(tier), found.dropped)}. Leave tier out."
        )
    name = reader.tier.name
    found.tell(model, f"{name} with {reader.head_name}", exactness)
    route = Route(name, reader.head_name, after, error, found.dropped)
    if precision is None:
        return reader, route
    return _lowered(reader, route, truth, sample, precision)


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was not taken while a route was looked for."""

    dropped: dict[str, str]
    """Reason by name of tier or head."""
    wrong: dict[str, str]
    """Those that ran and were wrong, each with what is said of it."""
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
        """Refuse, or warn once, where something was wrong.

        Raises:
            BadInput: if `exactness` is "strict".
        """
        told = self.wrong | self.slow
        if not told:
            return
        family = type(getattr(model, "get_base_model", lambda: model)()).__name__
        text = f"{family}: {'; '.join(told.values())}"
        if self.wrong and exactness == "strict":
            raise BadInput(
                f'{text}. exactness="strict" refuses to go on; "auto" would score by '
                f"{taken}, which agrees."
            )
        if (family, *told) not in _WARNED:
            _WARNED.add((family, *told))
            warnings.warn(f"{text}. It is scored by {taken}.", stacklevel=2)


def _tried(
    reader: Reader,
    model: nn.Module,
    sample: ProbePlan,
    truth: PlainForward,
    found: _Findings,
) -> float | None:
    """The error of a reader that is right; None, and the reason noted, if it is not."""
    name = reader.tier.name
    reason = reader.tier.why_not(model)
    if reason is None:
        try:
            error = truth.error(reader, sample)
        except torch.OutOfMemoryError:
            reason = "ran out of memory"
            found.slow[name] = f"scoring by {name} {reason}"
        except Exception as failure:  # models refuse masks and caches in many ways
            reason = f"{type(failure).__name__}: {failure}".split("\n", 1)[0][:200]
        else:
            if error <= truth.tolerance:
                return error
            found.off(name, error, truth.tolerance)
            return None
    found.dropped[name] = reason
    return None


def _lowered(
    reader: Reader,
    route: Route,
    truth: PlainForward,
    sample: ProbePlan,
    precision: str,
) -> tuple[Reader, Route]:
    """The same in lower precision, and what that costs."""
    lowered = replace(reader, autocast=torch.bfloat16)
    cost = truth.error(lowered, sample)
    return lowered, replace(route, approximate=precision, approximation=cost)


def _find_head(
    model: nn.Module,
    sample: ProbePlan,
    truth: PlainForward,
    limits: Limits,
    found: _Findings,
) -> tuple[Reader, str]:
    """The fastest way to read logits that agrees, tried on one sequence at a time."""
    plain = Forward.of(model, None)
    most = max(1, ROW_CHUNK_BYTES // (4 * truth.vocabulary))
    logits = Reader(plain, ALONE, replace(limits, rows=most), None, False)
    head = learn_head(model, _some_ids(sample, plain.device))
    if head is None:
        found.dropped["rows"] = "output embedding sharded, or not called just once"
        found.slow["rows"] = (
            "its output embedding is sharded, or is not called just once in a forward, "
            "so its own logits are read, which takes more time and memory"
        )
        return logits, ""
    if not head.is_exact:
        told = (
            "its output embedding is followed by more than a scale or a soft cap (the "
            f"best, {head.name}, misses by {head.error:.1e} of the largest logit)"
        )
        found.dropped["rows"] = told
        if not math.isnan(head.error):  # where nothing is finite, no head is to blame
            found.wrong["rows"] = (
                f"{told}, so its own logits are read, which takes more time and memory"
            )
        return logits, ""
    rows = Reader(Forward.of(model, head.module), ALONE, limits, head, False)
    plain_linear = Tiles.of(head.module, head.after) is not None
    if not plain_linear:
        kind = type(head.module)
        found.dropped["tiles"] = (
            f"the output embedding is no plain linear layer: {kind.__module__}."
            f"{kind.__qualname__}"
        )
    for reader in [replace(rows, tiled=True)] * plain_linear + [rows]:
        error = truth.error(reader, sample)
        if error <= truth.tolerance:
            return reader, head.name
        found.off(reader.head_name, error, truth.tolerance)
    return logits, ""


def _some_ids(sample: ProbePlan, device: torch.device) -> Int[Tensor, "1 time"]:
    """Eight tokens, so that all logits of a large vocabulary stay small."""
    pair = min(sample.pairs, key=lambda p: len(p.prompt_ids) + len(p.response_ids))
    return torch.tensor([(*pair.prompt_ids, *pair.response_ids)[:8]], device=device)


def _named(tier: str) -> list[Tier]:
    found = [candidate for candidate in TIERS if candidate.name == tier]
    if not found:
        names = ", ".join(candidate.name for candidate in TIERS)
        raise BadInput(f"there is no tier {tier!r}. Tiers: {names}.")
    return found
