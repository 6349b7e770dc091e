"""The embedded experiment, stage by stage: SFT, then DPO, on the embedded world.

The settings are those under which a 1M-parameter model shows the squeezing effect
within minutes; `docs/embedded-world.md` has the measurements, controls and failures.
The model ships with the package. It was pretrained on the world's forum text by
`learndyn.paper.world.pretrain`, and has not seen the chat template, the skewed wordings
or the pairs of things of any row of `make_rows`; the `provenance.json` beside its
weights has the settings.

Light: torch and TRL are loaded when something is trained, sampled or graded, so that a
command that starts processes for that stays small itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from learndyn.errors import BadInput
from learndyn.probes.build import probes_from_rows
from learndyn.probes.data import Data, Row
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.world.world import grade, make_rows


if TYPE_CHECKING:
    from learndyn.train.settings import RunConfig


_WEIGHTS = Path(__file__).parent / "weights"


def embedded_model_path(seed: int = 0) -> Path:
    """The folder of the LM pretrained with `seed`, for `from_pretrained`.

    The weights are float16 on disk; load them with `dtype=torch.float32` to train.
    """
    path = _WEIGHTS / f"seed-{seed}"
    if not path.is_dir():
        shipped = sorted(
            int(p.name.removeprefix("seed-")) for p in _WEIGHTS.glob("seed-*")
        )
        raise BadInput(
            f"the package has no model of pretraining seed {seed}, only of "
            f"{', '.join(map(str, shipped)) or 'none'}. Make one: "
            f"python -m learndyn.paper.world.pretrain --seed {seed} --out DIR"
        )
    return path


_SFT_ROWS = 2400
_DPO_ROWS = 1600
PROBED = 48
"""Prompts that are probed; they are among the DPO rows."""

_SFT: dict[str, Any] = {
    "learning_rate": 3e-4,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "max_grad_norm": 1.0,
    "save_strategy": "no",
}
"""One epoch over 2400 rows: 300 updates (600 on both answers)."""

_DPO: dict[str, Any] = {
    "learning_rate": 3e-5,
    "optim": "rmsprop",
    "warmup_steps": 20,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "max_grad_norm": 10.0,
    "beta": 0.1,
    "save_strategy": "no",
}
"""One epoch over 1600 pairs, 200 updates: what the demo runs. Fast enough for `extend`
to come as far as plain DPO starts, so that the two can be compared in every way."""

_OF_ANY_MODEL = ("num_train_epochs", "logging_first_step")
"""What a larger model of one's own takes from `_SFT` and `_DPO`; the rest is the
paper's."""


@dataclass(frozen=True)
class World:
    """Rows and probes of one seed."""

    train: Data
    test: Data
    probes: ProbeSet


def make_world(
    seed: int = 0, *, wording: str = "zipf", rejected: str = "curt", held_out: int = 200
) -> World:
    """Draw the rows of a seed; the first `PROBED` of them are probed, all 13 kinds."""
    train_rows, test_rows = make_rows(
        seed, _SFT_ROWS, held_out, wording=wording, rejected=rejected
    )
    name = f"embedded world, seed {seed}, {wording}, {rejected}"
    train, test = _as_data(train_rows, "train", name), _as_data(test_rows, "test", name)
    return World(train, test, probed(train))


def probed(train: Data) -> ProbeSet:
    """The probes of the first rows."""
    return probes_from_rows(replace(train, rows=train.rows[:PROBED]), "train")


def _as_data(rows: Sequence[dict[str, str]], split: str, name: str) -> Data:
    """Wide rows as the recipes take them."""
    content = json.dumps(rows, ensure_ascii=False).encode()
    return Data(
        tuple(
            Row(
                row["prompt_id"],
                row["prompt"],
                {k: v for k, v in row.items() if k not in ("prompt_id", "prompt")},
            )
            for row in rows
        ),
        source=name,
        split=split,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def pairs_for_dpo(train: Data) -> Data:
    """The rows that DPO trains on: the first `_DPO_ROWS`."""
    return replace(train, rows=train.rows[:_DPO_ROWS])


@dataclass(frozen=True)
class Stage:
    """One training of an experiment."""

    name: str
    """Names its run directory."""
    after: str = ""
    """The stage whose model it starts from; "" for the experiment's first model."""
    kinds: tuple[str, ...] = ()
    """Kinds of response that SFT trains on; none: it is DPO."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TRL's config that differ from `_SFT` or `_DPO`."""
    every: int = 25
    """Updates between observations."""
    forces: int | None = None
    """Explain the update before every k-th observation; of a larger model, for which
    it takes minutes, none."""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("sft", kinds=("chosen",)),
        Stage("extend-sft", kinds=("chosen", "rejected")),
        Stage("dpo", after="sft"),
        Stage("extend-dpo", after="extend-sft"),
        Stage("on-policy", after="sft"),
    )
}
"""SFT and DPO (the paper's Sections 4.1 and 4.2); SFT on both answers, then the same
DPO (extend, Section 4.3); DPO on rejected answers sampled after SFT."""


@dataclass(frozen=True)
class Inputs:
    """Rows and probes of one seed."""

    rows: Data
    """What SFT trains on."""
    pairs: Data
    """What DPO trains on."""
    probes: ProbeSet
    test: Data | None
    """Held-out rows whose answers can be graded."""


