"""A margin that falls: columns that are exchanged, or rejected that gains."""

import numpy as np
import pytest
from planted import planted, with_info, with_log
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.exchanged import Exchanged
from learndyn.diagnose.findings.faults.margin_falls import MarginFalls
from learndyn.record.trajectory import Trajectory


def swapped(run):
    return Exchanged.detect(Facts(run))


def falling(run):
    return MarginFalls.detect(Facts(run))


def trained(run, margin, accuracy=1.0, beta=0.1):
    """With a log whose margin on trained pairs rises to so many nats."""
    rows = [
        {"step": s, "rewards/margins": beta * margin * s / 10} for s in range(1, 11)
    ]
    rows = [row | {"rewards/accuracies": accuracy} for row in rows]
    return with_log(with_info(run, beta=beta), rows)


def test_exchanged_columns_are_found(base):
    found = swapped(planted(base, {"chosen": -9.0, "rejected": 6.0}))
    assert found.severity == "problem"
    assert "probably exchanged" in found.headline(Facts(base))
    assert "chosen fell" in found.says


FALLING = [
    {"chosen": -9.0, "rejected": -6.0},
    {"chosen": 9.0, "rejected": 12.0},
    {"chosen": 0.0, "rejected": 6.0},
]
NAMES = ["both-fall", "both-rise", "chosen-still"]


def test_a_margin_that_rises_is_no_sign_of_an_exchange(base):
    run = planted(base, {"chosen": -9.0, "rejected": -30.0})
    assert swapped(run).severity == "fine"
    assert falling(run).severity == "fine"


@pytest.mark.parametrize("drift", FALLING, ids=NAMES)
def test_one_finding_alone_speaks_of_a_falling_margin(base, drift):
    run = planted(base, drift)
    assert swapped(run) is None  # not "fine": that would contradict the other
    assert falling(run).severity == "problem"
    apart = planted(base, {"chosen": -9.0, "rejected": 6.0})
    assert swapped(apart).severity == "problem"
    assert falling(apart) is None


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
    assert swapped(run) is None
    assert falling(run).severity == "problem"


def test_sft_has_no_exchange(base):
    assert swapped(with_info(planted(base, {}), method="sft")) is None


# --- the trainer's own margin


@pytest.mark.parametrize("drift", FALLING, ids=NAMES)
def test_a_trained_margin_that_rises_the_other_way_shows_the_exchange(base, drift):
    run = planted(base, drift)
    found = swapped(trained(run, 6.0))
    assert found.severity == "problem"
    assert "the logged margin rises while" in found.headline(Facts(run))
    assert found.numbers["trained_margin"] == pytest.approx(6.0 * 0.95)
    assert falling(trained(run, 6.0)) is None


@pytest.mark.parametrize(
    ("margin", "accuracy"),
    [(-6.0, 0.1), (6.0, 0.5), (60.0, 1.0)],
    ids=["falls-too", "not-told-apart", "far-larger"],
)
def test_a_trained_margin_that_does_not_mirror_it_shows_no_exchange(
    base, margin, accuracy
):
    run = trained(planted(base, {"chosen": -9.0, "rejected": -6.0}), margin, accuracy)
    assert swapped(run) is None
    assert falling(run).severity == "problem"


# --- when a falling margin matters, and what explains it


@pytest.mark.parametrize(
    ("fall", "severity"), [(-0.2, "problem"), (-0.04, "fine")], ids=["0.025", "0.005"]
)
def test_a_falling_margin_matters_from_a_hundredth_of_a_nat_per_token(
    base, fall, severity
):
    run = planted(base, {"chosen": 3.0 + fall, "rejected": 3.0}, noise=0.001)
    assert Facts(run).evidence.margin.below_zero
    assert falling(run).severity == severity


@pytest.mark.parametrize("method", ["sft", "grpo", "kto", "ppo"])
def test_methods_that_compare_no_pairs_have_neither(base, method):
    run = with_info(planted(base, {"chosen": -9.0, "rejected": 6.0}), method=method)
    assert (swapped(run), falling(run)) == (None, None)


def test_a_fault_that_explains_the_fall_comes_instead(base):
    run = planted(base, {"chosen": -9.0, "rejected": -6.0})
    assert falling(run).severity == "problem"
    assert falling(with_info(run, reference_gap=9.0)) is None
    assert falling(with_info(run, trainer={"max_length": 6})) is None
    assert falling(
        with_log(run, [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 9}])
    ) is (None)
