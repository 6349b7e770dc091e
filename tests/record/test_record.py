"""The run directory: whole or absent, never destructive, readable after any crash."""

import dataclasses
import errno
import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic import information, probe_table, write_run

from learndyn.errors import BadInput, NotInstalled
from learndyn.record.files import StorageFull, write_whole
from learndyn.record.observation import (
    _TOKEN_COLUMNS,
    PROBE_COLUMNS,
    Observation,
)
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.record.trajectory import Trajectory


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", prompts=4)


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    write_whole(target, lambda path: path.write_text("old"))

    def cut_short(path):
        path.write_text("half")
        raise OSError(errno.EIO, "the disk broke")

    with pytest.raises(OSError, match="the disk broke"):
        write_whole(target, cut_short)
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    write_whole(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_temporary_file(tmp_path, code):
    def fill(path):
        path.write_text("part")
        raise OSError(code, "full")

    with pytest.raises(StorageFull, match=r"no space left.*resume=True"):
        write_whole(tmp_path / "file", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_created_whole_with_its_schema_version(tmp_path):
    run = RunDirectory.create(
        tmp_path / "new" / "run",
        probe_table(["chosen"], 2),
        information(),
        config={"a": 1},
    )
    assert is_run(run.path)
    assert RunDirectory.open(run.path).info["schema_version"] == 1
    assert [f.name for f in run.path.parent.iterdir()] == ["run"]
    assert run.steps == []


def test_creating_a_run_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pq, "write_table", disk_full)
    with pytest.raises(StorageFull):
        RunDirectory.create(tmp_path / "run", probe_table(["chosen"], 2), {})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_overwritten_unless_asked(path):
    table = probe_table(["chosen"], 2)
    with pytest.raises(BadInput, match=r"holds a run already \(5 observations\)"):
        RunDirectory.create(path, table, {})
    assert len(RunDirectory.open(path).steps) == 5
    RunDirectory.create(path, table, {}, overwrite=True)
    assert RunDirectory.open(path).steps == []


def test_a_folder_that_is_no_run_is_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(BadInput, match="is not a run directory"):
            RunDirectory.create(
                tmp_path, probe_table(["chosen"], 2), {}, overwrite=overwrite
            )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run")
    assert is_run(tmp_path / "run")


def test_a_full_disk_leaves_earlier_observations_intact(path, monkeypatch):
    run = RunDirectory.open(path)
    before = run.read_observation(100)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", disk_full)
        with pytest.raises(StorageFull, match="step-00000125"):
            run.write_observation(dataclasses.replace(before, step=125))
    assert run.steps == [0, 25, 50, 75, 100]
    assert not list(path.rglob("*.tmp"))
    np.testing.assert_array_equal(run.read_observation(100).logp, before.logp)


def test_a_temporary_file_of_a_crash_is_not_an_observation(path):
    (path / "observations" / ".step-00000125.parquet.tmp").write_bytes(b"PAR1half")
    assert RunDirectory.open(path).steps == [0, 25, 50, 75, 100]


def test_a_corrupt_observation_is_named(path):
    run = RunDirectory.open(path)
    run.observation_path(50).write_bytes(b"PAR1 not really")
    with pytest.raises(BadInput, match="cannot read observation 50"):
        run.read_observation(50)


def test_another_schema_version_is_refused_with_the_version_that_wrote_it(path):
    info = json.loads((path / "run.json").read_text()) | {"schema_version": 99}
    (path / "run.json").write_text(json.dumps(info))
    with pytest.raises(BadInput, match=r"version 99.*learndyn 0\.1\.0"):
        RunDirectory.open(path)


@pytest.mark.parametrize("content", ["{", "[]", "null", '"text"'])
def test_a_broken_run_json_is_bad_input_and_not_a_traceback(path, content):
    (path / "run.json").write_text(content)
    with pytest.raises(BadInput):
        RunDirectory.open(path)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    with pytest.raises(BadInput, match=r"has no run\.json"):
        RunDirectory.open(tmp_path)


def test_a_line_of_the_log_that_a_crash_cut_is_left_out(path):
    run = RunDirectory.open(path)
    whole = run.read_log()
    for cut in (b'{"step": 101, "lo', '{"step": 101, "a": "é'.encode()[:-1]):
        with (path / "train.jsonl").open("ab") as log:
            log.write(cut)
        assert run.read_log() == whole
        run.rewind(100)
    run.append_log({"step": 125})
    assert run.read_log() == [*whole, {"step": 125}]


def test_any_text_in_the_log_comes_back_as_it_was(path):
    run = RunDirectory.open(path)
    row = {"step": 101, "note": "line\u2028separator \x85 \n 日本 😀 \udc80"}
    run.append_log(row)
    assert run.read_log()[-1] == row


def test_numbers_that_json_does_not_know_become_null(path):
    run = RunDirectory.open(path)
    run.append_log({"step": np.int64(101), "loss": float("nan"), "x": np.float32(0.5)})
    assert run.read_log()[-1] == {"step": 101, "loss": None, "x": 0.5}


def test_a_run_without_a_log_has_an_empty_one(tmp_path):
    assert RunDirectory.open(write_run(tmp_path / "run", log=False)).read_log() == []


def test_rewind_forgets_what_came_after_and_nothing_else(path):
    run = RunDirectory.open(path)
    run.rewind(50)
    assert run.steps == [0, 25, 50]
    assert [row["step"] for row in run.read_log()] == [25, 50]


def test_update_info_keeps_the_other_entries(path):
    RunDirectory.open(path).update_info(finished=False, note="é\u2028")
    info = RunDirectory.open(path).info
    assert (info["finished"], info["note"], info["model"]) == (
        False,
        "é\u2028",
        "tiny-llama",
    )


def test_an_observation_comes_back_exactly(path):
    run = RunDirectory.open(path)
    first = run.read_observation(25)
    again = Observation.from_table(25, first.to_table())
    for name in ("n_tokens", *PROBE_COLUMNS, *_TOKEN_COLUMNS):
        before, after = getattr(first, name), getattr(again, name)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    assert first.logp.dtype == np.float64
    assert first.token_logp.dtype == np.float32


def test_a_right_observation_has_no_violation(path):
    assert RunDirectory.open(path).read_observation(50).violations() == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("logp", np.nan, "logp: 1 values are not finite"),
        ("token_argmax_logp", -50.0, "argmax_logp < logp at 1 tokens"),
        ("logp", -1.0, "logp: 1 sums differ from their tokens"),
        ("argmax_logp", -1.0, "argmax_logp: 1 sums differ from their tokens"),
        ("entropy", np.inf, "entropy: 1 values are not finite"),
    ],
)
def test_a_planted_error_is_a_violation(path, name, value, words):
    observation = RunDirectory.open(path).read_observation(50)
    values = getattr(observation, name).copy()
    values[3] = value
    broken = dataclasses.replace(observation, **{name: values})
    assert words in broken.violations()


