"""Subcommands that answer from what is recorded: diagnose, compare, import."""

import argparse
from pathlib import Path
from typing import Any

from learndyn.cli.parts import answer, quiet, subcommand
from learndyn.errors import BadInput


def diagnose(args: argparse.Namespace) -> None:
    """`learndyn diagnose`."""
    if (args.run is None) == (args.model is None):
        raise BadInput(
            "diagnose needs a RUN, to say what happened in it, or --model and --data, "
            "to say before any training which pairs are likely to squeeze."
        )
    if args.run is None:
        if args.baseline is not None:
            raise BadInput(
                "--baseline needs a RUN to compare with it: --model is looked at "
                "before any run."
            )
        found = _foresee(args)
    else:
        given = _of_foresight(args)
        if given:
            raise BadInput(
                f"{given} cannot be used with a RUN: what happened in it is recorded. "
                "Leave the RUN out to look at pairs before any training of --model."
            )
        from learndyn.diagnose.verdict import diagnose as of_run
        from learndyn.record.trajectory import Trajectory

        baseline = None if args.baseline is None else Trajectory.load(args.baseline)
        found = of_run(Trajectory.load(args.run), baseline, split=args.split)
    answer(args, found)


def _foresee(args: argparse.Namespace) -> Any:
    """Which pairs are likely to squeeze, from the model before training."""
    if args.data is None:
        raise BadInput("--model needs --data, the preference pairs to look at.")
    quiet()
    from learndyn.forces.foresight.foresight import Foreseen, foresee

    given = {name: getattr(args, name) for name in _OF_FORESIGHT}
    settings = Foreseen(**{k: v for k, v in given.items() if v is not None})
    return foresee(settings, overwrite=args.overwrite)


def _of_foresight(args: argparse.Namespace) -> str:
    """The flags that were given and mean nothing with a RUN, as they are written."""
    names = [name for name in (*_OF_FORESIGHT, "overwrite") if name != "split"]
    values = {name: getattr(args, name) for name in names}
    given = [k for k, v in values.items() if v is not None and v is not False]
    return ", ".join("--" + name.replace("_", "-") for name in given)


_OF_FORESIGHT = (
    *("model", "data", "split", "pairs", "empty", "mismatched", "max_length"),
    *("max_prompt_length", "dtype", "out", "trust_remote_code"),
)


def compare(args: argparse.Namespace) -> None:
    """`learndyn compare`."""
    from learndyn.show.compare import compare as compare_runs

    found = compare_runs(*args.runs, out=args.out, overwrite=args.overwrite)
    answer(args, found)


def import_authors(args: argparse.Namespace) -> None:
    """`learndyn import`."""
    from learndyn.paper.authors.import_folder import import_folder

    found = import_folder(
        args.folder, args.out, probes=args.probes, overwrite=args.overwrite
    )
    answer(args, found)


def add(found: Any) -> None:
    """The subcommands of this file and their flags."""
    _add_diagnose(found)
    _add_compare(found)
    _add_import(found)


def _add_diagnose(found: Any) -> None:
    about = "say what happened in a run, whether it is a bug, and what to do"
    job = subcommand(found, "diagnose", diagnose, about)
    job.add_argument("run", type=Path, nargs="?", metavar="RUN")
    job.add_argument("--baseline", type=Path, help="a run to compare RUN with")
    job.add_argument("--split", help="only probes of this split (default: all)")
    before = job.add_argument_group("before any training, without a RUN")
    before.add_argument("--model", help="folder or hub id")
    before.add_argument("--data", help="preference pairs: file, folder or hub id")
    before.add_argument("--pairs", type=int, help="how many (default: 100)")
    before.add_argument("--empty", choices=["error", "keep", "drop"])
    before.add_argument("--mismatched", choices=["error", "drop"])
    before.add_argument("--max-length", type=int)
    before.add_argument("--max-prompt-length", type=int)
    before.add_argument("--dtype", choices=["float32", "bfloat16", "float64"])
    before.add_argument("--out", type=Path, help="Parquet file, one row a pair")
    before.add_argument("--trust-remote-code", action="store_true", default=None)
    before.add_argument("--overwrite", action="store_true")


def _add_compare(found: Any) -> None:
    about = "compare runs on the same probes: at equal updates, margin and gap"
    job = subcommand(found, "compare", compare, about)
    job.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the baseline first"
    )
    job.add_argument("--out", type=Path, help="folder for compare.html and figures")
    job.add_argument("--overwrite", action="store_true")


def _add_import(found: Any) -> None:
    about = "make a run directory of a result folder of the paper's authors"
    job = subcommand(found, "import", import_authors, about)
    job.add_argument("folder", type=Path, metavar="DIR")
    job.add_argument("--out", type=Path, required=True, help="run directory to write")
    job.add_argument("--probes", type=Path, help="their probe file, for the texts")
    job.add_argument("--overwrite", action="store_true")
