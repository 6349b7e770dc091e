"""What each subcommand does.

Each imports what it needs when it runs, so that `learndyn report` never loads torch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from learndyn.cli.parts import answer, print_json, quiet, shell_form
from learndyn.errors import BadInput
from learndyn.train.settings import METHODS


def demo(args: argparse.Namespace) -> None:
    """`learndyn demo`."""
    quiet()
    from learndyn.world.demo import DemoSettings, demo as run_demo

    settings = DemoSettings(
        out=args.out, seed=args.seed, model=args.model, data=args.data, empty=args.empty
    )
    result = run_demo(settings, overwrite=args.overwrite)
    answer(args, result)


def probes_build(args: argparse.Namespace) -> None:
    """`learndyn probes build`."""
    from learndyn.probes.build import build_probes
    from learndyn.probes.data import read_data
    from learndyn.probes.kinds import AUTHORS_KINDS
    from learndyn.record.files import write_whole

    if args.out.exists() and not args.overwrite:
        raise BadInput(f"{args.out} exists. Choose another --out, or --overwrite it.")
    options: dict[str, Any] = {
        "aliases": AUTHORS_KINDS,
        "empty": args.empty,
        "mismatched": args.mismatched,
        "tokenizer": _tokenizer(args.tokenizer),
    }
    train = read_data(args.data, split=args.split, **options)
    test = None
    if args.test_data is not None or args.test_split is not None:
        source = args.test_data or args.data
        test = read_data(source, split=args.test_split or "test", **options)
    probes = build_probes(
        train, test, prompts=args.prompts, seed=args.seed, kinds=args.kinds
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, probes.save)
    summary = {
        "out": str(args.out),
        "prompts": len(probes.prompt_ids),
        "kinds": probes.kinds,
        "probes": len(probes),
        "fingerprint": probes.fingerprint,
    }
    if args.json:
        print_json(summary)
        return
    print(
        f"{len(probes)} probes: {len(probes.prompt_ids)} prompts x "
        f"{len(probes.kinds)} kinds ({', '.join(probes.kinds)})\n"
        f"written to {args.out}, fingerprint {probes.fingerprint[:12]}"
    )


def probes_check(args: argparse.Namespace) -> None:
    """`learndyn probes check`."""
    from learndyn.probes.build import load_probes
    from learndyn.probes.check import check_probes
    from learndyn.probes.kinds import AUTHORS_KINDS

    tokenizer = _tokenizer(args.tokenizer)
    probes = load_probes(
        args.file, aliases=AUTHORS_KINDS, empty="keep", tokenizer=tokenizer
    )
    found = check_probes(probes, tokenizer)
    answer(args, found)


def run(args: argparse.Namespace) -> None:
    """`learndyn run`."""
    quiet()
    from learndyn.show.report.report import write_report
    from learndyn.train.launch import launch
    from learndyn.train.settings import RunConfig

    own = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_SETTINGS and value is not None
    }
    method, trainer, sft_trainer = method_and_fields(args.unknown)
    if method is not None:
        own["method"] = method
    own |= {"trainer": trainer, "sft_trainer": sft_trainer}
    with shell_form(f.name for f in fields(RunConfig)):
        runs = launch(RunConfig.resolve(args.config, own))
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


def score(args: argparse.Namespace) -> None:
    """`learndyn score`."""
    quiet()
    from learndyn.measure.checkpoint import score_checkpoint

    result = score_checkpoint(
        args.model,
        probes=args.probes,
        run=args.run,
        out=args.out,
        batch_size=args.batch_size,
        max_length=args.max_length,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        overwrite=args.overwrite,
        exactness=args.exactness,
        **_precision(args.precision),
    )
    answer(args, result)


def explain(args: argparse.Namespace) -> None:
    """`learndyn explain`."""
    from learndyn.show.explain.explain import explain_run

    if (args.run is None) == (args.model is None):
        raise BadInput(
            "give either a RUN with recorded forces, or --model and --data for a "
            "hypothetical update."
        )
    run = args.run
    if run is None:
        run = _hypothetical(args)
        args.out = None
    else:
        given = [n for n in _OF_HYPOTHETICAL if getattr(args, n) is not None]
        if given:
            raise BadInput(
                f"{_flags(given)} cannot be used with a RUN: its forces are recorded. "
                "Leave the RUN out to explain a hypothetical update of --model."
            )
    found = explain_run(
        run, args.step, args.out, text=not args.no_text, overwrite=args.overwrite
    )
    answer(args, found)


def _hypothetical(args: argparse.Namespace) -> Any:
    """One update that is not made; returns its run directory."""
    if args.data is None or args.step is not None:
        raise BadInput(
            "a hypothetical update of --model needs --data to train on, and has no "
            "--step."
        )
    quiet()
    from learndyn.train.hypothetical import Hypothetical, explain_hypothetical

    given = {n: getattr(args, n) for n in _OF_HYPOTHETICAL}
    options = dict(_named(text) for text in given.pop("loss_option") or [])
    settings = Hypothetical(
        **{name: value for name, value in given.items() if value is not None},
        model=args.model,
        out=args.out or Path("runs/explain"),
        options=options,
    )
    return explain_hypothetical(settings, overwrite=args.overwrite).path


_OF_HYPOTHETICAL = (
    *("data", "split", "loss", "loss_option", "probes", "kinds", "prompts", "batch"),
    *("optimizer", "lr", "reference", "method", "empty", "mismatched", "max_length"),
    *("dtype", "seed", "trust_remote_code"),
)


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--loss-option {text}: write NAME=VALUE, such as beta=0.05.")
    return name.replace("-", "_"), value


def _flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def report(args: argparse.Namespace) -> None:
    """`learndyn report`."""
    from learndyn.show.report.report import write_report

    page = write_report(
        args.runs, args.out, text=not args.no_text, overwrite=args.overwrite
    )
    if args.json:
        from learndyn.show.report.report import summaries

        print_json({"report": str(page), "runs": summaries(args.runs)})
    else:
        print(page)


def _precision(asked: str | None) -> Any:
    """What to tell `score_checkpoint`: nothing where nothing was asked for."""
    return {} if asked is None else {"precision": None if asked == "exact" else asked}


_NOT_SETTINGS = {"job", "unknown", "config", "json"}


def _tokenizer(source: str | None) -> Any:
    if source is None:
        return None
    quiet()
    from learndyn.measure.load import load_tokenizer

    return load_tokenizer(source)
