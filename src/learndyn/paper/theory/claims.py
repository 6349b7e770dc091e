"""The claims of the paper's theory, each with its test on what one seed measured.

`_STEPS` are about one step, residuals and where they lead; `_KERNELS` about the kernel,
its proxies, peaks and the sign rule. Thresholds that the paper does not give are this
package's; they stand in each rule.
"""

from collections.abc import Callable, Sequence

from learndyn.paper.claims import Absent, Claim, Measured, Statement, claims_of
from learndyn.paper.theory.result import (
    Numbers,
    Order,
    RunPeakiness,
    SignRule,
    TheoryResult,
    Walk,
)


_EXACT = 1e-9
"""Share of a residual by which autograd in float64 may differ from a formula."""

_STABLE = 0.9
"""Rank correlation from which on kernels count as alike."""

_TRACKS = 0.7
"""Rank correlation from which on a proxy counts as one."""


_Test = Callable[[TheoryResult], Measured]
"""Tests one seed; raises `Absent` where its runs cannot say."""

_NOTHING = "The runs that were measured have nothing to test it on"


def _second_order(loss: str, model: str, decades: float) -> _Test:
    """Whether the error goes with the square of the step."""

    def test(result: TheoryResult) -> Measured:
        for order in result.orders:
            if (order.loss, order.model) == (loss, model):
                return Measured(result.seed, order.slope, _is_second(order, decades))
        raise Absent(_NOTHING)

    return test


def _is_second(order: Order, decades: float) -> bool:
    return abs(order.slope - 2) <= 0.1 and order.decades >= decades


def _parts_add_up(result: TheoryResult) -> Measured:
    """How far pull and push together are from the change as it was."""
    miss = result.kernels.relative_error
    return Measured(result.seed, miss, miss <= 0.1)


def _push_lifts_favourites(result: TheoryResult) -> Measured:
    """What the part of y- does to the favourites along y+."""
    kernels = result.kernels
    pushed = kernels.greedy_push
    return Measured(result.seed, pushed, pushed > max(0.0, kernels.greedy_pull))


def _push_reaches_rephrases(result: TheoryResult) -> Measured:
    """What the part of y- does to the rephrase of y-."""
    kernels = result.kernels
    if "rejected_semantic" not in kernels.kinds:
        raise Absent(_NOTHING)
    pushed = kernels.push[kernels.kinds.index("rejected_semantic")]
    return Measured(result.seed, pushed, pushed < 0)


def _printed(loss: str) -> _Test:
    """How far the printed residual is from the gradient of its loss."""

    def test(result: TheoryResult) -> Measured:
        miss = result.residuals.misses[loss]
        return Measured(result.seed, miss, miss <= _EXACT)

    return test


def _pairs_push_down(result: TheoryResult) -> Measured:
    """The least push on y- of DPO, IPO and SLiC where policy and reference agree."""
    residuals = result.residuals
    start = residuals.margins.index(min(residuals.margins, key=abs))
    least = min(residuals.rejected[loss][start] for loss in ("dpo", "ipo", "slic"))
    return Measured(result.seed, least, least > 0)


def _sppo_spares_rejected(result: TheoryResult) -> Measured:
    """Change of log pi(y-) per nat of y+ by a small step on SPPO."""
    change = result.residuals.sppo_rejected
    return Measured(result.seed, change, change >= 0)


def _path_turns(result: TheoryResult) -> Measured:
    """How much farther y- fell over DPO than y+ moved, either way.

    Its limits are those at which the intervals of both are nearest and farthest: wider
    than a paired interval, so a turn that shows here shows all the more there.
    """
    walks = {walk.role: walk for walk in result.walks}
    if not {"sft", "dpo"} <= set(walks):
        raise Absent(_NOTHING)
    sft, dpo = walks["sft"], walks["dpo"]
    mean, low, high = dpo.turn
    moved = abs(mean), max(-low, high), max(0.0, low, -high)  # as it is, most, least
    beyond = -dpo.fall[0] - moved[0]
    least, most = -_high(dpo.fall) - moved[1], -_low(dpo.fall) - moved[2]
    return Measured(result.seed, beyond, _both_rise(sft) and least > 0, least, most)


def _both_rise(walk: Walk) -> bool:
    return _low(walk.turn) > 0 and _low(walk.fall) > 0


def _low(interval: Numbers) -> float:
    return interval[1]


def _high(interval: Numbers) -> float:
    return interval[2]


