"""The runs behind the paper's figures: one seed, stage by stage, each kept once done.

sft, dpo                  SFT on chosen, then DPO (Sections 4.1 and 4.2)
extend-sft, extend-dpo    SFT on both answers, then the same DPO (Section 4.3)
on-policy                 the same DPO, its rejected answers sampled from `sft`
learn-KIND                SFT on one kind of answer to the probed prompts, ten
                          epochs (Figure 8: what learning each answer does to all)
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.measure.generate import generate
from learndyn.paper.finetuning.recorded import (
    AFTER,
    GRADED,
    LEARNT,
    Recorded,
    grades_path,
)
from learndyn.probes.build import probes_from_rows
from learndyn.probes.data import Data, Row
from learndyn.probes.probe import ProbeSet
from learndyn.record.files import write_whole
from learndyn.record.run_directory import is_run
from learndyn.train.launch import probes_for, read_inputs, usable
from learndyn.train.progress import progress_bar
from learndyn.train.recipes import dpo, sft
from learndyn.train.resume import is_finished
from learndyn.train.settings import RunConfig
from learndyn.world import stages as chain
from learndyn.world.stages import embedded_model_path
from learndyn.world.world import grade


HELD_OUT = 16
"""Held-out prompts that the runs `sft` and `dpo` probe too (the paper's D_probtest)."""

EXAM = 200
"""Held-out prompts that are answered and graded after a stage."""

LEARN: dict[str, Any] = {**chain.SFT, "num_train_epochs": 10, "warmup_steps": 5}
"""Ten epochs over the probed prompts, as the authors' `prob_*_ep10` runs."""

EVERY = {"sft": 20, "extend-sft": 40, "learn": 10, "dpo": 20}
"""Updates between observations."""


@dataclass(frozen=True)
class Experiment:
    """What the runs of one seed start from; small enough to be sent to a process."""

    folder: Path
    """Holds one run directory per stage."""
    seed: int
    model: str | None = None
    """Folder or hub id; None: the embedded model."""
    data: str | None = None
    """Preference data; None: the embedded world."""
    probes: str | None = None
    """Probe file; None: built from the data."""

    @property
    def graded(self) -> bool:
        """Whether answers can be graded: in the embedded world alone."""
        return self.data is None

    def finished(self, stage: str) -> bool:
        """Whether a stage and all that belongs to it is there."""
        exam = grades_path(self.folder, stage)
        done = exam.exists() or not self.graded or stage not in GRADED
        return done and is_finished(self.folder / stage)

    @cached_property
    def inputs(self) -> "Inputs":
        """Rows and probes; read once."""
        return Inputs.of(self)


@dataclass(frozen=True)
class Inputs:
    """Rows and probes of one seed."""

    rows: Data
    """What SFT trains on."""
    pairs: Data
    """What DPO trains on."""
    probes: ProbeSet
    """With held-out prompts, where there are any."""
    test: Data | None
    """Held-out rows whose answers can be graded."""

    @classmethod
    def of(cls, experiment: Experiment) -> "Inputs":
        """Draw the rows of a seed, or read data.

        Raises:
            BadInput: if the data cannot be read or have no usable row.
        """
        if experiment.data is None:
            world = chain.make_world(experiment.seed)
            held_out = replace(world.test, rows=world.test.rows[:HELD_OUT])
            both = (*world.probes, *probes_from_rows(held_out, "test"))
            probes = ProbeSet(both, world.probes.manifest)
            return cls(world.train, chain.pairs_for_dpo(world), probes, world.test)
        given = RunConfig(
            model=str(experiment.model or embedded_model_path()),
            data=experiment.data,
            probes=experiment.probes,
            seed=experiment.seed,
            empty="drop",
        )
        data, test = read_inputs(given)
        watched = min(chain.PROBED, len(data.rows))
        probes = probes_for(replace(given, prompts=watched), data, test)
        data = usable(data, ("chosen", "rejected"), "drop")
        return cls(data, data, probes, None)

    @property
    def learnt(self) -> list[str]:
        """Kinds that a run of their own is trained on."""
        return [kind for kind in LEARNT if kind in self.probes.kinds]

    @property
    def lesson(self) -> Data:
        """The probes of training prompts as rows: what the `learn-KIND` runs train on.

        Only prompts that have every kind of `learnt`, so that all train on the same.
        """
        rows: dict[str, Row] = {}
        for probe in self.probes:
            if probe.split == "train":
                new = Row(probe.prompt_id, probe.prompt, {}, probe.rendered)
                row = rows.setdefault(probe.prompt_id, new)
                row.responses[probe.kind] = probe.response
        kept = [r for r in rows.values() if set(self.learnt) <= set(r.responses)]
        if not kept:
            raise BadInput(
                f"no probed prompt has all of {', '.join(self.learnt)}: there is "
                "nothing that each of these kinds could be learnt from."
            )
        name = f"probes of {self.rows.source}"
        return Data(tuple(kept), name, "train", self.probes.fingerprint)


def stages_of(experiment: Experiment) -> dict[str, str]:
    """Every stage of a seed, and the stage whose model it starts from ("" for none)."""
    learnt = [f"learn-{kind}" for kind in experiment.inputs.learnt]
    return {**AFTER, **dict.fromkeys(learnt, "")}


def run_stage(experiment: Experiment, stage: str) -> None:
    """Train one stage, and grade its model's answers, unless that is done already.

    Raises:
        BadInput: as the recipes.
    """
    inputs, out = experiment.inputs, experiment.folder / stage
    if not is_finished(out):
        recipe = _recipe(experiment, stage)
        if stage.startswith("learn-"):
            kind = stage.removeprefix("learn-")
            probes = inputs.probes
            if "test" in {probe.split for probe in probes}:
                trained = tuple(p for p in probes if p.split == "train")
                probes = ProbeSet(trained, probes.manifest)
            sft(recipe, inputs.lesson, probes, kinds=(kind,))
        elif stage.endswith("sft"):
            both = ("chosen", "rejected") if stage == "extend-sft" else ("chosen",)
            sft(recipe, inputs.rows, inputs.probes, kinds=both)
        else:
            pairs = inputs.pairs
            if stage == "on-policy":
                pairs = _with_own_answers(experiment, pairs)
            dpo(recipe, pairs, inputs.probes)
    if inputs.test is not None and stage in GRADED:
        _grade(experiment, stage, inputs.test)


def recorded(experiment: Experiment) -> Recorded:
    """All finished runs of a seed, for claims and figures."""
    model = experiment.model or str(embedded_model_path())
    stages = [s for s in stages_of(experiment) if is_finished(experiment.folder / s)]
    return Recorded.load(
        experiment.seed, experiment.folder, stages, vocabulary_of(model)
    )


def vocabulary_of(model: str) -> int | None:
    """The number of logits that a model has, its padding included."""
    from transformers import AutoConfig

    found = getattr(AutoConfig.from_pretrained(model), "vocab_size", None)
    return None if found is None else int(found)


def _recipe(experiment: Experiment, stage: str) -> RunConfig:
    before = AFTER.get(stage, "")
    model = experiment.model
    kind = stage.partition("-")[0] if stage.startswith("learn-") else stage
    trainer = LEARN if kind == "learn" else chain.SFT if before == "" else chain.DPO
    if model is not None:  # the embedded settings suit a model of a million alone
        trainer = {"num_train_epochs": 10 if kind == "learn" else 1}
    # the margin of the first update is logged by itself: it must be zero
    trainer = {**trainer, "logging_first_step": True}
    out = experiment.folder / stage
    recipe = chain.recipe(
        out,
        trainer,
        model=experiment.folder / before / "model" if before else model,
        seed=experiment.seed,
        overwrite=is_run(out),
    )
    every = EVERY.get(kind, EVERY["dpo"])
    if model is None:
        return replace(recipe, every=every)
    return replace(
        recipe, every=every, max_length=None, max_prompt_length=None, score_batch_size=8
    )


def _with_own_answers(experiment: Experiment, pairs: Data) -> Data:
    """The same pairs, each rejected answer sampled from the model after SFT.

    The probes keep the old ones, so that the run can be compared with `dpo`.
    """
    model, tokenizer = chain.load(experiment.folder / "sft" / "model")
    answers = generate(
        model,
        tokenizer,
        [row.prompt for row in pairs.rows],
        max_new_tokens=64,
        temperature=1.0,
        seed=experiment.seed,
        batch_size=64,
        progress=progress_bar("sampling on-policy answers"),
    )
    rows = tuple(
        replace(row, responses={**row.responses, "rejected": answer})
        for row, answer in zip(pairs.rows, answers, strict=True)
    )
    return replace(pairs, rows=rows, source=f"{pairs.source}, rejected sampled")


def _grade(experiment: Experiment, stage: str, test: Data) -> None:
    """Greedy answers to held-out prompts: for each whether it is right throughout."""
    path = grades_path(experiment.folder, stage)
    if path.exists():
        return
    model, tokenizer = chain.load(experiment.folder / stage / "model")
    asked = [row.prompt for row in test.rows[:EXAM]]
    bar = progress_bar("answering held-out prompts")
    answers = generate(model, tokenizer, asked, max_new_tokens=64, progress=bar)
    right = [bool(grade(p, a).strict) for p, a in zip(asked, answers, strict=True)]
    write_whole(path, lambda part: part.write_text(json.dumps(right)))


def model_path(experiment: Experiment) -> Path:
    """The folder of the model that a seed starts from, or its hub id as a path."""
    return Path(experiment.model or embedded_model_path())
