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
    assert "log-likelihood term on chosen" in found.advice[0].do


@pytest.mark.parametrize("rejected", [0.0, -3.0], ids=["still", "falls-less"])
def test_a_margin_that_falls_is_a_fault_and_nothing_is_blamed(base, rejected):
    found = diagnose(squeezed(base, rejected))
    assert found.state.state == "SQUEEZE"
    assert found.sentences[0].startswith("The margin falls: rejected gains on chosen")
    assert "because" not in text_of(found)
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
    for claim in ("push on rejected", "not a bug: the loss", "(extend)"):
        assert claim not in found.to_text()
    assert found.sentences[0].startswith("Chosen fell: ")
    assert found.sentences[0].endswith(
        "), and probability moved onto tokens the model already favoured."
    )
    if method != "grpo":
        assert "Whether it is a bug cannot be told" in found.sentences[1]


def test_a_method_without_pairs_has_no_margin_to_raise(base):
    found = diagnose(with_info(squeezed(base, 0.0), method="grpo"))
    assert "and probability moved onto tokens" in found.sentences[0]
    assert "margin_falls" not in {f.name for f in found.findings}


# --- the answers you want


def test_chosen_that_gains_far_less_than_rejected_is_no_success(base):
    drift = {"chosen": 3.0, "rejected": 24.0, "random_words": 1.0}
    found = diagnose(planted(base, drift, greedy=1.0, noise=0.1))
    assert found.state.state == "FIT"
    assert found.sentences[0].startswith("The margin falls")
    assert "what it should" not in text_of(found)
    assert found.advice[0].do.startswith("Read a few training rows")


def test_a_margin_that_falls_by_next_to_nothing_is_no_fault(base):
    drift = {"chosen": 6.0, "rejected": 6.06}  # 0.0075 nats per token
    found = diagnose(planted(base, drift, greedy=1.0, noise=0.001))
    assert found.facts.evidence.margin.below_zero
    assert not any(f.severity == "problem" for f in found.findings)


@pytest.mark.parametrize(("chosen", "praised"), [(0.06, False), (3.0, True)])
def test_chosen_that_hardly_moved_is_not_what_training_moved(base, chosen, praised):
    drift = {"chosen": chosen, "rejected": -9.0, "random_words": 9.0}
    run = planted(base, drift, greedy=0.01, noise=0.1)
    found = diagnose(run)
    assert found.facts.evidence.chosen.above_zero
    assert found.state.state == "FIT"
    assert ("should: chosen rose" in found.sentences[0]) == praised
    if not praised:
        assert "should: the margin grew by " in found.sentences[0]
        assert "chosen changed by less than 0.01 nats per token" in found.sentences[0]


@pytest.mark.parametrize("method", ["grpo", None])
def test_a_run_is_praised_only_where_its_method_should_raise_chosen(tmp_path, method):
    drift, info = {"chosen": 6.0, "rejected": 0.0}, {"method": method}
    path = write_run(tmp_path / "run", drift=drift, info=info, log=False)
    found = diagnose(Trajectory.load(path))
    assert found.sentences[0].startswith("Chosen rose: ")


# --- chosen that falls while others rise


def test_a_kind_that_rises_does_not_hide_that_chosen_falls(base):
    drift = {"chosen": -18.0, "rejected": -30.0, "random_words": 18.0}
    found = diagnose(planted(base, drift, greedy=0.01, noise=0.1))
    assert (found.state.state, found.state.sure) == ("DISPLACED", True)
    assert found.sentences[0].startswith("Chosen fell: −1")
    assert "did not go to the model's own favourites" in found.sentences[0]
    assert "2 fell and 1 rose" in text_of(found)


# --- moved, and undecided


def test_a_run_that_surely_moved_is_not_told_as_nothing():
    ends = {"chosen": 0.0, "rejected": 0.1}
    found = diagnose(drifting(ends, 0.32, spread=0.12))
    state = found.state
    assert state.greedy.up
    assert state.sq.known
    assert (state.state == "SQUEEZE") == state.sq.up
    wide = diagnose(drifting(ends, 0.32, spread=0.5))
    assert (wide.state.state, wide.state.sure) == ("UNDECIDED", False)
    assert wide.state.greedy.up
    for one in (found, wide):
        assert "Nothing moved" not in text_of(one)
        assert "(greedy path) gained" in text_of(one)


# --- the command of extend


def test_extend_starts_from_the_model_before_sft(tmp_path):
    path = write_run(tmp_path / "dpo")
    (path / "config.yaml").write_text("data: pairs.jsonl\nmodel: sft/model\n")
    (tmp_path / "sft" / "model").mkdir(parents=True)
    run = Trajectory.load(path)
    started = tmp_path / "sft" / "model"
    before = tmp_path / "sft" / "run.json"

    def advised(model):
        items = diagnose(with_info(run, model=str(model))).advice
        return [item.command for item in items if "(extend)" in item.do]

    def sft_of(model):
        return json.dumps({"schema_version": 1, "method": "sft", "model": model})

    before.write_text(sft_of("EleutherAI/pythia-410m"))
    assert advised(started) == [
        "learndyn run extend --config dpo/config.yaml --model EleutherAI/pythia-410m "
        "--out dpo-extend"
    ]
    # where the model before SFT is not known, no command with a gap is printed
    unknown = ('{"method": "dpo", "model": "m"}', "[]", "{", '{"method": "sft"}')
    for text in (*unknown, sft_of(str(tmp_path))):
        before.write_text(text)
        assert advised(started) == []
    assert advised("EleutherAI/pythia-410m") == []


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
    assert command.endswith(f"--out {run}-with-nll")


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
