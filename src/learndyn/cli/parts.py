"""What every subcommand needs: a parser of its own, silence, and JSON."""

import argparse
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from learndyn.errors import BadInput


def subcommand(
    found: Any, name: str, job: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """Add a subcommand that runs `job`, with `--json`."""
    # No abbreviations: --lr must not become --lora-rank, nor --beta a flag of ours.
    parser = found.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(job=job)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object to standard output"
    )
    return parser


def quiet() -> None:
    """Keep transformers' and datasets' own bars and notes off the screen."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # other libraries' use of each other's old names is nothing a user can mend
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        import datasets
    except ImportError:
        return
    datasets.disable_progress_bars()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as errors are printed, each once, without a line of source."""
    before, said = warnings.formatwarning, set[str]()

    def plain(message: Warning | str, *_: Any, **__: Any) -> str:
        line = f"learndyn: warning: {message}\n"
        if line in said:  # a run that a command reads twice is told of once
            return ""
        said.add(line)
        return line

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def shell_form(names: Iterable[str]) -> Iterator[None]:
    """Messages about settings as one types them: panel=N becomes --panel N."""
    one_of = "|".join(sorted(names, key=len, reverse=True))
    try:
        yield
    except BadInput as error:

        def flag(match: re.Match[str]) -> str:
            return f"--{match[1].replace('_', '-')} {match[2].strip(chr(39))}"

        text = re.sub(rf"\b({one_of})=('[^']*'|[\w.]+)", flag, str(error))
        raise BadInput(text) from error


def print_json(value: Any) -> None:
    """One JSON object on standard output; NaN and infinity become null."""
    from learndyn.record.files import to_plain

    text = json.dumps(to_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    print(text)


def answer(args: argparse.Namespace, found: Any) -> None:
    """Print what a command found: for people, or with `--json` for programs."""
    if args.json:
        print_json(found.to_dict())
    else:
        print(found.to_text())
