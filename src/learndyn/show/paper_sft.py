"""The paper's figures of SFT: groups of answers, hallucination, held-out prompts."""

from collections.abc import Sequence

from learndyn.diagnose.paths import GREEDY
from learndyn.lab.recorded import Recorded
from learndyn.show.canvas import Sheet
from learndyn.show.palette import Style, style_of
from learndyn.show.panels import small_multiples
from learndyn.show.paper_lines import (
    ends,
    kinds_lines,
    line,
    lines,
    panel,
    sentence,
    told,
)


GROUPS = {
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


def groups(seeds: Sequence[Recorded], role: str, width: int) -> Sheet:
    """Every kind's change over a run, in the paper's four groups."""
    panels = []
    for title, kinds in GROUPS.items():
        found = kinds_lines(seeds, role, kinds)
        if found:
            panels.append(panel(seeds, title, found))
    return small_multiples(width, _told_groups(seeds, role), _unit(seeds), panels)


def hallucination(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Trained answers to other questions against such that nobody trained on."""
    kinds = ("irrelevant_train", "irrelevant_test", "irrelevant_human")
    panels = []
    for split, title in (
        ("train", "Asked: training prompts"),
        ("test", "Asked: held-out prompts"),
    ):
        found = kinds_lines(seeds, "sft", kinds, split=split)
        if found:
            panels.append(panel(seeds, title, found))
    trained, unseen = (ends(seeds, "sft", kind) for kind in kinds[:2])
    title = "Answers to other questions during SFT"
    if trained is not None:
        verb = "rise" if trained > 0 else "do not rise"
        title = f"Trained answers to other questions {verb}: {told('', trained)} nats"
        title = title.replace("  ", " ")
        if unseen is not None:
            title += f"; those never trained on {told('', unseen).strip()}"
    return small_multiples(width, title, _unit(seeds), panels)


def held_out(
    seeds: Sequence[Recorded], role: str, kinds: Sequence[str], width: int
) -> Sheet:
    """Training prompts (solid) against held-out ones (dashed), a panel per kind."""
    panels = []
    for kind in kinds:
        base = style_of(kind)
        dashed = Style(base.line, base.text, (5.0, 2.5), 1.6, base.band)
        solid = Style(base.line, base.text, (), 2.2, base.band)
        found = lines(
            line(seeds, role, kind, name="trained", style=solid),
            line(seeds, role, kind, name="held out", style=dashed, split="test"),
        )
        if found:
            panels.append(panel(seeds, kind, found))
    parts = [
        sentence(told(kind, ends(seeds, role, kind, "test")))
        + (f" (trained {told('', ends(seeds, role, kind)).strip()})")
        for kind in kinds[:2]
        if ends(seeds, role, kind, "test") is not None
    ]
    title = "On held-out prompts " + "; ".join(parts)
    return small_multiples(width, title, _unit(seeds), panels)


def _unit(seeds: Sequence[Recorded]) -> str:
    return CHANGE + of_seeds(seeds)


def _told_groups(seeds: Sequence[Recorded], role: str) -> str:
    kinds = ("chosen", "chosen_semantic", "rejected", "random_permuted")
    found = sentence(*(told(kind, ends(seeds, role, kind)) for kind in kinds))
    what = {"sft": "SFT on chosen", "extend-sft": "SFT on both answers"}
    return f"{what.get(role, role)}: {found} nats"
