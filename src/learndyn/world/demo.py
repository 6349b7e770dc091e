"""`learndyn demo`: SFT -> DPO and extend -> DPO, watched, compared, told in words."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from learndyn.diagnose.compare_words import compare_in_words
from learndyn.diagnose.verdict import what_happened
from learndyn.errors import BadInput
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.record.trajectory import Trajectory
from learndyn.show.report.report import write_report
from learndyn.train.launch import probes_for, read_inputs, usable
from learndyn.train.recipes import dpo, sft
from learndyn.train.resume import remove_empty_folders
from learndyn.train.settings import RunConfig
from learndyn.world import stages as chain
from learndyn.world.stages import embedded_model_path


STAGES = ("sft", "dpo", "extend-sft", "extend-dpo")

FORCES = 4
"""The update before every so many-th observation of the DPO stages is explained."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs on; by default the embedded model in the embedded world."""

    out: Path = Path("runs/demo")
    seed: int = 0
    model: str | None = None
    data: str | None = None
    empty: Literal["error", "keep", "drop"] = "error"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    report: Path
    said: dict[str, list[str]]
    """Sentences per stage; "compare" has those about extend against DPO."""
    graded: dict[str, float]
    """Share of held-out prompts answered right after each stage (greedy, strict)."""

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"report": str(self.report), "said": self.said, "graded": self.graded}

    def to_text(self) -> str:
        """For people."""
        lines = []
        for stage, heading in _HEADINGS.items():
            lines += ["", heading, *(f"  {s}" for s in self.said[stage])]
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
        BadInput: if `out` is taken (and `overwrite` is false), or as the recipes.
    """
    _check_free(settings.out, overwrite)
    inputs = _Inputs.of(settings)
    runs: dict[str, RunDirectory] = {}
    try:
        for stage in STAGES:
            runs[stage] = inputs.train(stage, overwrite)
    finally:  # an error leaves no folders without a run
        for folder in (*(settings.out / stage for stage in STAGES), settings.out):
            remove_empty_folders(folder)
    graded = {}
    if inputs.grade is not None:
        graded = {s: inputs.grade(runs[s].path / "model") for s in STAGES}
    loaded = {stage: Trajectory.load(run.path) for stage, run in runs.items()}
    said = {stage: what_happened(trajectory) for stage, trajectory in loaded.items()}
    said["compare"] = compare_in_words(loaded["dpo"], loaded["extend-dpo"])
    paths = [run.path for run in runs.values()]
    report = write_report(paths, settings.out, overwrite=overwrite)
    return DemoResult(report, said, graded)


@dataclass(frozen=True)
class _Inputs:
    settings: DemoSettings
    data: Data
    pairs: Data
    probes: ProbeSet
    sft_trainer: dict[str, Any]
    dpo_trainer: dict[str, Any]
    grade: Callable[[Path], float] | None

    @classmethod
    def of(cls, settings: DemoSettings) -> "_Inputs":
        own_model = settings.model is not None
        # A model of one's own gets the paper's settings: the embedded ones suit a
        # model of a million parameters alone.
        trainers = ({}, {}) if own_model else (chain.SFT, chain.DPO)
        if own_model:
            trainers = ({"num_train_epochs": 1}, {"num_train_epochs": 1})
        if settings.data is None:
            world = chain.make_world(settings.seed)
            pairs = chain.pairs_for_dpo(world)
            return cls(
                settings,
                world.train,
                pairs,
                world.probes,
                *trainers,
                grade=lambda path: chain.share_right(path, world.test),
            )
        given = RunConfig(
            model=str(settings.model or embedded_model_path()),
            data=settings.data,
            seed=settings.seed,
            empty=settings.empty,
        )
        data, test = read_inputs(given)
        watched = min(chain.PROBED, len(data.rows))
        probes = probes_for(replace(given, prompts=watched), data, test)
        # Every stage trains on the same rows, so that the stages can be compared.
        data = usable(data, ("chosen", "rejected"), settings.empty)
        return cls(settings, data, data, probes, *trainers, grade=None)

    def train(self, stage: str, overwrite: bool) -> RunDirectory:
        out = self.settings.out / stage
        is_sft = stage.endswith("sft")
        trainer = self.sft_trainer if is_sft else self.dpo_trainer
        start: str | Path | None = self.settings.model
        if not is_sft:
            before = "extend-sft" if stage.startswith("extend") else "sft"
            start = self.settings.out / before / "model"
        recipe = chain.recipe(
            out, trainer, model=start, seed=self.settings.seed, overwrite=overwrite
        )
        if self.settings.model is not None:
            recipe = _paper_limits(recipe)
        if not is_sft:
            if self.settings.model is None:  # of a large model they cost minutes
                recipe = replace(recipe, forces=FORCES)
            info = {"extend": True} if stage.startswith("extend") else None
            return dpo(recipe, self.pairs, self.probes, info=info)
        kinds = ("chosen", "rejected") if stage.startswith("extend") else ("chosen",)
        return sft(recipe, self.data, self.probes, kinds=kinds)


def _paper_limits(recipe: RunConfig) -> RunConfig:
    lengths = {"max_length": None, "max_prompt_length": None}
    return replace(recipe, **lengths, score_batch_size=8)


def _check_free(out: Path, overwrite: bool) -> None:
    taken = [s for s in STAGES if is_run(out / s)]
    if taken and not overwrite:
        raise BadInput(
            f"{out} holds a demo already ({', '.join(taken)}). Choose another --out, "
            "or replace it with --overwrite."
        )
