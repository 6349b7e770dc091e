"""Remedies that others measured, each with its source and what speaks against it."""

from learndyn.diagnose.finding import Advice


EXTEND = Advice(
    "Train on chosen and rejected with SFT first, then the same DPO (extend).",
    "Rejected answers that the model finds likely leave a push less to squeeze; in the "
    "paper, answers after extend were preferred to plain DPO's in 65 to 69 % of "
    "ChatGPT's judgements and 52 to 60 % of Claude's.",
    "cited",
    "Ren & Sutherland 2025, Section 4.3 and Table 1, arXiv 2407.10490",
    "An independent replication with a reward model found 50.5, 53.6 and 49.6 % after "
    "2, 4 and 6 epochs: no clear gain. In our embedded world the greedy path rose more "
    "with extend, not less (docs/embedded-world.md).",
)

SMALLER_STEPS = Advice(
    "Divide the learning rate by 10, from a checkpoint before the fall.",
    "In the paper's published result files DPO of two models at a large learning rate "
    "lost everything (best kind −18 % and −17 %); at 5e-7 the same runs did not.",
    "cited",
    "result files of Ren & Sutherland 2025, arXiv 2407.10490, read by us",
    "Two models, one seed each.",
)

AGAINST_SQUEEZING = [
    Advice(
        "Add a log-likelihood term on chosen to the loss (RPO; TRL: loss_type sigmoid "
        "and sft with loss_weights).",
        "With it chosen's log-probability rises during training, without it it falls.",
        "cited",
        "Pang et al. 2024, Iterative RPO, arXiv 2404.19733",
        "Measured on reasoning data; the weight is one more setting, and users report "
        "conflicting experience with it.",
    ),
    Advice(
        "Use a loss that penalises a fall of chosen (DPOP) or that stops pushing "
        "rejected where it is unlikely already (Gate-DPO).",
        "On HH, Pythia-410M's chosen changed by −11.9 nats with DPO and by +1.2 and "
        "+1.3 with two gates; other answers by −27.6 and by −1.4 and −3.9.",
        "cited",
        "Gate-DPO: arXiv 2605.02626; DPOP: Pal et al. 2024, arXiv 2402.13228",
        "Their authors' own numbers.",
    ),
    Advice(
        "Leave out pairs whose two answers the model represents alike (a high CHES "
        "score).",
        "Such pairs made chosen fall most; leaving them out mitigated it.",
        "cited",
        "Razin et al. 2024, arXiv 2410.08847",
        "Measured on refusal data with a few models.",
        "learndyn diagnose --model MODEL --data PAIRS",
    ),
    Advice(
        "Sample rejected answers from the model that is trained (on-policy pairs).",
        "An answer that the model finds likely does not lie in a valley, where a push "
        "squeezes most.",
        "cited",
        "Ren & Sutherland 2025, Section 3.3, arXiv 2407.10490",
        "In our embedded world the control with on-policy pairs kept the margin at 0, "
        "and the greedy path drifted by up to 2.7 % (docs/embedded-world.md).",
    ),
]
