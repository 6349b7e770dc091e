"""SFT (Section 4.1, Figure 3) and learning single answers (Appendix C).

Claims, and figures of groups of answers, hallucination and held-out prompts.
"""

from collections.abc import Sequence

import numpy as np

from learndyn.diagnose.intervals import spearman
from learndyn.diagnose.paths import GREEDY, Paths, mean_path
from learndyn.paper.claims import Absent, Measured, Statement
from learndyn.paper.figures import small_multiples
from learndyn.paper.finetuning.learning_one_kind import (
    notebook_lbk,
    notebook_sign_delta,
)
from learndyn.paper.finetuning.lines import (
    ends,
    in_words,
    kinds_lines,
    line,
    lines,
    panel,
    sentence,
)
from learndyn.paper.finetuning.recorded import (
    LEARNT,
    Recorded,
    change,
    difference,
    probed_split,
)
from learndyn.paper.finetuning.statements import (
    above,
    below,
    falls,
    gains_over,
    measured,
    rises,
    run_of,
    values,
)
from learndyn.show.chart import Chart, Style, style_of


FIGURE = "Section 4.1, Figure 3"
EIGHT = "Appendix C.2, Figure 8"

ALIKE = 0.8
"""Rank correlation from which on held-out prompts are said to move alike."""