def _kernel_keeps_order(start: str, end: str) -> _Test:
    """Rank correlation of ||K(o, u)|| over o between two checkpoints."""

    def test(result: TheoryResult) -> Measured:
        path = result.kernel_path
        if not {start, end} <= set(path.checkpoints):
            raise Absent(_NOTHING)
        i, j = (path.checkpoints.index(name) for name in (start, end))
        return Measured(result.seed, path.ranks[i][j], path.ranks[i][j] >= _STABLE)

    return test


def _bound_exact(result: TheoryResult) -> Measured:
    """Largest LBK / (eta^2 ||K||_F^2), K written out."""
    most = _largest_ratio(result.bounds.exact_lbk, result.bounds.exact_kernel)
    return Measured(result.seed, most, most <= 1)


def _bound_trained(result: TheoryResult) -> Measured:
    """The same at the SFT checkpoint, ||K|| estimated."""
    most = _largest_ratio(result.bounds.lbk, result.bounds.kernel)
    return Measured(result.seed, most, most <= 1)


def _largest_ratio(lbk: Numbers, kernel: Numbers) -> float:
    return max(a / b for a, b in zip(lbk, kernel, strict=True))


def _lbk_ranks(result: TheoryResult) -> Measured:
    """Rank correlation of LBK with ||K||_F."""
    return Measured(
        result.seed, result.bounds.rank_lbk, result.bounds.rank_lbk >= _TRACKS
    )


def _notebook_ranks(result: TheoryResult) -> Measured:
    """Rank correlation of the notebook's LBK with ||K||_F."""
    rank = result.bounds.rank_notebook
    return Measured(result.seed, rank, rank >= _TRACKS)


def _a_norm_identity(result: TheoryResult) -> Measured:
    """Largest relative difference of ||A||_F^2 to its closed form."""
    return Measured(result.seed, result.bounds.a_norm, result.bounds.a_norm <= 1e-12)


def _peakier(role: str) -> _Test:
    """Change of ||A||_F along chosen over a run."""

    def test(result: TheoryResult) -> Measured:
        peak = _peak(result, role)
        mean, low, high = peak.rise
        return Measured(result.seed, mean, low > 0, low, high)

    return test


def _rest_falls(role: str) -> _Test:
    """Slope of log(1 - pi*) on log pi* over a run's observations."""

    def test(result: TheoryResult) -> Measured:
        peak = _peak(result, role)
        return Measured(result.seed, peak.slope, peak.slope < 0 and peak.r2 >= 0.8)

    return test


def _peak(result: TheoryResult, role: str) -> RunPeakiness:
    for peak in result.peaks:
        if peak.role == role:
            return peak
    raise Absent(_NOTHING)


def _pushed_down(
    pushed: str, value: Callable[[SignRule], float], least: float
) -> _Test:
    """A share of the sign rule, where it has to be at least `least`."""

    def test(result: TheoryResult) -> Measured:
        for rule in result.sign_rules:
            if rule.pushed == pushed:
                return Measured(result.seed, value(rule), value(rule) >= least)
        raise Absent(_NOTHING)

    return test


def _balanced(rule: SignRule) -> float:
    """Share of right signs if half of the tokens were above tau; 0.5 by chance."""
    return (rule.above + 1 - rule.below) / 2


_FIRST_ORDER = "Section 2, Proposition 1; Section 3.1, Eq. 5"

