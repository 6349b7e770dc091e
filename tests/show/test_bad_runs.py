"""Damaged runs: what can be shown is shown, loudly; what cannot is named."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import write_run

from learndyn.cli import main
from learndyn.diagnose.changes import change_curves
from learndyn.diagnose.verdict import diagnose
from learndyn.errors import BadInput
from learndyn.record.observation import PROBE_COLUMNS
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


STEPS = (0, 25, 50, 75, 100)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in which all is well."""
    path, info = tmp_path_factory.mktemp("whole") / "run", {"every": 25}
    return write_run(path, prompts=12, steps=STEPS, info={**info, "final_step": 100})


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Pages without drawings: these take longer than all that is tested here."""
    monkeypatch.setattr("learndyn.show.report.report.save", lambda *_: None)
    monkeypatch.setattr("learndyn.show.report.report.figure", lambda *_: "")
    monkeypatch.setattr("learndyn.show.compare.save", lambda *_: None)
    monkeypatch.setattr("learndyn.show.compare.figure", lambda *_: "")


def observation(run, step):
    return run / "observations" / f"step-{step:08d}.parquet"


def rewrite(path, change):
    """Let `change` make another table of a file."""
    with pq.ParquetFile(path) as file:
        table = file.read()
    pq.write_table(change(table), path)


def cut_in_two(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def another_format(path):
    path.write_text("step,logp\n50,-3.2\n")


def without_a_column(path):
    rewrite(path, lambda table: table.drop_columns(["argmax_logp"]))


def with_text_for_numbers(path):
    def change(table):
        words = pa.array(["about -60"] * table.num_rows)
        at = table.column_names.index("logp")
        return table.set_column(at, "logp", words)

    rewrite(path, change)


DAMAGE = (cut_in_two, emptied, another_format, without_a_column, with_text_for_numbers)
NAMES = [damage.__name__ for damage in DAMAGE]

LEFT_OUT = "The observation at update 50 is left out"


@pytest.mark.parametrize("damage", DAMAGE, ids=NAMES)
def test_an_unreadable_observation_is_left_out_and_the_others_shown(run, whole, damage):
    damage(observation(run, 50))
    with pytest.warns(UserWarning, match=LEFT_OUT):
        found = Trajectory.load(run)
    assert found.steps.tolist() == [0, 25, 75, 100]
    (said,) = found.unreadable
    assert said.startswith(LEFT_OUT)
    assert "step-00000050.parquet" in said
    assert "\n" not in said
    there = Trajectory.load(whole)
    assert there.unreadable == ()
    for name in PROBE_COLUMNS:
        rest = np.delete(there.columns[name], 2, axis=0)
        np.testing.assert_array_equal(found.columns[name], rest)
    np.testing.assert_array_equal(
        change_curves(found)["chosen"].mean,
        np.delete(change_curves(there)["chosen"].mean, 2),
    )


@pytest.mark.parametrize("damage", DAMAGE, ids=NAMES)
def test_without_the_first_observation_nothing_is_shown(run, damage):
    damage(observation(run, 0))
    with pytest.raises(BadInput, match="It is the first observation") as caught:
        Trajectory.load(run)
    assert "step-00000000.parquet" in str(caught.value)


def test_the_page_the_diagnosis_and_a_warning_say_what_was_left_out(run, whole, capsys):
    cut_in_two(observation(run, 50))
    emptied(observation(run, 100))
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("is left out: cannot read") >= 2
    assert "update 100 is left out" in page
    capsys.readouterr()
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert main(["diagnose", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (named,) = [f for f in told["findings"] if f["name"] == "unreadable"]
    assert LEFT_OUT in named["says"]
    assert named["numbers"]["count"] == 2
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert main(["compare", str(whole), str(run)]) == 0
    printed = capsys.readouterr().out
    assert LEFT_OUT in printed
    assert "At equal updates (75)" in printed


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ((50,), "1 observation is missing, at update 50:"),
        ((25, 75, 100), "3 observations are missing, at update 25, 75, 100:"),
    ],
    ids=["one", "three"],
)
def test_an_observation_that_is_missing_is_missed(run, whole, capsys, gone, named):
    for step in gone:
        observation(run, step).unlink()
    found = Trajectory.load(run)
    assert found.steps.tolist() == [s for s in STEPS if s not in gone]
    assert found.missing == gone
    assert found.unreadable == ()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"<p class='note'>{named}" in page
    assert f"{len(found.steps)} observations" in page
    capsys.readouterr()
    assert main(["diagnose", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (finding,) = [f for f in told["findings"] if f["name"] == "missing"]
    assert finding["says"].startswith(named)
    assert "one every 25" in finding["says"]
    assert finding["numbers"]["count"] == len(gone)
    assert any(sentence.startswith(named) for sentence in told["verdict"])
    assert told["state"] is not None
    assert main(["compare", str(whole), str(run)]) == 0
    assert f"run: {named}" in " ".join(capsys.readouterr().out.split())


def test_nothing_is_missed_where_a_file_is_there_but_broken_or_nothing_is_due(run):
    assert Trajectory.load(run).missing == ()
    cut_in_two(observation(run, 50))
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert Trajectory.load(run).missing == ()
    observation(run, 50).unlink()
    RunDirectory.open(run).update_info(every="log")
    found = Trajectory.load(run)
    assert found.missing == ()
    assert not any(f.name == "missing" for f in diagnose(found).findings)


@pytest.mark.parametrize("command", ["report", "diagnose", "compare"])
def test_a_warning_is_one_plain_line_without_source_code(run, whole, command):
    cut_in_two(observation(run, 50))
    more = {"report": ["--json"], "compare": [str(whole)]}.get(command, [])
    done = subprocess.run(
        [sys.executable, "-m", "learndyn", command, str(run), *more],
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if LEFT_OUT in line]
    assert len(said) == 1
    assert said[0].startswith(f"learndyn: warning: {LEFT_OUT}")
    assert "UserWarning" not in done.stderr
    assert "warnings.warn" not in done.stderr
    assert "Trajectory.load" not in done.stderr


def test_half_a_run_is_shown_as_what_it_is(run, capsys):
    for step in (75, 100):
        observation(run, step).unlink()
    RunDirectory.open(run).update_info(finished=False)
    with (run / "train.jsonl").open("ab") as log:
        log.write(b'{"step": 60, "loss": 0.')
    (run / "observations" / ".step-00000075.parquet.tmp").write_bytes(b"PAR1")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "not finished: its last observation is at update 50" in page
    assert main(["diagnose", str(run)]) == 0
    assert "State after 50 updates: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("share", [0.1, 1.0], ids=["some", "all"])
def test_lost_numbers_are_counted_and_never_shown_as_numbers(run, capsys, share):
    def change(table):
        values = table["logp"].to_numpy().copy()
        values[: max(1, int(share * len(values)))] = np.nan
        at = table.column_names.index("logp")
        return table.set_column(at, "logp", pa.array(values))

    rewrite(observation(run, 100), change)
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert re.search(r"\bnan\b", page.lower()) is None
    assert main(["diagnose", str(run), "--json"]) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed[printed.index("{") :])
    assert any("not finite" in finding["says"] for finding in told["findings"])
    assert (told["state"] is None) == (share == 1.0)


def test_null_is_read_as_unknown(run):
    def change(table):
        values = [None, *table["logp"].to_pylist()[1:]]
        at = table.column_names.index("logp")
        return table.set_column(at, "logp", pa.array(values, pa.float64()))

    rewrite(observation(run, 50), change)
    found = Trajectory.load(run)
    assert np.isnan(found.columns["logp"][2, 0])
    assert np.isfinite(found.columns["logp"][:, 1:]).all()
    assert found.lost.sum() == 1


def test_one_observation_shows_what_there_is(run, whole, capsys):
    for step in STEPS[1:]:
        observation(run, step).unlink()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "One observation so far, at update 0" in page
    assert main(["diagnose", str(run)]) == 0
    assert "no change can be shown yet" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(whole), str(run)]) == 2
    assert "has one observation, at update 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "diagnose", "compare"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no_run", "is not a run directory: it has no run.json"),
        ("no_observation", "has no observation yet"),
        ("no_probes", "has no probes.parquet"),
        ("broken_probes", "cannot read"),
        ("other_probes", "belongs to another run"),
        ("fewer_probes", "probes.parquet has 33"),
        ("other_schema", "schema version 7; this learndyn reads version 1"),
        ("broken_json", "cannot read"),
        ("no_object", "it is not an object, {...}, but '[]'"),
        ("schema_in_words", "its schema_version is not a whole number but '1'"),
        ("no_start", "the first observation of"),
    ],
)
def test_what_is_no_run_is_named(
    run, whole, tmp_path, capsys, command, damage, message
):
    {
        "no_run": lambda: (run / "run.json").unlink(),
        "no_observation": lambda: [observation(run, s).unlink() for s in STEPS],
        "no_probes": lambda: (run / "probes.parquet").unlink(),
        "broken_probes": lambda: cut_in_two(run / "probes.parquet"),
        "other_probes": lambda: rewrite(run / "probes.parquet", _of_other_lengths),
        "fewer_probes": lambda: rewrite(
            run / "probes.parquet", lambda table: table.slice(0, 33)
        ),
        "other_schema": lambda: RunDirectory.open(run).update_info(schema_version=7),
        "no_object": lambda: (run / "run.json").write_text("[]"),
        "schema_in_words": lambda: RunDirectory.open(run).update_info(
            schema_version="1"
        ),
        "no_start": lambda: observation(run, 0).unlink(),
        "broken_json": lambda: (run / "run.json").write_text('{"schema_version": 1'),
    }[damage]()
    before = sorted(path.name for path in run.rglob("*"))
    given = [str(run)] if command != "compare" else [str(whole), str(run)]
    assert main([command, *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(run) in said
    assert "Traceback" not in said
    assert sorted(path.name for path in run.rglob("*")) == before


def with_logp(value, share=1.0):
    """A change of a table: its first log-probabilities are `value`."""

    def change(table):
        values = table["logp"].to_numpy().copy()
        values[: int(share * len(values))] = value
        at = table.column_names.index("logp")
        return table.set_column(at, "logp", pa.array(values))

    return change


def finding(run, name):
    return next(f for f in diagnose(Trajectory.load(run)).findings if f.name == name)


def test_a_run_that_began_at_a_checkpoint_is_read_and_says_so(run):
    observation(run, 0).unlink()
    (run / "train.jsonl").write_text('{"step": 50, "loss": 0.3}\n')
    said = finding(run, "late_start").says
    assert said.startswith("The first observation is at update 25:")
    (run / "train.jsonl").write_text('{"step": 25, "loss": 0.3}\n')
    with pytest.raises(BadInput, match="and the run began before that"):
        Trajectory.load(run)


def test_an_imported_run_begins_at_evaluation_0(run):
    observation(run, 0).unlink()
    (run / "train.jsonl").unlink()
    RunDirectory.open(run).update_info(step_unit="evaluation")
    with pytest.raises(BadInput, match="is from evaluation 25, and the run began"):
        Trajectory.load(run)


def test_values_lost_in_the_middle_are_counted(run):
    rewrite(observation(run, 50), with_logp(np.nan))
    found = finding(run, "not_finite")
    said = "36 of 36 log-probabilities at update 50 are not finite; they are left out."
    assert found.says == said
    assert found.numbers["count"] == 36


def test_without_numbers_at_the_start_nothing_else_is_said(run):
    rewrite(observation(run, 0), with_logp(np.nan))
    found = diagnose(Trajectory.load(run))
    (only,) = found.findings
    assert (only.name, only.severity) == ("no_start", "problem")
    assert found.sentences == [only.says]
    assert "36 of its 36 log-probabilities are not finite" in only.says


def test_a_start_of_zeros_is_not_called_a_model_that_diverged(run):
    for step in STEPS:
        rewrite(observation(run, step), with_logp(0.0))
    said = finding(run, "state").says
    assert "diverged" not in said
    assert "chosen 0.0 [0.0, 0.0]" in said


def test_other_probe_ids_leave_an_observation_out_but_not_the_first(run):
    def change(table):
        ids = table["probe_id"].to_numpy().copy()
        ids[3] = 30
        return table.set_column(0, "probe_id", pa.array(ids))

    rewrite(observation(run, 50), change)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        found = Trajectory.load(run)
    assert found.steps.tolist() == [0, 25, 75, 100]
    assert "at 1 of 36 rows (row 3: 30, not 3)" in found.unreadable[0]
    rewrite(observation(run, 0), change)
    with pytest.raises(BadInput, match="It is the first observation"):
        Trajectory.load(run)


@pytest.mark.parametrize(
    ("content", "severity", "says"),
    [
        (None, "fine", "train.jsonl is absent, so loss"),
        (b"", "fine", "train.jsonl holds nothing that can be read, so"),
        (b"\x00\xff\x13", "watch", "1 line of train.jsonl cannot be read, so"),
        (b'{"step": 1, "loss": 1}\n{"st\n5\n', "watch", "2 lines of train.jsonl"),
    ],
    ids=["absent", "empty", "binary", "broken"],
)
def test_a_log_that_was_not_looked_at_is_named(run, content, severity, says):
    (run / "train.jsonl").unlink()
    if content is not None:
        (run / "train.jsonl").write_bytes(content)
    found = finding(run, "train_log")
    assert found.severity == severity
    assert found.says.startswith(says)
    assert "were not checked for jumps" in found.says


def test_a_log_that_a_crash_cut_is_no_finding(run):
    with (run / "train.jsonl").open("ab") as log:
        log.write(b'{"step": 60, "loss": 0.')
    assert all(f.name != "train_log" for f in diagnose(Trajectory.load(run)).findings)


def test_log_probabilities_above_zero_are_a_problem(run):
    rewrite(observation(run, 50), with_logp(2.5, share=0.25))
    found = diagnose(Trajectory.load(run))
    (named,) = [f for f in found.findings if f.name == "above_zero"]
    assert named.severity == "problem"
    said = "9 log-probabilities are above zero, by 2.5 nats at most, first at update 50"
    assert named.says.startswith(said)
    assert found.sentences[0].startswith("These numbers cannot be right")


def test_run_json_itself_is_no_folder(run, capsys):
    assert main(["diagnose", str(run / "run.json")]) == 2
    assert f"Give its folder, the run directory: {run}." in capsys.readouterr().err


def _of_other_lengths(table):
    at = table.column_names.index("n_tokens")
    return table.set_column(at, "n_tokens", pa.array([9] * table.num_rows))


def test_an_empty_folder_is_no_run(tmp_path, capsys):
    for command in ("report", "diagnose"):
        assert main([command, str(tmp_path)]) == 2
        assert "is not a run directory" in capsys.readouterr().err


def test_runs_of_other_answers_are_not_compared_but_reported(run, whole, capsys):
    RunDirectory.open(run).update_info(probe_fingerprint="e" * 64)
    assert main(["compare", str(whole), str(run)]) == 2
    assert "watched other answers" in capsys.readouterr().err
    out = run.parent / "both"
    assert main(["report", str(whole), str(run), "--out", str(out)]) == 0
    assert "watched other answers" in (out / "report.html").read_text(encoding="utf-8")
    assert main(["diagnose", str(run), "--baseline", str(whole)]) == 2
    assert "watched other answers" in capsys.readouterr().err


def test_a_run_without_known_lengths_is_read(run):
    def unknown(table):
        at = table.column_names.index("n_tokens")
        zeros = pa.array([0] * table.num_rows, pa.int64())
        return table.set_column(at, "n_tokens", zeros)

    rewrite(run / "probes.parquet", unknown)
    assert len(Trajectory.load(run).steps) == len(STEPS)
