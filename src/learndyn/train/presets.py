"""What the trainer gets: presets, and fields of TRL's configs read as their types.

`paper` is the setting of Ren & Sutherland's experiments, the original DPO code's.
`trl` is what TRL 1.16 does by itself.
"""

import dataclasses
import math
from typing import Any, get_args, get_type_hints

import yaml

from learndyn.errors import BadInput, nearest


_PAPER: dict[str, Any] = {
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

_TRL: dict[str, Any] = {}

PRESETS: dict[str, dict[str, Any]] = {"paper": _PAPER, "trl": _TRL}

MAX_LENGTH: dict[str, tuple[int, int]] = {"paper": (512, 256), "trl": (1024, 512)}
"""Most tokens of prompt and response together, and of the prompt, per preset."""


def coerce_fields(config_class: type, overrides: dict[str, Any]) -> dict[str, Any]:
    """Check names against the fields of a TRL config and read text as their types.

    Raises:
        BadInput: if a field does not exist (close ones are named), or a value has
            another type.
    """
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    hints = get_type_hints(config_class)
    resolved = {}
    for name, value in overrides.items():
        if name not in known:
            owner = config_class.__name__
            raise BadInput(f"{owner} has no field {name!r}.{nearest(name, known)}")
        resolved[name] = _coerce(config_class.__name__, name, value, hints[name])
        _check_number(config_class.__name__, name, resolved[name])
    return resolved


def renamed_checkpointing(config_class: type, values: dict[str, Any]) -> dict[str, Any]:
    """Write `gradient_checkpointing` as `activation_checkpointing`.

    The old name is a deprecated alias since transformers 5.20, our least version, and
    TRL's own default sets it, so that even an untouched config warns.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    new, old = "activation_checkpointing", "gradient_checkpointing"
    if new in values:
        return values
    others = {name: value for name, value in values.items() if name != old}
    return {**others, new: values.get(old, fields[old].default)}


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
    if value is False and _takes(hint, str) and not _takes(hint, bool):
        return "no"  # YAML reads the word no as false: save_strategy: no
    if not isinstance(value, str):
        return float(value) if _takes(hint, float) and type(value) is int else value
    nothing = value.lower() in ("none", "null") and type(None) in get_args(hint)
    if nothing:
        # "none" is the trainer's own word for no tracker, where it cannot read None
        return "none" if name == "report_to" else None
    try:
        parsed = yaml.safe_load(value)
        if _takes(hint, float) and isinstance(parsed, int | str):
            if isinstance(parsed, str) and _takes(hint, str):
                return parsed
            return float(parsed)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise BadInput(f"{owner}.{name} needs a number, not {value!r}.") from error
    if isinstance(parsed, bool) and _takes(hint, str) and not _takes(hint, bool):
        return value
    if _takes(hint, bool) and not _takes(hint, str) and not isinstance(parsed, bool):
        raise BadInput(f"{owner}.{name} needs true or false, not {value!r}.")
    if _takes(hint, int) and not _takes(hint, str) and not isinstance(parsed, int):
        raise BadInput(f"{owner}.{name} needs a whole number, not {value!r}.")
    return parsed


def _takes(hint: Any, kind: type) -> bool:
    return hint is kind or kind in get_args(hint)
