"""The kinds of response that a probe set holds, one spelling each.

A kind is the paper's response type (Ren & Sutherland 2025, Section 4.1 and
Appendix D.1). Kinds are open strings: any further column of a wide file is a kind.
`AUTHORS_KINDS` has the spellings of the paper's published files.
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


AUTHORS_KINDS: dict[str, str] = {
    "chosen_gptsemantic": "chosen_semantic",
    "chosen_gptformat": "chosen_format",
    # Probe files write reject_, the rephrase files and the notebooks rejected_.
    "reject_gptsemantic": "rejected_semantic",
    "rejected_gptsemantic": "rejected_semantic",
    "reject_gptformat": "rejected_format",
    "rejected_gptformat": "rejected_format",
    "irr_train": "irrelevant_train",
    "irr_test": "irrelevant_test",
    "irr_hum": "irrelevant_human",
    "random_permute": "random_permuted",
    "random_nonhum": "random_words",
}
"""The authors' column name -> our kind. `chosen`, `chosen_initial`, `chosen_selfr` and
`rejected` have the same name in both."""

PROBED: tuple[str, ...] = (
    *("chosen", "chosen_initial", "chosen_gptsemantic", "chosen_gptformat"),
    *("rejected", "reject_gptsemantic", "reject_gptformat"),
    *("irr_train", "irr_test", "irr_hum", "random_permute", "random_nonhum"),
)
"""The twelve kinds that their trainer scores, in its order: all columns of the probe
file but `chosen_selfr`."""

NOT_AS_NAMED: dict[str, str] = {
    "irrelevant_test": "irrelevant_test (published as irr_test) is drawn from other "
    "rows of the same split: for training probes it is training text",
    "random_words": "random_words (published as random_nonhum) is not random text but "
    "a shuffle of the words of irr_test",
}
"""Our kind -> why the authors' column does not hold what that name says."""


def our_kind(name: str) -> str:
    """Our name of one of their kinds; a name that they did not publish stays."""
    return AUTHORS_KINDS.get(name, name)
