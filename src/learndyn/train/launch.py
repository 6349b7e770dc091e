"""`learndyn run`: read the data, build the probes, train and watch."""

import sys
from dataclasses import replace
from typing import Any

from learndyn.errors import BadInput
from learndyn.measure.load import load_tokenizer
from learndyn.probes.build import build_probes, load_probes
from learndyn.probes.data import Data, read_data
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory
from learndyn.train.recipes import check_trainer, dpo, extend, sft
from learndyn.train.settings import RunConfig, hub_token, redacted


_DEFAULT_PROMPTS = 100
"""Prompts to watch if no number is given and there are as many."""


def launch(config: RunConfig) -> list[RunDirectory]:
    """Read the data, build or read the probes, train and watch.

    Returns the run directories written, in order: one, or two for `extend`.

    Raises:
        BadInput: before anything is read if the trainer refuses its settings; then as
            `read_data`, `build_probes` and the recipes.
    """
    for stage in config.stages():
        check_trainer(stage)
    data, test = read_inputs(config)
    probes = probes_for(config, data, test)
    kinds = tuple(config.kinds or ("chosen",))
    needed = kinds if config.method == "sft" else ("chosen", "rejected")
    data = usable(data, needed, config.empty)
    info = {"command": ["learndyn", *redacted(sys.argv[1:])]}
    with hub_token(config) as config:
        if config.method == "sft":
            return [sft(config, data, probes, info=info)]
        if config.method == "dpo":
            return [dpo(config, data, probes, info=info)]
        return extend(config, data, probes, info=info)


def read_inputs(config: RunConfig) -> tuple[Data, Data | None]:
    """Training data, and held-out data if there are any."""
    options: dict[str, Any] = {
        "aliases": AUTHORS_KINDS,
        "tokenizer": _tokenizer(config),
        "empty": config.empty,
        "mismatched": config.mismatched,
    }
    drawn = {"limit": config.limit, "seed": config.seed}
    data = read_data(config.data, split=config.split, **drawn, **options)
    if config.test_data is None and config.test_split is None:
        return data, None
    source = config.test_data or config.data
    return data, read_data(source, split=config.test_split or "test", **options)


def probes_for(config: RunConfig, data: Data, test: Data | None) -> ProbeSet:
    """The probes of a file, or those that the data themselves give."""
    if config.probes is not None:
        return load_probes(
            config.probes,
            aliases=AUTHORS_KINDS,
            empty=config.empty,
            tokenizer=_tokenizer(config),
        )
    default = config.prompts is None
    return build_probes(
        data,
        test,
        prompts=_DEFAULT_PROMPTS if default else config.prompts,
        or_fewer=default,
        seed=config.seed,
    )


def usable(data: Data, kinds: tuple[str, ...], empty: str) -> Data:
    """With `empty="drop"`, train on the rows that have all of `kinds`."""
    if empty != "drop":
        return data
    rows = tuple(r for r in data.rows if all(kind in r.responses for kind in kinds))
    if not rows:
        raise BadInput(
            f"no row of {data.source} has all of {', '.join(kinds)} to train on."
        )
    return replace(data, rows=rows)


def _tokenizer(config: RunConfig) -> Any:
    """The model's tokenizer: chat messages are written with its template."""
    return load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
