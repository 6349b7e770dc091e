"""The command line: one command, one subcommand per job.

Answers go to standard output, progress and errors to standard error. Exit status: 0
done, 2 bad input (also a command that lacks its subcommand, which prints help), 3 a run
has what `learndyn diagnose --fail-on` names, 1 anything else.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from learndyn.cli import completion, model, paper, probes, read, run
from learndyn.cli.parser import Parser, check_names, dashed, in_shell_form
from learndyn.cli.parts import plain_warnings
from learndyn.errors import BadInput, NotInstalled


def make_parser() -> Parser:
    """All commands and their flags, in the order in which one uses them."""
    parser = Parser(
        prog="learndyn",
        description="See what each update of a finetuning run does to the answers you "
        "care about.",
        epilog="example:\n"
        "  learndyn run dpo --model gpt2 --data hh.jsonl --out runs/dpo\n"
        "  learndyn diagnose runs/dpo\n\n"
        "Each command has its own --help.",
    )
    parser.add_argument(
        "--version", action="version", version=version("learndyn"), help="print it"
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    groups = (probes.add, run.add, model.add, read.add, paper.add, completion.add)
    for add in groups:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # No telemetry leaves a user's machine because they watched a run.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = dashed(sys.argv[1:] if arguments is None else arguments)
    job, flags = None, list[str]()
    try:
        parser = make_parser()
        chosen = check_names(parser, words)
        flags = chosen.flags
        known, unknown = parser.parse_known_args(words)
        known.unknown = unknown
        job = getattr(known, "job", None)
        if job is None:
            chosen.print_help(sys.stderr)
            return 2
        if unknown and not chosen.get_default("takes_others"):
            chosen.error(f"unknown words: {' '.join(unknown)}")
        with plain_warnings(lambda text: in_shell_form(text, flags)):
            return job(known) or 0
    except BadInput as error:
        print(f"learndyn: {in_shell_form(str(error), flags)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = NotInstalled.of(error)
        if missing is None:
            raise
        print(f"learndyn: {missing}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # such as `| head`, which reads a few lines
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until the process ends
        return 1
    except OSError as error:
        print(f"learndyn: {in_shell_form(str(error), flags)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; continue this run with --resume" if job is run.run else ""
        print(f"learndyn: stopped{hint}", file=sys.stderr)
        return 1
