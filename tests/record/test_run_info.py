"""run.json: entries have types, whatever the file holds, and none of them is lost."""

import json
import re
from pathlib import Path

from hypothesis import given, strategies as st
from synthetic import information, write_run

import learndyn
from learndyn.record.run_directory import RunDirectory
from learndyn.record.run_info import RunInfo


NAMES = ("method", "every", "trainer", "beta", "route", "imported", "defects", "data")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_entries_are_read_once_as_what_they_are():
    trainer = {"learning_rate": 5e-6, "beta": 0.2}
    info = RunInfo.of(
        information(
            method="extend-SFT", every=25, trainer=trainer, data={"sha256": "a"}
        )
    )
    assert (info.sft, info.every, info.beta, info.data_sha256) == (True, 25, 0.2, "a")
    assert info.learning_rate == 5e-6
    assert RunInfo.of({"beta": 0.1, "trainer": trainer}).beta == 0.1
    assert RunInfo.of({"vocabulary": 9}).vocabulary == 9
    assert RunInfo.of({"vocabulary": 9, "imported": {"a": 1}}).vocabulary is None


@given(entries=st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON))
def test_no_entry_is_too_odd_to_be_read(entries):
    info = RunInfo.of(entries)
    assert repr(dict(info)) == repr(entries)
    assert isinstance(info.method, str)
    assert info.every is None or isinstance(info.every, int | str)
    assert info.every is not True
    assert info.beta is None or isinstance(info.beta, float)
    info.missing_steps([0, 5])


def test_unknown_entries_are_written_back_in_their_order(tmp_path):
    path = write_run(tmp_path / "run", info={"zebra": [1], "every": "log", "a": None})
    before = json.loads((path / "run.json").read_text("utf-8"))
    RunDirectory.open(path).update_info(finished=False)
    after = json.loads((path / "run.json").read_text("utf-8"))
    assert list(after) == list(before)
    assert after == before | {"finished": False}


def test_nobody_reads_run_json_by_a_name_in_quotes():
    source = Path(learndyn.__file__).parent
    wrong = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in sorted(source.rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\brun\.info(\[|\.get\()", line)
    ]
    assert wrong == []
