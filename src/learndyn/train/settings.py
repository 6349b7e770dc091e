"""All settings of a run, each written once.

A field of `RunConfig` is a flag of `learndyn run`, a key of its YAML file and of the
config.yaml that a run keeps; a field of `WatchConfig` is an argument of the callback
too. Its metadata hold its text and its group in `learndyn run --help`.
Nothing here loads torch, so that help and shell completion come at once.
"""

# ruff: noqa: RUF009 - `_setting` makes a new field at each call, nothing is shared
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from learndyn.errors import BadInput, nearest
from learndyn.train.presets import MAX_LENGTH, PRESETS
from learndyn.train.schedule import Every, Schedule


METHODS = ("sft", "dpo", "extend")

DTYPES = ("float32", "bfloat16", "float64")

_PROMPTS = 16
"""Prompts whose updates are explained, by default."""

_RENAMED = {"batch_size": "score_batch_size"}
"""Keys of config.yaml files that older versions wrote, and what they are called now."""


def _setting(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field with its group and text; `choices` and `metavar` are argparse's.

    `written=False` keeps it out of config.yaml, `flag=False` off the command line.
    """
    return field(default=default, metadata={"group": group, "help": text, **more})


@dataclass(frozen=True)
class ForceSettings:
    """Which updates are explained, and on how many prompts.

    Raises:
        BadInput: if a number is below 1.
    """

    every: int
    """In observations: 1 explains the update before each of them."""
    prompts: int = _PROMPTS
    layers: bool = True
    influence: bool = True

    def __post_init__(self) -> None:
        for name in ("every", "prompts"):
            if getattr(self, name) < 1:
                raise BadInput(
                    f"{name} of ForceSettings is {getattr(self, name)}: give 1 or more."
                )


# Without equality: the callback is one of these, and a trainer that removes a callback
# must not take another with the same settings for it.
@dataclass(kw_only=True, eq=False)
class WatchConfig:
    """How a training is watched: the callback's settings.

    Raises:
        BadInput: if a number is too small, or one setting needs another.
    """

    every: Every = _setting(
        25, "watching", "updates between observations; log: ever further apart"
    )
    panel: int | None = _setting(
        None,
        "watching",
        "prompts scored between full observations (default: all prompts every time)",
        metavar="N",
    )
    full_every: int | None = _setting(
        None,
        "watching",
        "updates between full observations, with --panel (default: first and last "
        "alone)",
    )
    panel_seed: int = _setting(0, "watching", "seed that draws the panel's prompts")
    forces: int | ForceSettings | None = _setting(
        None,
        "watching",
        "explain the update before every K-th observation (default: none)",
        metavar="K",
    )
    forces_prompts: int = _setting(
        _PROMPTS, "watching", "prompts that --forces explains"
    )
    max_length: int | None = _setting(
        None,
        "lengths",
        "most tokens of prompt + response (default: 512, with --preset trl 1024)",
    )
    max_prompt_length: int | None = _setting(
        None, "lengths", "most tokens of the prompt (default: half of --max-length)"
    )
    score_batch_size: int = _setting(
        8, "scoring", "sequences scored at once, where a model needs padding"
    )
    exactness: Literal["auto", "strict"] = _setting(
        "auto",
        "scoring",
        "where a fast way of scoring fails its self-test: auto warns and takes the "
        "next one, strict stops",
    )
    precision: Literal["bfloat16"] | None = _setting(
        None,
        "scoring",
        "bfloat16: score approximately, computing in bfloat16 with the weights as "
        "loaded, such as float32; all numbers are labelled (default: exactly)",
    )
    resume: bool = _setting(False, "output", "continue a stopped run", written=False)
    overwrite: bool = _setting(False, "output", "replace a run", written=False)

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise BadInput(
                "resume=True continues a run, overwrite=True replaces it: choose one."
            )
        if self.score_batch_size < 1:
            raise BadInput(
                f"score_batch_size={self.score_batch_size}: give 1 or more, the number "
                "of sequences that are scored at once."
            )
        for name in ("max_length", "max_prompt_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: give 1 token or more.")
        # both refuse what cannot be, before anything is read or loaded
        _ = self.schedule, self.force_settings

    @property
    def schedule(self) -> Schedule:
        """When the run is observed."""
        return Schedule(self.every, self.panel, self.full_every, self.panel_seed)

    @property
    def force_settings(self) -> ForceSettings | None:
        """Which updates are explained; None: none."""
        if isinstance(self.forces, ForceSettings):
            if self.forces_prompts != _PROMPTS:
                raise BadInput(
                    f"forces_prompts={self.forces_prompts} cannot be used with "
                    "forces=ForceSettings(...): give ForceSettings(prompts=) instead."
                )
            return self.forces
        if self.forces is None:
            if self.forces_prompts != _PROMPTS:
                raise BadInput(
                    f"forces_prompts={self.forces_prompts} needs forces=K: without it "
                    "no update is explained."
                )
            return None
        if isinstance(self.forces, bool) or not isinstance(self.forces, int):
            raise BadInput(
                f"forces={self.forces!r}: give a whole number K, to explain the update "
                "before every K-th observation, or ForceSettings."
            )
        for name in ("forces", "forces_prompts"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: give 1 or more.")
        return ForceSettings(self.forces, self.forces_prompts)


@dataclass(kw_only=True)
class RunConfig(WatchConfig):
    """All settings of one run of sft, dpo or extend.

    `trainer` holds any fields of TRL's SFTConfig or DPOConfig, and overrides the
    preset; `sft_trainer` does so for the SFT stage of extend.

    Raises:
        BadInput: as `WatchConfig`, and if preset, dtype or lora_rank cannot be used.
    """

    method: str = _setting("", "training", "sft, dpo or extend", flag=False)
    model: str = _setting("", "data", "folder or hub id to start from (needed)")
    data: str = _setting("", "data", "file, folder or hub id to train on (needed)")
    out: Path = _setting(
        Path(),
        "output",
        "run directory to write (needed); the trained model goes to its folder model",
    )
    split: str = _setting("train", "data", "split to train on")
    limit: int | None = _setting(
        None, "data", "rows to train on, drawn with --seed (default: all)"
    )
    test_data: str | None = _setting(
        None, "data", "held-out data, for probes alone (default: none)"
    )
    test_split: str | None = _setting(
        None, "data", "split of the held-out data (default: test)"
    )
    empty: Literal["error", "keep", "drop"] = _setting(
        "error",
        "data",
        "empty responses: stop, score the end-of-text token alone, or leave them out",
    )
    mismatched: Literal["error", "drop"] = _setting(
        "error",
        "data",
        "rows whose chosen and rejected answer different prompts: stop, or leave them "
        "out",
    )
    probes: str | None = _setting(
        None, "probes", "probe file (default: built from the data)"
    )
    prompts: int | None = _setting(
        None, "probes", "prompts to watch (default: up to 100)"
    )
    kinds: list[str] | None = _setting(
        None,
        "training",
        "sft: kinds of response to train on (default: chosen)",
        metavar="KIND",
    )
    preset: str = _setting(
        "paper",
        "training",
        "settings of the trainer to begin with: the paper's, or TRL's own",
        choices=tuple(PRESETS),
    )
    seed: int = _setting(
        0, "training", "seed of training, of built probes and of --limit"
    )
    dtype: str = _setting(
        "float32",
        "training",
        "precision in which the weights are loaded; bfloat16 rounds the model itself, "
        "which --precision does not",
        choices=DTYPES,
    )
    lora: bool = _setting(
        False, "training", "train a LoRA adapter on all linear layers"
    )
    lora_rank: int = _setting(16, "training", "rank of the adapter")
    lora_alpha: int = _setting(32, "training", "scale of the adapter, times its rank")
    trust_remote_code: bool = _setting(
        False, "data", "run code that comes with the model"
    )
    trainer: dict[str, Any] = field(default_factory=dict)
    sft_trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.out = Path(self.out)
        if self.preset not in PRESETS:
            raise BadInput(f"preset={self.preset!r}: choose from {', '.join(PRESETS)}.")
        if self.dtype not in DTYPES:
            raise BadInput(
                f"dtype={self.dtype!r}: choose float32, bfloat16 or float64. To train "
                "float32 weights in bfloat16, keep float32 and set TRL's bf16 to true."
            )
        if self.lora and self.lora_rank < 1:
            raise BadInput(f"lora_rank={self.lora_rank}: give 1 or more.")

    @classmethod
    def resolve(
        cls, file: str | Path | None, given: Mapping[str, Any], **more: Any
    ) -> "RunConfig":
        """Defaults, then the YAML file, then what is `given`, such as flags.

        Raises:
            BadInput: if the file cannot be read, a key is unknown, a value is of
                another type or hidden, or method, model, data or out is missing.
        """
        given = {**given, **more}
        read = _read_config(file) if file is not None else {}
        for values, source in ((read, file), (given, None)):
            _check_types(values, get_type_hints(cls), source)
        merged = {**read, **given}
        for name in ("trainer", "sft_trainer"):
            merged[name] = {**(read.get(name) or {}), **(given.get(name) or {})}
        known = [one.name for one in fields(cls)]
        for name in sorted(set(merged) - set(known)):
            raise BadInput(
                f"{file} has an unknown key {name!r}.{nearest(name, known)} TRL's own "
                "fields stand below `trainer:`."
            )
        _refuse_hidden(merged, file)
        needed = ("method", "model", "data", "out")
        missing = [name for name in needed if not merged.get(name)]
        if missing:
            raise BadInput(
                f"a run needs {', '.join(missing)}. Give "
                f"{', '.join(_written(name) for name in missing)}, or a --config with "
                f"{'this key' if len(missing) == 1 else 'these keys'}."
            )
        if merged["method"] not in METHODS:
            raise BadInput(
                f"method {merged['method']!r} is unknown: choose from "
                f"{', '.join(METHODS)}."
            )
        _refuse_unused(merged)
        merged["out"] = Path(merged["out"])
        return cls(**merged)

    @property
    def limits(self) -> dict[str, int]:
        """max_length and max_prompt_length in tokens, the preset's unless given."""
        length, prompt = MAX_LENGTH[self.preset]
        if self.max_length is not None:
            length, prompt = self.max_length, self.max_length // 2
        return {
            "max_length": length,
            "max_prompt_length": self.max_prompt_length or prompt,
        }

    @property
    def watching(self) -> dict[str, Any]:
        """The callback's arguments: its fields, with the preset's lengths."""
        own = {one.name: getattr(self, one.name) for one in fields(WatchConfig)}
        return own | self.limits

    def stages(self) -> list["RunConfig"]:
        """The trainings that the method consists of; `extend` has two.

        The second stage of `extend` starts from the model that the first one saves.
        Each stage is a run that can be replayed by itself.
        """
        if self.method != "extend":
            return [self]
        first = replace(
            self,
            method="sft",
            out=self.out / "sft",
            trainer=self.sft_trainer,
            sft_trainer={},
            kinds=["chosen", "rejected"],
        )
        second = replace(
            self,
            method="dpo",
            out=self.out / "dpo",
            model=str(first.out / "model"),
            sft_trainer={},
        )
        return [first, second]

    def as_config(self) -> dict[str, Any]:
        """What differs from the defaults, for `config.yaml`; secrets are hidden."""
        written = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.metadata.get("written", True)
            if getattr(self, one.name) not in (one.default, {}, None)
        }
        if isinstance(self.forces, ForceSettings):
            written["forces"] = self.forces.every
            written["forces_prompts"] = self.forces.prompts
        return _without_secrets(written | {"out": str(self.out)})


