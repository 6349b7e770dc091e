"""What README.md says can be done, done."""

import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from documents import blocks, commands
from models import save_tiny
from runs import data, probes
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from learndyn.cli import make_parser


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    probes().save("probes.parquet")
    folder = save_tiny(tmp_path / "model")
    rows = [
        {"prompt": row.prompt, **{k: row.responses[k] for k in ("chosen", "rejected")}}
        for row in data().rows
    ]

    def config(*args, **kwargs):
        quiet = {"max_steps": 2, "bf16": False, "activation_checkpointing": False}
        quiet |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
        return DPOConfig(*args, **kwargs, **quiet)

    def trainer(**kwargs):
        reference = AutoModelForCausalLM.from_pretrained(folder)
        return DPOTrainer(ref_model=reference, **kwargs)

    names = {
        "DPOTrainer": trainer,
        "DPOConfig": config,
        "model": AutoModelForCausalLM.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "dataset": Dataset.from_list(rows),
    }
    first, watching, reading = blocks(README, "python")
    exec(watching, names)
    exec(reading, names)
    assert "What was looked for" in capsys.readouterr().out
    shutil.copytree("runs/dpo", "runs/extend/dpo")
    exec(first, names)
    assert "dpo against" in capsys.readouterr().out
    assert (tmp_path / "runs" / "dpo" / "report.html").is_file()


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_every_command_is_understood(words):
    known, unknown = make_parser().parse_known_args(words)
    assert known.job is not None
    if words[0] != "run":
        assert unknown == []


def test_the_tree_names_every_folder():
    package = ROOT / "src" / "learndyn"
    folders = [p.name for p in package.iterdir() if p.is_dir() and p.name[0] != "_"]
    for folder in folders:
        assert f"  {folder}/" in README, folder
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem in README, page
