"""Adding a finding touches one file and the list: nothing else knows its name."""

import ast
import re
from pathlib import Path

from synthetic import write_run

from learndyn.diagnose import verdict
from learndyn.diagnose.findings import finding as base
from learndyn.record.trajectory import Trajectory


FOLDER = Path(base.__file__).parent
SOURCE = Path(verdict.__file__).parents[1]


def subclasses(kind):
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in subclasses(sub))]


def texts(path):
    """Every string of a file that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in strings if id(node) not in docs}


def test_every_finding_is_listed_once_under_a_name_of_its_own():
    named = [kind for kind in subclasses(base.Finding) if "name" in vars(kind)]
    assert set(named) == set(verdict.FINDINGS)
    names = [kind.name for kind in verdict.FINDINGS]
    assert len(names) == len(set(names))


def test_no_other_file_says_a_finding_s_name():
    # Names that are ordinary words of the package as well ("panel", "state") are left.
    home = {k.name: k.__module__ for k in verdict.FINDINGS if "_" in k.name}
    assert len(home) > 10
    wrong = [
        f"{path.relative_to(SOURCE)}: {name}"
        for room in ("diagnose", "show", "cli", "world")
        for path in sorted((SOURCE / room).rglob("*.py"))
        for name in home.keys() & texts(path)
        if home[name].rpartition(".")[2] != path.stem
    ]
    # names of numbers of another finding
    assert wrong == [
        "diagnose/findings/faults/steps_too_large.py: not_finite",
        "diagnose/findings/state.py: per_token",
    ]


def test_every_finding_is_looked_for_in_one_way():
    for path in FOLDER.glob("*.py"):
        for found in re.findall(r"def detect\((.*?)\)", path.read_text("utf-8")):
            assert found == "cls, facts: Facts", path.name


def test_a_finding_that_is_listed_speaks_and_one_that_is_not_is_silent(
    tmp_path, monkeypatch
):
    def coloured(colour, how):
        class Coloured(base.Finding):
            name = colour
            fault = f"Everything is {colour}."

            @classmethod
            def detect(cls, facts):
                return cls(how, f"{colour} everywhere.")

        return Coloured

    def verdict_with(*kinds):
        monkeypatch.setattr(verdict, "FINDINGS", kinds)
        return verdict.diagnose(run)

    run, listed = Trajectory.load(write_run(tmp_path / "run")), verdict.FINDINGS
    before = verdict.diagnose(run)
    sign = verdict_with(*listed, coloured("green", "watch"))
    assert sign.sentences[0] == before.sentences[0]
    assert "green everywhere." in sign.sentences
    assert sign.findings[:-1] == before.findings
    # a problem comes before any state, wherever it is listed, and the first before all
    purple = coloured("purple", "problem")
    last = verdict_with(*listed, purple)
    assert last.sentences[0] == "Everything is purple."
    assert before.sentences[0] in last.sentences
    two = verdict_with(coloured("red", "problem"), *listed, purple)
    assert two.sentences[0] == "Everything is red."


def test_what_matters_least_is_left_out_first(tmp_path, monkeypatch):
    run = Trajectory.load(write_run(tmp_path / "run", prompts=4))
    whole = verdict.diagnose(run).sentences
    order = []
    for room in range(1, verdict._MOST + 1):
        monkeypatch.setattr(verdict, "_MOST", room)
        sentences = verdict.diagnose(run).sentences
        assert sentences == [text for text in whole if text in sentences]
        order += [text for text in sentences if text not in order]
    starts = (
        *("Chosen fell", "Probably not a bug", "State after", "Rejected changed by"),
        *("Only 4 prompts", "The model's present favourite", "Of 3 watched kinds"),
    )
    assert [s.startswith(t) for s, t in zip(order, starts, strict=True)] == [True] * 7
