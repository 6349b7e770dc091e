"""What a statement of the theory is, and those about one step and about residuals."""

from dataclasses import dataclass

from learndyn.lab.theory_checks import (
    Test,
    pairs_push_down,
    parts_add_up,
    path_turns,
    printed,
    push_lifts_favourites,
    push_reaches_rephrases,
    second_order,
    sppo_spares_rejected,
)


@dataclass(frozen=True)
class Statement:
    """One claim and its test; the fields are those of `Claim`."""

    name: str
    source: str
    says: str
    rule: str
    unit: str
    plate: str
    test: Test
    note: str = ""


FIRST_ORDER = "Section 2, Proposition 1; Section 3.1, Eq. 5"

STEPS: tuple[Statement, ...] = (
    Statement(
        "first-order-sft",
        FIRST_ORDER,
        "One step changes all log-probabilities by -eta A K G up to O(eta^2): SFT.",
        "The error goes with the step to the power 2.0 +- 0.1 over at least 3 decades; "
        "A, K, G written out, float64.",
        "power of the step",
        "theory_order",
        second_order("sft", "tiny", 3.0),
    ),
    Statement(
        "first-order-dpo",
        "Section 3.2, Eq. 7; Appendix B.2.2",
        "The same for DPO, with a kernel for y+ and one for y-.",
        "As for SFT.",
        "power of the step",
        "theory_order",
        second_order("dpo", "tiny", 3.0),
    ),
    Statement(
        "first-order-sft-trained",
        FIRST_ORDER,
        "It holds for a pretrained model along the gradient of real SFT answers.",
        "Power 2.0 +- 0.1 over at least 0.9 decades that are clear of float32's "
        "rounding.",
        "power of the step",
        "theory_order",
        second_order("sft", "trained", 0.9),
    ),
    Statement(
        "first-order-dpo-trained",
        "Section 3.2, Eq. 7",
        "It holds for a finetuned model along the gradient of real DPO pairs.",
        "As for SFT on a pretrained model.",
        "power of the step",
        "theory_order",
        second_order("dpo", "trained", 0.9),
    ),
    Statement(
        "two-kernels-add-up",
        "Section 3.2, Eq. 7",
        "A DPO update is a pull by K(o, u+) and a push by K(o, u-), nothing else.",
        "The two parts together are within 10 % of the actual change of all probes, "
        "for a step that adds 0.02 nats of margin.",
        "share of the change",
        "theory_two_kernels",
        parts_add_up,
    ),
    Statement(
        "push-lifts-favourites",
        "Sections 3.3 and 4.2",
        "It is the push on y- that makes the most probable tokens more probable.",
        "At the SFT checkpoint the push raises the favourites along y+, and by more "
        "than the pull does.",
        "nats",
        "theory_two_kernels",
        push_lifts_favourites,
    ),
    Statement(
        "push-reaches-rephrases",
        "Section 4.2, Figure 4",
        "The kernel carries the push on y- to responses that are like y-.",
        "The push lowers the rephrases of y-.",
        "nats",
        "theory_two_kernels",
        push_reaches_rephrases,
    ),
    *(
        Statement(
            f"residual-{loss}",
            source,
            says,
            "The printed residual is autograd's, to 1e-9 of the largest, on random "
            "logits.",
            "share of the residual",
            "theory_residuals",
            printed(loss),
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
                "IPO's residual is that of DPO with a = h - 1 / (2 beta).",
                "Only the direction is: the true factor is 2 (1 / (2 beta) - h).",
            ),
            (
                "slic",
                "Appendix B.2, Eq. 20",
                "SLiC's residual is that of DPO while the gap is below delta.",
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
        "per nat",
        "theory_residuals",
        pairs_push_down,
    ),
    Statement(
        "sppo-spares-rejected",
        "Appendix B.2, after Eq. 22",
        "SPPO has no negative gradient.",
        "A small step from the reference does not lower log pi(y-).",
        "nats per nat of y+",
        "theory_residuals",
        sppo_spares_rejected,
        "It follows from the sign of Eq. 22 as printed. SPPO pushes y- down until its "
        "log-ratio is -eta/2.",
    ),
    Statement(
        "path-turns",
        "Sections 4.1 and 4.2, Figures 3 and 4",
        "SFT on y+ raises y- too; DPO then turns, and lowers y- more than it moves y+.",
        "95 % intervals: both rise over SFT; over DPO that of y- is below zero, and "
        "all of it farther from zero than any of that of y+.",
        "nats",
        "theory_walk",
        path_turns,
    ),
)
"""About one step, what losses ask for, and where that leads."""
