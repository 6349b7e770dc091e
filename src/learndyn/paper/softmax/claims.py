"""The claims of Appendix E about one push on one softmax, tested on random draws.

Each seed draws distributions of its own. The steps are taken (but for Claim 4, which
uses the closed form): logits are moved by the gradient and put through a softmax again.
A change smaller than `_RESOLVED` is lost in rounding and counts for nothing.

Claim 4 is tested twice. The paper says that a less likely y makes the effect stronger.
For the labels that are neither y nor y* that is so. For y* itself it is not: at a fixed
distribution of the others, y* gains less, the less likely y was. The second form is
listed as it stands, and fails.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from learndyn.paper.claims import Claim, Measured, Statement, claims_of
from learndyn.paper.softmax.scenes import (
    Cases,
    by_probability,
    favourites,
    normal_cases,
    random_cases,
)
from learndyn.paper.softmax.step import log_softmax


_CASES = 2000
"""Random cases per seed."""
_RESOLVED = 1e-11
"""Nats; a gradient step in float64 rounds log pi by less."""
_UNLIKELY = (0.5, 0.2, 0.05, 0.01, 0.001)
"""Probabilities of y in the tests of Claim 4."""
_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Strengths in the test of Claim 5."""


def _taken(cases: Cases) -> Float[np.ndarray, "case label"]:
    """Change of log pi by the step itself: gradient, new logits, softmax."""
    before, at = log_softmax(cases.logits), np.arange(len(cases.y))
    gradient = np.exp(before)
    gradient[at, cases.y] -= 1
    return log_softmax(cases.logits + cases.strength[:, None] * gradient) - before


def _pushed_falls(seed: int) -> Measured:
    """Claim 1: violations."""
    cases = random_cases(np.random.default_rng(seed), _CASES)
    own = _taken(cases)[np.arange(_CASES), cases.y]
    return _none(seed, own > _RESOLVED)


def _favourite_rises(seed: int) -> Measured:
    """Claim 2: violations."""
    cases = random_cases(np.random.default_rng(seed), _CASES)
    best = favourites(log_softmax(cases.logits), cases.y)
    return _none(seed, _taken(cases)[np.arange(_CASES), best] < -_RESOLVED)


def _flat_lifts_most(seed: int) -> Measured:
    """Claim 3A: mean share of the other 49 that rise; logit std 0.05."""
    cases = normal_cases(np.random.default_rng(seed), 0.05, cases=_CASES)
    share = _others_that_rise(cases) / 49
    return Measured(seed, share, share >= 0.9)


def _rich_get_richer(seed: int) -> Measured:
    """Claim 3B: pairs of neighbours in pi where the likelier one gains less."""
    cases = random_cases(np.random.default_rng(seed), _CASES)
    moved, others = _taken(cases), cases.present
    others[np.arange(_CASES), cases.y] = False
    order = np.where(others, cases.logits, -np.inf).argsort(axis=1)
    rise = np.diff(np.take_along_axis(moved, order, axis=1), axis=1)
    from_others = np.take_along_axis(others, order, axis=1)[:, :-1]
    return _none(seed, (rise < -_RESOLVED) & from_others)


def _peaky_lifts_few(seed: int) -> Measured:
    """Claim 3C: mean number of the other 49 that rise; logit std 4, y in a valley."""
    rng = np.random.default_rng(seed)
    cases = normal_cases(rng, 4.0, cases=_CASES, place="valley")
    rise = _others_that_rise(cases)
    return Measured(seed, rise, rise <= 4.9)


def _unlikely_drains_rest(seed: int) -> Measured:
    """Claim 4, on the labels other than y and y*: share of draws."""
    rest, _ = _by_probability(seed)
    share = float((np.diff(rest, axis=1) < 0).all(axis=1).mean())
    return Measured(seed, share, share == 1)


def _unlikely_lifts_favourite(seed: int) -> Measured:
    """Claim 4, on y*: share of draws."""
    _, best = _by_probability(seed)
    share = float((np.diff(best, axis=1) > 0).all(axis=1).mean())
    return Measured(seed, share, share == 1)


