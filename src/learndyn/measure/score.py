"""Log-probabilities of every probe: the one scoring function of the house.

The callback, `learndyn score` and reference checks all come here, so that numbers
online equal numbers offline.

A `Scorer` is prepared once for a model and a probe set: the probes are laid out
(`plan`), and the fastest way to read them that is right for the model is found by trial
(`route`). Then every observation is a walk over the pieces. `score` does both.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from learndyn.errors import BadInput
from learndyn.measure.forward import check_batch_size, check_fits
from learndyn.measure.neutral import device_of, undisturbed
from learndyn.measure.plan import ProbePlan
from learndyn.measure.route import Exactness, Reader, Route, choose
from learndyn.measure.statistics import RowStatistics
from learndyn.measure.tiers import Limits
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes
from learndyn.record.observation import Observation


Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the iterable of pieces of work, as tqdm does."""

_PACK_TOKENS = {"cpu": 2048}
"""Tokens of a packed sequence, by device. On a CPU 1,024 to 4,096 measured equal."""

_WIDE_PACK = 16384
"""The same on other devices, which want much work at once."""


class ScoreSettings(TypedDict, total=False):
    """The settings of `Scorer.attach`, and so of everything that scores."""

    exactness: Exactness
    """ "auto" (default) warns of a way that fails the self-test and takes the next one;
    "strict" refuses."""
    tier: str | None
    """The only tier to try; by default the fastest that is right."""
    precision: Literal["bfloat16"] | None
    """Score approximately in lower precision: the route says so."""
    batch_size: int
    """Sequences side by side where a way needs padding; 8 by default."""
    padding_side: Literal["right", "left"]
    """Where padding goes; right by default."""


class Scorer:
    """Scores one set of pairs with one model, again and again. Make it by `attach`."""

    def __init__(self, plan: ProbePlan, reader: Reader, route: Route) -> None:
        self.plan = plan
        self.route = route
        """How it scores, and the error of its self-test."""
        self.reader = reader
        """Model, tier and head that it reads with."""

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        pairs: Sequence[TokenizedPair],
        **settings: Unpack[ScoreSettings],
    ) -> "Scorer":
        """Lay the pairs out and find, by a self-test, how this model may be read.

        The self-test compares each way with the plain forward on a few of the pairs and
        takes the fastest that is right to 2e-5 nats per token.

        Raises:
            BadInput: if the model is not a causal LM, if a number is out of range, if a
                pair has no token, is longer than the context or holds an unknown id,
                or where strict exactness is broken.
        """
        model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
        unknown = sorted(settings.keys() - ScoreSettings.__annotations__.keys())
        if unknown:
            known = ", ".join(ScoreSettings.__annotations__)
            raise TypeError(f"unknown setting {', '.join(unknown)}; there are {known}")
        batch_size = settings.get("batch_size", 8)
        precision = settings.get("precision")
        check_batch_size(batch_size)
        exactness = settings.get("exactness", "auto")
        side = settings.get("padding_side", "right")
        for name, value, allowed in (
            ("precision", precision, (None, "bfloat16")),
            ("exactness", exactness, ("auto", "strict")),
            ("padding_side", side, ("right", "left")),
        ):
            if value not in allowed:
                known = " or ".join(str(one) for one in allowed if one is not None)
                raise BadInput(f"{name}={value!r}: give {known}, or leave it out.")
        if precision is not None and exactness == "strict":
            raise BadInput(
                f"exactness='strict' cannot be used with precision={precision!r}, "
                "which is approximate. Leave one out."
            )
        check_fits(model, pairs)
        plan = ProbePlan(tuple(pairs))
        tokens = _PACK_TOKENS.get(device_of(model).type, _WIDE_PACK)
        limits = Limits(tokens, None, batch_size, side)
        with undisturbed(model):
            reader, route = choose(
                model,
                plan,
                limits,
                exactness=exactness,
                tier=settings.get("tier"),
                precision=precision,
            )
        return cls(plan, reader, route)

    @property
    def model(self) -> nn.Module:
        """What it is attached to."""
        return self.reader.forward.model

    def select(self, rows: Sequence[int]) -> "Scorer":
        """The same for some of the pairs, in the order of `rows`; no new self-test.

        Raises:
            BadInput: if `rows` is empty or names a pair that is not there.
        """
        count = len(self.plan.pairs)
        if not len(rows) or not all(0 <= i < count for i in rows):
            raise BadInput(
                f"select needs one or more positions from 0 to {count - 1}; it was "
                f"given {list(rows)[:10]}."
            )
        plan = ProbePlan(tuple(self.plan.pairs[i] for i in rows))
        return Scorer(plan, self.reader, self.route)

    def on(self, pairs: Sequence[TokenizedPair]) -> "Scorer":
        """The same way of scoring for other pairs; no new self-test."""
        check_fits(self.model, pairs)
        return Scorer(ProbePlan(tuple(pairs)), self.reader, self.route)

    @cached_property
    def pieces(self) -> Sequence[Any]:
        """The work of one observation, as the tier lays it out."""
        return self.reader.tier.pieces(self.plan, self.reader.limits)

    def rows(
        self,
        *,
        start_ids: Int[np.ndarray, " token"] | None = None,
        progress: Progress = iter,
    ) -> RowStatistics:
        """Statistics of every response token of every pair, flat, in the pairs' order.

        `start_ids` names the token that `start_logp` follows at each position; None
        follows this model's own argmax. The model, its training flags and all random
        states are left as they were.
        """
        with undisturbed(self.model):
            pieces = progress(self.pieces)
            return self.reader.read_all(self.plan, pieces, start_ids)

    def observe(
        self,
        *,
        step: int = 0,
        start_ids: Int[np.ndarray, " token"] | None = None,
        progress: Progress = iter,
    ) -> Observation:
        """Observe all pairs with the model as it stands; see `rows`."""
        rows = self.rows(start_ids=start_ids, progress=progress)
        n_tokens = np.diff(self.plan.starts).astype(np.int32)
        return _observation(step, n_tokens, rows, self.route.label)


