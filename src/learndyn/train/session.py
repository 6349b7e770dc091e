"""What every recipe does before and after training: load, tokenize, watch, resume.

Dropout, all of it.
"""

import shutil
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from learndyn.errors import BadInput, listed
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.route import Exactness
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import PairTokenizer, TokenizedPair
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.progress import TrainingBar
from learndyn.train.recorder import PROMPTS, ForceSettings
from learndyn.train.resume import (
    last_checkpoint,
    refuse_other_settings,
    refuse_taken,
    remove_empty_folders,
    step_of,
)
from learndyn.train.schedule import Every, Schedule
from learndyn.train.settings import (
    MAX_LENGTH,
    PRESETS,
    coerce_fields,
    renamed_checkpointing,
    without_secrets,
)


def disable_dropout(model: nn.Module) -> list[str]:
    """Set every dropout probability of a model to 0; returns the names of all changed.

    TRL's own helper reaches `nn.Dropout` modules alone. Attention dropout in
    transformers is functional: its probability is a number on the attention module
    (`attention_dropout` on Llama and GPT-NeoX), and it stays on.
    """
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = 0.0
            changed.append(name)
        for key, value in list(vars(module).items()):
            is_rate = "dropout" in key or key.endswith("pdrop")
            if is_rate and type(value) is float and value > 0:
                setattr(module, key, 0.0)
                changed.append(f"{name}.{key}")
    return changed


@dataclass(frozen=True)
class Recipe:
    """How to train and watch one run; everything but the data."""

    model: str
    """Folder or hub id to start from."""
    out: Path
    """The run directory. The trained model goes to its `model` folder."""
    preset: str = "paper"
    """ "paper" or "trl", see `presets`."""
    every: Every = 25
    """Updates between observations, or "log"."""
    panel: int | None = None
    """Prompts that are scored between full observations; None: all, every time."""
    full_every: int | None = None
    panel_seed: int = 0
    forces: int | None = None
    """Explain the update before every k-th observation; None: none."""
    forces_prompts: int = PROMPTS
    """Prompts whose probes are explained."""
    seed: int = 0
    dtype: str = "float32"
    lora: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    max_length: int | None = None
    max_prompt_length: int | None = None
    batch_size: int = 8
    """Sequences scored at once; decides speed and memory, no number."""
    exactness: Exactness = "auto"
    """What to do about a fast way of scoring that is wrong: see `Scorer.attach`."""
    precision: Literal["bfloat16"] | None = None
    """Score approximately, in this precision."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Any field of TRL's SFTConfig or DPOConfig; overrides the preset."""
    resume: bool = False
    overwrite: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        # refuses a schedule that is none, before a model is loaded
        Schedule(self.every, self.panel, self.full_every, self.panel_seed)
        self.force_settings()
        if self.preset not in PRESETS:
            raise BadInput(
                f"no preset {self.preset!r}. There are: {', '.join(PRESETS)}."
            )
        if self.resume and self.overwrite:
            raise BadInput("resume continues a run, overwrite replaces it: choose one.")
        if self.lora and self.lora_rank < 1:
            raise BadInput(f"lora_rank is {self.lora_rank}: give 1 or more.")
        if self.dtype not in ("float32", "bfloat16", "float64"):
            raise BadInput(
                f"dtype {self.dtype!r}: choose float32, bfloat16 or float64. For "
                "bf16 training with fp32 weights keep float32 and set bf16=true."
            )

    def force_settings(self) -> ForceSettings | None:
        """What the callback is told of forces.

        Raises:
            BadInput: if a number is below 1, or prompts are given without forces.
        """
        if self.forces is not None:
            return ForceSettings(self.forces, self.forces_prompts)
        if self.forces_prompts != PROMPTS:
            raise BadInput(
                f"forces_prompts={self.forces_prompts} is of forces, and none are "
                "asked for. Give forces=K as well, or leave it out."
            )
        return None

    @property
    def limits(self) -> tuple[int, int]:
        """max_length and max_prompt_length, the preset's unless given."""
        length, prompt = MAX_LENGTH[self.preset]
        if self.max_length is not None:
            length, prompt = self.max_length, self.max_length // 2
        return length, self.max_prompt_length or prompt

    def settings(self, method: str, data: Data) -> dict[str, Any]:
        """What `config.yaml` keeps: all that is needed to replay the run.

        The probes are the run's own; data that were made in memory must be given anew.
        """
        own = asdict(self) | {
            "out": str(self.out),
            "method": method,
            "data": data.source,
            "split": data.split,
            "probes": str(self.out / "probes.parquet"),
        }
        # as before there were these, so that a run from then can still be continued
        newer = ("panel", "full_every", "panel_seed", "exactness", "precision")
        newer = (*newer, "forces", "forces_prompts")
        defaults = {f.name: f.default for f in fields(self) if f.name in newer}
        unused = [name for name, value in defaults.items() if own[name] == value]
        for name in ("resume", "overwrite", *unused):
            del own[name]
        return without_secrets(own)


