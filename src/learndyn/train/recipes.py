"""SFT, DPO and extend on TRL's trainers, watched.

These are thin: TRL trains, the callback watches. What they add is one tokenisation for
training and probing, the paper's loss, schedule and dropout where asked for, an
explicit reference that is checked before the first update, and resuming.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LRScheduler
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from learndyn.errors import BadInput
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
from learndyn.train.session import Recipe, Session, disable_dropout
from learndyn.train.settings import paper_warmup


def sft(
    recipe: Recipe,
    data: Data,
    probes: ProbeSet,
    *,
    kinds: tuple[str, ...] = ("chosen",),
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> RunDirectory:
    """Supervised finetuning on any kind of response.

    With several `kinds`, each row gives one example per kind, one after the other
    (the paper's *extend* trains on chosen and rejected so). The `paper` preset sums the
    loss over tokens and averages over examples; `trl` averages over tokens.

    Raises:
        BadInput: if a kind is no column of the data, and as `LearningDynamicsCallback`.
    """
    config = config or {**recipe.settings("sft", data), "kinds": list(kinds)}
    if recipe.resume and is_finished(recipe.out):
        refuse_other_settings(recipe.out, config, data, probes)
        return RunDirectory.open(recipe.out)
    session = Session.start(recipe, data, probes, config, info)
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
    args = session.arguments(SFTConfig, max_length=None)
    summed = recipe.preset == "paper"
    if summed:
        _refuse_unsummable(args)
    trainer = _Sft(
        model=session.model,
        args=args,
        train_dataset=dataset,
        processing_class=session.tokenizer,
        peft_config=session.peft_config,
    )
    trainer.summed = summed
    trainer.warmup = _paper_schedule(recipe, args)
    return session.train(trainer, {"summed_loss": summed, "kinds": list(kinds)})


def dpo(
    recipe: Recipe,
    data: Data,
    probes: ProbeSet,
    *,
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> RunDirectory:
    """Direct preference optimisation with any of TRL's losses.

    The reference is loaded explicitly from the weights that training starts from (with
    LoRA it is the policy without its adapter), and agrees with the policy on every
    training pair to 1e-4 nats, or nothing is trained.

    Raises:
        BadInput: if chosen or rejected is no column of the data, if policy and
            reference disagree, and as `LearningDynamicsCallback`.
    """
    config = config or recipe.settings("dpo", data)
    if recipe.resume and is_finished(recipe.out):
        refuse_other_settings(recipe.out, config, data, probes)
        return RunDirectory.open(recipe.out)
    session = Session.start(recipe, data, probes, config, info)
    chosen = session.tokenize_kind("chosen")
    rejected = session.tokenize_kind("rejected")
    dataset = Dataset.from_dict(
        {
            "prompt_ids": [list(pair.prompt_ids) for pair in chosen],
            "chosen_ids": [list(pair.response_ids) for pair in chosen],
            "rejected_ids": [list(pair.response_ids) for pair in rejected],
        }
    )
    args = session.arguments(DPOConfig, max_length=None)
    reference = None if recipe.lora else session.load()
    if reference is not None and recipe.preset == "paper":
        disable_dropout(reference)
    trainer = _Dpo(
        model=session.model,
        ref_model=reference,
        args=args,
        train_dataset=dataset,
        processing_class=session.tokenizer,
        peft_config=session.peft_config,
    )
    trainer.warmup = _paper_schedule(recipe, args)
    remove_empty_folders(recipe.out)
    policy: Any = trainer.model
    gap = check_reference(
        policy,
        reference,
        [*chosen, *rejected],
        batch_size=recipe.batch_size,
        progress=progress_bar("checking the reference", args),
    )
    return session.train(trainer, {"reference_gap": gap, "beta": args.beta})


def extend(
    recipe: Recipe,
    data: Data,
    probes: ProbeSet,
    *,
    sft_trainer: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
) -> list[RunDirectory]:
    """The paper's remedy (Section 4.3): SFT on chosen and rejected, then the same DPO.

    Writes two run directories, `out/sft` and `out/dpo`; DPO starts from
    `out/sft/model`. `recipe.trainer` holds DPO's settings, `sft_trainer` those of the
    SFT stage.
    """
    first = replace(recipe, out=recipe.out / "sft", trainer=sft_trainer or {})
    second = replace(recipe, out=recipe.out / "dpo", model=str(first.out / "model"))
    kinds = ("chosen", "rejected")
    configs: list[dict[str, Any] | None] = [None, None]
    if config is not None:  # each stage is replayed by itself
        shared = {k: value for k, value in config.items() if k != "sft_trainer"}
        for i, stage in enumerate((first, second)):
            own = {
                "out": str(stage.out),
                "model": stage.model,
                "trainer": stage.trainer,
            }
            method = {"method": "dpo"} if i else {"method": "sft", "kinds": list(kinds)}
            configs[i] = {**shared, **own, **method}
    stage_one = sft(first, data, probes, kinds=kinds, config=configs[0], info=info)
    info = {**(info or {}), "extend": True}
    return [stage_one, dpo(second, data, probes, config=configs[1], info=info)]


class _Scheduled:
    """Lets a trainer use the paper's warm-up; see `paper_warmup`."""

    warmup: int | None = None
    lr_scheduler: LRScheduler | None
    optimizer: torch.optim.Optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        if self.warmup is None:
            create: Callable[..., LRScheduler] = super().create_scheduler  # type: ignore[misc]
            return create(num_training_steps, optimizer)
        self.lr_scheduler = paper_warmup(optimizer or self.optimizer, self.warmup)
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
        labels = inputs["labels"]
        tokens, parts = num_items_in_batch, self.current_gradient_accumulation_steps
        if tokens is None:  # then the trainer itself divides by the accumulation steps
            tokens, parts = (labels[:, 1:] != -100).sum(), 1
        factor = tokens / (len(labels) * parts)
        if return_outputs:
            return result[0] * factor, result[1]
        return result * factor


class _Dpo(_Scheduled, DPOTrainer):
    """TRL's DPO on token ids that are frozen already, the very ids that are probed."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _refuse_unsummable(args: Any) -> None:
    """The summed loss counts examples by rows of a batch, and on one process."""
    names = ("padding_free", "packing", "average_tokens_across_devices")
    for name in names:
        if getattr(args, name, False):
            raise BadInput(
                f"{name}=true does not go with the paper's summed SFT loss, which "
                "needs one example per row of a batch. Use --preset trl, or leave it "
                "off."
            )


def _paper_schedule(recipe: Recipe, args: Any) -> int | None:
    """Warm-up of the paper's schedule, unless the user chose another schedule."""
    if recipe.preset != "paper" or "lr_scheduler_type" in recipe.trainer:
        return None
    return int(args.warmup_steps)
