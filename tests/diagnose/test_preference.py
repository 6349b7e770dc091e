"""A cause is named, and a run praised, only where the numbers carry it."""

import json
import re

import numpy as np
import pytest
from planted import planted, with_column, with_info
from simulated import drifting
from synthetic import write_run

from learndyn.diagnose.verdict import diagnose
from learndyn.record.trajectory import Trajectory
from learndyn.show.report.verdict import verdict_section


KINDS = ("chosen", "rejected", "random_words")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0)))


@pytest.fixture(scope="module")
def without_rejected(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "run"
    return Trajectory.load(write_run(path, drift={"chosen": 0.0}))


def squeezed(base, rejected):
    """The greedy path gains, chosen falls by 6 nats."""
    drift = {"chosen": -6.0, "rejected": rejected, "random_words": -8.0}
    return planted(base, drift, greedy=6.0, noise=0.1)


def text_of(found):
    return " ".join(found.sentences)


# --- the push on rejected


def test_the_push_is_blamed_where_rejected_falls_and_the_margin_does_not(base):
    found = diagnose(squeezed(base, -20.0))
    assert "because the push on rejected" in found.sentences[0]
    assert "Probably not a bug" in text_of(found)
    assert "extend" in found.advice[0].do


@pytest.mark.parametrize("rejected", [0.0, -3.0], ids=["still", "falls-less"])
def test_a_margin_that_falls_is_a_fault_and_nothing_is_blamed(base, rejected):
    found = diagnose(squeezed(base, rejected))
    assert found.state.state == "SQUEEZE"
    assert found.sentences[0].startswith("The margin falls: rejected gains on chosen")
    (fault,) = [f for f in found.findings if f.severity == "problem"]
    assert fault.name == "margin_falls"
    assert len(found.advice) == 1
    for claim in ("push on rejected", "not a bug", "extend"):
        assert claim not in found.to_text()


@pytest.mark.parametrize("method", ["grpo", "dpo", None])
@pytest.mark.parametrize(
    "alone", [True, False], ids=["chosen-alone", "rejected-unsure"]
)
def test_without_a_sure_fall_of_rejected_no_cause_is_named(
    base, without_rejected, method, alone
):
    drift = {"chosen": -6.0, "random_words": -8.0}
    if alone:
        run = planted(without_rejected, drift, greedy=6.0, noise=0.1)
    else:
        run = planted(base, drift, greedy=6.0, noise=0.1)
        wide = run.values("logp", "rejected").copy()
        wide[1:, ::2] -= 36.0  # the mean falls by 6, but not surely
        wide[1:, 1::2] += 24.0
        run = with_column(run, "logp", "rejected", wide)
    found = diagnose(with_info(run, method=method))
    assert (found.state.state, found.state.sure) == ("SQUEEZE", True)
    for claim in ("push on rejected", "not a bug", "(extend)"):
        assert claim not in found.to_text()
    assert found.sentences[0] == (
        "Chosen falls, and probability moves to tokens the model already favours."
    )


def test_a_method_without_pairs_has_no_margin_to_raise(base):
    found = diagnose(with_info(squeezed(base, 0.0), method="grpo"))
    assert found.sentences[0].startswith("Chosen falls, and probability moves to")
    assert "margin_falls" not in {f.name for f in found.findings}


# --- the answers you want


def test_chosen_that_gains_far_less_than_rejected_is_no_success(base):
    drift = {"chosen": 3.0, "rejected": 24.0, "random_words": 1.0}
    found = diagnose(planted(base, drift, greedy=1.0, noise=0.1))
    assert found.state.state == "FIT"
    assert found.sentences[0].startswith("The margin falls")
    assert "answers you want" not in text_of(found)
    assert found.advice[0].do.startswith("Read a few training rows")


def test_a_margin_that_falls_by_next_to_nothing_is_no_fault(base):
    drift = {"chosen": 6.0, "rejected": 6.06}  # 0.0075 nats per token
    found = diagnose(planted(base, drift, greedy=1.0, noise=0.001))
    assert found.facts.evidence.margin.below_zero
    assert not any(f.severity == "problem" for f in found.findings)


@pytest.mark.parametrize(("chosen", "praised"), [(0.2, False), (3.0, True)])
def test_chosen_that_hardly_moved_is_not_what_training_moved(base, chosen, praised):
    drift = {"chosen": chosen, "rejected": -9.0, "random_words": 9.0}
    run = planted(base, drift, greedy=0.5, noise=0.1)
    found = diagnose(run)
    assert found.facts.evidence.chosen.above_zero
    assert (found.state.state, found.state.best_kind) == ("FIT", "random_words")
    assert ("answers you want" in found.sentences[0]) == praised


# --- chosen that falls in a run that fits


def test_a_fit_of_another_kind_does_not_hide_that_chosen_falls(base):
    drift = {"chosen": -18.0, "rejected": -30.0, "random_words": 18.0}
    found = diagnose(planted(base, drift, greedy=1.0, noise=0.1))
    assert (found.state.state, found.state.sure) == ("FIT", True)
    assert found.sentences[0].startswith("Chosen falls, but neither squeezing nor")
    assert found.sentences[0].endswith("random_words did best.")
    assert len(found.sentences[0].split()) <= 20
    (sign,) = [f for f in found.findings if f.name == "chosen_falls"]
    assert sign.severity == "watch"
    assert sign.says in found.sentences
    assert "Chosen fell by 30." in sign.says.replace("29.", "30.")


@pytest.mark.parametrize(
    ("chosen", "noise", "method"),
    [(-0.6, 0.1, "dpo"), (-18.0, 9.0, "dpo"), (-18.0, 0.1, "sft")],
    ids=["small", "unsure", "sft"],
)
def test_a_fall_that_is_small_or_unsure_or_of_sft_is_no_such_sign(
    base, chosen, noise, method
):
    drift = {"chosen": chosen, "rejected": -30.0, "random_words": 18.0}
    run = planted(base, drift, greedy=1.0, noise=0.1)
    path = planted(base, {"chosen": chosen}, noise=noise).values("logp", "chosen")
    run = with_info(with_column(run, "logp", "chosen", path), method=method)
    assert "chosen_falls" not in {f.name for f in diagnose(run).findings}


# --- moved, and undecided


def test_a_run_that_surely_moved_is_not_told_as_nothing():
    ends = {"chosen": 0.285, "rejected": 0.05}
    run = drifting(ends, 0.32, spread=0.12)
    found = diagnose(run)
    state = found.state
    assert state.greedy.low > 0.02
    assert state.sx.low < 0 < 0.02 < state.sx.mean
    assert (state.state, state.sure, state.undecided) == ("FIT", False, True)
    assert found.sentences[0].startswith(
        "Something moved, but these prompts cannot tell"
    )
    assert "nothing happened" not in text_of(found)
    calm = diagnose(drifting(ends, 0.2, spread=0.12)).state
    assert (calm.state, calm.undecided) == ("FIT", False)


# --- the command of extend


def test_extend_starts_from_the_model_before_sft(tmp_path):
    path = write_run(tmp_path / "dpo")
    (path / "config.yaml").write_text("data: pairs.jsonl\nmodel: sft/model\n")
    (tmp_path / "sft" / "model").mkdir(parents=True)
    run = Trajectory.load(path)

    def command(model):
        return diagnose(with_info(run, model=str(model))).advice[0]

    started = tmp_path / "sft" / "model"
    assert "extend --config dpo/config.yaml --model BASE --out dpo-extend" in (
        command(started).command
    )
    assert "BASE is the model before its SFT" in command(started).limits
    told = tmp_path / "sft" / "run.json"
    told.write_text(
        json.dumps(
            {"schema_version": 1, "method": "sft", "model": "EleutherAI/pythia-410m"}
        )
    )
    assert "--model EleutherAI/pythia-410m --out" in command(started).command
    assert "BASE" not in command(started).limits
    for text in ('{"method": "dpo", "model": "m"}', "[]", "{", '{"method": "sft"}'):
        told.write_text(text)
        assert "--model BASE" in command(started).command
    told.write_text(
        json.dumps({"schema_version": 1, "method": "sft", "model": str(tmp_path)})
    )
    assert str(tmp_path) not in command(started).command
    assert "--model BASE" in command("EleutherAI/pythia-410m").command


@pytest.mark.parametrize("given", [".", "../dpo", ".."])
def test_from_inside_its_folder_a_run_has_its_own_name(tmp_path, monkeypatch, given):
    path = write_run(tmp_path / "dpo")
    (path / "config.yaml").write_text("data: pairs.jsonl\nmodel: m\n")
    inside = path / "forces"
    inside.mkdir(exist_ok=True)
    monkeypatch.chdir(inside if given == ".." else path)
    command = diagnose(Trajectory.load(given)).advice[0].command
    run = "../dpo" if given == "../dpo" else "dpo"
    assert f"--config {run}/config.yaml " in command
    assert command.endswith(f"--out {run}-extend")


def test_a_baseline_is_compared_over_the_same_split_as_all_else(tmp_path):
    one, other = (
        Trajectory.load(
            write_run(tmp_path / name, drift={"chosen": drift, "rejected": -20.0})
        )
        for name, drift in (("a", -5.0), ("b", -5.0))
    )
    half = np.array(["test" if int(p[1:]) % 2 else "train" for p in one.prompt_of])
    for run in (one, other):
        run.__dict__["split_of"] = half
    moved = other.rows("chosen", "test")
    other.columns["logp"][-1, moved] += 7.0
    said = {
        split: " ".join(diagnose(other, one, split).compared)
        for split in (None, "train", "test")
    }
    first = {s: text.split("equal updates (100) ")[1] for s, text in said.items()}
    rise = {
        split: float(re.search(r"difference of \+?([\d.]+) ", text)[1])
        for split, text in first.items()
    }
    assert rise == {None: pytest.approx(3.5), "train": 0.0, "test": pytest.approx(7.0)}


def test_without_intervals_none_is_said_to_hold_the_threshold(tmp_path):
    run = Trajectory.load(write_run(tmp_path / "run", prompts=1))
    page = verdict_section(diagnose(run), "")
    assert "no: no interval is known" in page
    assert "has δ inside" not in page
