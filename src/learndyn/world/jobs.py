"""Jobs that need one another, in several processes, with progress on the screen.

A job keeps its result on disk and does nothing where that is there already, so a
stopped command continues where it was. The processes end with the command: on an error
in one of them, on Ctrl-C, and when the command itself is killed.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

from learndyn.errors import BadInput
from learndyn.world.job_screen import Screen


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
    jobs: Sequence[Job], processes: int, logs: Path, *, threads: int | None = 1
) -> dict[str, Done]:
    """Do all jobs, the first ones first wherever there is a choice.

    One process is this one. Several are new ones; what a job writes to standard error
    goes to a file in `logs`, and its last line, usually a progress bar, to the screen.
    A process has `threads` threads; None: its share of the cores.

    Raises:
        BadInput: if `processes` is below 1, or what a job raises. The other processes
            are then stopped; results of finished jobs and logs stay on disk.
        ChildProcessError: if a process was killed from outside.
    """
    if processes < 1:
        raise BadInput(f"jobs={processes}: give 1 process or more.")
    threads = threads or max(1, cores() // processes)
    if processes > 1 and jobs:
        logs.mkdir(parents=True, exist_ok=True)
        workers = _pool(processes, threads)
    else:
        workers = _this_process(threads)
    with Screen() as screen, workers as (submit, look_after):
        return _do_all(jobs, processes, logs, submit, look_after, screen)


_Submit = Callable[[Job, Path], Future[Done]]
_Workers = tuple[_Submit, Callable[[], None]]
"""Begins a job; finds processes that died, and is called every second."""


def _do_all(
    jobs: Sequence[Job],
    processes: int,
    logs: Path,
    submit: _Submit,
    look_after: Callable[[], None],
    screen: Screen,
) -> dict[str, Done]:
    named = {job.name: job for job in jobs}
    order = list(named)
    sorter = TopologicalSorter(
        {job.name: [n for n in job.needs if n in named] for job in jobs}
    )
    sorter.prepare()
    ready: list[str] = []
    running: dict[Future[Done], str] = {}
    finished: dict[str, Done] = {}
    try:
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=order.index)
            while ready and len(running) < processes:
                name = ready.pop(0)
                running[submit(named[name], _log_of(name, logs))] = name
            done, _ = wait(running, 1, FIRST_COMPLETED)
            look_after()
            for future in done:
                name, result = running[future], future.result()
                del running[future]
                finished[name] = result
                sorter.done(name)
                screen.clear()  # or what follows is drawn over
                for message in result.warned:
                    warnings.warn(message, stacklevel=3)
                screen.print(_report(name, finished, len(named)))
            screen.show({name: _log_of(name, logs) for name in running.values()})
    except BrokenProcessPool:
        _raise_why_broken(running, logs)
    return finished


def _raise_why_broken(running: Mapping[Future[Done], str], logs: Path) -> NoReturn:
    """A broken pool fails all running jobs at once, whichever of them broke it."""
    broken = {name: error for f, name in running.items() if (error := f.exception())}
    for error in broken.values():
        # one that a job raised, or the reason why its result could not be read
        if error.__cause__ is not None:
            raise error
    names = ", ".join(broken)
    if not any(_log_of(name, logs).exists() for name in broken):
        raise ChildProcessError(
            f"no process could begin with {names}. In a script, call this below "
            'if __name__ == "__main__":, because each process imports the script.'
        )
    raise ChildProcessError(
        f"a process died while {names} ran, perhaps killed because memory ran out. "
        f"Free some and run the command again. What the jobs wrote is in {logs}."
    )


def _timed(job: Job) -> Done:
    begin, used = time.monotonic(), time.process_time()
    result = job.work(*job.arguments)
    return Done(result, time.monotonic() - begin, time.process_time() - used)


def _logged(job: Job, log: Path) -> Done:
    """In a process of the pool."""
    sys.stderr.flush()
    with log.open("wb") as file:
        # also for loggers that hold the old sys.stderr, and for output of C code
        os.dup2(file.fileno(), 2)
    with warnings.catch_warnings(record=True) as caught:
        try:
            done = _timed(job)
        except Exception as error:
            error.add_note(f"Raised by the job {job.name}, which wrote to {log}.")
            for message in _for_users(caught):
                error.add_note(f"It warned: {message}")
            raise
    return replace(done, warned=_for_users(caught))


def _for_users(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """Ours, which are UserWarnings; the other categories are for programmers."""
    return tuple(str(one.message) for one in caught if one.category is UserWarning)


def _report(name: str, finished: Mapping[str, Done], of: int) -> str:
    return f"[{len(finished)}/{of}] {name}: {finished[name].seconds:.0f} s"


def _log_of(name: str, logs: Path) -> Path:
    return logs / f"{name.replace(': ', '-').replace(' ', '-')}.txt"


@contextmanager
def _this_process(threads: int) -> Iterator[_Workers]:
    """Do each job here, at once."""
    import torch

    def submit(job: Job, log: Path) -> Future[Done]:
        future: Future[Done] = Future()
        future.set_result(_timed(job))
        return future

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield submit, lambda: None
    finally:
        torch.set_num_threads(before)


_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' own bars too
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""Keeps other libraries' bars and notes out of the logs, whose last lines are shown."""


@contextmanager
def _pool(processes: int, threads: int) -> Iterator[_Workers]:
    """New processes, which an error or Ctrl-C stops before it goes further."""
    others = set(active_children())
    # new processes read the variables when they load the libraries
    with _environment({**_QUIET, "OMP_NUM_THREADS": str(threads)}):
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin_process)

        def submit(job: Job, log: Path) -> Future[Done]:
            log.unlink(missing_ok=True)  # an earlier command's
            future = pool.submit(_logged, job, log)
            look_after()
            return future

        most = 0

        def look_after() -> None:
            nonlocal most
            living = len(set(active_children()) - others)
            if living < most:
                # the pool overlooks the death of a process that it began while its
                # thread waited, until that thread is woken
                pool.submit(abs, 0)
            most = max(most, living)

        try:
            yield submit, look_after
        except BaseException:
            for process in set(active_children()) - others:
                process.terminate()
            raise
        finally:
            pool.shutdown()  # joins the processes


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_process() -> None:
    """The command answers Ctrl-C, and its processes do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
