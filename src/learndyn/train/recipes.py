"""SFT, DPO and extend on TRL's trainers, watched.

These are thin: TRL trains, the callback watches. What they add is one tokenisation for
training and probing, the paper's loss, schedule and dropout where asked for, an
explicit reference that is checked before the first update, and resuming.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from learndyn.errors import BadInput, nearest
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory
from learndyn.train.progress import progress_bar
from learndyn.train.reference import check_reference
from learndyn.train.resume import (
    is_finished,
    refuse_other_settings,
    remove_empty_folders,
)
from learndyn.train.session import (
    Session,
    disable_dropout,
    refusals,
    trainer_config,
)
from learndyn.train.settings import RunConfig


FIELDS = frozenset(f.name for c in (SFTConfig, DPOConfig) for f in fields(c) if f.init)
"""Every field of TRL's configs; each is a flag of `learndyn run`."""


def check_trainer(config: RunConfig) -> Any:
    """TRL's config of one stage of a run, tried out before anything is loaded.

    Raises:
        BadInput: if a field is unknown, has a value of another type, or is refused by
            TRL or transformers.
    """
    config_class = SFTConfig if config.method == "sft" else DPOConfig
    args = trainer_config(config, config_class, max_length=None)
    _check_loss(args)
    if config.method == "sft" and config.preset == "paper":
        _refuse_unsummable(args)
    return args


def _check_loss(args: Any) -> None:
    """TRL looks at `loss_type` only when the model is loaded, or at the first loss."""
    described = {f.name: str(f.metadata.get("help", "")) for f in fields(args)}
    # TRL lists them in the field's help alone, each in quotes, and so for its version
    known = re.findall(r"[`\"']'?(\w+)'?[`\"']", described["loss_type"])
    given = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    for name in given:
        if known and name not in known:
            raise BadInput(
                f"{type(args).__name__} has no loss_type {name!r}."
                f"{nearest(name, known)} There are: {', '.join(known)}."
            )


def sft(
    config: RunConfig,
    data: Data,
    probes: ProbeSet,
    *,
    kinds: Sequence[str] | None = None,
    info: dict[str, Any] | None = None,
) -> RunDirectory:
    """Supervised finetuning on any kind of response.

    With several `kinds` (by default those of `config`, else chosen), each row gives one
    example per kind, one after the other: the paper's *extend* trains on chosen and
    rejected so. The `paper` preset sums the loss over tokens and averages over
    examples; `trl` averages over tokens. `info` goes to run.json.

    Raises:
        BadInput: if the data lack a kind, or the trainer refuses its settings. Also as
            `LearningDynamicsCallback`.
    """
    kinds = list(kinds or config.kinds or ("chosen",))
    config = _replayable(config, "sft", data, kinds)
    if config.resume and is_finished(config.out):
        refuse_other_settings(config, data, probes)
        return RunDirectory.open(config.out)
    args = check_trainer(config)
    session = Session.start(config, data, probes, args, info)
    pairs = [pair for kind in kinds for pair in session.tokenize_kind(kind)]
    count = len(data.rows)
    # pairs is kind after kind; an example of each kind of one row must be neighbours
    rows = [pairs[k * count + i] for i in range(count) for k in range(len(kinds))]
    dataset = Dataset.from_dict(
        {
            "input_ids": [[*p.prompt_ids, *p.response_ids] for p in rows],
            "labels": [[-100] * len(p.prompt_ids) + list(p.response_ids) for p in rows],
        }
    )
    with refusals("SFTTrainer"):
        trainer = _Sft(
            model=session.model,
            args=args,
            train_dataset=dataset,
            processing_class=session.tokenizer,
            peft_config=session.peft_config,
        )
    # after the fact: TRL's __init__ knows neither, and both are read only in training
    trainer.summed = config.preset == "paper"
    trainer.warmup = _paper_schedule(config, args)
    info = {"summed_loss": trainer.summed, "kinds": kinds}
    return session.train(trainer, info, raised=kinds)


def dpo(
    config: RunConfig,
    data: Data,
    probes: ProbeSet,
    *,
    info: dict[str, Any] | None = None,
) -> RunDirectory:
    """Direct preference optimisation with any of TRL's losses.

    The reference is loaded explicitly from the weights that training starts from (with
    LoRA it is the policy without its adapter), and agrees with the policy on every
    training pair to 1e-4 nats, or nothing is trained. `info` goes to run.json.

    Raises:
        BadInput: if the data lack chosen or rejected, if policy and reference disagree,
            or if the trainer refuses its settings. Also as `LearningDynamicsCallback`.
    """
    config = _replayable(config, "dpo", data)
    if config.resume and is_finished(config.out):
        refuse_other_settings(config, data, probes)
        return RunDirectory.open(config.out)
    args = check_trainer(config)
    session = Session.start(config, data, probes, args, info)
    chosen = session.tokenize_kind("chosen")
    rejected = session.tokenize_kind("rejected")
    dataset = Dataset.from_dict(
        {
            "prompt_ids": [list(pair.prompt_ids) for pair in chosen],
            "chosen_ids": [list(pair.response_ids) for pair in chosen],
            "rejected_ids": [list(pair.response_ids) for pair in rejected],
        }
    )
    # Left to itself TRL loads the reference from the policy's name, so from other
    # weights wherever the policy was changed in memory, as by a merged adapter.
    reference = None if config.lora else session.load()
    if reference is not None and config.preset == "paper":
        disable_dropout(reference)
    with refusals("DPOTrainer"):
        trainer = _Dpo(
            model=session.model,
            ref_model=reference,
            args=args,
            train_dataset=dataset,
            processing_class=session.tokenizer,
            peft_config=session.peft_config,
        )
    trainer.warmup = _paper_schedule(config, args)
    # the trainer has made out/checkpoints; if the check refuses, nothing shall be left
    remove_empty_folders(config.out)
    # the trainer's, not the session's: with LoRA it is the model with its adapter
    policy: Any = trainer.model
    gap = check_reference(
        policy,
        reference,
        [*chosen, *rejected],
        batch_size=config.score_batch_size,
        progress=progress_bar("checking the reference", args),
    )
    info = {"reference_gap": gap, "beta": args.beta}
    return session.train(trainer, info, raised=["chosen"], lowered=["rejected"])