def score(
    model: nn.Module,
    probes: TokenizedProbes,
    *,
    step: int = 0,
    start_ids: Int[np.ndarray, " token"] | None = None,
    progress: Progress = iter,
    **settings: Unpack[ScoreSettings],
) -> Observation:
    """Observe all probes with a causal language model as it stands.

    Scores response tokens only (EOS included), in float32, or float64 if the model is.
    `start_ids` names the token that `token_start_logp` follows at each position, in the
    flat order of an observation. To score more than once, attach a `Scorer` once.

    Raises:
        BadInput: as `Scorer.attach`.
    """
    scorer = Scorer.attach(model, probes.pairs, **settings)
    return scorer.observe(step=step, start_ids=start_ids, progress=progress)


def _observation(
    step: int,
    n_tokens: Int[np.ndarray, " probe"],
    rows: RowStatistics,
    approximate: str | None = None,
) -> Observation:
    probe_of = np.repeat(np.arange(len(n_tokens)), n_tokens)

    def summed(values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " probe"]:
        # reduceat would give a probe without tokens the first number of the next one
        return np.bincount(probe_of, values, minlength=len(n_tokens))

    def total(name: str) -> Float[np.ndarray, " probe"]:
        return summed(getattr(rows, name).numpy())

    def single(name: str) -> Float[np.ndarray, " token"]:
        return getattr(rows, name).numpy().astype(np.float32)

    # Exact equality: a label that is the argmax has the argmax's very number. By value
    # and not by id, so that a tie counts as top-1 whichever token was named.
    at_top = (rows.logp == rows.argmax_logp).double().numpy()
    return Observation(
        step=step,
        n_tokens=n_tokens,
        logp=total("logp"),
        argmax_logp=total("argmax_logp"),
        rest_logp=total("rest_logp"),
        entropy=total("entropy") / n_tokens,
        p_norm2=total("p_norm2") / n_tokens,
        p_gap=total("p_gap") / n_tokens,
        energy=total("energy") / n_tokens,
        top1=summed(at_top) / n_tokens,
        token_logp=single("logp"),
        token_argmax_logp=single("argmax_logp"),
        token_start_logp=single("start_logp"),
        token_argmax_id=rows.argmax_id.numpy().astype(np.int32),
        approximate=approximate,
    )
