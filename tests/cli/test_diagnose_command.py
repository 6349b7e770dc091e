"""The two modes of `learndyn diagnose` keep their flags apart."""

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
    ],
    ids=["data", "out", "code", "baseline"],
)
def test_diagnose_refuses_flags_of_its_other_mode(tmp_path, capsys, words, said):
    run = write_run(tmp_path / "run")
    assert main(["diagnose", *(str(run) if w == "RUN" else w for w in words)]) == 2
    assert said in capsys.readouterr().err


def test_diagnose_takes_a_split_in_either_mode(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert main(["diagnose", str(run), "--split", "train"]) == 0
    assert capsys.readouterr().out
