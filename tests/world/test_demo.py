"""The demo on data of one's own: what it reads, and what an error leaves behind."""

import json

import pytest
from models import save_tiny
from runs import data

from learndyn.errors import BadInput
from learndyn.train import recipes
from learndyn.world.demo import DemoSettings, _experiment, demo


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
