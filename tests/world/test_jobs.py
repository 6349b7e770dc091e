"""Jobs in one process and in several: order, errors, Ctrl-C, and what is shown."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from learndyn.errors import BadInput
from learndyn.world.jobs import Job, run_jobs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_waits_for_those_it_needs(tmp_path, capsys, processes):
    jobs = [
        Job("second", Path.touch, (tmp_path / "a" / "b",), ("first", "done long ago")),
        Job("first", Path.mkdir, (tmp_path / "a",)),
    ]
    took = run_jobs(jobs, processes, tmp_path / "logs")
    assert list(took) == ["first", "second"]
    assert (tmp_path / "a" / "b").exists()
    assert "[2/2] second" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_job_raises_reaches_the_caller(tmp_path, processes):
    with pytest.raises(FileNotFoundError):
        run_jobs([Job("a", Path.rmdir, (tmp_path / "none",))], processes, tmp_path)


def test_no_process_is_no_way_to_work(tmp_path):
    with pytest.raises(BadInput, match="--jobs 0"):
        run_jobs([], 0, tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_back_with_their_times(tmp_path, processes):
    done = run_jobs([Job("a", os.getpid), Job("b", max, (1, 2))], processes, tmp_path)
    assert done["b"].result == 2
    assert (done["a"].result == os.getpid()) == (processes == 1)
    assert all(0 <= one.processor <= one.seconds + 0.1 for one in done.values())


def test_several_processes_run_one_thread_each(tmp_path):
    before = os.environ.get("OMP_NUM_THREADS")
    done = run_jobs([Job("a", os.getenv, ("OMP_NUM_THREADS",))], 2, tmp_path)
    assert done["a"].result == "1"
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_job_in_another_process_warns_here(tmp_path):
    jobs = [
        Job("a", warnings.warn, ("2 texts are cut",)),
        Job("b", warnings.warn, ("for programmers", FutureWarning)),
    ]
    with pytest.warns(UserWarning, match="2 texts are cut") as caught:
        run_jobs(jobs, 2, tmp_path)
    assert [one.category for one in caught] == [UserWarning]


def test_an_error_stops_the_other_processes(tmp_path):
    wrong = Job("wrong", Path.rmdir, (tmp_path / "a",))
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        run_jobs([Job("long", time.sleep, (600,)), wrong], 2, tmp_path)
    assert time.monotonic() - begin < 60


def test_a_killed_process_is_named(tmp_path):
    with pytest.raises(ChildProcessError, match="process of memory hog was killed"):
        run_jobs([Job("memory hog", os.abort)], 2, tmp_path)


COMMAND = """
import sys, time
from pathlib import Path
from learndyn.world.jobs import Job, run_jobs
if __name__ == "__main__":
    jobs = [Job(n, print, (n,)) for n in "ab"] + [Job("c", time.sleep, (600,), ("a",))]
    run_jobs(jobs, 2, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_stopped_command(tmp_path, number):
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    command = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "logs")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = tmp_path / "logs" / "c.txt"
    while not log.exists():
        assert command.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:  # a terminal sends Ctrl-C to all of them
        os.killpg(command.pid, number)
    else:
        command.send_signal(number)
    assert command.wait(30) != 0
    deadline = time.monotonic() + 30
    while _group_lives(command.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
