"""Tokens and keys among the settings: they are used, and never written to disk."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


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