_STEPS: tuple[Statement[TheoryResult], ...] = (
    Statement(
        "first-order-sft",
        _FIRST_ORDER,
        "One step changes all log-probabilities by -eta A K G up to O(eta^2): SFT.",
        "The error goes with the step to the power 2.0 +- 0.1 over at least 3 decades; "
        "A, K, G written out, float64.",
        _second_order("sft", "tiny", 3.0),
        "theory_order",
        "power of the step",
    ),
    Statement(
        "first-order-dpo",
        "Section 3.2, Eq. 7; Appendix B.2.2",
        "The same for DPO, with a kernel for y+ and one for y-.",
        "As for SFT.",
        _second_order("dpo", "tiny", 3.0),
        "theory_order",
        "power of the step",
    ),
    Statement(
        "first-order-sft-trained",
        _FIRST_ORDER,
        "It holds for a pretrained model along the gradient of real SFT answers.",
        "Power 2.0 +- 0.1 over at least 0.9 decades that are clear of float32's "
        "rounding.",
        _second_order("sft", "trained", 0.9),
        "theory_order",
        "power of the step",
    ),
    Statement(
        "first-order-dpo-trained",
        "Section 3.2, Eq. 7",
        "It holds for a finetuned model along the gradient of real DPO pairs.",
        "As for SFT on a pretrained model.",
        _second_order("dpo", "trained", 0.9),
        "theory_order",
        "power of the step",
    ),
    Statement(
        "two-kernels-add-up",
        "Section 3.2, Eq. 7",
        "A DPO update is a pull by K(o, u+) and a push by K(o, u-), nothing else.",
        "The two parts together are within 10 % of the actual change of all probes, "
        "for a step that adds 0.02 nats of margin.",
        _parts_add_up,
        "theory_two_kernels",
        "share of the change",
    ),
    Statement(
        "push-lifts-favourites",
        "Sections 3.3 and 4.2",
        "It is the push on y- that makes the most probable tokens more probable.",
        "At the SFT checkpoint the push raises the favourites along y+, and by more "
        "than the pull does.",
        _push_lifts_favourites,
        "theory_two_kernels",
        "nats",
    ),
    Statement(
        "push-reaches-rephrases",
        "Section 4.2, Figure 4",
        "The kernel carries the push on y- to responses that are like y-.",
        "The push lowers the rephrases of y-.",
        _push_reaches_rephrases,
        "theory_two_kernels",
        "nats",
    ),
    *(
        Statement(
            f"residual-{loss}",
            source,
            says,
            "The printed residual is autograd's, to 1e-9 of the largest, on random "
            "logits.",
            _printed(loss),
            "theory_residuals",
            "share of the residual",
            note,
        )
        for loss, source, says, note in (
            ("sft", "Appendix B.2, Eq. 11", "SFT asks for pi - y of the logits.", ""),
            (
                "dpo",
                "Section 3.2, Eq. 7",
                "DPO asks for beta (1 - a) (pi - y), a = sigma(beta margin), of both.",
                "",
            ),
            (
                "ipo",
                "Appendix B.2, Eq. 17",
                "IPO's residual is DPO's with a = h - 1 / (2 beta).",
                "Only its direction agrees: the true factor is 2 (1 / (2 beta) - h).",
            ),
            (
                "slic",
                "Appendix B.2, Eq. 20",
                "SLiC's residual is DPO's while the gap is below delta.",
                "The true factor is 1, not beta (1 - a).",
            ),
            (
                "sppo",
                "Appendix B.2, Eq. 22",
                "SPPO asks for 2 (r- + eta / 2) (pi - y-) of y-.",
                "The printed residual has the opposite sign.",
            ),
        )
    ),
    Statement(
        "negative-gradient",
        "Section 3.2; Appendix B.2",
        "DPO, IPO and SLiC push y- down: they have a negative gradient.",
        "dL/dlogp of y- is above 0 for all three where training starts.",
        _pairs_push_down,
        "theory_residuals",
        "per nat",
    ),
    Statement(
        "sppo-spares-rejected",
        "Appendix B.2, after Eq. 22",
        "SPPO has no negative gradient.",
        "A small step from the reference does not lower log pi(y-).",
        _sppo_spares_rejected,
        "theory_residuals",
        "nats per nat of y+",
        "It follows from the sign of Eq. 22 as printed. SPPO pushes y- down until its "
        "log-ratio is -eta/2.",
    ),
    Statement(
        "path-turns",
        "Sections 4.1 and 4.2, Figures 3 and 4",
        "SFT on y+ raises y- too; DPO then turns, and lowers y- more than it moves y+.",
        "95 % intervals: both rise over SFT; over DPO the interval of y- is below zero "
        "and all of it is farther from zero than any of the interval of y+.",
        _path_turns,
        "theory_walk",
        "nats",
    ),
)
"""About one step, what losses ask for, and where that leads."""


_LBK = "Appendix C.2, Eq. 23 to 31"
_STABILITY = "Appendix C.1, Figures 6 and 7"
_PEAKS = "Appendix C, Figure 9"

