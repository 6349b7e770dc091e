"""Parsing words into a job: groups of flags, defaults in help, and the nearest name."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from learndyn.errors import BadInput
from learndyn.train.schedule import Every


_MEANT = {
    "batch-size": "--per_device_train_batch_size (training) or --score-batch-size "
    "(scoring)",
    "lr": "--learning_rate",
    "epochs": "--num_train_epochs",
    "steps": "--max_steps",
}
"""What people type whose real name no comparison of letters finds."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Every flag with its default, unless its text has it; examples line by line."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        # by identity: 0 is a default that one wants to read, and equals False
        plain = any(action.default is one for one in (None, False, argparse.SUPPRESS))
        plain = plain or action.required
        if plain or not action.option_strings or "(default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong in one line.

    It takes no abbreviations: --lr must not become --lora-rank, nor --beta a flag of
    ours.
    """

    def __init__(self, **options: Any) -> None:
        options = {"allow_abbrev": False, "formatter_class": _Help, **options}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Refuse what cannot be parsed."""
        raise BadInput(f"{message}. See `{self.prog} --help`.")

    @property
    def flags(self) -> list[str]:
        """All long flags."""
        names = (name for action in self._actions for name in action.option_strings)
        return [name for name in names if name.startswith("--")]

    @property
    def commands(self) -> "dict[str, Parser]":
        """Its subcommands by name; none of a command that does something itself."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}


def subcommand(
    commands: Any,
    name: str,
    job: Callable[[argparse.Namespace], int | None],
    about: str,
    example: str,
    *,
    hidden: bool = False,
) -> Parser:
    """Add a command that runs `job`, with `--json`; a hidden one is not listed.

    `job` returns the exit status; None is 0.
    """
    parser = commands.add_parser(
        name,
        description=about[:1].upper() + about[1:] + ".",
        epilog=f"example:\n  {example}",
        **({} if hidden else {"help": about}),
    )
    parser.set_defaults(job=job)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object to standard output"
    )
    return parser


def group_of_commands(commands: Any, name: str, about: str) -> Any:
    """Add a command that has subcommands, and does nothing without one."""
    text = about[:1].upper() + about[1:] + "."
    note = f"`learndyn {name} COMMAND --help` says more of each."
    parser = commands.add_parser(name, help=about, description=text, epilog=note)
    return parser.add_subparsers(metavar="COMMAND")


def add_reading(group: Any, default: str | None) -> None:
    """How unusable rows are read; `default` None leaves it to the job."""
    group.add_argument(
        "--empty",
        choices=["error", "keep", "drop"],
        default=default,
        help="empty responses: stop, score the end-of-text token alone, or leave them "
        "out (default: error)",
    )
    group.add_argument(
        "--mismatched",
        choices=["error", "drop"],
        default=default,
        help="rows whose chosen and rejected answer different prompts: stop, or leave "
        "them out (default: error)",
    )


def add_trust(group: Any, default: bool | None) -> None:
    """Whether code that comes with a model may run; None leaves it to the job."""
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=default,
        help="run code that comes with the model",
    )


def add_settings(parser: Parser, config: type, groups: dict[str, str]) -> None:
    """A flag for every field of a settings dataclass, under its group's heading.

    What is not given stays out of the parsed names, so that a YAML file decides it.
    """
    hints = get_type_hints(config)
    headings = {
        name: parser.add_argument_group(heading) for name, heading in groups.items()
    }
    for one in fields(config):
        if "group" in one.metadata and one.metadata.get("flag", True):
            headings[one.metadata["group"]].add_argument(
                f"--{one.name.replace('_', '-')}",
                default=argparse.SUPPRESS,
                help=_text(one),
                **_kind(hints[one.name]),
                **{k: one.metadata[k] for k in _ARGPARSE if k in one.metadata},
            )


_ARGPARSE = ("choices", "metavar")


def _text(one: Field[Any]) -> str:
    """The text of a field, with its default."""
    text = one.metadata["help"]
    if one.default is None or one.default is False or "(needed)" in text:
        return text
    return text if "(default" in text else f"{text} (default: {one.default})"


def _kind(hint: Any) -> dict[str, Any]:
    """How argparse reads the values of a type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint == Every:
        return {"type": _updates, "metavar": "K"}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) in (Union, UnionType):
        return _kind(get_args(hint)[0])
    if get_origin(hint) is list:
        return {"nargs": "+"}
    return {"type": hint}


def _updates(text: str) -> int | str:
    if text != "log" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of updates nor log"
        )
    return text if text == "log" else int(text)


def dashed(words: Iterable[str]) -> list[str]:
    """Flags with dashes, however they were typed: --lora_rank is --lora-rank."""
    return [re.sub(r"^--[^=]+", _with_dashes, word) for word in words]


def _with_dashes(match: re.Match[str]) -> str:
    return match[0].replace("_", "-")


def check_names(parser: Parser, words: Sequence[str]) -> Parser:
    """The parser of the command that `words` name.

    Raises:
        BadInput: if a command or a flag does not exist, with the nearest that does.
            The flags of a command that takes others' too are its own job.
    """
    left = list(words)
    while parser.commands and left and not left[0].startswith("-"):
        name = left.pop(0)
        if name not in parser.commands:
            raise BadInput(
                f"`{parser.prog}` has no command {name!r}."
                f"{_nearest_of(name, parser.commands)} See `{parser.prog} --help`."
            )
        parser = parser.commands[name]
    if not parser.get_default("takes_others"):
        for word in left:
            name = word.partition("=")[0]
            if word.startswith("--") and word != "--" and name not in parser.flags:
                refuse_flag(name, parser.flags, parser.prog)
    return parser


def refuse_flag(name: str, known: Iterable[str], command: str) -> NoReturn:
    """Refuse an unknown flag, and name the nearest ones."""
    raise BadInput(
        f"`{command}` has no flag {name}.{_nearest_of(name, known)} See `{command} "
        "--help`."
    )


def _nearest_of(name: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" among names in either spelling, or ""."""
    plain = {k.removeprefix("--").replace("_", "-"): k for k in known}
    name = name.removeprefix("--").replace("_", "-")
    if _MEANT.get(name, "").split(" ")[0] in plain.values():
        return f" Did you mean {_MEANT[name]}?"
    close = difflib.get_close_matches(name, plain, n=2)
    return f" Did you mean {' or '.join(plain[k] for k in close)}?" if close else ""


def in_shell_form(text: str, flags: Iterable[str]) -> str:
    """A message with settings as a shell takes them.

    Everything below the command line says `panel=8` or `out=`, as Python does. For
    flags of the command that is `--panel 8`, `--out`, and `--resume` for `resume=True`.
    """
    names = (flag.removeprefix("--").replace("-", "_") for flag in flags)
    one_of = "|".join(sorted(names, key=len, reverse=True))
    # neither inside a path or a flag, nor an argument of a call such as score(out=)
    start = r"(?<![\w./-])(?<!\w\()"
    value = r"""('[^'\n]*'|"[^"\n]*"|-?[\w.]*\w|)"""

    def flag(match: re.Match[str]) -> str:
        value = match[2].strip("'\"")
        words = [f"--{match[1].replace('_', '-')}"]
        if value == "None":  # the one setting whose None has a name in a shell
            words.append("exact" if match[1] == "precision" else value)
        elif value and value != "True":
            words.append(value)
        return " ".join(words)

    return re.sub(rf"{start}({one_of})={value}", flag, text)
