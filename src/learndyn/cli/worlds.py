"""Subcommands of small worlds and of the paper: softmax, digits, reproduce."""

import argparse
from pathlib import Path
from typing import Any

from learndyn.cli.parts import answer, print_json, quiet, subcommand


def softmax(args: argparse.Namespace) -> None:
    """`learndyn softmax`."""
    from learndyn.paper.softmax.playground import write_playground

    page = write_playground(args.out, overwrite=args.overwrite)
    print_json({"page": str(page)}) if args.json else print(page)


def digits(args: argparse.Namespace) -> None:
    """`learndyn digits`."""
    from learndyn.paper.digits.page import write_digits

    found = write_digits(
        args.out, images=args.images, seed=args.seed, overwrite=args.overwrite
    )
    answer(args, found)


def reproduce(args: argparse.Namespace) -> None:
    """`learndyn reproduce`."""
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
    found = reproduce_all(settings, overwrite=args.overwrite)
    answer(args, found)


def add(found: Any) -> None:
    """The subcommands of this file and their flags."""
    about = "the squeezing effect on one softmax: figures and a page to play with"
    job = subcommand(found, "softmax", softmax, about)
    job.add_argument("--out", type=Path, default=Path("runs/softmax"))
    job.add_argument("--overwrite", action="store_true")

    about = "the paper's first figure: learning dynamics on images of digits"
    job = subcommand(found, "digits", digits, about)
    job.add_argument("--out", type=Path, default=Path("runs/digits"))
    job.add_argument(
        "--images",
        type=Path,
        help="folder of MNIST's IDX files (default: scikit-learn's 8 x 8 digits)",
    )
    job.add_argument("--seed", type=int, default=0)
    job.add_argument("--overwrite", action="store_true")

    about = "every figure of the paper, each beside its claim: passed, failed or N-A"
    job = subcommand(found, "reproduce", reproduce, about)
    job.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    job.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    job.add_argument("--model", help="folder or hub id (default: the embedded model)")
    job.add_argument("--data", help="preference data (default: the embedded world)")
    job.add_argument("--probes", help="probe file (default: built from the data)")
    job.add_argument(
        "--authors", type=Path, help="folder of the authors' result folders, instead"
    )
    job.add_argument("--images", type=Path, help="folder of MNIST's IDX files")
    job.add_argument("--jobs", type=int, help="processes at once (default: cores)")
    job.add_argument("--overwrite", action="store_true", help="start anew")
