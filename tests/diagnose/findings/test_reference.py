"""Policy and reference that differ before the first update, and methods without one."""

import pytest
from planted import planted, with_info, with_log

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.reference import Reference


def rewards(step, chosen, rejected=0.0):
    return {"step": step, "rewards/chosen": chosen, "rewards/rejected": rejected}


def mismatch(run, log=(), **info):
    return Reference.detect(Facts(with_log(with_info(run, **info), list(log))))


@pytest.mark.parametrize(
    ("gap", "severity"), [(0.0, "fine"), (1e-5, "fine"), (0.1, "watch"), (9, "problem")]
)
def test_the_gap_that_a_recipe_measured_is_judged_first(base, gap, severity):
    # The log says otherwise; the gap is over all training responses and counts.
    found = mismatch(base, [rewards(1, 5.0)], reference_gap=gap, beta=0.1)
    assert found.severity == severity
    assert found.numbers["reference_gap"] == gap


@pytest.mark.parametrize(
    ("reward", "severity"), [(0.0, "fine"), (-0.01, "watch"), (0.3, "problem")]
)
def test_rewards_of_the_first_update_must_be_zero(base, reward, severity):
    found = mismatch(base, [rewards(1, 0.0, reward), rewards(2, 9.0)], beta=0.1)
    assert found.severity == severity
    assert found.numbers["first_logged_gap"] == pytest.approx(abs(reward) / 0.1)


def test_beta_is_found_among_the_trainer_s_settings_too(base):
    found = mismatch(base, [rewards(1, 0.3)], trainer={"beta": 0.5})
    assert found.numbers["first_logged_gap"] == pytest.approx(0.6)


def test_later_rewards_are_held_against_what_the_probes_moved(base):
    still = planted(base, {"chosen": 0.4, "rejected": -0.4})
    moving = planted(base, {"chosen": -20.0, "rejected": -60.0})
    log = [rewards(10, -1.2, -1.5), rewards(20, -1.3, -1.6)]
    found = mismatch(still, log, beta=0.1)
    assert found.severity == "problem"
    assert "does not start at 0" in found.says
    assert mismatch(moving, log, beta=0.1).severity == "fine"
    calm = [rewards(10, -0.01, -0.02)]
    assert "were not compared" in mismatch(still, calm, beta=0.1).says


def test_where_nothing_can_tell_nothing_is_said(base):
    assert mismatch(base, [rewards(1, 3.0)], method="sft", beta=0.1) is None
    assert mismatch(base, [rewards(1, 3.0)]) is None  # beta unknown
    assert mismatch(base, [{"step": 1, "loss": 0.7}], beta=0.1) is None
    assert mismatch(base, [rewards(1, float("nan"))], beta=0.1) is None


@pytest.mark.parametrize(
    ("method", "trainer"),
    [
        ("cpo", {"loss_type": "simpo"}),
        ("cpo", {}),
        ("orpo", {}),
        ("simpo", {}),
        ("grpo", {"beta": 0.0}),
        ("dpo", {"reference_free": True}),
    ],
)
def test_a_method_without_a_reference_has_none_to_differ_from(base, method, trainer):
    log = [rewards(1, -5.6, -5.4), rewards(2, -5.9, -5.5)]
    trainer = {"beta": 2.0} | trainer
    assert mismatch(base, log, method=method, trainer=trainer) is None
    assert mismatch(base, log, method="kto", beta=2.0).severity == "problem"


def test_an_adapter_without_its_sft_in_the_reference_is_named_with_both_remedies(base):
    log = [rewards(1, 0.23, -0.22)]
    weights = {"parameters": 146_240, "trainable_parameters": 18_944}
    run = with_log(with_info(base, beta=0.1, **weights), log)
    found = Reference.detect(Facts(run))
    assert "lacks the SFT adapter" in found.headline(Facts(run))
    merge, copy = found.advice(Facts(run))
    assert "merge_and_unload" in merge.do
    assert "ref_adapter_name" in copy.do
    full = with_info(run, trainable_parameters=146_240)
    found = Reference.detect(Facts(full))
    assert "adapter" not in found.headline(Facts(full))
    assert len(found.advice(Facts(full))) == 1
    rounded = with_log(run, [rewards(1, 0.0002, -0.004)])
    assert Reference.detect(Facts(rounded)).severity == "watch"