def _refuse_unused(given: Mapping[str, Any]) -> None:
    """Settings that the method would pass over in silence."""
    method = given["method"]
    if given["sft_trainer"] and method != "extend":
        name = next(iter(given["sft_trainer"]))
        raise BadInput(
            f"--sft.{name} sets the SFT stage of extend, and this run is {method}: "
            f"write --{name}."
        )
    if given.get("kinds") and method != "sft":
        raise BadInput(
            f"kinds={','.join(given['kinds'])} says what sft trains on; {method} "
            "trains on chosen and rejected. Leave kinds= out."
        )


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.yaml with the defaults written out, under the names of today.

    Older versions wrote defaults down and today's does not: both are the same run.
    """
    defaults = {
        one.name: one.default
        for one in fields(RunConfig)
        if one.metadata.get("written", True) and one.name not in _OWN_DICTS
    }
    named = {_RENAMED.get(name, name): value for name, value in config.items()}
    return {**defaults, **named}


_OWN_DICTS = ("trainer", "sft_trainer", "out")


def _written(name: str) -> str:
    return "|".join(METHODS) if name == "method" else f"--{name} {name.upper()}"


def _read_config(path: str | Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"cannot read the config {path}: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(
            f"the config {path} must hold keys and values, such as `model: gpt2`; it "
            f"holds {type(values).__name__}."
        )
    # config.yaml files of recipes hold `trainer: null` and the like
    named = {_RENAMED.get(str(name), str(name)): v for name, v in values.items()}
    return {k: v for k, v in named.items() if not (v is None and k in _OWN_DICTS)}


def _check_types(
    values: Mapping[str, Any], hints: Mapping[str, Any], file: str | Path | None
) -> None:
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            expected = re.sub(r"[\w.]+\.", "", _hint_text(hints[name]))
            raise BadInput(
                f"{file or 'the command line'}: {name} must be {expected}, not "
                f"{value!r}."
            )


def _hint_text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    options, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return value in options
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if origin in (list, dict):
        inner = value.values() if isinstance(value, dict) else value
        kind = options[-1]
        return isinstance(value, origin) and (
            kind is Any or all(_fits(item, kind) for item in inner)
        )
    if hint is Path:
        return isinstance(value, str | Path)
    # True is an int to Python, and no number to anybody else
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _refuse_hidden(merged: Mapping[str, Any], file: str | Path | None) -> None:
    """A config that a run wrote holds no secrets: they must be given again."""
    for stage, prefix in (("trainer", ""), ("sft_trainer", "sft.")):
        for name, value in merged[stage].items():
            if value == HIDDEN:
                raise BadInput(
                    f"{file}: the value of {stage}.{name} is a secret and was not "
                    f"written down. Give it again with --{prefix}{name} VALUE, or "
                    "remove that line."
                )


HIDDEN = "(hidden)"
"""What stands on disk in place of a secret."""

_SECRET = re.compile(r"(^|[_.])(token|key|secret|password)s?$", re.IGNORECASE)
_MARKS = re.compile(r"(^|[_.])(bos|eos|pad|unk|sep|cls|mask)_token$", re.IGNORECASE)
"""Tokens of a tokenizer: no secrets, and a replay needs them."""


def _is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret, such as hub_token."""
    name = name.replace("-", "_")
    return bool(_SECRET.search(name)) and not _MARKS.search(name)