def _larger_is_stronger(seed: int) -> Measured:
    """Claim 5: violations by y, by y* and by labels that already fell."""
    rng, wrong = np.random.default_rng(seed), 0
    cases = random_cases(rng, _CASES // len(_STRENGTHS))
    at = np.arange(len(cases.y))
    best = favourites(log_softmax(cases.logits), cases.y)
    before = np.zeros_like(cases.logits)
    for strength in _STRENGTHS:
        now = _taken(Cases(cases.logits, cases.y, np.full(len(at), strength)))
        more = now - before
        wrong += int((more[at, cases.y] > _RESOLVED).sum())
        wrong += int((more[at, best] < -_RESOLVED).sum())
        wrong += int(((before < -_RESOLVED) & (more > _RESOLVED) & cases.present).sum())
        before = now
    return Measured(seed, float(wrong), wrong == 0)


_COUNT = f"violations in {_CASES:,} random cases"

_STATEMENTS: tuple[Statement[int], ...] = (
    Statement(
        "softmax-pushed-falls",
        "Appendix E, Claim 1",
        "A label that is pushed down becomes less likely.",
        "log π(y) never rises",
        _pushed_falls,
        "softmax_scenes",
        _COUNT,
        "Exact for every distribution and strength.",
    ),
    Statement(
        "softmax-favourite-rises",
        "Appendix E, Claim 2",
        "The likeliest other label, y*, becomes likelier.",
        "log π(y*) never falls",
        _favourite_rises,
        "softmax_ratio",
        _COUNT,
        "Exact for every distribution and strength.",
    ),
    Statement(
        "softmax-flat-lifts-most",
        "Appendix E, Claim 3A",
        "Where the distribution is flat, most other labels become likelier.",
        "mean share of the other 49 labels that rise ≥ 0.9; logit std 0.05, s = 1",
        _flat_lifts_most,
        "softmax_peakiness",
        "share of labels",
    ),
    Statement(
        "softmax-rich-get-richer",
        "Appendix E, Claim 3B",
        "Of two other labels the likelier one always fares better.",
        "π'/π never decreases with π, y aside",
        _rich_get_richer,
        "softmax_ratio",
        _COUNT,
        "Exact: the ratio is exp(s π_i) times one number for all.",
    ),
    Statement(
        "softmax-peaky-lifts-few",
        "Appendix E, Claim 3C",
        "Where the distribution is peaky, hardly any label but y* gains.",
        "mean number of the other 49 that rise ≤ 4.9; logit std 4, y of the less "
        "likely half, s = 1",
        _peaky_lifts_few,
        "softmax_peakiness",
        "labels",
    ),
    Statement(
        "softmax-unlikely-drains-rest",
        "Appendix E, Claim 4",
        "The less likely the pushed label, the worse for all but y*.",
        "log π of all but y and y*, together, changes less favourably at each "
        "smaller π(y); others' conditional fixed, s = 1; in every draw",
        _unlikely_drains_rest,
        "softmax_unlikely",
        "share of draws",
    ),
    Statement(
        "softmax-unlikely-lifts-favourite",
        "Appendix E, Claim 4",
        "The less likely the pushed label, the more y* gains.",
        "log π'(y*)/π(y*) grows at each smaller π(y); others' conditional fixed, "
        "s = 1; in every draw",
        _unlikely_lifts_favourite,
        "softmax_unlikely",
        "share of draws",
        "Not true, and not expected to pass: with the others' conditional "
        "fixed, y* gains less, the less likely y is, since y has less to give. "
        "What does grow is the loss of all the others.",
    ),
    Statement(
        "softmax-larger-is-stronger",
        "Appendix E, Claim 5",
        "A larger step amplifies it.",
        "from s = 0.1 to 10 y falls more, y* rises more, and what fell falls more",
        _larger_is_stronger,
        "softmax_ratio",
        f"violations in {_CASES // len(_STRENGTHS):,} random cases",
        "A label other than y* that rises at a small step may fall at a "
        "larger one: τ grows with s.",
    ),
)


def softmax_claims(seeds: Sequence[int]) -> tuple[Claim, ...]:
    """Every claim of Appendix E, tested with each seed; about a second per seed."""
    return claims_of(_STATEMENTS, seeds)


def _others_that_rise(cases: Cases) -> float:
    """Mean number of labels other than y that gain."""
    rises = _taken(cases) > _RESOLVED
    rises[np.arange(len(cases.y)), cases.y] = False
    return float((rises & cases.present).sum(axis=1).mean())


def _by_probability(
    seed: int,
) -> tuple[
    Float[np.ndarray, "case probability"], Float[np.ndarray, "case probability"]
]:
    """Changes, in nats, of the rest and of y* at each of `_UNLIKELY`."""
    rng = np.random.default_rng(seed)
    std = rng.uniform(0.5, 4, (_CASES, 1))
    return by_probability(std * rng.standard_normal((_CASES, 49)), _UNLIKELY)


def _none(seed: int, wrong: np.ndarray) -> Measured:
    return Measured(seed, float(wrong.sum()), not wrong.any())
