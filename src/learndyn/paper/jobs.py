"""Jobs that wait for one another, in several processes, with progress on the screen.

A job keeps its result on disk and does nothing where that is there already, so a
stopped command continues where it was.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput


@dataclass(frozen=True)
class Job:
    """One piece of work that a process can do by itself."""

    name: str
    """Unique, such as "seed 0: dpo"."""
    work: Callable[..., None]
    """A function of a module, so that a new process finds it."""
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    """Names of jobs that come first. What is not among the jobs is done already."""


@dataclass(frozen=True)
class Took:
    """How long a job took."""

    seconds: float
    """By the clock."""
    processor: float
    """Processor seconds: a busy machine does not count."""


def run_jobs(jobs: Sequence[Job], processes: int, logs: Path) -> dict[str, Took]:
    """Do all jobs, the first ones first wherever there is a choice.

    With several processes each runs one thread, and what a job writes to standard error
    goes to a file in `logs`.

    Raises:
        BadInput: if `processes` is below 1, or what a job raises; the others' results
            are kept.
    """
    if processes < 1:
        raise BadInput(f"--jobs {processes}: give 1 process or more.")
    if not jobs:
        return {}
    if processes == 1:
        return _one_by_one(jobs)
    logs.mkdir(parents=True, exist_ok=True)
    with _one_thread_each():
        pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        try:
            took = _in(pool, jobs, processes, logs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return took


def _one_by_one(jobs: Sequence[Job]) -> dict[str, Took]:
    took: dict[str, Took] = {}
    left = list(jobs)
    while left:
        job = _ready(left)
        left.remove(job)
        took[job.name] = _timed(job)
        _tell(job, took, len(jobs))
    return took


def _in(
    pool: ProcessPoolExecutor, jobs: Sequence[Job], processes: int, logs: Path
) -> dict[str, Took]:
    took: dict[str, Took] = {}
    left = list(jobs)
    running: dict[Future[Took], Job] = {}
    while left or running:
        while len(running) < processes:
            waiting = [*left, *running.values()]
            job = next((j for j in left if not _blocked(j, waiting)), None)
            if job is None:
                break
            left.remove(job)
            log = logs / f"{job.name.replace(': ', '-').replace(' ', '-')}.txt"
            running[pool.submit(_logged, job, log)] = job
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            job = running.pop(future)
            took[job.name] = future.result()
            _tell(job, took, len(jobs))
    return took


def _ready(left: Sequence[Job]) -> Job:
    return next(job for job in left if not _blocked(job, left))


def _blocked(job: Job, unfinished: Sequence[Job]) -> bool:
    return bool({other.name for other in unfinished} & set(job.needs))


def _timed(job: Job) -> Took:
    begin, used = time.monotonic(), time.process_time()
    job.work(*job.arguments)
    return Took(time.monotonic() - begin, time.process_time() - used)


def _logged(job: Job, log: Path) -> Took:
    """In a process of the pool."""
    with log.open("w", encoding="utf-8") as file, redirect_stderr(file):
        return _timed(job)


def _tell(job: Job, took: dict[str, Took], of: int) -> None:
    seconds = took[job.name].seconds
    print(f"[{len(took)}/{of}] {job.name}: {seconds:.0f} s", file=sys.stderr)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """New processes read this when they load torch; several of them share the cores."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