def extend(
    config: RunConfig,
    data: Data,
    probes: ProbeSet,
    *,
    info: dict[str, Any] | None = None,
) -> list[RunDirectory]:
    """The paper's remedy (Section 4.3): SFT on chosen and rejected, then the same DPO.

    Writes two run directories, `out/sft` and `out/dpo`; DPO starts from
    `out/sft/model`. `config.trainer` holds DPO's fields, `config.sft_trainer` the SFT
    stage's.

    Raises:
        BadInput: as `sft` and `dpo`.
    """
    first, second = replace(config, method="extend").stages()
    stage_one = sft(first, data, probes, info=info)
    return [stage_one, dpo(second, data, probes, info={**(info or {}), "extend": True})]


def _replayable(
    config: RunConfig, method: str, data: Data, kinds: list[str] | None = None
) -> RunConfig:
    """The settings as config.yaml keeps them: all that a replay needs.

    A recipe that was called in Python names the run's own probes; data that were made
    in memory must be given anew.
    """
    if config.data:  # from the command line: its own words replay it
        # the default is left unsaid, as in the configs of older runs
        written = config.kinds if kinds in (None, ["chosen"]) else kinds
        return replace(config, method=method, kinds=written)
    return replace(
        config,
        method=method,
        data=data.source,
        split=data.split,
        probes=str(config.out / "probes.parquet"),
        kinds=kinds,
    )


class _Scheduled:
    """Lets a trainer use the paper's warm-up; see `_paper_warmup`.

    Not by `optimizers=(optimizer, scheduler)`: that needs the optimizer before the
    trainer has made it from its own settings.
    """

    warmup: int | None = None
    lr_scheduler: LRScheduler | None
    optimizer: torch.optim.Optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        if self.warmup is None:
            create: Callable[..., LRScheduler] = super().create_scheduler  # type: ignore[misc]
            return create(num_training_steps, optimizer)
        self.lr_scheduler = _paper_warmup(optimizer or self.optimizer, self.warmup)
        return self.lr_scheduler


class _Sft(_Scheduled, SFTTrainer):
    """TRL's SFT with the paper's loss: summed over tokens, averaged over examples."""

    summed: bool = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.summed:
            return result
        # TRL's loss is a sum over tokens divided by the tokens of the whole update, all
        # accumulated batches together; `factor` makes it that sum divided by examples.
        labels = inputs["labels"]
        tokens, parts = num_items_in_batch, self.current_gradient_accumulation_steps
        if tokens is None:  # then the trainer itself divides by the accumulation steps
            # no token comes before the first: its label, if any, has no loss
            tokens, parts = (labels[:, 1:] != -100).sum(), 1
        factor = tokens / (len(labels) * parts)
        if return_outputs:
            return result[0] * factor, result[1]
        return result * factor


class _Dpo(_Scheduled, DPOTrainer):
    """TRL's DPO on token ids that are frozen already, the very ids that are probed."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL would tokenize anew by its own rules: the prompt is the common prefix of
        # tokens, an end of text is appended, and rows that it cannot cut are dropped.
        return dataset


def _refuse_unsummable(args: Any) -> None:
    """The summed loss counts examples by rows of a batch, and on one process."""
    names = ("padding_free", "packing", "average_tokens_across_devices")
    for name in names:
        if getattr(args, name, False):
            raise BadInput(
                f"{name}=true cannot be used with the paper's summed SFT loss, which "
                "needs one example per row of a batch. Leave it out, or give "
                "preset='trl'."
            )


def _paper_warmup(optimizer: torch.optim.Optimizer, warmup_steps: int) -> LambdaLR:
    """Linear warm-up, then constant: update s (from 0) uses lr min((s + 1)/(w + 1), 1).

    transformers' `constant_with_warmup` starts at 0, so its first update does nothing.
    """
    return LambdaLR(optimizer, lambda s: min((s + 1) / (warmup_steps + 1), 1.0))


def _paper_schedule(config: RunConfig, args: Any) -> int | None:
    """Warm-up of the paper's schedule, unless the user chose another schedule."""
    if config.preset != "paper" or "lr_scheduler_type" in config.trainer:
        return None
    return int(args.warmup_steps)
