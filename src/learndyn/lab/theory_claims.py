"""The claims of the paper's theory: those of `theory_statements` and about kernels.

The tests themselves are in `theory_checks`.
"""

from collections.abc import Sequence

from learndyn.lab.claims import Claim, Measured
from learndyn.lab.theory_checks import (
    STABLE,
    TRACKS,
    a_norm_identity,
    balanced,
    bound_exact,
    bound_trained,
    kernel_keeps_order,
    lbk_ranks,
    notebook_ranks,
    peakier,
    pushed_down,
    rest_falls,
)
from learndyn.lab.theory_result import TheoryResult
from learndyn.lab.theory_statements import STEPS, Statement


def theory_claims(results: Sequence[TheoryResult]) -> list[Claim]:
    """Every claim of the theory; not applicable where no seed was measured."""
    return [_claim(statement, results) for statement in (*STEPS, *KERNELS)]


def _claim(statement: Statement, results: Sequence[TheoryResult]) -> Claim:
    measured = []
    for result in results:
        found = statement.test(result)
        if found is not None:
            one = Measured(result.seed, found.value, found.holds, found.low, found.high)
            measured.append(one)
    note = statement.note
    if not measured:
        note = (
            "The runs that were measured have nothing to test it on."
            if results
            else "It needs the weights of an SFT and a DPO run; none were measured."
        )
    return Claim(
        statement.name,
        statement.source,
        statement.says,
        statement.rule,
        statement.unit,
        tuple(measured),
        statement.plate,
        note,
    )


LBK = "Appendix C.2, Eq. 23 to 31"
STABILITY = "Appendix C.1, Figures 6 and 7"
PEAKS = "Appendix C, Figure 9"

KERNELS: tuple[Statement, ...] = (
    *(
        Statement(
            name,
            STABILITY,
            says,
            f"Spearman's correlation of ||K(o, u)||_F over o is at least {STABLE}.",
            "rank correlation",
            "theory_kernel",
            kernel_keeps_order(start, end),
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
        LBK,
        "LBK is a lower bound of eta^2 ||K||_F^2.",
        "LBK / (eta^2 ||K||_F^2) is at most 1 on every pair; K written out, float64.",
        "largest ratio",
        "theory_lbk",
        bound_exact,
    ),
    Statement(
        "lbk-bound-trained",
        LBK,
        "The same for a finetuned model.",
        "At most 1 on every pair; ||K|| estimated by random vectors.",
        "largest ratio",
        "theory_lbk",
        bound_trained,
        "The bound is far from tight: it can be no proof of a large kernel.",
    ),
    Statement(
        "lbk-tracks-kernel",
        LBK,
        "LBK can stand for ||K||: where it is large, so is the kernel.",
        f"Spearman's correlation over o is at least {TRACKS}, mean over u.",
        "rank correlation",
        "theory_lbk",
        lbk_ranks,
    ),
    Statement(
        "notebook-lbk-tracks-kernel",
        "Reference notebook of Figure 8",
        "LBK as the reference notebook computes it can stand for ||K||.",
        f"Spearman's correlation over o is at least {TRACKS}, mean over u.",
        "rank correlation",
        "theory_lbk",
        notebook_ranks,
        "It sees the label's log-probability alone.",
    ),
    Statement(
        "a-norm",
        "Appendix C.2",
        "||A||_F^2 = V - 2 + V ||pi||^2.",
        "To 1e-12 of A written out.",
        "share of ||A||_F^2",
        "theory_lbk",
        a_norm_identity,
    ),
    *(
        Statement(
            f"peakier-{role}",
            PEAKS,
            f"Distributions along y+ get peakier over {role.upper()}: ||A||_F grows.",
            "Its change from first to last observation is above 0, 95 % interval.",
            "||A||_F",
            "theory_peakiness",
            peakier(role),
        )
        for role in ("sft", "dpo")
    ),
    *(
        Statement(
            f"rest-falls-{role}",
            PEAKS,
            f"As the argmax gains over {role.upper()}, all else loses, on one line.",
            "The slope of log(1 - pi*) on log pi*, per token, is negative and its "
            "r2 at least 0.8.",
            "nats per nat",
            "theory_rest",
            rest_falls(role),
            "Sums of log(1 - pi*) are ruled by tokens that are nearly certain.",
        )
        for role in ("sft", "dpo")
    ),
    Statement(
        "pushed-token-falls",
        "Section 3.3; Appendix E, Claim 1",
        "A token that is pushed down falls, in a language model too.",
        "At 95 % of the positions of y-, each pushed on its own.",
        "share of positions",
        "theory_sign",
        pushed_down("one", lambda rule: rule.label_falls, 0.95),
    ),
    Statement(
        "favourite-rises",
        "Section 3.3; Appendix E, Claim 2",
        "The most probable other token rises.",
        "At 90 % of the positions of y-, each pushed on its own.",
        "share of positions",
        "theory_sign",
        pushed_down("one", lambda rule: rule.top_rises, 0.9),
    ),
    Statement(
        "favourite-rises-whole",
        "Section 3.3; Appendix E, Claim 2",
        "It rises also where the whole response is pushed, as DPO does.",
        "At 90 % of the positions of y-, all pushed at once.",
        "share of positions",
        "theory_sign",
        pushed_down("all", lambda rule: rule.top_rises, 0.9),
        "Positions share weights: what is pushed at one moves the others.",
    ),
    Statement(
        "sign-rule",
        "Section 3.3; Appendix E, Claims 3A to 3C",
        "Who is more probable than tau = ||pi||^2 - pi_y rises, the others fall.",
        "Balanced share of right signs over the vocabulary at least 0.8 (0.5 by "
        "chance); each position pushed on its own.",
        "balanced share",
        "theory_sign",
        pushed_down("one", balanced, 0.8),
        "The condition is the theory's own, worked out for one softmax.",
    ),
    Statement(
        "sign-rule-whole",
        "Section 3.3; Appendix E, Claims 3A to 3C",
        "The same where the whole response is pushed.",
        "As before; all positions pushed at once.",
        "balanced share",
        "theory_sign",
        pushed_down("all", balanced, 0.8),
    ),
)
"""About the kernel, what stands for it, peaks, and who rises."""
