"""One number for each claim of the theory, and whether it is enough.

Thresholds that the paper does not give are this package's; they stand in each rule.
"""

from collections.abc import Callable
from dataclasses import dataclass

from learndyn.lab.theory_result import (
    Numbers,
    Order,
    Peak,
    SignRule,
    TheoryResult,
    Walk,
)


EXACT = 1e-9
"""Share of a residual by which autograd in float64 may differ from a formula."""

STABLE = 0.9
"""Rank correlation from which on kernels count as alike."""

TRACKS = 0.7
"""Rank correlation from which on a proxy counts as one."""


@dataclass(frozen=True)
class Found:
    """One seed's number, whether the claim holds, and its interval."""

    value: float
    holds: bool
    low: float | None = None
    high: float | None = None


Test = Callable[[TheoryResult], Found | None]
"""None where a seed's runs cannot say."""


def second_order(loss: str, model: str, decades: float) -> Test:
    """Whether the error goes with the square of the step."""

    def test(result: TheoryResult) -> Found | None:
        for order in result.orders:
            if (order.loss, order.model) == (loss, model):
                return Found(order.slope, _is_second(order, decades))
        return None

    return test


def _is_second(order: Order, decades: float) -> bool:
    return abs(order.slope - 2) <= 0.1 and order.decades >= decades


def parts_add_up(result: TheoryResult) -> Found:
    """How far pull and push together are from the change as it was."""
    miss = result.kernels.relative_error
    return Found(miss, miss <= 0.1)


def push_lifts_favourites(result: TheoryResult) -> Found:
    """What the part of y- does to the favourites along y+."""
    kernels = result.kernels
    pushed = kernels.greedy_push
    return Found(pushed, pushed > max(0.0, kernels.greedy_pull))


def push_reaches_rephrases(result: TheoryResult) -> Found | None:
    """What the part of y- does to the rephrase of y-."""
    kernels = result.kernels
    if "rejected_semantic" not in kernels.kinds:
        return None
    pushed = kernels.push[kernels.kinds.index("rejected_semantic")]
    return Found(pushed, pushed < 0)


def printed(loss: str) -> Test:
    """How far the printed residual is from the gradient of its loss."""

    def test(result: TheoryResult) -> Found:
        miss = result.residuals.misses[loss]
        return Found(miss, miss <= EXACT)

    return test


def pairs_push_down(result: TheoryResult) -> Found:
    """The least push on y- of DPO, IPO and SLiC where policy and reference agree."""
    found = result.residuals
    start = found.margins.index(min(found.margins, key=abs))
    least = min(found.rejected[loss][start] for loss in ("dpo", "ipo", "slic"))
    return Found(least, least > 0)


def sppo_spares_rejected(result: TheoryResult) -> Found:
    """Change of log pi(y-) per nat of y+ by a small step on SPPO."""
    change = result.residuals.sppo_rejected
    return Found(change, change >= 0)


def path_turns(result: TheoryResult) -> Found | None:
    """How much farther y- fell over DPO than y+ moved, either way.

    Its limits are those at which the intervals of both are nearest and farthest: wider
    than a paired interval, so a turn that shows here shows all the more there.
    """
    walks = {walk.role: walk for walk in result.walks}
    if not {"sft", "dpo"} <= set(walks):
        return None
    sft, dpo = walks["sft"], walks["dpo"]
    mean, low, high = dpo.turn
    moved = abs(mean), max(-low, high), max(0.0, low, -high)  # as it is, most, least
    beyond = -dpo.fall[0] - moved[0]
    least, most = -_high(dpo.fall) - moved[1], -_low(dpo.fall) - moved[2]
    return Found(beyond, _both_rise(sft) and least > 0, least, most)


def _both_rise(walk: Walk) -> bool:
    return _low(walk.turn) > 0 and _low(walk.fall) > 0


def _low(interval: Numbers) -> float:
    return interval[1]


def _high(interval: Numbers) -> float:
    return interval[2]


def kernel_keeps_order(start: str, end: str) -> Test:
    """Rank correlation of ||K(o, u)|| over o between two checkpoints."""

    def test(result: TheoryResult) -> Found | None:
        path = result.kernel_path
        if not {start, end} <= set(path.checkpoints):
            return None
        i, j = (path.checkpoints.index(name) for name in (start, end))
        return Found(path.ranks[i][j], path.ranks[i][j] >= STABLE)

    return test


def bound_exact(result: TheoryResult) -> Found:
    """Largest LBK / (eta^2 ||K||_F^2), K written out."""
    return _bound(result.bounds.exact_lbk, result.bounds.exact_kernel)


def bound_trained(result: TheoryResult) -> Found:
    """The same at the SFT checkpoint, ||K|| estimated."""
    return _bound(result.bounds.lbk, result.bounds.kernel)


def _bound(lbk: Numbers, kernel: Numbers) -> Found:
    most = max(a / b for a, b in zip(lbk, kernel, strict=True))
    return Found(most, most <= 1)


def lbk_ranks(result: TheoryResult) -> Found:
    """Rank correlation of LBK with ||K||_F."""
    return Found(result.bounds.rank_lbk, result.bounds.rank_lbk >= TRACKS)


def notebook_ranks(result: TheoryResult) -> Found:
    """Rank correlation of the notebook's LBK with ||K||_F."""
    return Found(result.bounds.rank_notebook, result.bounds.rank_notebook >= TRACKS)


def a_norm_identity(result: TheoryResult) -> Found:
    """Largest relative difference of ||A||_F^2 to its closed form."""
    return Found(result.bounds.a_norm, result.bounds.a_norm <= 1e-12)


def peakier(role: str) -> Test:
    """Change of ||A||_F along chosen over a run."""

    def test(result: TheoryResult) -> Found | None:
        peak = _peak(result, role)
        if peak is None:
            return None
        mean, low, high = peak.rise
        return Found(mean, low > 0, low, high)

    return test


def rest_falls(role: str) -> Test:
    """Slope of log(1 - pi*) on log pi* over a run's observations."""

    def test(result: TheoryResult) -> Found | None:
        peak = _peak(result, role)
        if peak is None:
            return None
        return Found(peak.slope, peak.slope < 0 and peak.r2 >= 0.8)

    return test


def _peak(result: TheoryResult, role: str) -> Peak | None:
    return next((peak for peak in result.peaks if peak.role == role), None)


def pushed_down(pushed: str, value: Callable[[SignRule], float], least: float) -> Test:
    """A share of the sign rule, where it has to be at least `least`."""

    def test(result: TheoryResult) -> Found | None:
        for rule in result.sign_rules:
            if rule.pushed == pushed:
                return Found(value(rule), value(rule) >= least)
        return None

    return test


def balanced(rule: SignRule) -> float:
    """Share of right signs if half of the tokens were above tau; 0.5 by chance."""
    return (rule.above + 1 - rule.below) / 2
