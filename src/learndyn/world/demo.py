"""`learndyn demo`: SFT -> DPO and extend -> DPO, watched, compared, told in words.

The two branches are trained side by side, with one thread each: a second thread makes
so small a model hardly faster on idle cores, and many times slower on busy ones, where
each thread waits for the other. A model of one's own is trained in one process, as two
at once may need more memory than there is.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.verdict import what_happened
from learndyn.errors import BadInput
from learndyn.record.run_directory import is_run
from learndyn.record.trajectory import Trajectory
from learndyn.show.report.report import write_report
from learndyn.world.jobs import Job, cores, run_jobs
from learndyn.world.stages import STAGES as ALL_STAGES, Experiment


_STAGES = ("sft", "dpo", "extend-sft", "extend-dpo")

_FORCES = 4
"""The update before every so many-th observation of the DPO stages is explained."""

_EXAM = 128
"""Held-out prompts that each stage's model answers."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs on; by default the embedded model in the embedded world."""

    out: Path = Path("runs/demo")
    seed: int = 0
    model: str | None = None
    data: str | None = None
    empty: Literal["error", "keep", "drop"] = "error"
    jobs: int | None = None
    """Stages trained at once; None: 2, or 1 on one core or with `model`."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo showed."""

    report: Path
    sentences: dict[str, list[str]]
    """By stage; "compare" has those about extend against DPO."""
    graded: dict[str, float]
    """Share of held-out prompts answered right after each stage (greedy, strict)."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "report": str(self.report),
            "said": self.sentences,
            "graded": self.graded,
        }

    def to_text(self) -> str:
        """For people."""
        lines = []
        for stage, heading in _HEADINGS.items():
            lines += ["", heading, *(f"  {s}" for s in self.sentences[stage])]
            if stage in self.graded:
                lines.append(
                    f"  Held-out prompts answered right (greedy, strict): "
                    f"{self.graded[stage]:.0%}."
                )
        return "\n".join([*lines, "", f"Report: {self.report}"])


_HEADINGS = {
    "sft": "1. SFT on chosen",
    "dpo": "2. DPO after it",
    "extend-sft": "3. The paper's remedy, extend: SFT on chosen and rejected",
    "extend-dpo": "4. The same DPO after that",
    "compare": "5. Does extend help? It depends on where one looks",
}


def demo(settings: DemoSettings, *, overwrite: bool = False) -> DemoResult:
    """Run four stages into `out`, write one report, and say what happened.

    Raises:
        BadInput: if `out` holds a demo and `overwrite` is false, and as the recipes.
    """
    _check_free(settings.out, overwrite)
    try:
        graded = _train(settings)
    except BaseException:
        _remove_empty(settings.out)
        raise
    runs = {stage: Trajectory.load(settings.out / stage) for stage in _STAGES}
    sentences = {stage: what_happened(run) for stage, run in runs.items()}
    sentences["compare"] = compare_in_words(runs["dpo"], runs["extend-dpo"])
    paths = [settings.out / stage for stage in _STAGES]
    report = write_report(paths, settings.out, overwrite=overwrite)
    return DemoResult(report, sentences, graded)


def _train(settings: DemoSettings) -> dict[str, float]:
    """Train all stages; the share of held-out prompts answered right after each."""
    jobs = []
    # the longer branch first: then both end at about the same time
    for stage in ("extend-sft", "sft", "extend-dpo", "dpo"):
        after = ALL_STAGES[stage].after
        jobs.append(Job(stage, _train_stage, (settings, stage), (after,)))
        exam = (settings, stage)
        if settings.data is None:
            jobs.append(Job(f"{stage}: answers", _grade_stage, exam, (stage,)))
    own = settings.model is not None
    processes = settings.jobs or (1 if own else min(2, cores()))
    threads = None if own else 1  # more threads help a larger model
    done = run_jobs(jobs, processes, settings.out / "logs", threads=threads)
    if settings.data is not None:
        return {}
    return {stage: done[f"{stage}: answers"].result for stage in _STAGES}


def _train_stage(settings: DemoSettings, stage: str) -> None:
    """A job: train one stage."""
    of_demo = ALL_STAGES[stage]
    if not of_demo.kinds:
        of_demo = replace(of_demo, forces=_FORCES)
    _experiment(settings).train(of_demo)


def _grade_stage(settings: DemoSettings, stage: str) -> float:
    """A job: the share of held-out prompts that a stage's model answers right."""
    right = _experiment(settings).answers(stage, _EXAM)
    return sum(right) / len(right)


@cache
def _experiment(settings: DemoSettings) -> Experiment:
    """What the stages share; a process reads its rows once."""
    return Experiment(
        settings.out,
        settings.seed,
        settings.model,
        settings.data,
        empty=settings.empty,
    )


def _remove_empty(out: Path) -> None:
    """Remove folders that an error left without a run."""
    from learndyn.train.resume import remove_empty_folders

    for folder in (*(out / stage for stage in _STAGES), out):
        remove_empty_folders(folder)


def _check_free(out: Path, overwrite: bool) -> None:
    taken = [stage for stage in _STAGES if is_run(out / stage)]
    if taken and not overwrite:
        raise BadInput(
            f"{out} holds a demo already ({', '.join(taken)}). Choose another out=, "
            "or replace it with overwrite=True."
        )
