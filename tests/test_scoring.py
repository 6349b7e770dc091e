"""How a run scores: its route, when it is tested again, and what is approximate."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from learndyn.cli import main
from learndyn.diagnose.two_runs import compare_in_words
from learndyn.diagnose.words import what_happened
from learndyn.errors import BadInput
from learndyn.measure import tree_attention
from learndyn.measure.load import load_model, weights_hash
from learndyn.measure.score import Scorer
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show.figures import curves_figure
from learndyn.show.report import write_report
from learndyn.show.summary import summaries
from learndyn.train.recipes import sft
from learndyn.train.scoring import Scoring
from learndyn.train.trackers import tracked
from models import save_tiny, tiny_model
from runs import data, probes, recipe
from test_score import probes as few_probes


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
        return attach(cls, model, *args, **more)

    monkeypatch.setattr(Scorer, "attach", classmethod(watched))
    settings = recipe(tmp_path, trainer={**trainer, "max_steps": 8}, resume=True)
    again = sft(settings, data(), probes())
    assert tested[-1] != tested[0]  # the checkpoint's weights, not the first ones
    assert again.info["route"]["name"] == "tree"


def test_another_model_object_is_laid_out_anew():
    tokenized = few_probes()
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    scoring = Scoring(model, tokenized, None, {})
    assert scoring.is_for(model)
    assert not scoring.is_for(other)


def test_one_scorer_follows_the_weights_through_training():
    model, tokenized = tiny_model("llama"), few_probes()
    scorer = Scorer.attach(model, tokenized.pairs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    fresh = Scorer.attach(model, tokenized.pairs).observe()
    np.testing.assert_array_equal(scorer.observe().token_logp, fresh.token_logp)