def _without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every secret hidden, at any depth."""
    shown: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            shown[name] = _without_secrets(value)
        else:
            shown[name] = HIDDEN if _is_secret(name) and value is not None else value
    return shown


def redacted(words: Sequence[str]) -> list[str]:
    """A command line with the values of `--hub_token v` and `--hub_token=v` hidden."""
    shown: list[str] = []
    hide = False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        secret = word.startswith("--") and _is_secret(name)
        if hide and not word.startswith("--"):
            shown.append(HIDDEN)
        else:
            shown.append(f"--{name}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals
    return shown


@contextmanager
def hub_token(config: RunConfig) -> Iterator[RunConfig]:
    """Within the block the hub gets the trainer's `hub_token` from the environment.

    The settings come back with it hidden, and a hidden field is not handed on: the
    trainer would pickle it beside every checkpoint, in training_args.bin.
    """
    stages = [config.trainer, config.sft_trainer]
    given = [s["hub_token"] for s in stages if s.get("hub_token") is not None]
    before = os.environ.get("HF_TOKEN")
    if given:
        os.environ["HF_TOKEN"] = str(given[0])
    try:
        trainer, first = (
            {k: HIDDEN if k == "hub_token" else v for k, v in s.items()} for s in stages
        )
        yield replace(config, trainer=trainer, sft_trainer=first)
    finally:
        if given and before is None:
            os.environ.pop("HF_TOKEN", None)
        elif given and before is not None:
            os.environ["HF_TOKEN"] = before
