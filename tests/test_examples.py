"""Every example, run: on a tiny model made on the spot, or on a simulated run."""

import json
import runpy
from pathlib import Path

import pytest
from models import save_tiny
from runs import data
from synthetic import write_run


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_tiny(tmp_path_factory.mktemp("examples") / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": row.prompt, **row.responses} for row in data().rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def main_of(name: str):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path.name


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_dpo_with_the_callback_ends_in_a_diagnosis(model, pairs, tmp_path, capsys):
    main_of("dpo_with_callback.py")(model, pairs, str(tmp_path), updates=2)
    assert "What was looked for" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_parts_of_one_step_stand_beside_its_change(model, pairs, capsys):
    main_of("explain_one_step.py")(model, pairs, pairs=2)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["pull", "push", "predicted", "actual"]
    table = {row.split()[0]: [float(v) for v in row.split()[1:]] for row in rows}
    predicted, actual = table["chosen"][-2:]
    assert abs(predicted - actual) < 0.1 * abs(actual) + 2e-4


def test_two_runs_are_compared(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name, seed=i)) for i, name in enumerate("ab")]
    main_of("compare_two_runs.py")(*runs, str(tmp_path / "both"))
    assert "b against a" in capsys.readouterr().out
    assert (tmp_path / "both" / "compare.html").is_file()


def test_a_loop_of_ones_own_learns_what_it_trains_on(model, pairs, capsys):
    main_of("plain_loop.py")(model, pairs, updates=4, every=4)
    head, first, last = capsys.readouterr().out.splitlines()
    chosen = head.split().index("chosen")
    assert float(last.split()[chosen]) > float(first.split()[chosen])


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "demo" / "dpo")
    monkeypatch.chdir(tmp_path)
    book = json.loads((EXAMPLES / "diagnose_a_run.ipynb").read_text(encoding="utf-8"))
    names: dict = {}
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in book["cells"] if "outputs" in cell)
    for cell in cells:
        exec(cell, names)
    assert (tmp_path / "runs" / "demo" / "dpo" / "report.html").is_file()
    assert "<table>" in names["run"]._repr_html_()
