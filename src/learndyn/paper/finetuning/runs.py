"""The runs behind the paper's figures: one seed, stage by stage, each kept once done.

sft, dpo                  SFT on chosen, then DPO (Sections 4.1 and 4.2)
extend-sft, extend-dpo    SFT on both answers, then the same DPO (Section 4.3)
on-policy                 the same DPO, its rejected answers sampled from `sft`
learn-KIND                SFT on one kind of answer to the probed prompts, ten
                          epochs (Figure 8: what learning each answer does to all)
"""

import json
from dataclasses import replace
from typing import Any

from learndyn.errors import BadInput
from learndyn.paper.finetuning.recorded import (
    GRADED,
    LEARNT,
    Recorded,
    grades_path,
)
from learndyn.probes.data import Data, Row
from learndyn.probes.probe import ProbeSet
from learndyn.record.files import write_whole
from learndyn.world.stages import (
    STAGES,
    Experiment,
    Stage,
    embedded_model_path,
    sampled,
    with_rejected,
)


HELD_OUT = 16
"""Held-out prompts that the runs `sft` and `dpo` probe too (the paper's D_probtest)."""

_EXAM = 200
"""Held-out prompts that are answered and graded after a stage."""

_LEARN: dict[str, Any] = {"num_train_epochs": 10, "warmup_steps": 5}
"""Ten epochs over the probed prompts, as the authors' `prob_*_ep10` runs."""

_EVERY = {"extend-sft": 40, "learn": 10}
"""Updates between observations; of the other stages `_EVERY_OTHER`."""

_EVERY_OTHER = 20


def finished(experiment: Experiment, stage: str) -> bool:
    """Whether a stage and all that belongs to it is there."""
    graded = stage in GRADED and experiment.data is None
    exam = grades_path(experiment.folder, stage)
    return experiment.finished(stage) and (exam.exists() or not graded)


def _learnt(probes: ProbeSet) -> list[str]:
    """Kinds that a run of their own is trained on."""
    return [kind for kind in LEARNT if kind in probes.kinds]


def _lesson(experiment: Experiment) -> Data:
    """The probes of training prompts as rows: what the `learn-KIND` runs train on.

    Only prompts that have every kind of `_learnt`, so that all train on the same.
    """
    probes = experiment.inputs.probes
    kinds = _learnt(probes)
    rows: dict[str, Row] = {}
    for probe in probes:
        if probe.split == "train":
            new = Row(probe.prompt_id, probe.prompt, {}, probe.rendered)
            row = rows.setdefault(probe.prompt_id, new)
            row.responses[probe.kind] = probe.response
    complete = [row for row in rows.values() if set(kinds) <= set(row.responses)]
    if not complete:
        raise BadInput(
            f"no probed prompt has responses of all of {', '.join(kinds)}, so the "
            "kinds cannot be learnt one by one from the same prompts."
        )
    name = f"probes of {experiment.inputs.rows.source}"
    return Data(tuple(complete), name, "train", probes.fingerprint)


def stages_of(experiment: Experiment) -> dict[str, Stage]:
    """Every stage of a seed."""
    stages = dict(STAGES)
    for kind in _learnt(experiment.inputs.probes):
        name = f"learn-{kind}"
        stages[name] = Stage(name, kinds=(kind,), trainer=_LEARN)
    return {name: _observed(stage) for name, stage in stages.items()}


def _observed(stage: Stage) -> Stage:
    is_lesson = stage.name.startswith("learn-")
    every = _EVERY.get("learn" if is_lesson else stage.name, _EVERY_OTHER)
    # the margin of the first update is logged by itself: it must be zero
    trainer = {**stage.trainer, "logging_first_step": True}
    return replace(stage, every=every, trainer=trainer)


def run_stage(experiment: Experiment, stage: Stage) -> None:
    """Train one stage, and grade its model's answers, unless that is done already.

    Raises:
        BadInput: as the recipes.
    """
    if not experiment.finished(stage.name):
        rows, probes = None, experiment.inputs.probes
        if stage.name.startswith("learn-"):
            rows = _lesson(experiment)
            if "test" in {probe.split for probe in probes}:
                trained = tuple(p for p in probes if p.split == "train")
                probes = ProbeSet(trained, probes.manifest)
        elif stage.name == "on-policy":
            # the probes keep the old answers: the run can be compared with `dpo`
            pairs, sft = experiment.inputs.pairs, experiment.folder / "sft" / "model"
            rows = with_rejected(pairs, sampled(sft, pairs, experiment.seed))
        experiment.train(stage, rows, probes)
    path = grades_path(experiment.folder, stage.name)
    if not finished(experiment, stage.name):
        text = json.dumps(experiment.answers(stage.name, _EXAM))
        write_whole(path, lambda part: part.write_text(text))


def recorded(experiment: Experiment) -> Recorded:
    """All finished runs of a seed, for claims and figures."""
    model = experiment.model or str(embedded_model_path())
    stages = [name for name in stages_of(experiment) if experiment.finished(name)]
    return Recorded.load(
        experiment.seed, experiment.folder, stages, _vocabulary_of(model)
    )


def _vocabulary_of(model: str) -> int | None:
    """The number of logits that a model has, its padding included."""
    from transformers import AutoConfig

    size = getattr(AutoConfig.from_pretrained(model), "vocab_size", None)
    return None if size is None else int(size)
