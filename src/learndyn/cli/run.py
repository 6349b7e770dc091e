"""`learndyn run` and `learndyn demo`: train, and watch the training."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from learndyn.cli.parser import add_settings, refuse_flag, subcommand
from learndyn.cli.parts import answer, print_json, quiet
from learndyn.errors import BadInput
from learndyn.train.settings import METHODS, RunConfig


def run(args: argparse.Namespace) -> None:
    """`learndyn run`."""
    quiet()
    from learndyn.show.report.report import write_report
    from learndyn.train.launch import launch
    from learndyn.train.recipes import FIELDS

    names = [one.name for one in fields(RunConfig)]
    given = {name: value for name, value in vars(args).items() if name in names}
    method, trainer, sft_trainer = _method_and_fields(args.unknown, FIELDS)
    if method is not None:
        given["method"] = method
    given |= {"trainer": trainer, "sft_trainer": sft_trainer}
    runs = launch(RunConfig.resolve(args.config, given))
    pages = [write_report([run.path], overwrite=True) for run in runs]
    if args.json:
        done = [
            {
                "run": str(run.path),
                "steps": run.steps,
                "report": str(page),
                "route": run.info.route,
            }
            for run, page in zip(runs, pages, strict=True)
        ]
        print_json({"runs": done})
        return
    from learndyn.diagnose.verdict import what_happened
    from learndyn.record.trajectory import Trajectory

    for run, page in zip(runs, pages, strict=True):
        print(f"{run.path}: {len(run.steps)} observations, the last at {run.steps[-1]}")
        for sentence in what_happened(Trajectory.load(run.path)):
            print(f"  {sentence}")
        print(f"  report: {page}")


def _method_and_fields(
    words: Sequence[str], known: Iterable[str]
) -> tuple[str | None, dict[str, str], dict[str, str]]:
    """Read the method, and `--learning_rate 1e-5` and `--sft.beta=1`, TRL's own fields.

    The method is read here because argparse, which does not know that TRL's flags have
    values, would take the first such value for it. `known` are the fields.
    """
    known = set(known)
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
                f"{word!r} is neither a setting nor a method. Settings are --name "
                f"value; methods are {', '.join(METHODS)}."
            )
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        target = stage_one if name.startswith("sft.") else trainer
        name = name.removeprefix("sft.")
        if name not in known:
            ours = _flags_of(RunConfig)
            refuse_flag(
                f"--{name}", [*ours, *(f"--{k}" for k in known)], "learndyn run"
            )
        if not equals:
            if not left or left[0].startswith("--"):
                raise BadInput(f"--{name} needs a value, such as --{name} true.")
            value = left.pop(0)
        target[name] = value
    return method, trainer, stage_one


def _flags_of(config: type) -> list[str]:
    return [
        f"--{one.name.replace('_', '-')}"
        for one in fields(config)
        if one.metadata.get("flag", True) and "group" in one.metadata
    ]


def _demo(args: argparse.Namespace) -> None:
    """`learndyn demo`."""
    quiet()
    from learndyn.world.demo import DemoSettings, demo as run_demo

    settings = DemoSettings(
        out=args.out, seed=args.seed, model=args.model, data=args.data, empty=args.empty
    )
    result = run_demo(settings, overwrite=args.overwrite)
    answer(args, result)


def add(commands: Any) -> None:
    """The commands of this file and their flags."""
    _add_run(commands)
    _add_demo(commands)


_GROUPS = {
    "data": "data and model",
    "probes": "probes: what is watched",
    "watching": "watching: when, and how much",
    "training": "training (every field of TRL's SFTConfig or DPOConfig is a flag too)",
    "lengths": "lengths",
    "scoring": "scoring: how log-probabilities are computed",
    "output": "output",
}


def _add_run(commands: Any) -> None:
    job = subcommand(
        commands,
        "run",
        run,
        "train with TRL and watch: sft, dpo or extend",
        "learndyn run dpo --model Qwen/Qwen2.5-0.5B --data hh.jsonl --every 25 \\\n"
        "      --learning_rate 1e-6 --beta 0.05 --out runs/dpo\n\n"
        "Fields of TRL's configs are written as TRL writes them: --loss_type ipo;\n"
        "for the SFT stage of extend --sft.NAME: --sft.learning_rate 1e-5.",
    )
    job.usage = "learndyn run {sft,dpo,extend} [options] [--FIELD VALUE ...]"
    # flags that are not ours may be TRL's, whose names only TRL knows
    job.set_defaults(takes_others=True)
    job.add_argument(
        "--config",
        type=Path,
        help="YAML with these settings, such as a run's config.yaml; flags override it "
        "(default: none)",
    )
    add_settings(job, RunConfig, _GROUPS)


def _add_demo(commands: Any) -> None:
    job = subcommand(
        commands,
        "demo",
        _demo,
        "train SFT then DPO, and extend then DPO, on a small world; watch and explain",
        "learndyn demo --out runs/demo",
    )
    job.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of its four runs"
    )
    job.add_argument("--seed", type=int, default=0, help="seed of world and training")
    job.add_argument("--model", help="folder or hub id (default: the embedded model)")
    job.add_argument("--data", help="preference data (default: the embedded world)")
    job.add_argument(
        "--empty",
        choices=["error", "keep", "drop"],
        default="error",
        help="empty responses: stop, score the end-of-text token alone, or leave them "
        "out",
    )
    job.add_argument(
        "--overwrite", action="store_true", help="replace an older demo there"
    )
