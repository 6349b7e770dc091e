"""The authors' published rows, read and trained on as they are."""

import json

import pytest
from models import save_tiny

from learndyn.cli import main
from learndyn.record.run_directory import RunDirectory


def test_dpo_on_the_authors_rows_watches_all_thirteen_kinds(
    shared_data, tmp_path, capsys
):
    data = shared_data / "hh" / "probes_train.jsonl"
    words = ["run", "dpo", "--model", save_tiny(tmp_path / "m", "gpt_neox")]
    words += ["--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    words += ["--prompts", "4", "--every", "2", "--max-length", "128"]
    words += ["--max_steps", "2", "--use_cpu", "true", "--disable_tqdm", "true"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "22" in said  # empty responses are named before anything is trained
    assert "--empty" in said
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="training texts are cut"):
        assert main([*words, "--empty", "keep"]) == 0
    answer = json.loads(capsys.readouterr().out)
    run = RunDirectory.open(answer["runs"][0]["run"])
    assert run.steps == [0, 2]
    assert run.info["train_rows"] == 500
    kinds = run.read_probes()["kind"].to_pylist()
    assert len(set(kinds)) == 13
    assert "random_words" in kinds
    assert "reject_gptsemantic" not in kinds
