"""What a run trained on, as its directory tells it."""

import numpy as np
import pytest
from synthetic import information, write_run

from learndyn.probes.trained import Trained
from learndyn.record.run_directory import RunDirectory
from learndyn.record.run_info import RunInfo
from learndyn.record.training import LoggedRewards
from learndyn.record.trajectory import Trajectory


TRAINED = Trained(
    64, "text", frozenset({"p000", "p002"}), frozenset({0}), frozenset({1})
)


def run(path, info=None, log=(), prompts=3):
    """A run whose log is `log`."""
    write_run(path, prompts=prompts, info=info, log=False)
    directory = RunDirectory.open(path)
    for row in log:
        directory.append_log(row)
    return Trajectory.load(path)


def test_probes_are_trained_on_or_not_by_the_rows_and_not_by_their_column(tmp_path):
    trajectory = run(tmp_path / "run", {"trained": TRAINED.to_info()})
    training = trajectory.training
    assert training.rows == trajectory.run.info.train_rows == 64
    expected = np.isin(trajectory.prompt_of, ["p000", "p002"])
    np.testing.assert_array_equal(training.prompts, expected)
    np.testing.assert_array_equal(trajectory.trained_prompts, expected)
    assert np.flatnonzero(training.raised).tolist() == [0]
    assert np.flatnonzero(training.lowered).tolist() == [1]
    # `write_run` says of all prompts that they are of split train
    assert (training.absent, training.leaked) == (("p001",), ())
    assert training.why_unknown == ""


def test_what_is_not_known_is_none_and_says_why(tmp_path):
    old = run(tmp_path / "old", {"train_rows": 48}).training
    assert (old.rows, old.prompts, old.raised, old.lowered) == (48, None, None, None)
    assert "version" in old.why_unknown
    assert (old.absent, old.leaked) == ((), ())
    unknown = Trained(why_unknown="a stream is not read")
    new = run(tmp_path / "new", {"trained": unknown.to_info()}).training
    assert (new.rows, new.prompts) == (None, None)
    assert new.why_unknown == "a stream is not read"


@pytest.mark.parametrize("entry", [1, "x", [], {"matched_by": 3, "prompts": [1, None]}])
def test_any_entry_can_be_read(entry):
    info = RunInfo.of({"trained": entry})
    assert info.trained is None or not info.trained.prompts


def test_epochs_are_the_logs_or_counted(tmp_path):
    log = [{"step": 1, "epoch": 0.5}, {"step": 6, "epoch": 3.0}]
    assert run(tmp_path / "logged", log=log).training.epochs == 3.0
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    info = {"trainer": sizes, "final_step": 12, "train_rows": 64}
    assert run(tmp_path / "counted", info).training.epochs == 3.0
    assert run(tmp_path / "neither").training.epochs is None


LOG = [
    {"step": 1, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "loss": 0.69},
    {"step": 2, "loss": 0.5},
    {"step": 3, "rewards/chosen": 1.0, "rewards/rejected": -2.5},
]


def test_rewards_are_read_in_nats(tmp_path):
    rewards = run(tmp_path / "run", {"beta": 0.1}, LOG).training.rewards
    assert rewards is not None
    assert rewards.steps.tolist() == [1, 3]
    np.testing.assert_allclose(rewards.chosen, [0, 10])
    np.testing.assert_allclose(rewards.rejected, [0, -25])
    np.testing.assert_allclose(rewards.margin, [0, 35])


@pytest.mark.parametrize(
    "changes",
    [{}, {"beta": 2.0, "method": "simpo"}, {"beta": 0.1, "method": None}],
)
def test_rewards_without_a_reference_or_a_beta_are_not_read(changes):
    assert LoggedRewards.of(RunInfo.of(information(**changes)), LOG) is None
