"""The kinds of response that a probe set holds, one spelling each.

A kind is the paper's response type (Ren & Sutherland 2025, Section 4.1 and
Appendix D.1). Kinds are open strings: any further column of a wide file is a kind.
"""

PAPER_KINDS: tuple[str, ...] = (
    "chosen",  # y+: the answer that SFT trains on and DPO prefers
    "chosen_initial",  # what the model answered before finetuning
    "chosen_selfr",  # the model's own rephrase of chosen
    "chosen_semantic",  # the same meaning in other words
    "chosen_format",  # the same form with another meaning
    "rejected",  # y-: the answer that DPO pushes down
    "rejected_semantic",
    "rejected_format",
    "irrelevant_train",  # chosen answer of another training prompt
    "irrelevant_test",  # chosen answer of a held-out prompt
    "irrelevant_human",  # an unrelated, fluent sentence
    "random_permuted",  # the words of chosen, shuffled
    "random_words",  # random words
)

FAMILIES: tuple[str, ...] = ("chosen", "rejected", "irrelevant", "random")


def family(kind: str) -> str:
    """Family of a kind: the part before the first underscore, or "other"."""
    head = kind.split("_", 1)[0]
    return head if head in FAMILIES else "other"


def in_paper_order(kinds: set[str] | list[str]) -> list[str]:
    """Sort `kinds` as the paper lists them, unknown kinds after, by name."""
    known = [kind for kind in PAPER_KINDS if kind in kinds]
    return known + sorted(set(kinds) - set(PAPER_KINDS))
