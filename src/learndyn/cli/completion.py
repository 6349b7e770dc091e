"""`learndyn completion`: a script that completes commands and flags in a shell."""

import argparse
import itertools
from pathlib import Path
from typing import Any

from learndyn.cli.parser import subcommand


def _completion(args: argparse.Namespace) -> None:
    """`learndyn completion`."""
    import shtab

    from learndyn.cli import make_parser

    parser = make_parser()
    nested = [c.commands.values() for c in parser.commands.values()]
    for command in itertools.chain(parser.commands.values(), *nested):
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))


def add(commands: Any) -> None:
    """The command of this file."""
    job = subcommand(
        commands,
        "completion",
        _completion,
        "print a script that completes commands and flags in a shell",
        'eval "$(learndyn completion bash)"',
    )
    job.add_argument(
        "shell", choices=["bash", "zsh", "tcsh"], help="shell to write it for"
    )
