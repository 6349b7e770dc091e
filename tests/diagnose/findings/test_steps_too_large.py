"""Steps that are too large, by the training log and the rate."""

import numpy as np
import pytest
from planted import planted, with_info, with_log
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.steps_too_large import StepsTooLarge
from learndyn.record.trajectory import Trajectory


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
        [0.7, 2.6],
    ],
    ids=["falling", "near-zero", "rough-from-the-start", "short"],
)
def test_a_loss_that_falls_or_was_always_rough_does_not_jump(base, values):
    # of a method whose loss may begin anywhere
    run = with_info(planted(base, {"chosen": 6.0}), method="sft")
    assert large(run, logged("loss", values)).severity == "fine"


def test_without_a_log_and_a_leak_there_is_nothing_to_say(base):
    assert large(planted(base, {"chosen": 6.0}), []) is None


# --- the first rows, and a loss that rises


D03 = [0.693, 4.573, 2.236, 0.568, 0.586, 0.28, 0.1, 0.01]
"""DPO at a learning rate of 0.03: the second update took everything away."""


def rated(loss, rate, norms=()):
    rows = [
        {"step": i + 1, "loss": v, "learning_rate": rate} for i, v in enumerate(loss)
    ]
    for row, norm in zip(rows, norms, strict=False):
        row["grad_norm"] = norm
    return rows


def test_a_jump_in_the_first_rows_names_update_and_rate(base):
    run = with_log(planted(base, {}), rated(D03, 0.03, [3.6, 27.6]))
    run = with_info(run, trainer={"learning_rate": 0.03}, parameters=127_296)
    found = StepsTooLarge.detect(Facts(run))
    assert found.severity == "problem"
    assert found.headline(Facts(run)) == (
        "The learning rate of 0.03 is far too large: the loss jumped from 0.693 to "
        "4.57 at update 2."
    )
    assert "grad_norm 3.6 to 27.6" in found.says
    assert "1e−7 to 5e−6 is usual" in found.says
    (advice,) = found.advice(Facts(run))
    assert "a tenth of the learning rate, 0.003 instead of 0.03" in advice.do


def test_a_usual_rate_is_not_called_far_too_large(base):
    run = with_log(planted(base, {}), rated(D03, 1e-5))
    run = with_info(run, trainer={"learning_rate": 1e-5}, parameters=127_296)
    headline = StepsTooLarge.detect(Facts(run)).headline(Facts(run))
    assert headline.startswith("The steps are too large: the loss jumped")


def test_dpo_begins_at_ln_2_so_a_first_row_can_show_a_jump(base):
    later = [row | {"step": row["step"] + 1} for row in rated([3.1, 2.0, 1.5], 1e-3)]
    high = with_log(planted(base, {}), later)
    assert StepsTooLarge.detect(Facts(high)).numbers["jump"][0] == 2
    for other in ({"method": "sft"}, {"trainer": {"loss_type": "ipo"}}):
        assert StepsTooLarge.detect(Facts(with_info(high, **other))).severity == "fine"
    apart = with_info(high, reference_gap=30.0)  # then it begins elsewhere
    assert StepsTooLarge.detect(Facts(apart)).severity == "fine"


def test_a_loss_logged_before_any_update_is_where_it_begins(base):
    run = with_log(planted(base, {}), rated([5.5, 5.0, 4.8], 1e-3))
    assert StepsTooLarge.detect(Facts(run)).severity == "fine"


def test_a_step_that_a_scaler_of_float16_left_out_breaks_nothing(base):
    norms = [float("inf"), 1.0, 1.1, 0.9]
    run = with_log(planted(base, {}), rated([0.69, 0.68, 0.66, 0.65], 1e-6, norms))
    assert StepsTooLarge.detect(Facts(run)).severity == "fine"
    ending = [1.0, 1.1, float("nan")]
    lost = with_log(planted(base, {}), rated([0.69, 0.68, 0.66], 1e-6, ending))
    assert StepsTooLarge.detect(Facts(lost)).severity == "problem"


@pytest.mark.parametrize(
    ("method", "loss", "severity"),
    [
        ("dpo", [0.7, 0.9, 1.1, 1.3, 1.5, 1.4, 1.6, 1.5], "problem"),
        ("dpo", [0.69, 0.75, 0.8, 0.7, 0.9, 0.8, 0.85, 0.8], "fine"),
        ("sft", [2.0, 2.2, 2.9, 3.5, 4.1, 4.4, 4.2, 4.3], "problem"),
        ("sft", [2.0, 2.6, 1.9, 2.7, 2.2, 2.5, 2.4, 2.6], "fine"),
        ("simpo", [2.0, 3.9, 1.9, 2.7, 2.2, 2.5, 2.4, 2.6], "fine"),
        ("grpo", [0.0, 0.01, 0.4, 0.2, 0.9, 0.1, 0.8, 0.7], "fine"),
    ],
)
def test_a_loss_that_rises_over_the_run_is_found(base, method, loss, severity):
    run = with_info(with_log(planted(base, {}), rated(loss, 1e-4)), method=method)
    found = StepsTooLarge.detect(Facts(run))
    assert found.severity == severity
    assert ("rose" in found.numbers) == (severity == "problem")


