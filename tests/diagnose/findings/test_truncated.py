"""Answers that the trainer cuts. Probes have 2 prompt tokens and 8 of the answer."""

import pytest
from planted import with_info

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.truncated import Truncated, cut_share


def found(run, method="dpo", **trainer):
    facts = Facts(with_info(run, method=method, trainer=trainer))
    return Truncated.detect(facts), facts


def test_answers_that_do_not_fit_are_counted_with_what_they_lose(base):
    finding, facts = found(base, max_length=7, truncation_mode="keep_start")
    assert finding.severity == "problem"
    assert finding.headline(facts) == (
        "Training cuts at max_length 7, and 48 of 48 watched answers do not fit."
    )
    assert "48 lose their end, 3 tokens in the median" in finding.says
    assert "100 % of chosen and 100 % of rejected" in finding.says
    (advice,) = finding.advice(facts)
    assert (
        advice.do == "Raise max_length to 10 or more, or drop the rows that are longer."
    )
    assert cut_share(facts) == 1.0


def test_prompts_that_fill_the_limit_leave_nothing_to_train_on(base):
    finding, _ = found(base, max_length=2, truncation_mode="keep_start")
    assert "48 of 48 have a prompt that alone fills 2 tokens" in finding.says
    assert "dropped from training" in finding.says
    finding, _ = found(base, method="cpo", max_length=2)
    assert "left without an answer" in finding.says


def test_the_length_of_the_scores_is_told_where_it_is_larger(base):
    wide = with_info(base, max_length=1024)
    assert "scored at up to 1024 tokens" in found(wide, max_length=7)[0].says
    equal = with_info(base, max_length=7)
    assert "scored at up to" not in found(equal, max_length=7)[0].says


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_length": 10},
        {"max_length": 9, "max_prompt_length": 1},
        {"max_length": 9, "truncation_mode": "keep_end"},
        {"max_completion_length": 8},
    ],
    ids=["fits", "cut-prompt", "keeps-the-end", "answers-fit"],
)
def test_answers_that_fit_are_no_fault(base, trainer):
    finding, facts = found(base, **trainer)
    assert finding.severity == "fine"
    assert finding.says.startswith("48 of 48 watched answers fit")
    assert cut_share(facts) == 0.0


@pytest.mark.parametrize(
    ("trainer", "setting"),
    [
        ({"max_completion_length": 5}, "max_completion_length 5"),
        ({"max_length": 64, "max_completion_length": 5}, "max_length 64"),
        ({"cutoff_len": 6}, "cutoff_len 6"),
        ({"max_seq_length": 6}, "max_seq_length 6"),
    ],
)
def test_each_name_of_the_limit_is_read(base, trainer, setting):
    finding, facts = found(base, **trainer)
    assert setting in finding.headline(facts)


def test_without_a_limit_or_answers_of_the_data_nothing_is_cut(base):
    assert found(base)[0] is None
    assert found(base, max_length=None)[0] is None
    assert found(base, method="grpo", max_completion_length=2)[0] is None
    assert found(base, method="sft", max_length=4, packing=True)[0] is None


def test_sft_is_judged_by_chosen_alone(base):
    finding, _ = found(base, method="sft", max_length=7)
    assert (finding.numbers["cut"], finding.numbers["watched"]) == (24, 24)
    assert "rejected" not in finding.says
