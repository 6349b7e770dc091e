"""`learndyn explain`: a hypothetical update, and a recorded one."""

import json
import shutil

import numpy as np
import pytest
import torch
from models import save_tiny
from runs import data

from learndyn.cli import main
from learndyn.errors import BadInput
from learndyn.forces.losses import LOSSES, loss_named
from learndyn.measure.load import load_model, weights_hash
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.train.hypothetical import Hypothetical, _roles_of, explain_hypothetical


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model and preference rows."""
    folder = tmp_path_factory.mktemp("explain")
    save_tiny(folder / "model", "llama", num_hidden_layers=1)
    rows = [{"prompt": r.prompt, "id": r.row_id, **r.responses} for r in data().rows]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "pairs.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def explained(home):
    """An update explained, and the files of its model as they were before."""
    before = {p: p.read_bytes() for p in (home / "model").iterdir()}
    return explain_hypothetical(asked(home, home / "run")), before


def asked(home, out, **more) -> Hypothetical:
    few = {"prompts": 3, "batch": 3, **more}
    return Hypothetical(str(home / "model"), str(home / "pairs.jsonl"), out, **few)


def words(home, out, *more):
    own = ("--model", home / "model", "--data", home / "pairs.jsonl", "--out", out)
    return ["explain", *map(str, own), "--prompts", "3", "--batch", "3", *more]


def test_predicted_is_actual_and_the_parts_sum(explained):
    run, _ = explained
    forces = run.read_forces(1)
    assert run.info["method"] == "explain"
    assert forces.info["relative_error"] < 0.02
    assert forces.info["completeness"] < 1e-5
    np.testing.assert_allclose(
        sum(forces.parts.values()), forces.predicted, rtol=0, atol=1e-4
    )
    chosen = [p["kind"] == "chosen" for p in run.read_probes().to_pylist()]
    assert forces.parts["pull"][chosen].mean() > 0 > forces.parts["push"][chosen].mean()
    seen = Trajectory.load(run.path)
    moved = seen.columns["logp"][1] - seen.columns["logp"][0]
    np.testing.assert_allclose(moved, forces.actual, rtol=0, atol=1e-4)


def test_nothing_is_written_to_the_model(home, explained):
    _, before = explained
    assert {p: p.read_bytes() for p in (home / "model").iterdir()} == before


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_explained(name, home, tmp_path):
    settings = asked(home, tmp_path / "run", loss=name, dtype="float64", prompts=2)
    forces = explain_hypothetical(settings).read_forces(1)
    assert forces.info["relative_error"] < 0.05
    kinds = {"pull", "push"} & forces.parts.keys()
    expected = {"gradient-ascent": {"push"}, "npo": {"push"}}
    assert kinds == expected.get(name, {"pull"} if "sft" in name else {"pull", "push"})


def test_a_loss_trains_on_the_responses_that_it_treats_in_its_own_way():
    assert _roles_of(loss_named("sft")) == ("chosen",)
    assert _roles_of(loss_named("npo")) == ("rejected",)
    assert _roles_of(loss_named("unlikelihood")) == ("chosen", "rejected")
    assert _roles_of(loss_named("dpo")) == ("chosen", "rejected")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_the_step_is_that_of_torchs_optimizer(optimizer, home, tmp_path):
    settings = asked(home, tmp_path / "run", optimizer=optimizer, lr=1e-5, loss="sft")
    forces = explain_hypothetical(settings).read_forces(1)
    assert forces.info["lr"] == 1e-5
    assert forces.info["optimizer"].lower() == optimizer
    assert forces.predicted.mean() > 0


def test_another_reference_changes_the_push(home, explained, tmp_path):
    other = load_model(str(home / "model"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    other.save_pretrained(tmp_path / "other")
    own = explained[0].read_forces(1)
    settings = asked(home, tmp_path / "b", reference=str(tmp_path / "other"))
    found = explain_hypothetical(settings).read_forces(1)
    assert own.influence is not None
    assert found.influence is not None
    sizes = np.abs(own.influence.push)
    np.testing.assert_allclose(sizes, 0.05 / 3, rtol=1e-4)  # beta sigmoid(0) / 3
    assert np.ptp(np.abs(found.influence.push)) > 1e-3


def test_the_command_prints_writes_and_speaks_json(home, tmp_path, capsys):
    assert main(words(home, tmp_path / "run", "--loss-option", "beta=0.2")) == 0
    told = capsys.readouterr().out
    assert "chosen" in told
    assert "This update is hypothetical: one step of dpo by SGD" in told
    assert "sizes of different losses cannot be compared" in told
    page = (tmp_path / "run" / "explain.html").read_text()
    assert "This update is hypothetical" in page
    assert main(["explain", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0


BAD = {
    "neither": (["explain"], "either a RUN"),
    "both": (["explain", "RUN", "--model", "m"], "either a RUN"),
    "no data": (["explain", "--model", "m"], "needs --data"),
    "hypothetical flag": (["explain", "RUN", "--loss", "dpo"], "--loss cannot be used"),
    "no run": (["explain", "nowhere"], "is not a run directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(case, capsys):
    arguments, message = BAD[case]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


OPTIONS = {
    "no such loss": (["--loss", "dop"], "Did you mean"),
    "no such option": (["--loss-option", "bta=1"], "Did you mean beta"),
    "no value": (["--loss-option", "beta"], "write NAME=VALUE"),
    "zero lr": (["--lr", "0"], "--lr 0: give a learning rate above 0"),
    "no prompts": (["--prompts", "0"], "--prompts 0: give 1 or more"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_settings_are_refused_and_nothing_is_written(case, home, tmp_path, capsys):
    more, message = OPTIONS[case]
    assert main(words(home, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_texts_are_cut_only_where_that_was_asked_for(home, tmp_path):
    folder = save_tiny(tmp_path / "short", "llama", max_position_embeddings=48)
    settings = asked(home, tmp_path / "run")
    short = Hypothetical(folder, settings.data, settings.out, prompts=2, batch=2)
    with pytest.raises(BadInput, match=r"longer than 48 tokens .*max_length=48"):
        explain_hypothetical(short)
    cut = Hypothetical(
        folder, settings.data, settings.out, prompts=2, batch=2, max_length=48
    )
    notes = explain_hypothetical(cut).read_forces(1).info["notes"]
    assert any("are cut" in note for note in notes)


def test_a_taken_folder_is_left_alone_before_the_model_is_loaded(
    home, explained, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(explained[0].path, out)
    with pytest.raises(BadInput, match="holds a run already"):
        explain_hypothetical(asked(home, out))
    assert explain_hypothetical(asked(home, out), overwrite=True).path == out


def test_the_weights_in_run_json_are_those_before_the_step(home, explained):
    run, _ = explained
    model = load_model(str(home / "model"))
    assert RunDirectory.open(run.path).info["weights_sha256"] == weights_hash(model)


def test_an_adapter_from_disk_is_what_moves(home, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = load_model(str(home / "model"))
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(home / "model")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    for file in (home / "model").glob("token*"):
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    settings = asked(home, tmp_path / "run")
    own = Hypothetical(
        str(tmp_path / "adapter"), settings.data, settings.out, prompts=2, batch=2
    )
    forces = explain_hypothetical(own).read_forces(1)
    assert forces.info["relative_error"] < 0.05
    assert np.abs(forces.predicted).max() > 0


def test_a_step_that_its_weights_cannot_hold_is_refused(home, tmp_path):
    settings = asked(home, tmp_path / "run", dtype="bfloat16", optimizer="adamw")
    with pytest.raises(BadInput, match="lost in the rounding of bfloat16 weights"):
        explain_hypothetical(settings)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_named(home, tmp_path):
    broken = load_model(str(home / "model"))
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    for file in (home / "model").glob("token*"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    own = Hypothetical(
        str(tmp_path / "broken"), str(home / "pairs.jsonl"), tmp_path / "run", prompts=2
    )
    with pytest.raises(BadInput, match=r"hold NaN .* lm_head\.weight"):
        explain_hypothetical(own)


def test_letters_of_several_tokens_stand_at_the_last_of_them():
    from learndyn.forces.explain import _texts_of

    text = "ünï “x”"
    raw = text.encode()

    def decode(ids):
        return bytes(ids).decode("utf-8", "replace")

    texts = _texts_of(list(raw), decode)
    assert len(texts) == len(raw)
    assert "".join(texts) == text
    assert _texts_of([0xFF, 0x41], decode)[-1].endswith("A")
