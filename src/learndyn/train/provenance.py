"""Where a run comes from: versions, hashes, seeds, method and settings, for
`run.json`."""

import importlib.metadata
import inspect
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from learndyn.measure.load import weights_hash
from learndyn.measure.neutral import is_sharded, preserved_random_state
from learndyn.probes.panel import Panel
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.probes.trained import Trained
from learndyn.probes.trainer_data import trained_on
from learndyn.record.method import Method, as_losses
from learndyn.train.schedule import Schedule
from learndyn.train.scoring import Scoring


_PACKAGES = (
    "learndyn",
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
)


def describe(model: nn.Module, args: TrainingArguments | None) -> dict[str, Any]:
    """Versions, model identity, and the trainer's settings as resolved.

    `TrainingArguments.to_dict` masks tokens, so no key reaches the disk.
    """
    config: Any = model.config
    described: dict[str, Any] = {
        "versions": versions(),
        "git_sha": _git_sha(),
        "model": config._name_or_path,
        "model_type": config.model_type,
        "vocabulary": getattr(config, "vocab_size", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_parameters": sum(
            p.numel() for p in model.parameters() if p.requires_grad
        ),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "weights_sha256": None if is_sharded(model) else weights_hash(model),
    }
    if args is not None:
        described["seed"] = args.seed
        described["data_seed"] = args.data_seed
        described["trainer"] = args.to_dict()
    return described


def describe_run(
    model: nn.Module,
    args: TrainingArguments,
    method: Method,
    scoring: Scoring,
    schedule: Schedule,
    panel: Panel | None,
    limits: dict[str, Any],
) -> dict[str, Any]:
    """All that `run.json` says of a run when it begins."""
    return {
        **describe(model, args),
        "method": method.name or None,
        "family": method.family,
        "has_reference": method.has_reference,
        "probe_fingerprint": scoring.probes.probes.fingerprint,
        "probe_manifest": scoring.probes.probes.manifest,
        "tokenizer_sha256": scoring.probes.tokenizer_hash,
        "every": schedule.every,
        **({} if panel is None else {"panel": panel.to_info()}),
        **limits,
        "route": asdict(scoring.route),
        "finished": False,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of every package that decides a number, if installed."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _git_sha() -> str | None:
    """Commit of the working directory, "-dirty" appended if it has changes; or None."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def running_trainer() -> Trainer | None:
    """The trainer that is calling its callbacks.

    transformers hands a callback everything but the trainer, whose class and loss alone
    tell the method where its settings are of a plain `TrainingArguments`.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None


def method_of(
    args: TrainingArguments, trainer: Trainer | None, dataset: Any = None
) -> Method:
    """The method of a training, from the trainer's classes, loss and columns.

    `dataset` is what the batches are made of, by default the trainer's own.
    """
    # a trainer's own loss first: LLaMA-Factory's settings have none
    losses = as_losses(getattr(trainer, "loss_type", None))
    losses = losses or as_losses(getattr(args, "loss_type", None))
    beta = getattr(args, "beta", None)
    beta = float(beta) if isinstance(beta, int | float) else None
    # trainer before settings: a user's settings may be plain, or of another trainer
    classes = (*type(trainer).__mro__, *type(args).__mro__)
    method = Method.of_classes((kind.__name__ for kind in classes), losses, beta)
    if method.name:
        return method
    if dataset is None:
        dataset = getattr(trainer, "train_dataset", None)
    method = Method.of_columns(_columns(dataset))
    if method.family == "preference" and len(losses) == 1:
        by_loss = Method.named(losses[0])
        return by_loss if by_loss.family == "preference" else method
    if method.family == "unknown" and trainer is not None:
        collator: Any = trainer.data_collator
        kinds = type(collator).__mro__
        if any("LanguageModeling" in kind.__name__ for kind in kinds):
            return Method.named("sft")
    return method


def rows_trained_on(
    trainer: Trainer | None,
    family: str,
    probes: TokenizedProbes,
    tokenizer: PreTrainedTokenizerBase,
) -> Trained:
    """Which probes are among the trainer's rows. It never fails, and draws nothing."""
    dataset = getattr(trainer, "train_dataset", None)
    if dataset is None:
        return Trained(why_unknown="the trainer keeps no data set of its own")
    try:
        with preserved_random_state():
            return trained_on(dataset, probes, family, tokenizer)
    except Exception as error:  # of columns that nobody foresaw
        return Trained(why_unknown=f"its rows were not read: {error!r:.200}")


def _columns(dataset: Any) -> list[str]:
    """Names of a data set's columns, or of the entries of its first row."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return names
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return []  # its first row would be missing from the training
    try:
        with preserved_random_state():  # a row may be drawn, as of a masked text
            row = dataset[0]
    except Exception:  # of somebody else's code: a run must not fail for its name
        return []
    return [str(name) for name in row] if isinstance(row, Mapping) else []
