"""Jobs in one process and in several: order, errors, Ctrl-C, and what is shown."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures.process import BrokenProcessPool
from io import StringIO
from multiprocessing import active_children
from pathlib import Path

import pytest

from learndyn.errors import BadInput
from learndyn.world.jobs import Job, cores, run_jobs


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
    with pytest.raises(BadInput, match="jobs=0"):
        run_jobs([], 0, tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_back_with_their_times(tmp_path, processes):
    done = run_jobs([Job("a", os.getpid), Job("b", max, (1, 2))], processes, tmp_path)
    assert done["b"].result == 2
    assert (done["a"].result == os.getpid()) == (processes == 1)
    assert all(0 <= one.processor <= one.seconds + 0.1 for one in done.values())


def test_first_jobs_come_first_wherever_there_is_a_choice(tmp_path):
    jobs = [
        Job("a", abs, (0,)),
        Job("after b", abs, (0,), ("b",)),
        Job("b", abs, (0,)),
        Job("after a", abs, (0,), ("a",)),
        Job("c", abs, (0,)),
    ]
    assert list(run_jobs(jobs, 1, tmp_path)) == ["a", "b", "after b", "after a", "c"]


def test_two_jobs_run_at_the_same_time(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # to read and to write wait for each other
    jobs = [Job("r", Path.read_text, (fifo,)), Job("w", Path.write_text, (fifo, "x"))]
    assert run_jobs(jobs, 2, tmp_path)["r"].result == "x"


def test_new_processes_run_so_many_threads(tmp_path):
    before = dict(os.environ)
    jobs = [Job("a", os.getenv, ("OMP_NUM_THREADS",))]
    assert run_jobs(jobs, 2, tmp_path, threads=3)["a"].result == "3"
    assert dict(os.environ) == before


def test_one_process_runs_so_many_threads_and_gets_its_own_back(tmp_path):
    import torch  # here, as new processes import this file too

    before = torch.get_num_threads()
    jobs = [Job("a", torch.get_num_threads)]
    assert run_jobs(jobs, 1, tmp_path, threads=3)["a"].result == 3
    assert run_jobs(jobs, 1, tmp_path, threads=None)["a"].result == cores()
    assert torch.get_num_threads() == before


def test_all_that_a_job_writes_to_standard_error_is_in_its_log(tmp_path):
    (tmp_path / "a.txt").write_text("of an earlier command")
    jobs = [Job("a", os.write, (2, b"as C code does\n")), Job("b", print_to_old_stderr)]
    run_jobs(jobs, 2, tmp_path)
    assert (tmp_path / "a.txt").read_text() == "as C code does\n"
    assert (tmp_path / "b.txt").read_text() == "as a logger does\n"


STDERR = sys.stderr  # as a logger binds it once


def print_to_old_stderr():
    print("as a logger does", file=STDERR)


@pytest.mark.parametrize("name", ["TRANSFORMERS_VERBOSITY", "HF_HUB_OFFLINE"])
def test_other_libraries_are_quiet_in_new_processes(tmp_path, name):
    result = run_jobs([Job("a", os.getenv, (name,))], 2, tmp_path)["a"].result
    assert result == {"TRANSFORMERS_VERBOSITY": "error"}.get(name, os.getenv(name))


def test_a_job_in_another_process_warns_here(tmp_path):
    jobs = [
        Job("a", warnings.warn, ("2 texts are cut",)),
        Job("b", warnings.warn, ("for programmers", FutureWarning)),
    ]
    with pytest.warns(UserWarning, match="2 texts are cut") as caught:
        run_jobs(jobs, 2, tmp_path)
    assert [one.category for one in caught] == [UserWarning]


def test_warnings_of_a_job_that_raises_and_its_log_are_named(tmp_path):
    with pytest.raises(ValueError, match="wrong") as caught:
        run_jobs([Job("a", warn_and_raise)], 2, tmp_path)
    assert caught.value.__notes__ == [
        f"Raised by the job a, which wrote to {tmp_path / 'a.txt'}.",
        "It warned: 2 texts are cut",
    ]


def warn_and_raise():
    warnings.warn("2 texts are cut", stacklevel=2)
    raise ValueError("wrong")


def test_a_warning_stays_on_the_terminal(tmp_path, monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    jobs = [
        Job("short", abs, (0,)),
        Job("warns", warnings.warn, ("2 texts are cut",), ("short",)),
        Job("long", time.sleep, (2,)),  # its line is on the screen meanwhile
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda text, *_: print(text, file=sys.stderr)
        )
        run_jobs(jobs, 2, tmp_path)
    lines: list[str] = []
    for piece in re.split(r"(\x1b\[\d+F\x1b\[J|\n)", terminal.getvalue()):
        if up := re.match(r"\x1b\[(\d+)F", piece):
            del lines[-int(up[1]) :]
        elif piece.strip():
            lines.append(piece)
    times = [line for line in lines if line.startswith("[")]
    assert len(times) == 3
    assert [line for line in lines if line not in times] == ["2 texts are cut"]


def test_an_error_stops_the_other_processes(tmp_path):
    wrong = Job("wrong", Path.rmdir, (tmp_path / "a",))
    begin, before = time.monotonic(), active_children()
    with pytest.raises(FileNotFoundError):
        run_jobs([Job("long", time.sleep, (600,)), wrong], 2, tmp_path)
    assert active_children() == before
    assert time.monotonic() - begin < 60


def test_jobs_that_ran_when_a_process_died_are_named_with_their_logs(tmp_path):
    jobs = [Job("memory hog", os.abort), Job("innocent", time.sleep, (600,))]
    with pytest.raises(ChildProcessError) as caught:
        run_jobs(jobs, 2, tmp_path)
    assert "a process died while memory hog, innocent ran" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


class Awkward(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def raise_awkward():
    raise Awkward("this", "that")


def test_an_error_that_cannot_be_read_is_no_lack_of_memory(tmp_path):
    with pytest.raises(BrokenProcessPool) as caught:
        run_jobs([Job("a", raise_awkward)], 2, tmp_path)
    assert "missing 1 required positional argument" in str(caught.value.__cause__)


def test_a_script_without_guard_is_told_of_it(tmp_path):
    script = tmp_path / "command.py"
    script.write_text(COMMAND.replace('if __name__ == "__main__":', "if True:"))
    command = [sys.executable, str(script), str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert 'call this below if __name__ == "__main__":' in done.stderr
    assert done.returncode == 1


COMMAND = """
import signal, sys, time
from pathlib import Path
from learndyn.world.jobs import Job, run_jobs
# a shell that starts the tests in the background has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
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
        stdout=subprocess.PIPE,
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
    # all processes have the pipe open: it ends when the last of them has ended
    command.communicate(timeout=300)
    assert command.returncode != 0