def bell(one: Recorded) -> Measured:
    """The highest mean change of rejected in the first half of SFT, and the way down.

    The peak is picked after the fact, so its interval is too narrow: the test errs on
    the side of the claim.
    """
    path = values(one, "sft", "rejected")
    means = mean_path(path - path[0])
    early = means[1 : 1 + max(1, (len(means) - 1) // 2)]
    top = 1 + int(np.argmax(np.where(np.isfinite(early), early, -np.inf)))
    up = change(path, top)
    down = difference(path[-1], path[top])
    return measured(one, up, above(up) and below(down))


def held_out_alike(one: Recorded) -> Measured:
    """Rank correlation over kinds of the changes on trained and held-out prompts."""
    run = run_of(one, "sft")
    if set(run.split_of.tolist()) != {"train", "test"}:
        raise Absent("the sft run has no probes of held-out prompts")
    ends = []
    for split in ("train", "test"):
        paths = Paths.of(run, split).common().with_greedy()
        ends.append({kind: change(path).mean for kind, path in paths.items()})
    kinds = [kind for kind in ends[0] if kind in ends[1]]
    if len(kinds) < 3:
        raise Absent("fewer than three kinds are probed on both splits")
    rho = spearman(*(np.array([end[kind] for kind in kinds]) for end in ends))
    return Measured(one.seed, rho, rho >= ALIKE)


def own_kind_first(one: Recorded) -> Measured:
    """Share of supervisions whose own kind rises most among those compared."""
    learnt = [kind for kind in LEARNT if f"learn-{kind}" in one.runs]
    if len(learnt) < 2:
        raise Absent("fewer than two kinds have an SFT run of their own")
    own = 0
    for kind in learnt:
        moved = {k: change(values(one, f"learn-{kind}", k)).mean for k in learnt}
        own += max(moved, key=lambda k: moved[k]) == kind
    return Measured(one.seed, own / len(learnt), own == len(learnt))


def trained_has_most(one: Recorded) -> Measured:
    """Accumulated LBK of the trained kind, over the largest of another kind's."""
    total = {
        kind: float(notebook_lbk(run, kind, v, split=split).sum())
        for run, v, split in [_learn_chosen(one)]
        for kind in run.kinds
    }
    others = max(value for kind, value in total.items() if kind != "chosen")
    ratio = total["chosen"] / others
    return Measured(one.seed, ratio, ratio > 1)


def similar_gains_more(one: Recorded) -> Measured:
    """The smaller of two gaps of accumulated SignDelta: chosen over its rephrase, and
    the rephrase over an unrelated human sentence."""
    run, vocabulary, split = _learn_chosen(one)
    kinds = ("chosen", "chosen_semantic", "irrelevant_human")
    lacking = [kind for kind in kinds if kind not in run.kinds]
    if lacking:
        raise Absent(f"the run has no {' or '.join(lacking)} probes")
    first, second, third = (
        float(notebook_sign_delta(run, kind, vocabulary, split=split).sum())
        for kind in kinds
    )
    gap = min(first - second, second - third)
    return Measured(one.seed, gap, gap > 0)


def _learn_chosen(one: Recorded):
    if one.vocabulary is None:
        raise Absent("the number of the model's logits is unknown")
    run = run_of(one, "learn-chosen")
    if len(run.kinds) < 2:
        raise Absent("the run probes only one kind")
    return run, one.vocabulary, probed_split(run)


SFT_STATEMENTS = (
    Statement(
        "sft-chosen-rises",
        FIGURE,
        "SFT on chosen answers makes them more likely.",
        "change of log π(chosen) over SFT > 0, 95 % interval above 0",
        rises("sft", "chosen"),
        "sft_groups",
    ),
    Statement(
        "sft-rephrase-rises",
        FIGURE,
        "Rephrases of the chosen answers become more likely too.",
        "change of log π(chosen_semantic) > 0, 95 % interval above 0",
        rises("sft", "chosen_semantic"),
        "sft_groups",
    ),
    Statement(
        "sft-rephrase-rises-less",
        FIGURE,
        "Rephrases gain less than the answers that are trained on.",
        "change of chosen minus change of chosen_semantic, 95 % interval above 0",
        gains_over("sft", "chosen", "chosen_semantic"),
        "sft_groups",
    ),
    Statement(
        "sft-rejected-rises-then-falls",
        FIGURE,
        "Rejected answers become more likely at first, and less likely later.",
        "in the first half of SFT rejected is above its start, and at the end below "
        "that peak, both with 95 % intervals; shown: the peak",
        bell,
        "sft_groups",
        note="The peak is picked after the fact, which favours the claim.",
    ),
    Statement(
        "sft-rejected-lags",
        FIGURE,
        "Rejected answers gain less than chosen ones.",
        "change of chosen minus change of rejected, 95 % interval above 0",
        gains_over("sft", "chosen", "rejected"),
        "sft_groups",
    ),
    Statement(
        "sft-others-answers-rise",
        "Section 4.1, hallucination",
        "Answers to other training questions become more likely for this one.",
        "change of log π(irrelevant_train) > 0, 95 % interval above 0",
        rises("sft", "irrelevant_train"),
        "sft_hallucination",
    ),
    Statement(
        "sft-others-answers-above-unseen",
        "Section 4.1, hallucination",
        "They gain more than answers that were never trained on.",
        "change of irrelevant_train minus change of irrelevant_test, 95 % interval "
        "above 0",
        gains_over("sft", "irrelevant_train", "irrelevant_test"),
        "sft_hallucination",
    ),
    Statement(
        "sft-unrelated-falls",
        FIGURE,
        "Unrelated human sentences become less likely.",
        "change of log π(irrelevant_human) < 0, 95 % interval below 0",
        falls("sft", "irrelevant_human"),
        "sft_groups",
    ),
    Statement(
        "sft-permuted-falls",
        FIGURE,
        "Shuffled words of the chosen answer become less likely.",
        "change of log π(random_permuted) < 0, 95 % interval below 0",
        falls("sft", "random_permuted"),
        "sft_groups",
    ),
    Statement(
        "sft-random-falls",
        FIGURE,
        "Random words become less likely.",
        "change of log π(random_words) < 0, 95 % interval below 0",
        falls("sft", "random_words"),
        "sft_groups",
    ),
    Statement(
        "sft-held-out-alike",
        "Section 4.1, D_probtest",
        "Answers to held-out prompts move as those to training prompts do.",
        f"rank correlation over kinds of the two changes >= {ALIKE}",
        held_out_alike,
        "sft_train_and_test",
        unit="Spearman",
    ),
    Statement(
        "sft-held-out-chosen-rises",
        "Section 4.1, D_probtest",
        "Chosen answers to held-out prompts become more likely too.",
        "change of log π(chosen) on held-out prompts > 0, 95 % interval above 0",
        rises("sft", "chosen", "test"),
        "sft_train_and_test",
    ),
    Statement(
        "sft-greedy-rises",
        "Appendix C, Figure 9",
        "SFT makes the model surer: the argmax along chosen rises.",
        "change of Σ log max π along chosen > 0, 95 % interval above 0",
        rises("sft", GREEDY),
        "sft_groups",
    ),
    Statement(
        "learn-own-kind-most",
        "Appendix D, heat map",
        "Of all kinds of answer, the one that is trained on gains most.",
        "share of supervisions whose own kind has the largest change = 1",
        own_kind_first,
        "heat_map",
        unit="share",
    ),
    Statement(
        "learn-chosen-lifts-its-rephrase",
        "Appendix D, heat map",
        "Learning chosen lifts chosen's rephrase more than rejected's.",
        "SFT on chosen: change of chosen_semantic minus change of rejected_semantic, "
        "95 % interval above 0",
        gains_over("learn-chosen", "chosen_semantic", "rejected_semantic"),
        "heat_map",
    ),
    Statement(
        "learn-rejected-lifts-its-rephrase",
        "Appendix D, heat map",
        "Learning rejected lifts rejected's rephrase more than chosen's.",
        "SFT on rejected: change of rejected_semantic minus change of chosen_semantic, "
        "95 % interval above 0",
        gains_over("learn-rejected", "rejected_semantic", "chosen_semantic"),
        "heat_map",
    ),
    Statement(
        "lbk-trained-kind-most",
        EIGHT,
        "The trained answers have the largest accumulated LBK.",
        "SFT on chosen, the notebook's LBK: chosen over the largest other kind > 1",
        trained_has_most,
        "lbk",
        unit="ratio",
    ),
    Statement(
        "sign-delta-order",
        EIGHT,
        "Accumulated SignDelta is ordered by likeness to what is trained.",
        "SFT on chosen, the notebook's SignDelta: chosen > chosen_semantic > "
        "irrelevant_human; shown: the smaller gap, > 0",
        similar_gains_more,
        "sign_delta",
        unit="nats / √‖A‖",
    ),
)

_GROUPS = {
    "Chosen and its rephrases": (
        *("chosen", "chosen_semantic", "chosen_format", "chosen_selfr"),
        *("chosen_initial", GREEDY),
    ),
    "Rejected and its rephrases": (
        *("rejected", "rejected_semantic", "rejected_format"),
    ),
    "Answers to other questions": (
        *("irrelevant_train", "irrelevant_test", "irrelevant_human"),
    ),
    "No language": ("random_permuted", "random_words"),
}

CHANGE = "Change of log π since the start, nats per response"


def of_seeds(seeds: Sequence[Recorded]) -> str:
    """Whose lines they are, for the line below a title."""
    if len(seeds) == 1:
        return f"; {seeds[0].seed}" if isinstance(seeds[0].seed, str) else ""
    return f"; thin: each of {len(seeds)} runs, thick: their mean"


def _groups(seeds: Sequence[Recorded], role: str, width: int) -> Chart:
    """Every kind's change over a run, in the paper's four groups."""
    panels = []
    for title, kinds in _GROUPS.items():
        curves = kinds_lines(seeds, role, kinds)
        if curves:
            panels.append(panel(seeds, title, curves))
    return small_multiples(width, _groups_title(seeds, role), _unit(seeds), panels)


def hallucination(seeds: Sequence[Recorded], width: int) -> Chart:
    """Trained answers to other questions against such that nobody trained on."""
    kinds = ("irrelevant_train", "irrelevant_test", "irrelevant_human")
    panels = []
    for split, title in (
        ("train", "Asked: training prompts"),
        ("test", "Asked: held-out prompts"),
    ):
        curves = kinds_lines(seeds, "sft", kinds, split=split)
        if curves:
            panels.append(panel(seeds, title, curves))
    trained, unseen = (ends(seeds, "sft", kind) for kind in kinds[:2])
    title = "Answers to other questions during SFT"
    if trained is not None:
        verb = "rise" if trained > 0 else "do not rise"
        title = (
            f"Trained answers to other questions {verb}: {in_words('', trained)} nats"
        )
        title = title.replace("  ", " ")
        if unseen is not None:
            title += f"; those never trained on {in_words('', unseen).strip()}"
    return small_multiples(width, title, _unit(seeds), panels)


def _held_out(
    seeds: Sequence[Recorded], role: str, kinds: Sequence[str], width: int
) -> Chart:
    """Training prompts (solid) against held-out ones (dashed), a panel per kind."""
    panels = []
    for kind in kinds:
        base = style_of(kind)
        dashed = Style(base.line, base.text, (5.0, 2.5), 1.6, base.band)
        solid = Style(base.line, base.text, (), 2.2, base.band)
        curves = lines(
            line(seeds, role, kind, name="trained", style=solid),
            line(seeds, role, kind, name="held out", style=dashed, split="test"),
        )
        if curves:
            panels.append(panel(seeds, kind, curves))
    parts = [
        sentence(in_words(kind, ends(seeds, role, kind, "test")))
        + (f" (trained {in_words('', ends(seeds, role, kind)).strip()})")
        for kind in kinds[:2]
        if ends(seeds, role, kind, "test") is not None
    ]
    title = "On held-out prompts " + "; ".join(parts)
    return small_multiples(width, title, _unit(seeds), panels)


def _unit(seeds: Sequence[Recorded]) -> str:
    return CHANGE + of_seeds(seeds)


def _groups_title(seeds: Sequence[Recorded], role: str) -> str:
    kinds = ("chosen", "chosen_semantic", "rejected", "random_permuted")
    changes = sentence(*(in_words(kind, ends(seeds, role, kind)) for kind in kinds))
    what = {"sft": "SFT on chosen", "extend-sft": "SFT on both answers"}
    return f"{what.get(role, role)}: {changes} nats"
