"""`learndyn score` and `explain`, and `diagnose` before training: they load a model."""

import argparse
from pathlib import Path
from typing import Any

from learndyn.cli.parser import add_reading, add_trust, subcommand
from learndyn.cli.parts import answer, quiet
from learndyn.errors import BadInput
from learndyn.train.settings import DTYPES


def _score(args: argparse.Namespace) -> None:
    """`learndyn score`."""
    quiet()
    from learndyn.measure.checkpoint import score_checkpoint

    result = score_checkpoint(
        args.model,
        probes=args.probes,
        run=args.run,
        out=args.out,
        batch_size=args.score_batch_size,
        max_length=args.max_length,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        overwrite=args.overwrite,
        exactness=args.exactness,
        **_precision(args.precision),
    )
    answer(args, result)


def _precision(asked: str | None) -> Any:
    """The argument of `score_checkpoint`; without the flag the run decides it."""
    return {} if asked is None else {"precision": None if asked == "exact" else asked}


def _explain(args: argparse.Namespace) -> None:
    """`learndyn explain`."""
    from learndyn.show.explain.explain import explain_run

    if (args.run is None) == (args.model is None):
        raise BadInput(
            "explain needs either a RUN with recorded forces, or --model and --data "
            "for a hypothetical update."
        )
    run = args.run
    if run is None:
        run = _hypothetical(args)
        args.out = None
    else:
        given = [n for n in _OF_HYPOTHETICAL if getattr(args, n) is not None]
        if given:
            raise BadInput(
                f"{flags_of(given)} cannot be used with a RUN: its forces are "
                "recorded. Leave the RUN out to explain a hypothetical update of "
                "--model."
            )
    result = explain_run(
        run, args.step, args.out, text=not args.no_text, overwrite=args.overwrite
    )
    answer(args, result)


def _hypothetical(args: argparse.Namespace) -> Any:
    """One update that is not made; returns its run directory."""
    if args.data is None:
        raise BadInput("explain --model needs --data, the rows to train on.")
    if args.step is not None:
        raise BadInput("--step picks an update of a recorded RUN, not of --model.")
    quiet()
    from learndyn.train.hypothetical import Hypothetical, explain_hypothetical

    given = {n: getattr(args, n) for n in _OF_HYPOTHETICAL}
    options = dict(_option(text) for text in given.pop("loss_option") or [])
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


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--loss-option {text}: write NAME=VALUE, such as beta=0.05.")
    return name.replace("-", "_"), value