def test_a_probe_without_tokens_does_not_upset_the_check(path):
    observation = RunDirectory.open(path).read_observation(50)
    counts = observation.n_tokens.copy()
    counts[-1], counts[-2] = 0, 16
    sums = {}
    for name in ("logp", "argmax_logp"):
        sums[name] = getattr(observation, name).copy()
        sums[name][-2] += sums[name][-1]
        sums[name][-1] = 0
    assert dataclasses.replace(observation, n_tokens=counts, **sums).violations() == []


def test_a_trajectory_has_the_axes_step_and_prompt(path):
    trajectory = Trajectory.load(path)
    assert trajectory.steps.tolist() == [0, 25, 50, 75, 100]
    assert trajectory.kinds == ["chosen", "rejected", "irrelevant_train"]
    values = trajectory.values("logp", "rejected")
    assert values.shape == (5, 4)
    rows = trajectory.rows("rejected")
    assert trajectory.prompt_of[rows].tolist() == ["p000", "p001", "p002", "p003"]
    for index, step in enumerate(trajectory.steps):
        seen = trajectory.observation(int(step)).logp[rows]
        np.testing.assert_array_equal(values[index], seen)


def test_a_kind_that_is_not_there_is_refused_with_those_that_are(path):
    with pytest.raises(BadInput, match=r"no probe of kind nope.*It has: chosen"):
        Trajectory.load(path).rows("nope")


def test_a_run_without_observations_and_one_of_other_probes_are_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "run", probe_table(["chosen"], 2), {})
    with pytest.raises(BadInput, match="no observation yet"):
        Trajectory.load(run.path)
    other = RunDirectory.open(write_run(tmp_path / "other", prompts=5))
    run.write_observation(other.read_observation(0))
    with pytest.raises(BadInput, match=r"15 probes, probes\.parquet has 2"):
        Trajectory.load(run.path)


def test_a_run_that_goes_on_while_it_is_read_is_read_as_it_stood(path, monkeypatch):
    seen = iter([[0, 25], [0, 25, 50]])
    monkeypatch.setattr(RunDirectory, "steps", property(lambda _: next(seen)))
    trajectory = Trajectory.load(path)
    assert len(trajectory.steps) == len(trajectory.columns["logp"]) == 2


def test_to_pandas_without_pandas_says_how_to_install_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NotInstalled, match="pip install pandas"):
        Trajectory.load(path).to_pandas()


def test_to_pandas_is_long_and_holds_no_text(path):
    trajectory = Trajectory.load(path)
    frame = trajectory.to_pandas()
    assert len(frame) == 5 * 12
    assert "prompt" not in frame.columns
    row = frame[
        (frame.step == 75) & (frame.prompt_id == "p002") & (frame.kind == "chosen")
    ]
    assert row.logp.item() == trajectory.values("logp", "chosen")[3, 2]
