"""How Ren & Sutherland's published files spell the kinds of response."""

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
    "random_words": "random_words (published as random_nonhum) is no random text but "
    "a shuffle of the words of irr_test",
}
"""Our kind -> why the authors' column does not hold what that name says."""


def our_kind(name: str) -> str:
    """Our name of one of their kinds; a name that they did not publish stays."""
    return AUTHORS_KINDS.get(name, name)
