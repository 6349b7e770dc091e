"""Faults that leave a pattern: found where they are planted, and not elsewhere."""

import numpy as np
import pytest
from planted import planted, with_info, with_log
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.exchanged import Exchanged
from learndyn.diagnose.findings.faults.not_training import NotTraining
from learndyn.diagnose.findings.faults.reference import Reference
from learndyn.diagnose.findings.faults.training_log import StepsTooLarge
from learndyn.record.trajectory import Trajectory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    drift = {"chosen": 0.0, "rejected": 0.0, "irrelevant_train": 0.0}
    return Trajectory.load(write_run(path, drift=drift))


# --- policy and reference


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


# --- nothing trains


def test_a_run_in_which_nothing_moved_is_found(base):
    still = planted(base, {}, noise=0.0)
    found = NotTraining.detect(Facts(with_log(still, [])))
    assert found.severity == "problem"
    assert "Check that the learning rate is above 0" in found.says
    logged = with_log(still, [{"step": s, "learning_rate": 0.0} for s in (1, 2)])
    assert (
        "logged learning rate is 0 throughout" in NotTraining.detect(Facts(logged)).says
    )


def test_one_prompt_that_moves_is_training(base):
    run = planted(base, {}, noise=0.0)
    run.columns["logp"][-1, 3] += 0.01
    found = NotTraining.detect(Facts(run))
    assert found.severity == "fine"
    assert "the largest change is 0.01 nats" in found.says


# --- chosen and rejected exchanged


def swapped(run):
    return Exchanged.detect(Facts(run))


def test_exchanged_columns_are_found(base):
    found = swapped(planted(base, {"chosen": -9.0, "rejected": 6.0}))
    assert found.severity == "problem"
    assert "probably exchanged" in found.says


@pytest.mark.parametrize(
    "drift",
    [
        {"chosen": -9.0, "rejected": -30.0},
        {"chosen": -9.0, "rejected": -6.0},
        {"chosen": 9.0, "rejected": 12.0},
        {"chosen": 0.0, "rejected": 6.0},
    ],
    ids=["squeezing", "both-fall", "both-rise", "chosen-still"],
)
def test_chosen_and_rejected_that_move_otherwise_are_not_exchanged(base, drift):
    assert swapped(planted(base, drift)).severity == "fine"


def test_means_that_move_as_if_exchanged_cannot_be_told(tmp_path):
    drift = {"chosen": -9.0, "rejected": 6.0}
    run = Trajectory.load(write_run(tmp_path / "run", drift=drift, prompts=1))
    found = swapped(run)
    assert found.severity == "watch"
    assert "this is not sure" in found.says
    drift = {"chosen": 9.0, "rejected": 6.0}
    calm = Trajectory.load(write_run(tmp_path / "calm", drift=drift, prompts=1))
    assert swapped(calm).severity == "fine"


def test_a_margin_that_was_once_above_its_start_is_not_an_exchange(base):
    shape = np.array([0.0, -0.3, 0.2, 0.6, 1.0])
    run = planted(base, {"chosen": -9.0, "rejected": 6.0}, shape=shape)
    assert swapped(run).severity == "fine"


def test_sft_has_no_exchange(base):
    assert swapped(with_info(planted(base, {}), method="sft")) is None


# --- steps that are too large


def large(run, log):
    run = with_log(run, log)
    return StepsTooLarge.detect(Facts(run))


def logged(key, values):
    return [{"step": i + 1, key: float(v)} for i, v in enumerate(values)]


def test_a_leak_is_a_problem_and_names_the_jumps(base):
    drift = {"chosen": -12.0, "rejected": -30.0, "irrelevant_train": -15.0}
    run = planted(base, drift, greedy=-5.0)
    values = [2.0, 1.8, 1.9, 2.1, 1.7, 1.8, 40.0, 1.9, 60.0]
    found = large(run, logged("grad_norm", values))
    assert found.severity == "problem"
    assert found.numbers["grad_norm_jumps"] == 2
    assert "grad_norm jumps 2 times" in found.says


def test_jumps_and_lost_values_are_told_of_without_a_leak(base):
    run = planted(base, {"chosen": 6.0})
    jumps = [0.7] * 8 + [5.0] + [0.6] * 8
    assert large(run, logged("loss", jumps)).severity == "watch"
    assert large(run, logged("loss", [0.7, float("nan"), 0.7])).severity == "problem"


@pytest.mark.parametrize(
    "values",
    [
        [75, 55, 28, 19, 17, 16, 14, 13, 13, 12, 14, 13, 12, 13, 12, 12],
        [0.69, 0.6, 0.4, 0.3, 0.2, 0.05, 0.01, 0.002, 0.03, 0.001, 0.02, 0.0005],
        [2.0, 8.0, 1.0, 3.0, 2.5, 7.0, 1.2, 6.5, 2.2, 0.9, 3.3],
        [0.7, 9.0],
    ],
    ids=["falling", "near-zero", "rough-from-the-start", "short"],
)
def test_a_loss_that_falls_or_was_always_rough_does_not_jump(base, values):
    found = large(planted(base, {"chosen": 6.0}), logged("loss", values))
    assert found.severity == "fine"


def test_without_a_log_and_a_leak_there_is_nothing_to_say(base):
    assert large(planted(base, {"chosen": 6.0}), []) is None
