"""`import learndyn` is the one door: light, typed, and the same every time."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from runs import data
from synthetic import write_run

import learndyn
from learndyn.probes.build import build_probes
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


ROOT = Path(__file__).parents[1]
DOOR = ROOT / "src" / "learndyn" / "__init__.py"


def fresh(code: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter."""
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", learndyn.__all__)
def test_a_public_name_leads_to_what_is_meant(name):
    value = getattr(learndyn, name)
    assert name in dir(learndyn)
    if callable(value):
        assert value.__name__ == name
        assert value.__module__.startswith("learndyn.")
        assert value.__doc__


def test_type_checkers_see_the_same_names():
    typed: dict[str, str] = {}
    for node in ast.walk(ast.parse(DOOR.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("learn"):
            typed |= {str(a.asname): str(node.module) for a in node.names}
    assert typed == learndyn._MODULE_OF


def test_every_public_name_is_in_the_documents_or_an_example():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages += (ROOT / "examples").glob("*")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    missing = [n for n in learndyn._MODULE_OF if not re.search(rf"\b{n}\b", text)]
    assert missing == []


def test_documents_and_examples_import_from_the_door_alone():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages += (ROOT / "examples").glob("*")
    deep = [
        f"{page.name}: {line}"
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.search(r"(from|import) learndyn\.", line)
    ]
    assert deep == []


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'diagnoze'"):
        learndyn.diagnoze  # noqa: B018 - looked up, and not there


def test_the_door_loads_nothing_and_reading_loads_no_torch(tmp_path):
    run = write_run(tmp_path / "run")
    lines = fresh(
        "import sys; before = set(sys.modules)\n"
        "import learndyn\n"
        "print(*({m.split('.')[0] for m in set(sys.modules) - before}))\n"
        f"print(learndyn.diagnose({str(run)!r}))\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    ).splitlines()
    assert "numpy" not in lines[0]
    assert "pyarrow" not in lines[0]
    assert lines[-1] == "False False"


ORDERS = [
    "import learndyn.diagnose.intervals, learndyn; learndyn.diagnose('no/run')",
    "import learndyn; import learndyn.diagnose; learndyn.diagnose('no/run')",
    "from learndyn import diagnose; import learndyn.diagnose.paths as paths\n"
    "assert paths.__name__ == 'learndyn.diagnose.paths'; diagnose('no/run')",
    "from learndyn.diagnose.verdict import diagnose\n"
    "from learndyn import diagnose; diagnose('no/run')",
    "from learndyn.diagnose import intervals\n"
    "from learndyn import *\ndiagnose('no/run')",
]

IN_EACH_ORDER = """
import os, sys
import numpy, pyarrow.parquet  # as others load them, once
for order in sys.argv[1:]:
    child = os.fork()  # a process that has imported nothing of learndyn
    if child == 0:
        try:
            exec(order, {})
        except ValueError as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_diagnose_is_the_function_whichever_is_imported_first():
    assert fresh(IN_EACH_ORDER, *ORDERS).split() == ["BadInput"] * len(ORDERS)


def test_the_callback_imports_from_its_own_module_too():
    module = importlib.import_module("learndyn.train.callback")
    assert module.LearningDynamicsCallback is learndyn.LearningDynamicsCallback


def test_make_lint_checks_a_users_script_strictly():
    script = "tests/support/user_script.py"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert script in settings["tool"]["pyright"]["include"]
    assert (ROOT / script).read_text(encoding="utf-8").startswith("# pyright: strict\n")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\n\t$(BIN)/pyright --warnings\n" in makefile


def test_the_package_says_that_it_is_typed():
    assert (DOOR.parent / "py.typed").read_text(encoding="utf-8") == ""


# A path is taken wherever a run or a probe set is.


def test_a_path_a_run_directory_and_a_trajectory_are_the_same_run(tmp_path):
    path = write_run(tmp_path / "run")
    run = Trajectory.load(path)
    texts = {str(learndyn.diagnose(r)) for r in (path, str(path), run, run.run)}
    assert len(texts) == 1
    curves = [learndyn.change_curves(r)["chosen"].mean.tolist() for r in (path, run)]
    assert curves[0] == curves[1]


def test_runs_are_compared_by_path_or_loaded(tmp_path):
    one = write_run(tmp_path / "one", seed=0)
    other = write_run(tmp_path / "other", seed=1)
    by_path = learndyn.compare(one, str(other))
    assert str(by_path) == str(learndyn.compare(Trajectory.load(one), other))
    assert repr(by_path) == "ComparedRuns(other against one)"
    assert "other against one" in by_path._repr_html_()
    assert str(learndyn.diagnose(other, one)) == str(
        learndyn.diagnose(other, Trajectory.load(one))
    )


def test_a_report_is_written_from_any_of_them(tmp_path):
    path = write_run(tmp_path / "run")
    page = learndyn.write_report(path)
    assert page == path / "report.html"
    first = page.read_text(encoding="utf-8")
    for made in (
        Trajectory.load(path).report(),
        RunDirectory.open(path).report(),
        learndyn.write_report([Trajectory.load(path)]),
    ):
        assert made.read_text(encoding="utf-8") == first


def test_probes_are_taken_by_path(tmp_path):
    from models import byte_tokenizer

    probes = build_probes(data(), prompts=3)
    probes.save(tmp_path / "probes.parquet")
    path = tmp_path / "probes.parquet"
    tokenizer = byte_tokenizer()
    assert learndyn.tokenize(path, tokenizer) == learndyn.tokenize(probes, tokenizer)
    assert learndyn.check_probes(str(path)) == learndyn.check_probes(probes)
    callback = learndyn.LearningDynamicsCallback(path, out=tmp_path / "run")
    assert callback._probes == probes
    with pytest.raises(learndyn.BadInput):
        learndyn.LearningDynamicsCallback(tmp_path / "none.parquet", out="run")


# What a terminal and a notebook show.


def test_a_probe_set_prints_six_lines():
    shown = repr(build_probes(data(), data(6, "test"), prompts=3)).splitlines()
    assert shown[0] == "ProbeSet: 42 probes of 6 prompts (3 train, 3 test)"
    assert len(shown) == 6
    assert max(map(len, shown)) < 200


def test_what_a_run_shows_is_short(tmp_path):
    path = write_run(tmp_path / "run")
    for value in (Trajectory.load(path), RunDirectory.open(path)):
        assert len(repr(value).splitlines()) == 1
    diagnosis = learndyn.diagnose(path)
    assert repr(diagnosis).startswith(f"Diagnosis({diagnosis.run!r}: ")
    assert len(repr(diagnosis)) < 300
    assert str(diagnosis) == diagnosis.to_text()


def test_a_notebook_escapes_what_others_wrote(tmp_path):
    evil = "<script>alert(1)</script>"
    probes = learndyn.ProbeSet(
        tuple(
            learndyn.Probe(f"p{i}", kind, f"ask {i} {evil}", evil)
            for i in range(2)
            for kind in ("chosen", f"kind {evil}")
        )
    )
    path = write_run(tmp_path / "<script>alert(2)", texts={"response": evil})
    run = Trajectory.load(path)
    for value in (probes, run, learndyn.diagnose(run)):
        page = value._repr_html_()
        assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in probes._repr_html_()
    assert "&lt;script&gt;alert(2)" in run._repr_html_()
    assert "<td>chosen</td>" in run._repr_html_()


# What is not installed.


def test_what_measures_says_which_extra_it_needs():
    code = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import learndyn
from learndyn.cli import main
for name in ("score", "LearningDynamicsCallback", "capture_step", "foresee"):
    try:
        getattr(learndyn, name)
    except ImportError as error:
        assert "pip install 'learndyn[measure]'" in str(error), error
        assert isinstance(error, learndyn.BadInput)
    else:
        raise AssertionError(name)
print(main(["score", "model", "--probes", "x"]))
"""
    assert fresh(code).splitlines()[-1] == "2"
