"""`learndyn diagnose`, `compare` and `report`: from run directories, without torch."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learndyn.cli.model import OF_FORESIGHT, flags_of, foresee_pairs
from learndyn.cli.parser import add_reading, add_trust, subcommand
from learndyn.cli.parts import answer, print_json
from learndyn.errors import BadInput, nearest
from learndyn.train.settings import DTYPES


if TYPE_CHECKING:
    from learndyn.diagnose.verdict import Diagnosis


_FAULT = "fault"
_FAIL_ON = ("squeeze", "displaced", "collapse", _FAULT)
"""What `diagnose --fail-on` may name: states, and any finding that is a problem."""

_FAILED = 3
"""Exit status of a run that has what `--fail-on` names."""


def _diagnose(args: argparse.Namespace) -> int:
    """`learndyn diagnose`."""
    if (args.run is None) == (args.model is None):
        raise BadInput(
            "diagnose needs a RUN, to say what happened in it, or --model and --data, "
            "to say before any training which pairs are likely to squeeze."
        )
    if args.run is None:
        if args.baseline is not None:
            raise BadInput(
                "--baseline needs a RUN to compare with it; --model is judged before "
                "any training."
            )
        if args.fail_on is not None:
            raise BadInput(
                "--fail-on needs a RUN to judge; --model is judged before any training."
            )
        answer(args, foresee_pairs(args))
        return 0
    given = _of_foresight(args)
    if given:
        raise BadInput(
            f"{given} cannot be used with a RUN: what happened in it is recorded. "
            "Leave the RUN out to judge pairs before any training of --model."
        )
    fail_on = _fail_on(args.fail_on)
    from learndyn.diagnose.verdict import diagnose as of_run
    from learndyn.record.trajectory import Trajectory

    baseline = None if args.baseline is None else Trajectory.load(args.baseline)
    result = of_run(Trajectory.load(args.run), baseline, split=args.split)
    answer(args, result)
    why = _why_failed(result, fail_on)
    if why:
        print(f"learndyn: --fail-on: {'; '.join(why)}", file=sys.stderr)
    return _FAILED if why else 0


def _fail_on(text: str | None) -> tuple[str, ...]:
    """The names of `--fail-on`, separated by commas; none where it is not given."""
    if text is None:
        return ()
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in _FAIL_ON:
            raise BadInput(
                f"--fail-on: {name!r} is none of {', '.join(_FAIL_ON)}."
                f"{nearest(name, _FAIL_ON, 1)}"
            )
    return names


def _why_failed(result: "Diagnosis", names: tuple[str, ...]) -> list[str]:
    """What the run has of `names`. A state that is not sure does not count."""
    problems = [item.name for item in result.findings if item.severity == "problem"]
    why = [f"fault: {', '.join(problems)}"] if problems and _FAULT in names else []
    state = result.state
    if state is not None and state.sure and state.state.lower() in names:
        why.insert(0, f"the state is {state.state}, surely")
    return why


def _of_foresight(args: argparse.Namespace) -> str:
    """The flags that were given and mean nothing with a RUN, as they are written."""
    names = [name for name in (*OF_FORESIGHT, "overwrite") if name != "split"]
    values = {name: getattr(args, name) for name in names}
    given = [k for k, v in values.items() if v is not None and v is not False]
    return flags_of(given)


def _compare(args: argparse.Namespace) -> None:
    """`learndyn compare`."""
    from learndyn.show.compare import compare as compare_runs

    result = compare_runs(*args.runs, out=args.out, overwrite=args.overwrite)
    answer(args, result)


def _report(args: argparse.Namespace) -> None:
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


def add(commands: Any) -> None:
    """The commands of this file and their flags."""
    _add_report(commands)
    _add_diagnose(commands)
    _add_compare(commands)


def _add_report(commands: Any) -> None:
    job = subcommand(
        commands,
        "report",
        _report,
        "write report.html from run directories",
        "learndyn report runs/dpo",
    )
    job.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories to show"
    )
    job.add_argument(
        "--out", type=Path, help="folder of the page (default: the run directory)"
    )
    job.add_argument(
        "--no-text",
        action="store_true",
        help="leave all texts off the page; the run itself keeps them",
    )
    job.add_argument(
        "--overwrite", action="store_true", help="replace a page of another program"
    )


def _add_diagnose(commands: Any) -> None:
    job = subcommand(
        commands,
        "diagnose",
        _diagnose,
        "say what happened in a run, whether it is a bug, and what to do",
        "learndyn diagnose runs/dpo --baseline runs/extend/dpo\n"
        "  learndyn diagnose --model gpt2 --data hh.jsonl",
    )
    after = job.add_argument_group("after training")
    after.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="run directory to diagnose"
    )
    after.add_argument(
        "--baseline", type=Path, help="a run to compare RUN with (default: none)"
    )
    after.add_argument(
        "--split",
        help="only probes of this split (default: all); with --model, of the "
        "data (default: train)",
    )
    after.add_argument(
        "--fail-on",
        metavar="NAME[,NAME]",
        help="exit with status 3, after the answer, if the state is surely one of "
        f"{', '.join(_FAIL_ON[:-1])}, or for {_FAULT} if any finding is a problem "
        "(default: none)",
    )
    before = job.add_argument_group("before any training, without a RUN")
    before.add_argument("--model", help="folder or hub id (default: none)")
    before.add_argument(
        "--data", help="preference pairs: file, folder or hub id (needed with --model)"
    )
    before.add_argument("--pairs", type=int, help="pairs to look at (default: 100)")
    add_reading(before, None)
    before.add_argument(
        "--max-length",
        type=int,
        help="cut prompt + response to so many tokens (default: the model's context)",
    )
    before.add_argument(
        "--max-prompt-length",
        type=int,
        help="cut the prompt to so many tokens (default: half of --max-length)",
    )
    before.add_argument(
        "--dtype", choices=DTYPES, help="precision of the weights (default: float32)"
    )
    add_trust(before, None)
    before.add_argument(
        "--out",
        type=Path,
        help="Parquet file to write, one row per pair (default: none)",
    )
    before.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_compare(commands: Any) -> None:
    job = subcommand(
        commands,
        "compare",
        _compare,
        "compare runs on the same probes: at equal updates, margin and gap",
        "learndyn compare runs/dpo runs/extend/dpo --out runs/page",
    )
    job.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run directories, the baseline first",
    )
    job.add_argument(
        "--out",
        type=Path,
        help="folder for compare.html and figures (default: none, words alone)",
    )
    job.add_argument(
        "--overwrite", action="store_true", help="replace a page of another program"
    )
