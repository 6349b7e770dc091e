"""Two presets of trainer settings, and how a field is overridden.

`paper` is the setting of Ren & Sutherland's experiments, which is that of the original
DPO code. `trl` is what TRL 1.16 does if it is told nothing.

Tokens and keys among the settings: they are used, and never written to disk.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args, get_type_hints

import torch
import yaml
from torch.optim.lr_scheduler import LambdaLR

from learndyn.errors import BadInput


PAPER: dict[str, Any] = {
    "learning_rate": 5e-7,
    "optim": "rmsprop",
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 150,
    "per_device_train_batch_size": 4,
    "max_grad_norm": 10.0,
    "bf16": False,  # fp32 policy and fp32 reference
    "gradient_checkpointing": False,
    "average_tokens_across_devices": False,  # the SFT loss is summed, see recipes
}
"""Section 4.1 and the released configuration; `beta` 0.1 is TRL's default too."""

TRL: dict[str, Any] = {}

PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "trl": TRL}

MAX_LENGTH: dict[str, tuple[int, int]] = {"paper": (512, 256), "trl": (1024, 512)}
"""Most tokens of prompt and response together, and of the prompt, per preset."""


def paper_warmup(optimizer: torch.optim.Optimizer, warmup_steps: int) -> LambdaLR:
    """Linear warm-up, then constant: update s (from 0) uses lr min((s + 1)/(w + 1), 1).

    transformers' `constant_with_warmup` starts at 0, so its first update does nothing.
    """
    return LambdaLR(optimizer, lambda s: min((s + 1) / (warmup_steps + 1), 1.0))


def coerce_fields(config_class: type, overrides: dict[str, Any]) -> dict[str, Any]:
    """Check names against the fields of a TRL config and read text as their types.

    Raises:
        BadInput: if a name is no field (close ones are named), or a value is no such
            type.
    """
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    hints = get_type_hints(config_class)
    resolved = {}
    for name, value in overrides.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise BadInput(f"{config_class.__name__} has no field {name!r}.{hint}")
        resolved[name] = _coerce(config_class.__name__, name, value, hints[name])
        _check_number(config_class.__name__, name, resolved[name])
    return resolved


def renamed_checkpointing(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """Use `activation_checkpointing` where transformers has it (5.20 and later).

    There `gradient_checkpointing` is a deprecated alias, which TRL's own default sets,
    so that even an untouched config warns.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    new, old = "activation_checkpointing", "gradient_checkpointing"
    if new not in fields or new in values:
        return values
    kept = {name: value for name, value in values.items() if name != old}
    return {**kept, new: values.get(old, fields[old].default)}


def _check_number(owner: str, name: str, value: Any) -> None:
    """Numbers that no optimizer can use, refused before a model is loaded."""
    if not isinstance(value, float):
        return
    least = 0.0 if name in ("learning_rate", "beta") else -math.inf
    if not (math.isfinite(value) and value >= least):
        raise BadInput(
            f"{owner}.{name} is {value:g}: give a finite number"
            f"{' that is not negative' if least == 0 else ''}."
        )


def _coerce(owner: str, name: str, value: Any, hint: Any) -> Any:
    """YAML reads 5e-7 as text, the shell gives only text: go by the field's type."""
    if value is False and _wants(hint, str) and not _wants(hint, bool):
        return "no"  # YAML reads the word no as false: save_strategy: no
    if not isinstance(value, str):
        return float(value) if _wants(hint, float) and type(value) is int else value
    if value.lower() in ("none", "null") and type(None) in (get_args(hint) or ()):
        return None
    try:
        parsed = yaml.safe_load(value)
        if _wants(hint, float) and isinstance(parsed, int | str):
            if isinstance(parsed, str) and _wants(hint, str):
                return parsed
            return float(parsed)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise BadInput(f"{owner}.{name} wants a number, not {value!r}.") from error
    if isinstance(parsed, bool) and _wants(hint, str) and not _wants(hint, bool):
        return value
    if _wants(hint, bool) and not _wants(hint, str) and not isinstance(parsed, bool):
        raise BadInput(f"{owner}.{name} wants true or false, not {value!r}.")
    if _wants(hint, int) and not _wants(hint, str) and not isinstance(parsed, int):
        raise BadInput(f"{owner}.{name} wants a whole number, not {value!r}.")
    return parsed


def _wants(hint: Any, kind: type) -> bool:
    return hint is kind or kind in get_args(hint)


HIDDEN = "(hidden)"
"""What stands on disk in place of a secret."""

_SECRET = re.compile(r"(^|[_.])(token|key|secret|password)s?$", re.IGNORECASE)
_MARKS = re.compile(r"(^|[_.])(bos|eos|pad|unk|sep|cls|mask)_token$", re.IGNORECASE)
"""Tokens of a tokenizer: no secrets, and a replay needs them."""


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret, such as hub_token."""
    name = name.replace("-", "_")
    return bool(_SECRET.search(name)) and not _MARKS.search(name)


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every secret hidden, at any depth."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            kept[name] = without_secrets(value)
        else:
            kept[name] = HIDDEN if is_secret(name) and value is not None else value
    return kept


def redacted(words: Sequence[str]) -> list[str]:
    """A command line with the values of `--hub_token v` and `--hub_token=v` hidden."""
    said: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        secret = word.startswith("--") and is_secret(name)
        if hide and not word.startswith("--"):
            said.append(HIDDEN)
        else:
            said.append(f"--{name}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals
    return said


@contextmanager
def hub_token(*settings: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Within the block the hub gets `hub_token` from the environment.

    The settings come back without it: the trainer would pickle it beside every
    checkpoint, in training_args.bin.
    """
    given = [s["hub_token"] for s in settings if s.get("hub_token") is not None]
    before = os.environ.get("HF_TOKEN")
    if given:
        os.environ["HF_TOKEN"] = str(given[0])
    try:
        yield [{k: v for k, v in s.items() if k != "hub_token"} for s in settings]
    finally:
        if given and before is None:
            os.environ.pop("HF_TOKEN", None)
        elif given and before is not None:
            os.environ["HF_TOKEN"] = before
