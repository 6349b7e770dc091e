"""Public bug reports, rebuilt small: what `learndyn diagnose` must say of each.

The run directories lie beside the repository, as the authors' data do; without them the
tests are skipped.
"""

import re

import pytest

from learndyn import diagnose


FAULT = "This is probably a fault"

SAID = {
    # case: the first sentence, the second, the first advice (None: no advice)
    "d01-chosen-and-rejected-fall": (
        r"^Chosen fell: −9\.5 \[.*rewards/chosen −0\.95.*every other watched answer",
        "^Probably not a bug: .*the margin grew by.*everything watched fell with it",
        "a tenth of the learning rate, .* instead of",
    ),
    "d03-learning-rate-too-large": (
        r"rate of 0\.03 is far too large: the loss jumped from 0\.693 to 4\.57 at "
        "update 2",
        FAULT,
        "a tenth of the learning rate, 0.003 instead of 0.03",
    ),
    "d04-chosen-equals-rejected": (
        r"the same to the trainer: rewards/margins is exactly 0.* stays at 0\.693",
        FAULT,
        "Compare the columns",
    ),
    "d06-bf16-weights-small-steps": (
        "weights are in bfloat16 and the steps of 5e−7 round away",
        FAULT,
        "float32",
    ),
    "d08-prompts-longer-than-max-length": (
        "cuts at max_length 48, and 48 of 48 watched answers do not fit",
        FAULT,
        "Raise max_length",
    ),
    "d09-sft-adapter-base-reference": (
        "reference lacks the SFT adapter",
        FAULT,
        "Merge the SFT adapter",
    ),
    "d11-reference-in-bf16": (
        "^Training does what it should: the margin grew",
        "^No sign of a bug, but look at the reference",
        None,
    ),
    "d12-swapped-columns": ("probably exchanged", FAULT, "which column is chosen"),
    "d14-simpo": (
        "^Training does what it should: chosen rose",
        "^No sign of a bug",
        None,
    ),
    "d15-kto-only-undesirable": (
        "KTO saw only undesirable examples",
        FAULT,
        "both labels",
    ),
    "d16-grpo-no-reward-spread": (
        "same reward, so every advantage is 0",
        FAULT,
        "reward of a few sampled answers",
    ),
    "d18-pad-token-is-eos": (
        r"unlearns to stop: end-of-text after chosen went from 84\.8\s% to 67\.6\s%",
        "fault: .*pad token is the EOS token",
        "end-of-text",
    ),
    "d19-chosen-much-longer": (
        r"long answers.*chosen is 10\.2 times as long as rejected",
        "no bug in the code",
        "ld_alpha",
    ),
    "d21-metadata-column-becomes-best-kind/with": (
        r"^Chosen fell: −5\.8 \[",
        "^Probably not a bug",
        "Stop at about update 6",
    ),
    "d21-metadata-column-becomes-best-kind/without": (
        r"^Chosen fell: −5\.8 \[",
        "^Probably not a bug",
        "Stop at about update 6",
    ),
    "d27-sft-other-answers": ("^SFT overfits", "no bug in the code", "fewer epochs"),
}

STATES = {
    "d01-chosen-and-rejected-fall": "COLLAPSE",
    "d03-learning-rate-too-large": "COLLAPSE",
    "d06-bf16-weights-small-steps": "STILL",
    "d14-simpo": "FIT",
    "d18-pad-token-is-eos": "FIT",
    "d21-metadata-column-becomes-best-kind/with": "COLLAPSE",
    "d21-metadata-column-becomes-best-kind/without": "COLLAPSE",
}

NEVER = {
    "d03-learning-rate-too-large": "not a bug|squeez|already favoured",
    "d06-bf16-weights-small-steps": "[Tt]rain longer",
    "d04-chosen-equals-rejected": "[Tt]rain longer",
    "d14-simpo": "reference",
    "d15-kto-only-undesirable": "push on rejected",
    "d16-grpo-no-reward-spread": "push on rejected|log-likelihood term",
    "d27-sft-other-answers": "does what it should|as intended",
}


@pytest.fixture(scope="module")
def verdicts(shared_data):
    """Each case's diagnosis, made once."""
    cases, made = shared_data.parent / "cases", {}

    def verdict(case):
        if not (cases / case / "run").is_dir():
            pytest.skip(f"{case} is not there")
        if case not in made:
            made[case] = diagnose(cases / case / "run")
        return made[case]

    return verdict


@pytest.mark.parametrize("case", SAID)
def test_a_field_case_is_told_as_it_should_be(verdicts, case):
    first, second, advice = SAID[case]
    verdict = verdicts(case)
    assert re.search(first, verdict.sentences[0])
    assert re.search(second, verdict.sentences[1])
    given = [item.do for item in verdict.advice]
    assert bool(given) == (advice is not None)
    if advice is not None:
        assert re.search(advice, given[0])
    assert case not in STATES or verdict.state.state == STATES[case]
    if case in NEVER:
        page = [*verdict.sentences, *given]
        assert not re.search(NEVER[case], " ".join(page))


def test_nan_is_told_as_a_model_that_diverged(verdicts):
    (sentence,) = verdicts("d13-nan").sentences
    assert "288 of 288 log-probabilities are not finite" in sentence


@pytest.mark.parametrize("case", SAID)
def test_no_case_is_told_in_percentages_of_a_start_or_with_two_signs(verdicts, case):
    text = str(verdicts(case))
    assert not re.search(r"[−+]\d+(\.\d+)? %", text)
    assert not re.search(r"(?<![\w−+.])-\d", text.replace("in -100", ""))