# --- what the answers lost


def rows_of(epochs):
    """100 updates in so many passes."""
    return [{"step": s, "loss": 0.5, "epoch": epochs * s / 100} for s in range(1, 101)]


@pytest.fixture(scope="module")
def planted_steps(tmp_path_factory):
    """Makes runs whose chosen loses a nat per token, at once or late, without a log."""
    drift = dict.fromkeys(("chosen", "rejected", "irrelevant_train"), 0.0)
    path = tmp_path_factory.mktemp("steps") / "run"
    path = write_run(path, drift=drift, steps=(0, 20, 50, 75, 100), off_target=-0.5)
    run = Trajectory.load(path)

    def make(shape, chosen=-12.0, other=-8.0, method="dpo", epochs=None):
        drift = {"chosen": chosen, "rejected": -30.0, "irrelevant_train": other}
        made = planted(run, drift, shape=np.array(shape))
        log = [] if epochs is None else rows_of(epochs)
        return with_log(with_info(made, method=method), log)

    return make


AT_ONCE = [0.0, 0.5, 0.7, 0.9, 1.0]
LATER = [0.0, 0.02, 0.2, 0.6, 1.0]


def test_answers_that_are_lost_at_once_show_large_steps(planted_steps):
    run = planted_steps(AT_ONCE)
    found = StepsTooLarge.detect(Facts(run))
    assert found.severity == "problem"
    headline = found.headline(Facts(run))
    assert "chosen lost 1." in headline
    assert "nats per token and other answers fell too" in headline
    assert "3 of 3 watched kinds fell" in found.says
    assert (
        "of it by update 20; other tokens that the first model favoured lost 0.5"
        in (found.says)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": LATER},
        {"shape": AT_ONCE, "chosen": -2.0},
        {"shape": AT_ONCE, "other": 4.0},
        {"shape": AT_ONCE, "method": "grpo"},
    ],
    ids=["falls-later", "falls-little", "another-gains", "samples-its-own"],
)
def test_answers_that_fall_otherwise_do_not(planted_steps, changes):
    assert StepsTooLarge.detect(Facts(planted_steps(**changes))) is None


@pytest.mark.parametrize(("rate", "severity"), [(3e-5, "problem"), (1e-6, "fine")])
def test_less_is_lost_at_once_only_where_the_rate_is_above_the_usual(
    planted_steps, rate, severity
):
    run = planted_steps(LATER, chosen=-3.2, epochs=1)  # 0.4 nats per token
    run = with_info(run, trainer={"learning_rate": rate}, parameters=7_000_000_000)
    assert StepsTooLarge.detect(Facts(run)).severity == severity


def test_the_first_pass_over_the_data_is_what_counts_as_at_once(planted_steps):
    one = planted_steps(LATER, epochs=1)
    assert StepsTooLarge.detect(Facts(one)).severity == "problem"
    ten = planted_steps(LATER, epochs=10)  # what many passes do is learning by heart
    assert StepsTooLarge.detect(Facts(ten)).severity == "fine"


def test_a_loss_that_goes_to_the_first_favourites_is_squeezing(base):
    drift = dict.fromkeys(("chosen", "rejected", "irrelevant_train"), -12.0)
    run = with_log(planted(base, drift, shape=np.array(AT_ONCE)), [])
    assert Facts(run).evidence.off_target.above_zero
    assert StepsTooLarge.detect(Facts(run)) is None


def test_a_late_loss_at_a_rate_far_above_the_usual_does(planted_steps):
    run = planted_steps(LATER)
    usual = with_info(run, trainer={"learning_rate": 1e-6}, parameters=7_000_000_000)
    assert StepsTooLarge.detect(Facts(usual)) is None
    large = with_info(usual, trainer={"learning_rate": 1e-4})
    found = StepsTooLarge.detect(Facts(large))
    assert found.headline(Facts(large)).startswith("The learning rate of 0.0001 is")


def test_null_is_a_value_that_was_not_a_number(base):
    rows = [{"step": 1, "loss": 0.7, "grad_norm": 2.0}]
    rows.append({"step": 2, "loss": 0.0, "grad_norm": None})
    run = with_log(planted(base, {}), rows)
    found = StepsTooLarge.detect(Facts(run))
    assert (found.severity, found.numbers["not_finite"]) == ("problem", 1)
    assert "from update 2 on" in found.headline(Facts(run))


def test_a_rate_alone_proves_nothing(base):
    calm = [0.69, 0.5, 0.4, 0.3, 0.3, 0.3, 0.2, 0.2]
    run = with_log(planted(base, {"chosen": 6.0}), rated(calm, 0.03))
    run = with_info(run, trainer={"learning_rate": 0.03})
    assert StepsTooLarge.detect(Facts(run)).severity == "fine"
