"""Jobs that need one another, in several processes, with progress on the screen.

A job keeps its result on disk and does nothing where that is there already, so a
stopped command continues where it was. The processes end with the command: on an error
in one of them, on Ctrl-C, and when the command itself is killed.
"""

import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from learndyn.errors import BadInput


@dataclass(frozen=True)
class Job:
    """One piece of work that a process can do by itself."""

    name: str
    """Unique, such as "seed 0: dpo"."""
    work: Callable[..., Any]
    """A function of a module, so that a new process finds it."""
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    """Names of jobs that come first. What is not among the jobs is done already."""


@dataclass(frozen=True)
class Done:
    """What a job returned, and how long it took."""

    result: Any
    seconds: float
    """By the clock."""
    processor: float
    """Processor seconds, which do not depend on what else the machine does."""
    warned: tuple[str, ...] = ()
    """Warnings to the user."""


def run_jobs(
    jobs: Sequence[Job], processes: int, logs: Path, *, threads: int = 1
) -> dict[str, Done]:
    """Do all jobs, the first ones first wherever there is a choice.

    One process is this one. Several are new ones with `threads` threads each; what a
    job writes to standard error goes to a file in `logs`, and its last line, usually
    a progress bar, to the screen.

    Raises:
        BadInput: if `processes` is below 1, or what a job raises. The other processes
            are then stopped; results of finished jobs stay on disk.
        ChildProcessError: if a process was killed from outside.
    """
    if processes < 1:
        raise BadInput(f"--jobs {processes}: give 1 process or more.")
    named = {job.name: job for job in jobs}
    graph = {job.name: [n for n in job.needs if n in named] for job in jobs}
    if processes > 1 and jobs:
        return _side_by_side(named, graph, processes, logs, threads)
    finished: dict[str, Done] = {}
    for name in TopologicalSorter(graph).static_order():
        finished[name] = _timed(named[name])
        print(_report(name, finished, len(jobs)), file=sys.stderr)
    return finished


def _side_by_side(
    named: Mapping[str, Job],
    graph: Mapping[str, Sequence[str]],
    processes: int,
    logs: Path,
    threads: int,
) -> dict[str, Done]:
    logs.mkdir(parents=True, exist_ok=True)
    sorter, order = TopologicalSorter(graph), list(named)
    sorter.prepare()
    ready: list[str] = []
    running: dict[Future[Done], str] = {}
    finished: dict[str, Done] = {}
    with _Screen() as screen, _pool(processes, threads) as pool:
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=order.index)
            while ready and len(running) < processes:
                name = ready.pop(0)
                log = _log_of(name, logs)
                running[pool.submit(_logged, named[name], log)] = name
            done, _ = wait(running, screen.interval, FIRST_COMPLETED)
            for future in done:
                name = running.pop(future)
                finished[name] = _result(future, name)
                sorter.done(name)
                screen.print(_report(name, finished, len(named)))
            screen.show({name: _log_of(name, logs) for name in running.values()})
    return finished


def _result(future: Future[Done], name: str) -> Done:
    try:
        done = future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"the process of {name} was killed, perhaps because memory ran out. Free "
            "some and run the command again."
        ) from error
    for message in done.warned:
        warnings.warn(message, stacklevel=2)
    return done


def _timed(job: Job) -> Done:
    begin, used = time.monotonic(), time.process_time()
    result = job.work(*job.arguments)
    return Done(result, time.monotonic() - begin, time.process_time() - used)


def _logged(job: Job, log: Path) -> Done:
    """In a process of the pool."""
    with (
        log.open("w", encoding="utf-8") as file,
        redirect_stderr(file),
        warnings.catch_warnings(record=True) as caught,
    ):
        done = _timed(job)
    # ours are UserWarnings; the other categories are for programmers
    messages = [str(one.message) for one in caught if one.category is UserWarning]
    return Done(done.result, done.seconds, done.processor, tuple(messages))


def _report(name: str, finished: Mapping[str, Done], of: int) -> str:
    return f"[{len(finished)}/{of}] {name}: {finished[name].seconds:.0f} s"


def _log_of(name: str, logs: Path) -> Path:
    return logs / f"{name.replace(': ', '-').replace(' ', '-')}.txt"


@contextmanager
def _pool(processes: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes are stopped by an error or Ctrl-C, at once."""
    name, others = "OMP_NUM_THREADS", set(active_children())
    before = os.environ.get(name)
    os.environ[name] = str(threads)  # new processes read it when they load torch
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin_process)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown()
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _begin_process() -> None:
    """The command answers Ctrl-C, and its processes do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


class _Screen:
    """Finished jobs, one line each; below them the last line of each running job's log.

    On a terminal the lower part is drawn anew every second. Elsewhere, such as in a
    file, it is printed twice a minute.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval = 1.0 if self.terminal else 30.0
        self.lines = 0
        self.last = time.monotonic()

    def __enter__(self) -> "_Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def print(self, line: str) -> None:
        """A line that stays."""
        self._clear()
        print(line, file=sys.stderr, flush=True)

    def show(self, running: Mapping[str, Path]) -> None:
        """Running jobs by name, each with its log."""
        now = time.monotonic()
        if not self.terminal and now - self.last < 0.9 * self.interval:
            return
        self.last = now
        self._clear()
        width = shutil.get_terminal_size().columns - 1 if self.terminal else 160
        for name, log in running.items():
            print(f"{name}: {_last_line(log, name)}"[:width], file=sys.stderr)
        self.lines = len(running)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self.terminal and self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="", file=sys.stderr)
        self.lines = 0


def _last_line(log: Path, name: str) -> str:
    """What a job says last, without its name."""
    try:
        text = log.read_bytes()[-1000:].decode("utf-8", "replace")
    except OSError:  # not begun to write
        return "starting"
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    stage = name.rpartition(": ")[2]
    return lines[-1].removeprefix(f"{stage}: ") if lines else "starting"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
