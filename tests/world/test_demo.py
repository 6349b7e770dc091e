"""The demo on data of one's own: what it reads, and what an error leaves behind."""

import json
from dataclasses import replace

import pytest
from models import save_tiny
from runs import data

from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory
from learndyn.train import recipes
from learndyn.world.demo import DemoSettings, _experiment, _train, demo


def settings(folder, **changes):
    """A demo of a tiny model on six rows, one of which has an empty rejected."""
    records = [{"prompt": row.prompt, **row.responses} for row in data(6).rows]
    records[2]["rejected"] = ""
    source = folder / "data.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    model = save_tiny(folder / "model")
    given = {"data": str(source), "model": model, "out": folder / "new" / "demo"}
    return DemoSettings(**{**given, **changes})


def test_the_demo_drops_the_rows_that_a_run_drops(tmp_path):
    inputs = _experiment(settings(tmp_path, empty="drop")).inputs
    ids = [row.row_id for row in inputs.rows.rows]
    assert len(ids) == 5
    assert "train-000002" not in ids
    assert inputs.pairs == inputs.rows
    assert len(inputs.probes.prompt_ids) == 6  # dropped responses leave the others


def test_an_error_leaves_no_folder_behind(tmp_path, monkeypatch):
    def fail(recipe, *_, **__):
        (recipe.out / "checkpoints").mkdir(parents=True)  # as a trainer does
        raise BadInput("stop")

    monkeypatch.setattr(recipes, "sft", fail)
    given = settings(tmp_path, empty="drop", jobs=1)
    with pytest.raises(BadInput, match="stop"):
        demo(given)
    assert not given.out.exists()


def test_branches_side_by_side_give_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("learndyn.world.jobs.cores", lambda: 1)  # threads alike
    given = settings(tmp_path, empty="drop", out=tmp_path / "1")
    for jobs in (1, 2):
        _train(replace(given, out=tmp_path / str(jobs), jobs=jobs))
    for stage in ("sft", "dpo", "extend-sft", "extend-dpo"):
        one, two = (Trajectory.load(tmp_path / out / stage) for out in "12")
        assert one.steps.tolist() == two.steps.tolist()
        for name, values in one.columns.items():
            assert values.tobytes() == two.columns[name].tobytes()
        assert (tmp_path / "2" / "logs" / f"{stage}.txt").exists()


def test_a_model_of_ones_own_is_trained_in_one_process(tmp_path, monkeypatch):
    asked = {}

    def stop(_, processes, *__, threads):
        asked.update(processes=processes, threads=threads)
        raise BadInput("stop")

    monkeypatch.setattr("learndyn.world.demo.run_jobs", stop)
    monkeypatch.setattr("learndyn.world.demo.cores", lambda: 8)
    given = settings(tmp_path)
    for model, wanted in ((given.model, (1, None)), (None, (2, 1))):
        with pytest.raises(BadInput, match="stop"):
            demo(replace(given, model=model))
        assert (asked["processes"], asked["threads"]) == wanted
