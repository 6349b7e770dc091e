"""Where a run comes from: versions, hashes, seeds and settings, for `run.json`."""

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import TrainingArguments

from learndyn.measure.load import weights_hash
from learndyn.measure.neutral import is_sharded
from learndyn.probes.panel import Panel
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
        described["method"] = _method_of(args)
        described["seed"] = args.seed
        described["data_seed"] = args.data_seed
        described["trainer"] = args.to_dict()
    return described


def describe_run(
    model: nn.Module,
    args: TrainingArguments,
    scoring: Scoring,
    schedule: Schedule,
    panel: Panel | None,
    limits: dict[str, Any],
) -> dict[str, Any]:
    """All that `run.json` says of a run when it begins."""
    return {
        **describe(model, args),
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


def _method_of(args: TrainingArguments) -> str | None:
    """ "sft", "dpo", ... from TRL's name for its settings; None for a plain trainer."""
    name = type(args).__name__
    return name.removesuffix("Config").lower() if name.endswith("Config") else None
