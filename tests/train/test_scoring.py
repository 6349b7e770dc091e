"""How a run scores: its route, when it is tested again, and what is approximate."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from models import byte_tokenizer, save_tiny, tiny_model
from runs import data, probes, recipe
from tiers import few_probes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerControl, TrainerState, TrainingArguments

from learndyn.cli import main
from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.verdict import what_happened
from learndyn.errors import BadInput
from learndyn.measure import tree_attention
from learndyn.measure.checkpoint import score_checkpoint
from learndyn.measure.load import load_model, weights_hash
from learndyn.measure.score import Scorer, score
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show.report.curves import curves_figure
from learndyn.show.report.report import summaries, write_report
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.recipes import sft
from learndyn.train.scoring import Scoring
from learndyn.train.trackers import tracked


@pytest.fixture(scope="module")
def approximate(tmp_path_factory) -> RunDirectory:
    """A run scored in bfloat16."""
    folder = tmp_path_factory.mktemp("approximate")
    return sft(recipe(folder, precision="bfloat16"), data(), probes())


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> RunDirectory:
    """The same run, scored exactly."""
    return sft(recipe(tmp_path_factory.mktemp("exact")), data(), probes())


def test_the_route_and_the_error_of_its_self_test_are_kept(exact):
    route = exact.info["route"]
    assert (route["name"], route["head"]) == ("tree", "tiles")
    assert 0 < route["error"] < 2e-5
    assert route["approximate"] is None
    assert route["approximation"] == 0


def test_an_approximate_run_says_so_wherever_it_appears(approximate, exact, tmp_path):
    assert approximate.info["route"]["approximate"] == "bfloat16"
    assert approximate.info["route"]["approximation"] > 1e-4
    for step in approximate.steps:
        assert approximate.read_observation(step).approximate == "bfloat16"
    run, other = Trajectory.load(approximate.path), Trajectory.load(exact.path)
    assert run.approximate == "bfloat16"
    assert any("approximately, in bfloat16" in said for said in what_happened(run))
    assert any("approximately" in said for said in compare_in_words(other, run))
    assert summaries([approximate.path])[0]["approximate"] == "bfloat16"
    page = write_report([approximate.path], tmp_path / "page").read_text()
    assert "Approximate: this run was scored in bfloat16" in page
    drawn = [text.get_text() for text in curves_figure(run).figure.texts]
    assert any("approximate (bfloat16)" in text for text in drawn)
    first, last = (run.observation(int(run.steps[i])) for i in (0, -1))
    names = tracked(probes(), last, first, None)
    assert all(name.startswith("probes_approximate_bfloat16/") for name in names)


def test_an_exact_run_is_nowhere_called_approximate(exact, tmp_path):
    run = Trajectory.load(exact.path)
    assert run.approximate is None
    page = write_report([exact.path], tmp_path / "page").read_text()
    assert "pproximate" not in " ".join(what_happened(run)) + page.split("<h3>Set")[0]
    assert summaries([exact.path])[0]["approximate"] is None


def test_weights_that_are_rounded_are_told_from_scoring_that_is(exact):
    run = Trajectory.load(exact.path)
    for label, told in (
        ("bfloat16", "approximately, in bfloat16:"),
        ("bfloat16 weights", "approximately, with bfloat16 weights:"),
    ):
        rounded = dataclasses.replace(run, approximate=label)
        assert any(told in said for said in what_happened(rounded))


def test_approximate_scoring_changes_no_weight(approximate, exact):
    one, other = (load_model(run.path / "model") for run in (approximate, exact))
    assert weights_hash(one) == weights_hash(other)


def test_the_command_line_labels_what_is_approximate(tmp_path, exact, capsys):
    model, out = str(exact.path / "model"), tmp_path / "scores.parquet"
    command = ["score", model, "--run", str(exact.path)]
    assert main([*command, "--precision", "bfloat16", "--out", str(out)]) == 0
    assert "APPROXIMATE: scored by tree with tiles" in capsys.readouterr().out
    metadata = pq.read_schema(out).metadata
    assert metadata[b"learndyn_approximate"] == b"bfloat16"
    assert json.loads(metadata[b"learndyn_route"])["approximate"] == "bfloat16"
    assert main([*command, "--json"]) == 0
    route = json.loads(capsys.readouterr().out)["route"]
    assert (route["approximate"], route["name"]) == (None, "tree")


def test_a_model_is_scored_as_the_run_was_unless_told_otherwise(approximate, capsys):
    model = str(approximate.path / "model")
    online = approximate.read_observation(approximate.steps[-1])
    own = score_checkpoint(model, run=approximate.path)
    assert own.route.approximate == own.observation.approximate == "bfloat16"
    np.testing.assert_allclose(own.observation.logp, online.logp, rtol=1e-6)
    np.testing.assert_allclose(
        own.observation.token_start_logp, online.token_start_logp, atol=1e-5
    )
    true = score_checkpoint(model, run=approximate.path, precision=None)
    assert true.route.approximate is None
    assert np.abs(true.observation.logp - online.logp).max() > 1e-4
    command = ["score", model, "--run", str(approximate.path)]
    assert main(command) == 0
    assert "APPROXIMATE" in capsys.readouterr().out
    assert main([*command, "--precision", "exact"]) == 0
    assert "APPROXIMATE" not in capsys.readouterr().out
    assert main([*command, "--exactness", "strict"]) == 2
    assert "give --precision exact" in capsys.readouterr().err
    assert main([*command, "--exactness", "strict", "--precision", "exact"]) == 0


def test_a_run_without_its_first_full_observation_is_no_guide_to_score_by(
    exact, tmp_path, capsys
):
    out = tmp_path / "run"
    shutil.copytree(exact.path, out)
    run = RunDirectory.open(out)
    second = run.observation_path(run.steps[1])
    pq.write_table(pq.read_table(second).slice(0, 4), second)
    run.observation_path(0).unlink()
    assert main(["score", str(out / "model"), "--run", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"at update {run.steps[0]}, holds only 4 of" in told
    assert "Restore its file, or score the texts with --probes" in told


def plant_an_error(monkeypatch) -> None:
    """Responses see one another."""
    real = tree_attention._mask
    monkeypatch.setattr(
        tree_attention,
        "_mask",
        lambda *given: None if real(*given) is None else 0 * real(*given),
    )


def test_strict_exactness_refuses_a_run_and_a_score(tmp_path, monkeypatch, capsys):
    plant_an_error(monkeypatch)
    with pytest.raises(BadInput, match=r"GPT2LMHeadModel: scoring by tree is off by"):
        sft(recipe(tmp_path, exactness="strict"), data(), probes())
    assert not (tmp_path / "run").exists()
    model = save_tiny(tmp_path / "model")
    file = tmp_path / "probes.parquet"
    probes().save(file)
    command = ["score", model, "--probes", str(file), "--exactness", "strict"]
    assert main(command) == 2
    assert "refuses to go on" in capsys.readouterr().err


def test_a_run_that_stepped_down_says_so_in_its_record(tmp_path, monkeypatch):
    plant_an_error(monkeypatch)
    with pytest.warns(UserWarning, match="It is scored by masked with tiles"):
        run = sft(recipe(tmp_path), data(), probes())
    assert run.info["route"]["name"] == "masked"
    assert "off by" in run.info["route"]["dropped"]["tree"]


def test_the_self_test_runs_again_on_the_weights_that_a_resumed_run_loads(
    tmp_path, monkeypatch
):
    trainer = {"save_strategy": "steps", "save_steps": 4}
    sft(recipe(tmp_path, trainer={**trainer, "max_steps": 8}), data(), probes())
    run = RunDirectory.open(tmp_path / "run")
    run.update_info(finished=False, route={"name": "from another time"})
    tested, attach = [], Scorer.attach.__func__

    def watched(cls, model, *args, **more):
        tested.append(weights_hash(model))
        scorer = attach(cls, model, *args, **more)
        scorer.route = dataclasses.replace(scorer.route, error=1e-9 * len(tested))
        return scorer

    monkeypatch.setattr(Scorer, "attach", classmethod(watched))
    settings = recipe(tmp_path, trainer={**trainer, "max_steps": 8}, resume=True)
    again = sft(settings, data(), probes())
    assert tested[-1] != tested[0]  # the checkpoint's weights, not the first ones
    assert again.info["route"]["name"] == "tree"
    # the record is of the weights that were loaded last
    assert again.info["route"]["error"] == 1e-9 * len(tested)
    assert len(tested) > 1


def test_another_model_object_is_laid_out_anew():
    tokenized = few_probes()
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    scoring = Scoring(model, tokenized, None, {})
    assert scoring.is_for(model)
    assert not scoring.is_for(other)


@pytest.fixture
def one_process():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model, mesh) -> None:
    """In place, as accelerate does it for FSDP2."""
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


@pytest.mark.filterwarnings("ignore:.*output embedding is sharded:UserWarning")
def test_a_model_that_is_sharded_after_it_was_laid_out_is_laid_out_anew(one_process):
    tokenized, model = few_probes(), tiny_model("llama")
    scoring = Scoring(model, tokenized, None, {})
    shard(model, one_process)
    assert not scoring.is_for(model)
    again = Scoring(model, tokenized, None, {})
    assert again.route.head == "logits"
    assert again.is_for(model)
    again.observe(0, None, full=True, progress=iter)
    assert again.is_for(model)  # whatever a forward left gathered


@pytest.mark.filterwarnings("ignore:.*output embedding is sharded:UserWarning")
def test_a_run_opened_before_fsdp2_shards_its_model_is_watched(tmp_path, one_process):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    args = TrainingArguments(str(tmp_path / "t"), use_cpu=True, report_to="none")
    callback = LearningDynamicsCallback(probes(), out=tmp_path / "run")
    run = callback.begin(model, tokenizer, args)  # as a recipe does
    assert run is not None
    assert run.info["route"]["head"] == "tiles"
    frozen = TokenizedProbes.from_table(run.read_probes(), "")
    expected = score(model, frozen).logp
    shard(model, one_process)
    callback.on_train_begin(args, TrainerState(), TrainerControl(), model=model)
    assert RunDirectory.open(run.path).info["route"]["head"] == "logits"
    np.testing.assert_allclose(run.read_observation(0).logp, expected, rtol=1e-6)


def test_one_scorer_follows_the_weights_through_training():
    model, tokenized = tiny_model("llama"), few_probes()
    scorer = Scorer.attach(model, tokenized.pairs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    fresh = Scorer.attach(model, tokenized.pairs).observe()
    np.testing.assert_array_equal(scorer.observe().token_logp, fresh.token_logp)
