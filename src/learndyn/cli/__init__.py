"""The command line: one command, one subcommand per job.

Answers go to standard output, progress and errors to standard error. Exit status: 0
done, 2 bad input, 1 anything else.
"""

import os
import sys
from collections.abc import Sequence

from learndyn.cli import jobs
from learndyn.cli.options import make_parser
from learndyn.cli.parts import plain_warnings
from learndyn.errors import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    # No telemetry leaves a user's machine because they watched a run.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = make_parser()
    known, unknown = parser.parse_known_args(arguments)
    try:
        if unknown and known.job is not jobs.run:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        known.unknown = unknown
        with plain_warnings():
            known.job(known)
    except BadInput as error:
        print(f"learndyn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until the process ends
        return 1
    except OSError as error:
        print(f"learndyn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; continue this run with --resume" if known.job is jobs.run else ""
        print(f"learndyn: stopped{hint}", file=sys.stderr)
        return 1
    return 0
