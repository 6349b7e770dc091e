"""`learndyn run`: settings from a file and the command line, resolved into one run."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from learndyn.errors import BadInput
from learndyn.measure.forward import check_batch_size
from learndyn.measure.load import load_tokenizer
from learndyn.measure.route import Exactness
from learndyn.probes.build import build_probes, load_probes
from learndyn.probes.data import Data, read_data
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory
from learndyn.train.recipes import dpo, extend, sft
from learndyn.train.recorder import PROMPTS
from learndyn.train.schedule import Every
from learndyn.train.session import Recipe
from learndyn.train.settings import (
    HIDDEN,
    hub_token,
    redacted,
    without_secrets,
)


METHODS = ("sft", "dpo", "extend")

DEFAULT_PROMPTS = 100
"""Prompts to watch if no number is given and there are as many."""


@dataclass(frozen=True)
class RunSettings:
    """All of one run: what `config.yaml` holds, key by key."""

    method: str = ""
    """ "sft", "dpo" or "extend"."""
    model: str = ""
    """Folder or hub id to start from."""
    data: str = ""
    """File, folder or hub id to train on."""
    out: str = ""
    """Run directory to write."""
    split: str = "train"
    test_data: str | None = None
    """Held-out data, for probes alone."""
    test_split: str | None = None
    limit: int | None = None
    """Train on the first rows only."""
    empty: Literal["error", "keep", "drop"] = "error"
    """What to do with empty responses: "error", "keep" or "drop"."""
    mismatched: Literal["error", "drop"] = "error"
    """What to do with rows whose two prompts differ: "error" or "drop"."""
    probes: str | None = None
    """File of probes; built from the data if none is given."""
    prompts: int | None = None
    """Prompts to watch, if probes are built; of the test data as many. By default
    `DEFAULT_PROMPTS`, or all where there are fewer."""
    kinds: list[str] | None = None
    """SFT: the kinds of response to train on."""
    every: Every = 25
    panel: int | None = None
    """Prompts scored between full observations; by default all, at every one."""
    full_every: int | None = None
    """Updates between full observations, beside the first and the last."""
    panel_seed: int = 0
    forces: int | None = None
    forces_prompts: int = PROMPTS
    preset: str = "paper"
    seed: int = 0
    dtype: str = "float32"
    lora: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    max_length: int | None = None
    max_prompt_length: int | None = None
    batch_size: int = 8
    """Sequences scored at once."""
    exactness: Exactness = "auto"
    precision: Literal["bfloat16"] | None = None
    trust_remote_code: bool = False
    trainer: dict[str, Any] | None = None
    """Fields of TRL's config."""
    sft_trainer: dict[str, Any] | None = None
    """Those of the SFT stage of `extend`."""

    @classmethod
    def resolve(
        cls, config: str | Path | None, overrides: Mapping[str, Any]
    ) -> "RunSettings":
        """Defaults, then the file, then what the command line gives.

        Raises:
            BadInput: if the file cannot be read, a key is unknown, a value is of
                another type or hidden, or method, model, data or out is missing.
        """
        given = _read_config(config) if config is not None else {}
        for values in (given, overrides):
            _check_types(values, get_type_hints(cls), config)
        merged = {**given, **overrides}
        for name in ("trainer", "sft_trainer"):
            merged[name] = {**(given.get(name) or {}), **(overrides.get(name) or {})}
        known = {field.name for field in fields(cls)}
        for name in sorted(set(merged) - known):
            close = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise BadInput(
                f"{config} has an unknown key {name!r}.{hint} TRL's own fields stand "
                "below `trainer:`."
            )
        _refuse_hidden(merged, config)
        settings = cls(**merged)
        check_batch_size(settings.batch_size)
        missing = [
            name
            for name in ("method", "model", "data", "out")
            if not getattr(settings, name)
        ]
        if missing:
            raise BadInput(
                f"a run needs {', '.join(missing)}. Give "
                f"{', '.join('--' + name for name in missing)}, or a --config with "
                "these keys."
            )
        if settings.method not in METHODS:
            raise BadInput(
                f"no method {settings.method!r}. There are: {', '.join(METHODS)}."
            )
        return settings

    def recipe(self, *, resume: bool, overwrite: bool) -> Recipe:
        """The settings that training itself needs."""
        names = {field.name for field in fields(Recipe)} & {
            f.name for f in fields(self)
        }
        own = {name: getattr(self, name) for name in names}
        own |= {"out": Path(self.out), "trainer": self.trainer or {}}
        return Recipe(**own, resume=resume, overwrite=overwrite)

    def as_config(self) -> dict[str, Any]:
        """What differs from the defaults, for `config.yaml`; secrets are hidden."""
        return without_secrets(
            {
                field.name: getattr(self, field.name)
                for field in fields(self)
                if getattr(self, field.name) not in (field.default, {}, None)
            }
        )


