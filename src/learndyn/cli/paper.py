"""`learndyn paper`: the paper's figures and claims, and its authors' result folders."""

import argparse
from pathlib import Path
from typing import Any

from learndyn.cli.parser import group_of_commands, subcommand
from learndyn.cli.parts import answer, print_json, quiet


def _softmax(args: argparse.Namespace) -> None:
    """`learndyn paper softmax`."""
    from learndyn.paper.softmax.playground import write_playground

    page = write_playground(args.out, overwrite=args.overwrite)
    print_json({"page": str(page)}) if args.json else print(page)


def _digits(args: argparse.Namespace) -> None:
    """`learndyn paper digits`."""
    from learndyn.paper.digits.page import write_digits

    result = write_digits(
        args.out, images=args.images, seed=args.seed, overwrite=args.overwrite
    )
    answer(args, result)


def _reproduce(args: argparse.Namespace) -> None:
    """`learndyn paper reproduce`."""
    quiet()
    from learndyn.paper.reproduce import (
        ReproduceSettings,
        reproduce as reproduce_all,
    )

    settings = ReproduceSettings(
        out=args.out,
        seeds=tuple(args.seeds),
        model=args.model,
        data=args.data,
        probes=args.probes,
        authors=args.authors,
        images=args.images,
        jobs=args.jobs,
    )
    result = reproduce_all(settings, overwrite=args.overwrite)
    answer(args, result)


def _import_authors(args: argparse.Namespace) -> None:
    """`learndyn paper import`."""
    from learndyn.paper.authors.import_folder import import_folder

    result = import_folder(
        args.folder, args.out, probes=args.probes, overwrite=args.overwrite
    )
    answer(args, result)


def add(commands: Any) -> None:
    """`learndyn paper`, its commands, and their older names, which are not listed."""
    inner = group_of_commands(
        commands,
        "paper",
        "draw the paper's figures beside its claims, and import its authors' results",
    )
    for group, hidden in ((inner, False), (commands, True)):
        _add_reproduce(group, hidden)
        _add_softmax(group, hidden)
        _add_digits(group, hidden)
        _add_import(group, hidden)


def _add_reproduce(commands: Any, hidden: bool) -> None:
    job = subcommand(
        commands,
        "reproduce",
        _reproduce,
        "draw every figure of the paper and judge its claim: passed, failed or N-A",
        "learndyn paper reproduce --out runs/reproduce --seeds 0 1 2",
        hidden=hidden,
    )
    _add_out(job, "runs/reproduce", "delete the reproduction there and start anew")
    job.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds; each trains its own set of runs (default: 0 1 2)",
    )
    job.add_argument("--model", help="folder or hub id (default: the embedded model)")
    job.add_argument("--data", help="preference data (default: the embedded world)")
    job.add_argument("--probes", help="probe file (default: built from the data)")
    job.add_argument(
        "--authors",
        type=Path,
        help="folder of the authors' result folders: draw these and train nothing "
        "(default: none)",
    )
    job.add_argument(
        "--images",
        type=Path,
        help="folder of MNIST's IDX files (default: scikit-learn's 8 x 8 digits)",
    )
    job.add_argument(
        "--jobs",
        type=int,
        help="processes at once (default: one per core; with --model: 1)",
    )


def _add_softmax(commands: Any, hidden: bool) -> None:
    job = subcommand(
        commands,
        "softmax",
        _softmax,
        "draw the squeezing effect on one softmax, with a page to play with",
        "learndyn paper softmax --out runs/softmax",
        hidden=hidden,
    )
    _add_out(job, "runs/softmax", "replace what is there")


def _add_digits(commands: Any, hidden: bool) -> None:
    job = subcommand(
        commands,
        "digits",
        _digits,
        "draw the paper's first figure: learning dynamics on images of digits",
        "learndyn paper digits --out runs/digits",
        hidden=hidden,
    )
    _add_out(job, "runs/digits", "replace what is there")
    job.add_argument(
        "--images",
        type=Path,
        help="folder of MNIST's IDX files (default: scikit-learn's 8 x 8 digits)",
    )
    job.add_argument(
        "--seed", type=int, default=0, help="first of three seeds in a row"
    )


def _add_import(commands: Any, hidden: bool) -> None:
    job = subcommand(
        commands,
        "import",
        _import_authors,
        "make a run directory from a result folder of the paper's authors",
        "learndyn paper import exp_results/prob_pythia410m_dpo --out runs/authors",
        hidden=hidden,
    )
    job.add_argument("folder", type=Path, metavar="DIR", help="their result folder")
    job.add_argument(
        "--out", type=Path, required=True, help="run directory to write (needed)"
    )
    job.add_argument(
        "--probes", type=Path, help="their probe file, for the texts (default: none)"
    )
    job.add_argument("--overwrite", action="store_true", help="replace the run there")


def _add_out(job: argparse.ArgumentParser, folder: str, overwrite: str) -> None:
    job.add_argument("--out", type=Path, default=Path(folder), help="folder to write")
    job.add_argument("--overwrite", action="store_true", help=overwrite)
