"""A run that is killed at any moment can be read, and resumed to the same numbers."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from runs import data, probes, recipe
from synthetic import probe_table, write_run

from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.record.trajectory import Trajectory
from learndyn.train.resume import last_checkpoint
from learndyn.train.settings import RunConfig


STEPS = 20
KILLS = 20
OBSERVED = [*range(0, STEPS + 1, 2)]
LOGGED = [*range(2, STEPS + 1, 2)]
SCHEDULE = {
    "max_steps": STEPS,
    "save_steps": 4,
    "logging_steps": 2,
    "learning_rate": 1e-3,
}

START = multiprocessing.get_context("forkserver")
"""Children fork from a process that has imported all and has done nothing yet."""
START.set_forkserver_preload(
    ["learndyn.train.recipes", "transformers.models.gpt2.modeling_gpt2"]
)


def train(settings: RunConfig, log: Path, stop_at: int | None) -> None:
    """Run in a child process; at its `stop_at`-th change of a file it kills itself."""
    import sys
    import threading
    import warnings

    import torch
    from tqdm import tqdm

    from learndyn.train.recipes import sft

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock would leak with a killed process
    warnings.simplefilter("ignore")
    changes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal changes
        if _changes_a_file(event, arguments, settings.out):
            changes += 1
            if changes == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sft(settings, data(), probes())
    log.with_suffix(".changes").write_text(str(changes))


def _changes_a_file(event: str, arguments: tuple, out: Path) -> bool:
    """Whether Python is about to change something at `out` or beside it."""
    if event == "open":
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if not writes:
            return False
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return False
    return out.name in str(arguments[0])


class Killer:
    """Starts a run again and again, until it has been killed often enough."""

    def __init__(self, settings: RunConfig) -> None:
        self.settings = settings
        self.whole = dataclasses.replace(settings, out=settings.out / "whole")
        self.log = settings.out / "output.txt"
        settings.out.mkdir()
        assert self.attempt(self.whole) == "finished"  # imports all, once
        shutil.rmtree(self.whole.out)
        began = time.monotonic()
        assert self.attempt(self.whole) == "finished"
        self.seconds = time.monotonic() - began
        self.changes = int(self.log.with_suffix(".changes").read_text())
        self.expected = Trajectory.load(self.whole.out)

    def attempt(
        self,
        settings: RunConfig,
        after: float | None = None,
        stop_at: int | None = None,
    ) -> str:
        """ "finished" or "killed"; anything else fails here."""
        child = START.Process(target=train, args=(settings, self.log, stop_at))
        child.start()
        child.join(after)
        if child.is_alive():
            child.kill()
            child.join()
        codes = {0: "finished", -signal.SIGKILL: "killed"}
        assert child.exitcode in codes, self.log.read_text()
        return codes[child.exitcode]

    def run_until_killed(self, name: str, kills: int, moment) -> int:
        """Kill `kills` times; returns how many runs were finished meanwhile."""
        finished = 0
        while True:
            out = self.settings.out / name / f"run-{finished}"
            settings = dataclasses.replace(self.settings, out=out, resume=True)
            outcome = self.attempt(settings, **(moment() if kills else {}))
            if is_run(settings.out):
                can_be_read(settings.out)
            else:
                assert not settings.out.exists() or not list(
                    file for file in settings.out.rglob("*") if file.is_file()
                )
            if outcome == "finished":
                self.equals_the_whole_run(settings.out)
                finished += 1
                if not kills:
                    return finished
            else:
                kills -= 1

    def equals_the_whole_run(self, path: Path) -> None:
        resumed = Trajectory.load(path)
        assert resumed.steps.tolist() == OBSERVED
        for column in ("logp", "argmax_logp"):
            gap = resumed.columns[column] - self.expected.columns[column]
            assert np.abs(gap / resumed.n_tokens).max() < 1e-5
        assert [row["step"] for row in resumed.train_log if "loss" in row] == LOGGED
        assert resumed.run.info["finished"] is True
        assert resumed.run.info["final_step"] == STEPS
        left = {file.name for file in path.iterdir()}
        assert left == {file.name for file in self.whole.out.iterdir()}
        assert not [file for file in path.parent.iterdir() if file.name[0] == "."]
        model = {file.name for file in (path / "model").iterdir()}
        assert model == {file.name for file in (self.whole.out / "model").iterdir()}


def can_be_read(path: Path) -> None:
    """Whatever is there is sound, and a beginning of the run without gaps."""
    run = RunDirectory.open(path)
    steps = run.steps
    assert steps == OBSERVED[: len(steps)]
    for step in steps:
        assert run.read_observation(step).violations() == []
    logged = [row["step"] for row in run.read_log() if "loss" in row]
    assert logged == LOGGED[: len(logged)]
    # An update is observed, then logged: at most the present one is behind. A run that
    # goes back to its checkpoint forgets observations first, and the log in the end.
    assert len(steps) - 2 <= len(logged)
    for line in (path / "train.jsonl").read_text().split("\n")[:-1] if logged else []:
        json.loads(line)


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    killer = Killer(recipe(folder, every=2, trainer=SCHEDULE))
    first, last = killer.expected.columns["logp"][[0, -1]]
    assert np.abs(last - first).max() > 1  # there is something to agree on
    return killer


def test_a_run_killed_at_twenty_random_moments_resumes_to_the_same_numbers(killer):
    draw = random.Random(0)
    kill = lambda: {"after": draw.uniform(0.0, killer.seconds)}  # noqa: E731
    assert killer.run_until_killed("moments", KILLS, kill) >= 1


def test_a_run_killed_at_random_file_changes_resumes_to_the_same_numbers(killer):
    draw = random.Random(0)
    kill = lambda: {"stop_at": draw.randint(1, killer.changes)}  # noqa: E731
    assert killer.changes > 100
    assert killer.run_until_killed("changes", 8, kill) >= 1


def test_a_run_stays_until_the_one_that_overwrites_it_is_written(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = write_run(tmp_path / "run")

    def fail(*_, **__):
        raise OSError("the disk broke")

    table = probe_table(["chosen"], 2)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", fail)
        with pytest.raises(OSError, match="the disk broke"):
            RunDirectory.create(path, table, {}, overwrite=True)
    assert len(RunDirectory.open(path).steps) == 5


def test_what_a_crash_left_beside_a_run_is_cleared_away(tmp_path):
    for name in (".run.new", ".run.old"):  # killed while it was written or replaced
        (tmp_path / name / "observations").mkdir(parents=True)
    write_run(tmp_path / "run")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_of_the_last_update_is_not_gone_on_from(tmp_path):
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {"global_step": step, "max_steps": 8}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert last_checkpoint(tmp_path) is None