def launch(
    settings: RunSettings, *, resume: bool = False, overwrite: bool = False
) -> list[RunDirectory]:
    """Read the data, build or read the probes, train and watch.

    Returns the run directories written, in order: one, or two for `extend`.
    """
    data, test = read_inputs(settings)
    probes = probes_for(settings, data, test)
    kinds = tuple(settings.kinds or ("chosen",))
    needed = kinds if settings.method == "sft" else ("chosen", "rejected")
    data = usable(data, needed, settings.empty)
    recipe = settings.recipe(resume=resume, overwrite=overwrite)
    more: dict[str, Any] = {
        "config": settings.as_config(),
        "info": {"command": ["learndyn", *redacted(sys.argv[1:])]},
    }
    with hub_token(recipe.trainer, settings.sft_trainer or {}) as (trainer, first):
        recipe = replace(recipe, trainer=trainer)
        if settings.method == "sft":
            return [sft(recipe, data, probes, kinds=kinds, **more)]
        if settings.method == "dpo":
            return [dpo(recipe, data, probes, **more)]
        return extend(recipe, data, probes, sft_trainer=first, **more)


def read_inputs(settings: RunSettings) -> tuple[Data, Data | None]:
    """Training data, and held-out data if there are any."""
    options: dict[str, Any] = {
        "aliases": AUTHORS_KINDS,
        "tokenizer": _tokenizer(settings),
        "empty": settings.empty,
        "mismatched": settings.mismatched,
    }
    data = read_data(
        settings.data, split=settings.split, limit=settings.limit, **options
    )
    if settings.test_data is None and settings.test_split is None:
        return data, None
    source = settings.test_data or settings.data
    return data, read_data(source, split=settings.test_split or "test", **options)


def probes_for(settings: RunSettings, data: Data, test: Data | None) -> ProbeSet:
    """The probes of a file, or those that the data themselves give."""
    if settings.probes is not None:
        return load_probes(
            settings.probes,
            aliases=AUTHORS_KINDS,
            empty=settings.empty,
            tokenizer=_tokenizer(settings),
        )
    default = settings.prompts is None
    return build_probes(
        data,
        test,
        prompts=DEFAULT_PROMPTS if default else settings.prompts,
        or_fewer=default,
        seed=settings.seed,
    )


def usable(data: Data, kinds: tuple[str, ...], empty: str) -> Data:
    """With `empty="drop"`, train on the rows that have all of `kinds`."""
    if empty != "drop":
        return data
    kept = tuple(r for r in data.rows if all(kind in r.responses for kind in kinds))
    if not kept:
        raise BadInput(
            f"no row of {data.source} has all of {', '.join(kinds)} to train on."
        )
    return replace(data, rows=kept)


def method_and_fields(
    words: Sequence[str],
) -> tuple[str | None, dict[str, str], dict[str, str]]:
    """Read the method, and `--learning_rate 1e-5` and `--sft.beta=1`, TRL's own fields.

    The method is read here because argparse, which does not know that TRL's flags have
    values, would take the first such value for it.

    Raises:
        BadInput: if something is neither method nor flag, or a flag has no value.
    """
    method: str | None = None
    trainer: dict[str, str] = {}
    stage_one: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if method is None and word in METHODS:
            method = word
            continue
        if not word.startswith("--"):
            raise BadInput(
                f"{word!r} is no setting and no method. Settings are --name value; "
                f"methods are {', '.join(METHODS)}."
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise BadInput(
                    f"--{name} needs a value, such as --{name} true. If it is not a "
                    "field of TRL's config, see `learndyn run --help`."
                )
            value = left.pop(0)
        target = stage_one if name.startswith("sft.") else trainer
        target[name.removeprefix("sft.").replace("-", "_")] = value
    return method, trainer, stage_one


def _tokenizer(settings: RunSettings) -> Any:
    """The model's tokenizer: chat messages are written with its template."""
    return load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)


def _refuse_hidden(merged: Mapping[str, Any], config: str | Path | None) -> None:
    """A config that a run wrote holds no secrets: they must be given again."""
    for stage, prefix in (("trainer", ""), ("sft_trainer", "sft.")):
        for name, value in merged[stage].items():
            if value == HIDDEN:
                raise BadInput(
                    f"{config}: the value of {stage}.{name} is a secret and was not "
                    f"written down. Give it again with --{prefix}{name} VALUE, or "
                    "remove that line."
                )


def _check_types(
    values: Mapping[str, Any], hints: Mapping[str, Any], config: str | Path | None
) -> None:
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise BadInput(
                f"{config or 'the command line'}: {name} must be "
                f"{wanted.replace('typing.', '')}, not {value!r}."
            )


def _fits(value: Any, hint: Any) -> bool:
    options, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return value in options
    if origin in (list, dict):
        inner = value.values() if isinstance(value, dict) else value
        kind = options[-1]
        return isinstance(value, origin) and (
            kind is Any or all(_fits(item, kind) for item in inner)
        )
    if options:  # a union
        return any(_fits(value, option) for option in options)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


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
    return {str(name): value for name, value in values.items()}
