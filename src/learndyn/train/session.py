"""What every recipe does before and after training: load, tokenize, watch, resume."""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    get_scheduler,
)
from transformers.integrations.integration_utils import (
    get_reporting_integration_callbacks,
)

from learndyn.errors import BadInput, listed
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import PairTokenizer, TokenizedPair
from learndyn.probes.trained import LOWERED, RAISED, Trained, trained_on_texts
from learndyn.record.run_directory import RunDirectory, is_run, refuse_taken
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.presets import PRESETS, coerce_fields, renamed_checkpointing
from learndyn.train.progress import TrainingBar
from learndyn.train.resume import (
    last_checkpoint,
    refuse_other_settings,
    remove_empty_folders,
    step_of,
)
from learndyn.train.settings import HIDDEN, RunConfig


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
        # a list: setattr below writes to the very dict
        for key, value in list(vars(module).items()):
            # type and not isinstance: `use_dropout = True` is not a rate
            is_rate = "dropout" in key or key.endswith("pdrop")
            if is_rate and type(value) is float and value > 0:
                setattr(module, key, 0.0)
                changed.append(f"{name}.{key}")
    return changed


def trainer_config(config: RunConfig, config_class: type, **fixed: Any) -> Any:
    """TRL's config of a run: preset, then the user's fields, then what is `fixed`.

    Raises:
        BadInput: if a field is unknown, or the trainer would refuse what it is given.
    """
    # hidden is a secret that `hub_token` has put into the environment, not a value
    given = {k: v for k, v in config.trainer.items() if v != HIDDEN}
    overrides = coerce_fields(config_class, given)
    for name in ("output_dir", *fixed):
        if name in overrides:
            raise BadInput(
                f"{name} cannot be set: the recipe decides it. out= names the folder, "
                "max_length= the length in tokens."
            )
    defaults = {
        "logging_steps": 5,
        "save_steps": 100,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": False,  # its default follows the loggers' verbosity
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": config.seed,
    }
    values = {**defaults, **PRESETS[config.preset], **overrides, **fixed}
    # A config alone holds no model: whatever it raises is about a setting.
    of_settings = (ValueError, TypeError, ImportError, RuntimeError)
    with refusals(config_class.__name__, of_settings):
        args = config_class(
            output_dir=str(config.out / "checkpoints"),
            **renamed_checkpointing(config_class, values),
        )
        _try_out(args)
    return args


@contextmanager
def refusals(
    what: str, errors: tuple[type[Exception], ...] = (ValueError, ImportError)
) -> Iterator[None]:
    """What transformers and TRL raise about their settings, as one line."""
    try:
        yield
    except BadInput:
        raise
    except errors as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{what} refuses its settings: {text}") from error


