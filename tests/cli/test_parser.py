"""Words on the command line: spellings, the nearest name, help, completion."""

import argparse
import subprocess
import sys
import warnings

import pytest

from learndyn.cli import main, make_parser
from learndyn.cli.parser import Parser, dashed, in_shell_form
from learndyn.cli.parts import plain_warnings


def commands(parser: Parser | None = None, before: str = "") -> dict[str, Parser]:
    """Every command by its words."""
    parser = parser or make_parser()
    named = {f"{before} {k}".strip(): one for k, one in parser.commands.items()}
    nested = [commands(one, name) for name, one in named.items()]
    return {k: one for part in (named, *nested) for k, one in part.items()}


COMMANDS = commands()
JOBS = [name for name, one in COMMANDS.items() if one.get_default("job")]


@pytest.mark.parametrize("name", JOBS)
def test_every_flag_has_a_text_and_its_default(name):
    parser = COMMANDS[name]
    for action in parser._actions:
        assert action.help, action.dest
        shown = parser._get_formatter()._get_help_string(action)
        switch = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
        if action.option_strings and not (switch or action.required):
            assert "(default" in shown or "(needed" in shown, action.dest


@pytest.mark.parametrize("name", JOBS)
def test_every_command_ends_its_help_with_an_example_that_parses(name):
    parser = COMMANDS[name]
    assert parser.format_help().rstrip().endswith(parser.epilog.rstrip())
    last = parser.epilog.split("\n\n")[0].replace("\\\n", "").split("\n")[-1]
    if last.strip().startswith("learndyn "):
        known, _ = make_parser().parse_known_args(last.split()[1:])
        assert known.job is parser.get_default("job")


def test_help_stands_in_groups(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for heading in ("data and model:", "probes: what", "watching:", "scoring:"):
        assert f"\n{heading}" in shown


@pytest.mark.parametrize("words", [[], ["probes"], ["paper"]], ids=" ".join)
def test_a_command_without_its_subcommand_shows_help_on_standard_error(words, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(" ".join(["usage: learndyn", *words]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprot", "x"], "has no command 'reprot'. Did you mean report"),
        (["probes", "biuld"], "has no command 'biuld'. Did you mean build?"),
        (["paper", "softmx"], "has no command 'softmx'. Did you mean softmax?"),
        (["report", "x", "--jsno"], "has no flag --jsno. Did you mean --json?"),
        (["score", "m", "--batch-size", "2"], "Did you mean --score-batch-size?"),
        (["probes", "build", "d", "--promts", "3"], "Did you mean --prompts?"),
        (["report", "x", "-z"], "unknown words: -z"),
        (["probes", "build", "d"], "the following arguments are required: --out"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(words, message, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_flags_are_understood_with_dashes_and_with_underscores():
    words = ["run", "--lora_rank=3", "--max-length", "9", "--full_every", "2"]
    known, left = make_parser().parse_known_args(dashed(words))
    assert (known.lora_rank, known.max_length, known.full_every, left) == (3, 9, 2, [])
    assert dashed(["a_b", "--x_y=a_b", "-z_z"]) == ["a_b", "--x-y=a_b", "-z_z"]


def test_names_are_refused_before_any_file_is_read(capsys):
    run = ["run", "dpo", "--config", "absent.yaml", "--loara-rank", "2"]
    assert main(run) == 2
    assert "Did you mean --lora-rank" in capsys.readouterr().err


def test_the_papers_commands_are_also_found_under_their_older_names(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "paper" in shown
    for name in ("softmax", "digits", "reproduce", "import"):
        assert f"\n    {name} " not in shown
        old, new = COMMANDS[name], COMMANDS[f"paper {name}"]
        assert old.get_default("job") is new.get_default("job")
        assert old.flags == new.flags


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_flags(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("reproduce", "--score-batch-size", "--lora-rank", "--baseline"):
        assert word in script


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from learndyn.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("full_every=5 needs panel=N.", "--full-every 5 needs --panel N."),
        (
            "Choose another out=, or overwrite=True.",
            "Choose another --out, or --overwrite.",
        ),
        ("every='often': give", "--every often: give"),
        ("panel=-1: give", "--panel -1: give"),
        ("give precision=None.", "give --precision exact."),
        ("Score(out=) and a/out=b stay", "Score(out=) and a/out=b stay"),
        ("rename={'a': 'chosen'} stays", "rename={'a': 'chosen'} stays"),
    ],
)
def test_a_message_speaks_of_flags_on_the_command_line(python, shell):
    names = ("every", "full-every", "panel", "out", "overwrite", "precision")
    assert in_shell_form(python, [f"--{name}" for name in names]) == shell


def test_a_warning_speaks_of_flags_too():
    with plain_warnings(lambda text: in_shell_form(text, ["--max-length"])):
        line = warnings.formatwarning("Raise max_length=.", UserWarning, "file", 1)
    assert line == "learndyn: warning: Raise --max-length.\n"