@dataclass
class Session:
    """What sft and dpo have in common: model, tokenizer, settings, callback."""

    recipe: Recipe
    data: Data
    probes: ProbeSet
    config: dict[str, Any]
    """What `config.yaml` holds, so that the run can be replayed."""
    info: dict[str, Any]
    """Further entries of `run.json`."""
    tokenizer: PreTrainedTokenizerBase
    model: Any
    checkpoint: Path | None

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        data: Data,
        probes: ProbeSet,
        config: dict[str, Any],
        info: dict[str, Any] | None,
    ) -> "Session":
        """Load model and tokenizer, and find the checkpoint to resume from."""
        remove_empty_folders(recipe.out)
        refuse_taken(recipe.out, replaceable=recipe.resume or recipe.overwrite)
        if recipe.resume and is_run(recipe.out):
            refuse_other_settings(recipe.out, config, data, probes)
        trust = recipe.trust_remote_code
        tokenizer = load_tokenizer(recipe.model, trust_remote_code=trust)
        session = cls(recipe, data, probes, config, info or {}, tokenizer, None, None)
        session.model = session.load()
        if recipe.preset == "paper":
            disable_dropout(session.model)
        if recipe.resume and is_run(recipe.out):
            session.checkpoint = last_checkpoint(recipe.out / "checkpoints")
        return session

    def load(self) -> Any:
        dtype = getattr(torch, self.recipe.dtype)
        trust = self.recipe.trust_remote_code
        model = load_model(self.recipe.model, dtype=dtype, trust_remote_code=trust)
        # A trained adapter becomes part of the model: training starts from all of it.
        merge = getattr(model, "merge_and_unload", None)
        return model if merge is None else merge()

    @property
    def peft_config(self) -> LoraConfig | None:
        if not self.recipe.lora:
            return None
        return LoraConfig(
            r=self.recipe.lora_rank,
            lora_alpha=self.recipe.lora_alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )

    def tokenize_kind(self, kind: str) -> list[TokenizedPair]:
        missing = [row.row_id for row in self.data.rows if kind not in row.responses]
        if missing:
            have = sorted({k for row in self.data.rows for k in row.responses})
            raise BadInput(
                f"{len(missing)} of {len(self.data.rows)} rows of {self.data.source} "
                f"have no {kind!r} to train on:\n{listed(missing)}\n"
                f"The data have: {', '.join(have)}."
            )
        encode = PairTokenizer(self.tokenizer, *self.recipe.limits)
        pairs = [
            encode(row.prompt, row.responses[kind], row.rendered)
            for row in self.data.rows
        ]
        self._count_cuts(kind, pairs)
        return pairs

    def _count_cuts(self, kind: str, pairs: list[TokenizedPair]) -> None:
        """Keep in `run.json` how many training texts were cut, and warn of them."""
        cut = sum(pair.truncated for pair in pairs)
        open_ended = sum(not pair.has_eos for pair in pairs)
        counts = {"of": len(pairs), "truncated": cut, "without_eos": open_ended}
        self.info.setdefault("training_tokens", {})[kind] = counts
        if cut:
            warnings.warn(
                f"{cut} of {len(pairs)} {kind} training texts are cut to max_length "
                f"{self.recipe.limits[0]} and max_prompt_length "
                f"{self.recipe.limits[1]}; {open_ended} lose their end-of-text token. "
                "Raise --max-length to keep them whole.",
                stacklevel=3,
            )

    def arguments(self, config_class: type, **fixed: Any) -> Any:
        """The TRL config: preset, then overrides, then what the recipe must fix."""
        recipe = self.recipe
        overrides = coerce_fields(config_class, recipe.trainer)
        for name in ("output_dir", *fixed):
            if name in overrides:
                raise BadInput(
                    f"{name} cannot be set: the recipe decides it. Use --out for the "
                    "folder and --max-length for the length."
                )
        defaults = {
            "logging_steps": 5,
            "save_steps": 100,
            "save_total_limit": 2,
            "report_to": "none",
            "disable_tqdm": False,  # its default follows the loggers' verbosity
            "dataloader_pin_memory": torch.cuda.is_available(),
            "seed": recipe.seed,
        }
        values = {**defaults, **PRESETS[recipe.preset], **overrides, **fixed}
        return config_class(
            output_dir=str(recipe.out / "checkpoints"),
            **renamed_checkpointing(config_class, values),
        )

    def train(self, trainer: Any, info: dict[str, Any]) -> RunDirectory:
        recipe = self.recipe
        max_length, max_prompt_length = recipe.limits
        remove_empty_folders(recipe.out)
        callback = LearningDynamicsCallback(
            self.probes,
            out=recipe.out,
            every=recipe.every,
            panel=recipe.panel,
            full_every=recipe.full_every,
            panel_seed=recipe.panel_seed,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            batch_size=recipe.batch_size,
            exactness=recipe.exactness,
            precision=recipe.precision,
            forces=recipe.force_settings(),
            resume=recipe.resume,
            overwrite=recipe.overwrite,
            info={
                "preset": recipe.preset,
                "lora": recipe.lora,
                "model": recipe.model,
                "data": {"source": self.data.source, "sha256": self.data.sha256},
                "train_rows": len(self.data.rows),
                **info,
                **self.info,
            },
            config=self.config,
        ).attach(trainer)
        step = 0 if self.checkpoint is None else step_of(self.checkpoint)
        run = callback.begin(trainer.model, self.tokenizer, trainer.args, step)
        TrainingBar.replace_in(trainer, f"{recipe.out.name}: updates")
        trainer.train(resume_from_checkpoint=_text(self.checkpoint))
        self._save_model(trainer)
        return run or RunDirectory.open(recipe.out)

    def _save_model(self, trainer: Any) -> None:
        """Save to `out/model`, whole or not at all: `extend` starts DPO from it."""
        model = self.recipe.out / "model"
        building = self.recipe.out / ".model.new"
        trainer.save_model(str(building))
        if trainer.args.should_save:
            shutil.rmtree(model, ignore_errors=True)
            building.rename(model)
        trainer.accelerator.wait_for_everyone()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
