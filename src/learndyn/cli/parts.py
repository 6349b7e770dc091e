"""What every command needs: silence, plain warnings, and answers in words or JSON."""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
def plain_warnings(worded: Callable[[str], str]) -> Iterator[None]:
    """Print warnings as errors are printed, each once, without a line of source.

    `worded` turns the text of each into what the command line says.
    """
    before, shown = warnings.formatwarning, set[str]()

    def plain(message: Warning | str, *_: Any, **__: Any) -> str:
        line = f"learndyn: warning: {worded(str(message))}\n"
        if line in shown:  # a command may read a run twice
            return ""
        shown.add(line)
        return line

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def print_json(value: Any) -> None:
    """One JSON object on standard output; NaN and infinity become null."""
    from learndyn.record.files import to_plain

    text = json.dumps(to_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    print(text)


def answer(args: argparse.Namespace, result: Any) -> None:
    """Print a command's result: for people, or with `--json` for programs."""
    if args.json:
        print_json(result.to_dict())
    else:
        print(result.to_text())


def tokenizer_of(source: str | None) -> Any:
    """The tokenizer of a folder or hub id; None without one."""
    if source is None:
        return None
    quiet()
    from learndyn.measure.load import load_tokenizer

    return load_tokenizer(source)