_KERNELS: tuple[Statement[TheoryResult], ...] = (
    *(
        Statement(
            name,
            _STABILITY,
            says,
            f"Spearman's correlation of ||K(o, u)||_F over o is at least {_STABLE}.",
            _kernel_keeps_order(start, end),
            "theory_kernel",
            "rank correlation",
            note,
        )
        for name, says, start, end, note in (
            (
                "kernel-stable-sft-early",
                "The kernel keeps its order over the first 40 updates of SFT.",
                "start",
                "SFT 40",
                "The 40 updates are over the probed prompts.",
            ),
            (
                "kernel-stable-sft",
                "The kernel keeps its order from start to end of SFT.",
                "start",
                "SFT end",
                "",
            ),
            (
                "kernel-stable-dpo-early",
                "The kernel keeps its order over the first 40 updates of DPO.",
                "SFT end",
                "DPO 40",
                "The 40 updates are over the probed prompts.",
            ),
            (
                "kernel-stable-dpo",
                "The kernel keeps its order from start to end of DPO.",
                "SFT end",
                "DPO end",
                "",
            ),
        )
    ),
    Statement(
        "lbk-bound",
        _LBK,
        "LBK is a lower bound of eta^2 ||K||_F^2.",
        "LBK / (eta^2 ||K||_F^2) is at most 1 on every pair; K written out, float64.",
        _bound_exact,
        "theory_lbk",
        "largest ratio",
    ),
    Statement(
        "lbk-bound-trained",
        _LBK,
        "The same for a finetuned model.",
        "At most 1 on every pair; ||K|| estimated by random vectors.",
        _bound_trained,
        "theory_lbk",
        "largest ratio",
        "The bound is far from tight: it cannot prove a large kernel.",
    ),
    Statement(
        "lbk-tracks-kernel",
        _LBK,
        "LBK can stand for ||K||: where it is large, so is the kernel.",
        f"Spearman's correlation over o is at least {_TRACKS}, mean over u.",
        _lbk_ranks,
        "theory_lbk",
        "rank correlation",
    ),
    Statement(
        "notebook-lbk-tracks-kernel",
        "Reference notebook of Figure 8",
        "LBK as the reference notebook computes it can stand for ||K||.",
        f"Spearman's correlation over o is at least {_TRACKS}, mean over u.",
        _notebook_ranks,
        "theory_lbk",
        "rank correlation",
        "It sees the label's log-probability alone.",
    ),
    Statement(
        "a-norm",
        "Appendix C.2",
        "||A||_F^2 = V - 2 + V ||pi||^2.",
        "To 1e-12 of A written out.",
        _a_norm_identity,
        "theory_lbk",
        "share of ||A||_F^2",
    ),
    *(
        Statement(
            f"peakier-{role}",
            _PEAKS,
            f"Distributions along y+ get peakier over {role.upper()}: ||A||_F grows.",
            "Its change from first to last observation is above 0, 95 % interval.",
            _peakier(role),
            "theory_peakiness",
            "||A||_F",
        )
        for role in ("sft", "dpo")
    ),
    *(
        Statement(
            f"rest-falls-{role}",
            _PEAKS,
            f"As the argmax gains over {role.upper()}, all else loses, on one line.",
            "The slope of log(1 - pi*) on log pi*, per token, is negative and its "
            "r2 at least 0.8.",
            _rest_falls(role),
            "theory_rest",
            "nats per nat",
            "Sums of log(1 - pi*) are ruled by tokens that are nearly certain.",
        )
        for role in ("sft", "dpo")
    ),
    Statement(
        "pushed-token-falls",
        "Section 3.3; Appendix E, Claim 1",
        "A token that is pushed down falls, in a language model too.",
        "At 95 % of the positions of y-, each pushed on its own.",
        _pushed_down("one", lambda rule: rule.label_falls, 0.95),
        "theory_sign",
        "share of positions",
    ),
    Statement(
        "favourite-rises",
        "Section 3.3; Appendix E, Claim 2",
        "The most probable other token rises.",
        "At 90 % of the positions of y-, each pushed on its own.",
        _pushed_down("one", lambda rule: rule.top_rises, 0.9),
        "theory_sign",
        "share of positions",
    ),
    Statement(
        "favourite-rises-whole",
        "Section 3.3; Appendix E, Claim 2",
        "It rises also where the whole response is pushed, as DPO does.",
        "At 90 % of the positions of y-, all pushed at once.",
        _pushed_down("all", lambda rule: rule.top_rises, 0.9),
        "theory_sign",
        "share of positions",
        "Positions share weights: what is pushed at one moves the others.",
    ),
    Statement(
        "sign-rule",
        "Section 3.3; Appendix E, Claims 3A to 3C",
        "Tokens more probable than tau = ||pi||^2 - pi_y rise, the others fall.",
        "Balanced share of right signs over the vocabulary at least 0.8 (0.5 by "
        "chance); each position pushed on its own.",
        _pushed_down("one", _balanced, 0.8),
        "theory_sign",
        "balanced share",
        "The condition is the theory's own, worked out for one softmax.",
    ),
    Statement(
        "sign-rule-whole",
        "Section 3.3; Appendix E, Claims 3A to 3C",
        "The same where the whole response is pushed.",
        "As before; all positions pushed at once.",
        _pushed_down("all", _balanced, 0.8),
        "theory_sign",
        "balanced share",
    ),
)
"""About the kernel, what stands for it, peaks, and who rises."""


def theory_claims(results: Sequence[TheoryResult]) -> tuple[Claim, ...]:
    """Every claim of the theory; not applicable where no seed was measured."""
    none = "It needs the weights of an SFT and a DPO run; none were measured."
    return claims_of((*_STEPS, *_KERNELS), results, none)
