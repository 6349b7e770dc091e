"""The two modes of `learndyn diagnose` keep their flags apart; `--fail-on` exits 3."""

import json

import pytest
from synthetic import write_run

from learndyn.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--data", "x", "--pairs", "0"], "--data, --pairs cannot be used"),
        (["RUN", "--out", "f", "--overwrite"], "--out, --overwrite cannot be used"),
        (["RUN", "--trust-remote-code"], "--trust-remote-code cannot be used"),
        (["--model", "m", "--data", "x", "--baseline", "b"], "--baseline needs a RUN"),
        (["--model", "m", "--data", "x", "--fail-on", "f"], "--fail-on needs a RUN"),
    ],
    ids=["data", "out", "code", "baseline", "fail-on"],
)
def test_diagnose_refuses_flags_of_its_other_mode(tmp_path, capsys, words, said):
    run = write_run(tmp_path / "run")
    assert main(["diagnose", *(str(run) if w == "RUN" else w for w in words)]) == 2
    assert said in capsys.readouterr().err


def test_diagnose_takes_a_split_in_either_mode(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main(["diagnose", str(run), "--split", "train"]) == 0
    assert capsys.readouterr().out


_RUNS = {
    "squeezed": {"drift": {"chosen": -6.0, "rejected": -40.0}},
    "perhaps": {"drift": {"chosen": -6.0, "rejected": -40.0}, "prompts": 1},
    "fits": {"drift": {"chosen": 16.0, "rejected": -4.0}},
    "exchanged": {"drift": {"chosen": -40.0, "rejected": 20.0}, "greedy": -1.0},
}
"""How the runs of these tests move."""


@pytest.mark.parametrize(
    ("run", "names", "status"),
    [
        ("squeezed", "squeeze", 3),
        ("squeezed", "displaced,squeeze", 3),
        ("squeezed", "displaced,collapse,fault", 0),
        ("perhaps", "squeeze", 0),
        ("fits", "squeeze,displaced,collapse,fault", 0),
        ("exchanged", "fault", 3),
        ("exchanged", "squeeze", 0),
    ],
)
def test_a_run_that_has_what_fail_on_names_exits_with_3(
    tmp_path, capsys, run, names, status
):
    path = str(write_run(tmp_path / "run", **_RUNS[run], log=False))
    assert main(["diagnose", path]) == 0
    whole = capsys.readouterr().out
    assert main(["diagnose", path, "--fail-on", names]) == status
    printed = capsys.readouterr()
    assert printed.out == whole
    assert ("learndyn: --fail-on:" in printed.err) == (status == 3)


def test_fail_on_says_why_and_prints_the_whole_json(tmp_path, capsys):
    path = str(write_run(tmp_path / "run", **_RUNS["squeezed"], log=False))
    assert main(["diagnose", path, "--fail-on", "SQUEEZE, fault", "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out)["state"] == "SQUEEZE"
    assert printed.err == "learndyn: --fail-on: the state is SQUEEZE, surely\n"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("squeze", "Did you mean squeeze?"),
        ("fault,fit", "'fit' is none of"),
        ("", "'' is none of"),
    ],
)
def test_fail_on_refuses_unknown_names_before_it_reads_the_run(capsys, names, said):
    assert main(["diagnose", "nowhere", "--fail-on", names]) == 2
    assert said in capsys.readouterr().err
