"""`learndyn probes build` and `check`: which responses to watch."""

import argparse
from pathlib import Path
from typing import Any

from learndyn.cli.parser import add_reading, group_of_commands, subcommand
from learndyn.cli.parts import answer, print_json, tokenizer_of


def _build(args: argparse.Namespace) -> None:
    """`learndyn probes build`."""
    from learndyn.probes.build import build_probes
    from learndyn.probes.data import read_data
    from learndyn.probes.kinds import AUTHORS_KINDS
    from learndyn.record.files import refuse_taken_file, write_whole

    refuse_taken_file(args.out, args.overwrite)
    options: dict[str, Any] = {
        "aliases": AUTHORS_KINDS,
        "empty": args.empty,
        "mismatched": args.mismatched,
        "tokenizer": tokenizer_of(args.tokenizer),
    }
    drawn = {"limit": args.limit, "seed": args.seed}
    train = read_data(args.data, split=args.split, **drawn, **options)
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


def _check(args: argparse.Namespace) -> None:
    """`learndyn probes check`."""
    from learndyn.probes.build import load_probes
    from learndyn.probes.check import check_probes
    from learndyn.probes.kinds import AUTHORS_KINDS

    tokenizer = tokenizer_of(args.tokenizer)
    probes = load_probes(
        args.file, aliases=AUTHORS_KINDS, empty="keep", tokenizer=tokenizer
    )
    result = check_probes(probes, tokenizer)
    answer(args, result)


def add(commands: Any) -> None:
    """The commands of this file and their flags."""
    inner = group_of_commands(commands, "probes", "build or check a probe set")
    _add_build(inner)
    _add_check(inner)


def _add_build(commands: Any) -> None:
    job = subcommand(
        commands,
        "build",
        _build,
        "make probes from preference data",
        "learndyn probes build hh.jsonl --prompts 500 --out probes.parquet",
    )
    data = job.add_argument_group("data")
    data.add_argument("data", metavar="DATA", help="file, folder or hub id")
    data.add_argument("--split", default="train", help="split to take prompts from")
    data.add_argument(
        "--limit",
        type=int,
        help="rows to use, drawn with --seed; `learndyn run` draws the same (default: "
        "all)",
    )
    data.add_argument(
        "--test-data", help="held-out data, for irrelevant_test (default: none)"
    )
    data.add_argument("--test-split", help="split of the held-out data (default: test)")
    add_reading(data, "error")
    data.add_argument(
        "--tokenizer",
        help="for chat messages: folder or hub id of the model whose template writes "
        "them (default: none)",
    )
    probes = job.add_argument_group("probes")
    probes.add_argument("--prompts", type=int, help="prompts to draw (default: all)")
    probes.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND",
        help="kinds of response to make (default: all)",
    )
    probes.add_argument(
        "--seed", type=int, default=0, help="seed that draws the rows and prompts"
    )
    output = job.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, required=True, help="Parquet file to write (needed)"
    )
    output.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_check(commands: Any) -> None:
    job = subcommand(
        commands,
        "check",
        _check,
        "report the confounds that fool people",
        "learndyn probes check probes.parquet --tokenizer Qwen/Qwen2.5-0.5B",
    )
    job.add_argument("file", metavar="FILE", help="probe file, or any wide file")
    job.add_argument(
        "--tokenizer",
        help="folder or hub id of the model whose tokenizer counts tokens and writes "
        "chat messages (default: none, so characters are counted)",
    )