def _try_out(args: Any) -> None:
    """Make what the trainer would make of its settings only once the model is there.

    Trackers that are not installed, optimizers whose package is missing and schedules
    without a setting that they need are refused by their own constructors alone.
    """
    for tracker in get_reporting_integration_callbacks(args.report_to):
        tracker()
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ValueError as error:
        # LOMO, GaLore and APOLLO look at the model's layers, which are not there yet
        if "You need to pass a" not in str(error):
            raise
    # the numbers decide nothing here: only what a schedule needs is tried
    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    get_scheduler(
        args.lr_scheduler_type,
        nothing,
        num_warmup_steps=args.get_warmup_steps(1000),
        num_training_steps=1000,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


@dataclass
class Session:
    """What sft and dpo have in common: model, tokenizer, settings, callback."""

    config: RunConfig
    data: Data
    probes: ProbeSet
    args: Any
    """TRL's config."""
    info: dict[str, Any]
    """Further entries of `run.json`."""
    tokenizer: PreTrainedTokenizerBase
    model: Any
    checkpoint: Path | None

    @classmethod
    def start(
        cls,
        config: RunConfig,
        data: Data,
        probes: ProbeSet,
        args: Any,
        info: dict[str, Any] | None,
    ) -> "Session":
        """Load model and tokenizer, and find the checkpoint to resume from."""
        out = config.out
        # Everything that can be refused is, before minutes go into loading a model.
        remove_empty_folders(out)
        refuse_taken(out, config.overwrite, resume=config.resume)
        continues = config.resume and is_run(out)
        if continues:
            refuse_other_settings(config, data, probes)
        trust = config.trust_remote_code
        tokenizer = load_tokenizer(config.model, trust_remote_code=trust)
        checkpoint = last_checkpoint(out / "checkpoints") if continues else None
        more = (args, info or {}, tokenizer, None, checkpoint)
        session = cls(config, data, probes, *more)
        session.model = session.load()
        if config.preset == "paper":
            disable_dropout(session.model)
        return session

    def load(self) -> Any:
        dtype = getattr(torch, self.config.dtype)
        trust = self.config.trust_remote_code
        model = load_model(self.config.model, dtype=dtype, trust_remote_code=trust)
        # A trained adapter becomes part of the model: training starts from all of it.
        merge = getattr(model, "merge_and_unload", None)
        return model if merge is None else merge()

    @property
    def peft_config(self) -> LoraConfig | None:
        if not self.config.lora:
            return None
        return LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
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
        encode = PairTokenizer(self.tokenizer, **self.config.limits)
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
            length, prompt = self.config.limits.values()
            warnings.warn(
                f"{cut} of {len(pairs)} {kind} training texts are cut to max_length "
                f"{length} and max_prompt_length {prompt}; {open_ended} lose their "
                "end-of-text token. Raise max_length= to keep them whole.",
                stacklevel=3,
            )

    def train(
        self,
        trainer: Any,
        info: dict[str, Any],
        *,
        raised: Sequence[str],
        lowered: Sequence[str] = (),
    ) -> RunDirectory:
        """Train and watch, on kinds of answers that the loss raises and lowers."""
        config, sample = self.config, self.data.sample
        # the trainer's __init__ made out/checkpoints, and a folder with something in it
        # that is not a run is never written to
        remove_empty_folders(config.out)
        callback = LearningDynamicsCallback(
            self.probes,
            out=config.out,
            **config.watching,
            info={
                "preset": config.preset,
                "lora": config.lora,
                "model": config.model,
                "data": {
                    "source": self.data.source,
                    "sha256": self.data.sha256,
                    **({} if sample is None else {"sample": sample.to_info()}),
                },
                "train_rows": len(self.data.rows),
                "trained": self._trained_on(raised, lowered).to_info(),
                **info,
                **self.info,
            },
            config=config.as_config(),
        ).attach(trainer)
        step = 0 if self.checkpoint is None else step_of(self.checkpoint)
        # Before the trainer does: checkpoints live in the run directory, which must be
        # there, and whole, before the first of them is written.
        run = callback.begin(trainer.model, self.tokenizer, trainer.args, step)
        TrainingBar.replace_in(trainer, f"{config.out.name}: updates")
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        self._save_model(trainer)
        # processes other than the first have written nothing, and read what it wrote
        return run or RunDirectory.open(config.out)

    def _trained_on(self, raised: Sequence[str], lowered: Sequence[str]) -> Trained:
        """Which probes are among the rows, by texts: the trainer has ids alone."""

        def texts(kind: str) -> list[str]:
            return [row.responses[kind] for row in self.data.rows]

        prompts = [row.prompt for row in self.data.rows]
        # SFT makes an example of each kind, DPO one of each pair
        batches = [{"prompt": prompts, RAISED: texts(kind)} for kind in raised]
        if lowered:
            batches[0][LOWERED] = texts(*lowered)
        return trained_on_texts(self.probes, batches, str(self.tokenizer.eos_token))

    def _save_model(self, trainer: Any) -> None:
        """Save to `out/model`, whole or not at all: `extend` starts DPO from it."""
        model = self.config.out / "model"
        building = self.config.out / ".model.new"
        # on every process: gathering the weights of a sharded model is collective
        trainer.save_model(str(building))
        if trainer.args.should_save:
            shutil.rmtree(model, ignore_errors=True)
            building.rename(model)
        # nobody goes on to a stage that loads this model before it is there
        trainer.accelerator.wait_for_everyone()