@dataclass(frozen=True)
class Experiment:
    """What the stages of one seed share; small enough to be sent to a process."""

    folder: Path
    """Holds one run directory per stage."""
    seed: int = 0
    model: str | None = None
    """Folder or hub id; None: the embedded model."""
    data: str | None = None
    """Preference data; None: the embedded world."""
    probes: str | None = None
    """Probe file; None: built from the data."""
    empty: Literal["error", "keep", "drop"] = "error"
    """What to do with empty responses of `data`."""
    held_out: int = 0
    """Held-out prompts of the embedded world that are probed too."""
    small: bool = False
    """Whether `model` is of the embedded one's size and gets its settings."""

    @cached_property
    def inputs(self) -> Inputs:
        """Rows and probes; read once.

        Raises:
            BadInput: if the data cannot be read or have no usable row.
        """
        if self.data is None:
            world = make_world(self.seed)
            probes = world.probes
            if self.held_out:
                rows = replace(world.test, rows=world.test.rows[: self.held_out])
                both = (*probes, *probes_from_rows(rows, "test"))
                probes = ProbeSet(both, probes.manifest)
            return Inputs(world.train, pairs_for_dpo(world.train), probes, world.test)
        from learndyn.train.launch import probes_for, read_inputs, usable
        from learndyn.train.settings import RunConfig

        given = RunConfig(
            model=str(self.model or embedded_model_path()),
            data=self.data,
            probes=self.probes,
            seed=self.seed,
            empty=self.empty,
        )
        data, test = read_inputs(given)
        prompts = min(PROBED, len(data.rows))
        probes = probes_for(replace(given, prompts=prompts), data, test)
        # every stage trains on the same rows, so that the stages can be compared
        data = usable(data, ("chosen", "rejected"), self.empty)
        return Inputs(data, data, probes, None)

    def finished(self, stage: str) -> bool:
        """Whether a stage ran to its end."""
        from learndyn.train.resume import is_finished

        return is_finished(self.folder / stage)

    def train(
        self, stage: Stage, rows: Data | None = None, probes: ProbeSet | None = None
    ) -> RunDirectory:
        """Train one stage, by default on `inputs`; replaces a run that is there.

        Raises:
            BadInput: as the recipes.
        """
        from learndyn.train.recipes import dpo, sft

        recipe = self._recipe(stage)
        probes = probes or self.inputs.probes
        if stage.kinds:
            return sft(recipe, rows or self.inputs.rows, probes, kinds=stage.kinds)
        info = {"extend": True} if stage.after == "extend-sft" else None
        return dpo(recipe, rows or self.inputs.pairs, probes, info=info)

    def answers(self, stage: str, prompts: int) -> list[bool]:
        """Of held-out prompts, whether a stage's model answers them right.

        Raises:
            BadInput: outside the embedded world, where answers cannot be graded.
        """
        if self.inputs.test is None:
            raise BadInput(
                f"answers to prompts of {self.data} cannot be graded: only the "
                "embedded world knows the right ones. Leave data= out."
            )
        return graded(self.folder / stage / "model", self.inputs.test, prompts)

    def _recipe(self, stage: Stage) -> "RunConfig":
        from learndyn.train.settings import RunConfig

        small = self.small or self.model is None
        start: str | Path = self.model or embedded_model_path()
        if stage.after:
            start = self.folder / stage.after / "model"
        trainer = {**(_SFT if stage.kinds else _DPO), **stage.trainer}
        if not small:
            trainer = {k: v for k, v in trainer.items() if k in _OF_ANY_MODEL}
        recipe = RunConfig(
            model=str(start),
            out=self.folder / stage.name,
            preset="paper",  # float32, no dropout, summed SFT loss, the paper's warm-up
            every=stage.every,
            seed=self.seed,
            trainer=trainer,
            overwrite=is_run(self.folder / stage.name),
        )
        if not small:
            return recipe
        return replace(
            recipe,
            forces=stage.forces,
            score_batch_size=32,
            max_length=256,
            max_prompt_length=128,
        )


def graded(model: Path, test: Data, prompts: int) -> list[bool]:
    """Of held-out prompts, whether greedy answers are right in every respect."""
    asked = [row.prompt for row in test.rows[:prompts]]
    answers = _generated(model, asked, "answering held-out prompts")
    return [grade(p, a).strict for p, a in zip(asked, answers, strict=True)]


def sampled(model: Path, pairs: Data, seed: int) -> list[str]:
    """One answer to each prompt, sampled from a saved model at temperature 1."""
    asked = [row.prompt for row in pairs.rows]
    options = {"temperature": 1.0, "seed": seed, "batch_size": 64}
    return _generated(model, asked, "sampling on-policy answers", **options)


def _generated(model: Path, prompts: list[str], what: str, **options: Any) -> list[str]:
    from learndyn.measure.generate import generate
    from learndyn.measure.load import load_model, load_tokenizer
    from learndyn.train.progress import progress_bar

    options |= {"max_new_tokens": 64, "progress": progress_bar(what)}
    return generate(load_model(model), load_tokenizer(model), prompts, **options)


def with_rejected(pairs: Data, answers: Sequence[str]) -> Data:
    """The same pairs, each with another rejected answer."""
    rows = tuple(
        replace(row, responses={**row.responses, "rejected": answer})
        for row, answer in zip(pairs.rows, answers, strict=True)
    )
    return replace(pairs, rows=rows, source=f"{pairs.source}, rejected sampled")
