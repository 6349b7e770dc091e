"""One run of pairs, in memory, whose numbers, log and run.json tests replace."""

import pytest
from synthetic import write_run

from learndyn.record.trajectory import Trajectory


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """24 prompts, 5 observations, 3 kinds, 8 tokens to an answer."""
    path = tmp_path_factory.mktemp("base") / "run"
    drift = {"chosen": 0.0, "rejected": 0.0, "irrelevant_train": 0.0}
    return Trajectory.load(write_run(path, drift=drift))
