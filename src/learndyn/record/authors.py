"""The spellings of Ren & Sutherland's published files, read here and nowhere else.

Two of their columns do not hold what their names say. `irr_test` is drawn from other
rows of the same split, so for the training probes it is training text. `random_nonhum`
is no random text: it is a shuffle of the words of `irr_test`. Both keep our nearest
kind, `irrelevant_test` and `random_words`.
"""

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