def flags_of(names: list[str]) -> str:
    """Flags as they are written, one after the other."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def foresee_pairs(args: argparse.Namespace) -> Any:
    """Which pairs are likely to squeeze, from the model before training."""
    if args.data is None:
        raise BadInput("--model needs --data, the preference pairs to look at.")
    quiet()
    from learndyn.forces.foresight.foresight import Foreseen, foresee

    given = {name: getattr(args, name) for name in OF_FORESIGHT}
    settings = Foreseen(**{k: v for k, v in given.items() if v is not None})
    return foresee(settings, overwrite=args.overwrite)


OF_FORESIGHT = (
    *("model", "data", "split", "pairs", "empty", "mismatched", "max_length"),
    *("max_prompt_length", "dtype", "out", "trust_remote_code"),
)


def add(commands: Any) -> None:
    """The commands of this file and their flags."""
    _add_score(commands)
    _add_explain(commands)


def _add_score(commands: Any) -> None:
    job = subcommand(
        commands,
        "score",
        _score,
        "score probes with a model or checkpoint",
        "learndyn score runs/dpo/model --run runs/dpo --out scores.parquet",
    )
    data = job.add_argument_group("model and probes")
    data.add_argument("model", metavar="MODEL", help="folder or hub id")
    data.add_argument(
        "--probes",
        help="probe file, or a run whose texts to score (default: --run's)",
    )
    data.add_argument(
        "--run",
        type=Path,
        help="use this run's probes and token ids (default: those of --probes)",
    )
    data.add_argument(
        "--max-length",
        type=int,
        help="with --probes: cut prompt + response to so many tokens (default: 1024)",
    )
    data.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision in which the weights are loaded; bfloat16 rounds the model "
        "itself, which --precision does not (default: the run's, else float32)",
    )
    add_trust(data, False)
    scoring = job.add_argument_group("scoring: how log-probabilities are computed")
    scoring.add_argument(
        "--score-batch-size",
        type=int,
        default=8,
        help="sequences scored at once, where a model needs padding",
    )
    scoring.add_argument(
        "--exactness",
        choices=["auto", "strict"],
        default="auto",
        help="where a fast way of scoring fails its self-test: auto warns and takes "
        "the next one, strict stops",
    )
    scoring.add_argument(
        "--precision",
        choices=["bfloat16", "exact"],
        help="bfloat16: score approximately, computing in bfloat16 with the weights "
        "as loaded, such as float32; all numbers are labelled (default: as the run of "
        "--run was scored, else exact)",
    )
    output = job.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        help="Parquet file to write, one row per probe (default: none)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_explain(commands: Any) -> None:
    job = subcommand(
        commands,
        "explain",
        _explain,
        "which part of one update moved which answer: recorded, or hypothetical",
        "learndyn explain runs/dpo --step 100\n"
        "  learndyn explain --model gpt2 --data hh.jsonl --loss dpo --loss-option "
        "beta=0.05",
    )
    recorded = job.add_argument_group("a recorded update")
    recorded.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="a run with recorded forces"
    )
    recorded.add_argument(
        "--step", type=int, help="update of RUN to explain (default: the last recorded)"
    )
    _add_hypothetical(job.add_argument_group("a hypothetical update, without a RUN"))
    output = job.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        help="with --model: run directory to write (default: runs/explain); with RUN: "
        "folder of the page (default: RUN)",
    )
    output.add_argument(
        "--no-text",
        action="store_true",
        help="leave all texts off the page; the run itself keeps them",
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace what is there"
    )


def _add_hypothetical(made: Any) -> None:
    made.add_argument("--model", help="folder or hub id (default: none)")
    made.add_argument(
        "--data", help="file, folder or hub id to train on (needed with --model)"
    )
    made.add_argument("--split", help="split of the data (default: train)")
    add_reading(made, None)
    made.add_argument(
        "--loss",
        help="loss, such as dpo or sft; docs/losses.md lists all (default: dpo)",
    )
    made.add_argument(
        "--loss-option",
        action="append",
        metavar="NAME=VALUE",
        help="such as beta=0.05; may be repeated (default: the loss's own)",
    )
    made.add_argument(
        "--batch", type=int, help="rows to train on, watched ones first (default: 16)"
    )
    made.add_argument(
        "--optimizer",
        choices=["sgd", "adamw", "rmsprop"],
        help="optimizer that makes the update (default: sgd)",
    )
    made.add_argument(
        "--lr",
        type=float,
        help="learning rate (default: sgd moves the weights by 1e-5 of their norm; "
        "others 1e-6)",
    )
    made.add_argument(
        "--reference", help="model that the loss compares with (default: --model)"
    )
    made.add_argument(
        "--method",
        choices=["auto", "forward-mode", "finite difference"],
        help="how the change is predicted (default: auto, by trial)",
    )
    made.add_argument("--probes", help="probe file (default: built from the data)")
    made.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="kinds to watch (default: all)",
    )
    made.add_argument("--prompts", type=int, help="prompts to watch (default: 16)")
    made.add_argument(
        "--max-length",
        type=int,
        help="cut prompt + response to so many tokens (default: refuse to cut)",
    )
    made.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: float32)",
    )
    made.add_argument("--seed", type=int, help="seed of built probes (default: 0)")
    add_trust(made, None)
