"""The kernel of a run, looked at as it trains."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from models import save_tiny
from trainers import LIGHT, forces_of, make_trainer, run_of, watch

from learndyn.record.run_directory import RunDirectory
from learndyn.train.recorder import _PROBES, _STEP


SAVED = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "save_strategy": "steps",
    "save_steps": 2,
}


def go_on(tmp_path, folder):
    """Resume a run of two updates for two more."""
    callback = watch(tmp_path, LIGHT, overwrite=False, resume=True)
    host = make_trainer(
        "sft", folder, tmp_path / "t", (callback,), max_steps=4, **SAVED
    )
    host.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-2"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


def test_the_kernel_is_itself_at_the_start_and_drifts_with_large_steps(llama, tmp_path):
    small = forces_of(run_of(tmp_path, "dpo", llama, learning_rate=1e-6, max_steps=3))
    large = forces_of(run_of(tmp_path, "dpo", llama, learning_rate=1e-2, max_steps=3))
    for found in (small, large):
        assert found[0].info["kernel"]["since"] == 0
        first = found[0].info["kernel"]  # the update from 0 to 1 starts at the start
        values = [first[name] for name in ("rank_correlation", "self_cosine")]
        np.testing.assert_allclose(values, 1.0, atol=1e-6)
    last, far = small[-1].info["kernel"], large[-1].info["kernel"]
    assert last["self_cosine"] > 0.99 > far["self_cosine"]
    assert last["rank_correlation"] > far["rank_correlation"]


def test_a_resumed_run_compares_with_the_start_of_the_whole_run(llama, tmp_path):
    run_of(tmp_path, "sft", llama, max_steps=2, **SAVED)
    kept = tmp_path / "run" / "forces" / "kernel-start.parquet"
    before = kept.read_bytes()
    go_on(tmp_path, llama)
    assert kept.read_bytes() == before
    found = forces_of(RunDirectory.open(tmp_path / "run"))
    assert [one.step for one in found] == [1, 2, 3, 4]
    assert {one.info["kernel"]["since"] for one in found} == {0}
    cosines = [one.info["kernel"]["self_cosine"] for one in found]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[-1] < 1 - 1e-4


def test_a_start_that_cannot_be_read_is_taken_anew_and_says_since_when(llama, tmp_path):
    run_of(tmp_path, "sft", llama, max_steps=2, **SAVED)
    kept = tmp_path / "run" / "forces" / "kernel-start.parquet"
    kept.write_bytes(b"cut")
    go_on(tmp_path, llama)
    assert (
        RunDirectory.open(tmp_path / "run").read_forces(4).info["kernel"]["since"] == 2
    )
    table = pq.read_table(kept)
    assert table.schema.metadata[_STEP.encode()] == b"2"
    assert len(table) <= _PROBES


def test_a_kernel_that_cannot_be_compared_says_why(llama, tmp_path, monkeypatch):
    from learndyn.errors import BadInput
    from learndyn.train import recorder as kernel

    def refuse(first, now):
        raise BadInput("other probes")

    monkeypatch.setattr(kernel, "drift", refuse)
    found = forces_of(run_of(tmp_path, "sft", llama, max_steps=1))
    assert found[0].info["kernel"] is None
    assert "the kernel was not compared: other probes" in found[0].info["notes"]
