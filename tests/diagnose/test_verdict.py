"""The verdict: one state, ten sentences at most, none stronger than its interval."""

import dataclasses
import json
import re
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from planted import planted, with_column, with_info, with_log
from synthetic import DPO_DRIFT, write_run

from learndyn.cli import main
from learndyn.diagnose.intervals import paired_bootstrap
from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.verdict import (
    _MOST,
    _sentence_count,
    diagnose,
    what_happened,
)
from learndyn.record.files import to_plain
from learndyn.record.trajectory import Trajectory


KINDS = ("chosen", "rejected", "irrelevant_train", "irrelevant_test")
KEYS = {
    *("run", "state", "sure", "sx", "sx_interval", "onset_step", "chosen_peak_step"),
    *("kinds", "findings", "advice", "verdict"),
}
STATES = {
    "SQUEEZE": ({"chosen": -4.0, "rejected": -40.0, "irrelevant_train": -8.0}, 6.0),
    "FIT": ({"chosen": 20.0, "rejected": -9.0, "irrelevant_train": -5.0}, 1.0),
    "COLLAPSE": ({"chosen": -9.0, "rejected": -30.0, "irrelevant_train": -8.0}, -5.0),
    "NEUTRAL": ({"chosen": 0.2, "rejected": -0.3, "irrelevant_train": 0.1}, 0.1),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0)))


def in_state(base, state, **options):
    drift, greedy = STATES[state]
    if state == "COLLAPSE":
        drift = {**drift, "irrelevant_test": -8.0}
    return planted(base, drift, greedy=greedy, noise=0.2, **options)


# --- what it says of each state


@pytest.mark.parametrize(
    ("state", "answer", "then"),
    [
        ("SQUEEZE", "Chosen falls, probably because", "Probably not a bug."),
        ("FIT", "Training moves the answers you want", "No squeezing"),
        ("COLLAPSE", "Everything falls, the model's own", "leaks out of every watched"),
        ("NEUTRAL", "Nothing moved past 2 % yet after 5", "nothing moved past 2 %"),
    ],
)
def test_every_state_has_its_answer_and_no_other_s(base, state, answer, then):
    found = diagnose(in_state(base, state))
    said = found.sentences
    assert found.to_dict()["state"] == state
    assert found.state.sure
    assert said[0].startswith(answer)
    assert len(said[0].split()) <= 20
    assert then in " ".join(said)
    for other in ("Probably not a bug", "leaks out of every", "moved past 2 %"):
        assert (other in " ".join(said)) == (other in then)


def test_a_state_that_is_not_sure_is_called_perhaps(base):
    run = planted(base, {"chosen": -3.0, "rejected": -30.0}, greedy=0.9, spread=1.0)
    found = diagnose(run)
    assert found.state.state == "SQUEEZE"
    assert not found.state.sure
    text = " ".join(found.sentences)
    assert text.startswith("Perhaps squeezing, but not surely")
    assert "the threshold is 0.02" in text
    assert "Probably not a bug" not in text


def test_chosen_that_is_still_above_its_start_is_not_said_to_fall(base):
    drift = {**STATES["SQUEEZE"][0], "chosen": 1.0, "irrelevant_test": -3.0}
    said = diagnose(planted(base, drift, greedy=9.0, noise=0.2)).sentences
    assert said[0].startswith("Probability moves to tokens the model already favours")
    assert "Chosen falls" not in said[0]


def test_a_fall_since_the_peak_names_the_update(base):
    shape = np.array([0.0, 1.0, 2.0, 1.6, 1.0])
    run = planted(base, {"rejected": -40.0, "irrelevant_train": -8.0}, greedy=9.0)
    path = planted(base, {"chosen": 3.0}, shape=shape, noise=0.1)
    run = with_column(run, "logp", "chosen", path.values("logp", "chosen"))
    said = diagnose(run).sentences
    assert any(s.startswith("Chosen was highest at update 50, +6") for s in said)
    assert diagnose(run).to_dict()["chosen_peak_step"] == 50


def test_sft_is_told_in_its_own_words(base):
    run = with_info(in_state(base, "FIT"), method="sft")
    text = " ".join(diagnose(run).sentences)
    assert "The fit is as intended" in text
    for word in ("squeez", "margin", "push"):
        assert word not in text


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("reference", "Policy and reference differ"),
        ("exchanged", "Chosen and rejected are probably exchanged"),
        ("not_training", "Nothing trains"),
    ],
)
def test_a_fault_comes_first_and_nothing_calls_it_no_bug(base, fault, answer):
    run = in_state(base, "SQUEEZE")
    if fault == "reference":
        run = with_info(run, reference_gap=7.0)
    if fault == "exchanged":
        drift = {"chosen": -6.0, "rejected": 6.0}
        run = planted(base, drift, greedy=9.0, noise=0.1)
    if fault == "not_training":
        run = planted(base, {}, noise=0.0)
    found = diagnose(run)
    assert found.sentences[0].startswith(answer)
    assert "not a bug" not in " ".join(found.sentences)
    assert len(found.advice) == 1
    clean = diagnose(in_state(base, "SQUEEZE"))
    assert not any(f.severity == "problem" for f in clean.findings)


# --- no claim is stronger than its interval


def independent(run):
    """Each kind's change and the greedy path's, intervals made here."""

    def change(column, kind):
        values = run.values(column, kind)
        return paired_bootstrap(values[-1] - values[0]).at()

    return {k: change("logp", k) for k in run.kinds}, change("argmax_logp", "chosen")


@settings(max_examples=30, deadline=None)
@given(
    drift=st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    greedy=st.floats(-10, 10),
    spread=st.floats(0, 40),
    method=st.sampled_from(["dpo", "sft"]),
    bend=st.floats(-1, 2),
    seed=st.integers(0, 99),
)
def test_no_sentence_claims_more_than_its_interval(
    base, drift, greedy, spread, method, bend, seed
):
    amounts = dict(zip(KINDS, drift, strict=True))
    shape = np.array([0.0, 0.3, bend, 0.8, 1.0])
    run = planted(base, amounts, greedy=greedy, spread=spread, shape=shape, seed=seed)
    found = diagnose(with_info(run, method=method))
    said = found.sentences
    text = " ".join(said)
    kinds, path = independent(run)
    assert sum(map(_sentence_count, said)) <= _MOST
    assert len(said[0].split()) <= 20
    fell = sum(i.high < 0 for i in kinds.values())
    rose = sum(i.low > 0 for i in kinds.values())
    assert f"{fell} of 4 kinds fell and {rose} rose" in text
    chosen = kinds["chosen"]
    claims = {
        "gained probability": path.low > 0,
        "lost probability": path.high < 0,
        "Chosen falls, ": chosen.high < 0,
        "still above its start": chosen.low > 0,
        "chosen became likelier": chosen.low > 0,
        "Chosen became likelier": chosen.low > 0,
        "chosen gained more": chosen.low > 0,
        "made chosen less likely": chosen.high < 0,
        "is as intended": chosen.low > 0,
        "Everything falls": fell == 4 and path.high < 0,
        "Every watched answer falls": fell == 4,
        "Watch irrelevant_train": kinds["irrelevant_train"].low > 0,
        "Probably not a bug": found.state.sure and found.state.sx.low > 0.02,
        "Chosen was highest": found.facts.peak.fall.high < 0,
        "Chosen falls since": found.facts.peak.fall.high < 0,
        "are probably exchanged": chosen.high < 0 and kinds["rejected"].low > 0,
    }
    for claim, holds in claims.items():
        assert holds or claim not in text, claim


def test_sentences_are_counted_as_people_count_them():
    assert _sentence_count("It fell by −0.9 [−1.4, −0.5] nats. Is it? At 2.5 %!") == 3
    assert _sentence_count("No end: 0.02") == 0


def test_where_there_is_too_much_to_say_the_least_is_left_out(base):
    run = in_state(base, "SQUEEZE")
    run = dataclasses.replace(run, approximate="bfloat16")
    lost = run.columns["logp"].copy()
    lost[-1, :3] = np.nan
    run = dataclasses.replace(run, columns={**run.columns, "logp": lost})
    run = with_info(run, reference_gap=7.0, defects=[{"what": "One. Two. Three"}])
    said = diagnose(run).sentences
    assert sum(map(_sentence_count, said)) <= _MOST
    text = " ".join(said)
    for kept in ("Policy and reference", "DPO moved chosen", "approximately"):
        assert kept in text
    assert "that favourite" not in text  # ranked last


# --- what may be done


def test_every_remedy_has_its_evidence(base):
    for state in STATES:
        for item in diagnose(in_state(base, state)).advice:
            assert item.do
            assert item.because
            assert (item.evidence == "cited") == (item.source is not None)
            if item.evidence == "cited":
                assert re.search(r"arXiv \d{4}\.\d{5}", item.source)
                assert item.limits


def test_extend_is_named_with_its_replication_unless_it_was_done(base):
    run = in_state(base, "SQUEEZE")
    first = diagnose(run).advice[0]
    assert "extend" in first.do
    assert "50.5, 53.6 and 49.6 %" in first.limits
    done = diagnose(with_info(run, extend=True)).advice
    assert not any("(extend)" in item.do for item in done)
    assert diagnose(in_state(base, "FIT")).advice == []


def test_stopping_at_the_peak_is_advised_from_the_run_s_own_numbers(base):
    shape = np.array([0.0, 1.0, 0.5, 0.0, -1.0])
    run = planted(base, {"chosen": 9.0, "rejected": -9.0}, shape=shape, noise=0.1)
    first = diagnose(run).advice[0]
    assert first.evidence == "own"
    assert first.do.startswith("Stop at about update 25 (in 95 % of resamples at 25)")
    tiny = diagnose(planted(base, {"chosen": 0.3}, shape=shape, noise=0.1))
    assert tiny.facts.peak.inside
    assert not any(item.do.startswith("Stop at") for item in tiny.advice)


def test_commands_replay_the_run_s_own_config(base, tmp_path):
    path = write_run(tmp_path / "my run")
    config = "data: pairs.jsonl\nmodel: m\n"
    (path / "config.yaml").write_text(config)
    run = Trajectory.load(path)
    command = diagnose(run).advice[0].command
    assert command == (
        "learndyn run extend --config 'my run/config.yaml' --model BASE "
        "--out 'my run-extend'"
    )
    assert str(tmp_path) not in command
    for text in ("data: embedded world, seed 0\n", ": :", "- 1\n"):
        (path / "config.yaml").write_text(text)
        assert "--model BASE --data" in diagnose(run).advice[0].command


def test_smaller_steps_are_advised_where_probability_leaks(base):
    run = with_info(in_state(base, "COLLAPSE"), trainer={"learning_rate": 5e-6})
    first, second = diagnose(run).advice[:2]
    assert "learning rate by 10" in first.do
    assert second.command.endswith("probes.parquet")


def test_the_prompts_that_would_do_follow_from_the_interval(base):
    run = planted(base, {"chosen": -3.0, "rejected": -30.0}, greedy=0.9, spread=3.0)
    found = diagnose(run)
    (item,) = found.advice
    needed = int(re.search(r"about (\d+) would do", item.do)[1])
    ends = [found.state.sx, found.state.greedy, found.state.best]
    over = [
        i.n * ((i.high - i.low) / 2 / abs(i.mean - 0.02)) ** 2
        for i in ends
        if i.low <= 0.02 <= i.high
    ]
    assert needed == pytest.approx(max(over), abs=5)
    assert needed > found.state.prompts


# --- its forms


def test_json_has_the_promised_keys(base):
    found = to_plain(diagnose(in_state(base, "SQUEEZE")).to_dict())
    assert set(found) == KEYS
    assert set(found["kinds"]["chosen"]) == {"first", "peak", "last"}
    assert len(found["sx_interval"]) == 2
    assert found["sx_interval"][0] < found["sx"] < found["sx_interval"][1]
    assert found["onset_step"] == 25
    names = [finding["name"] for finding in found["findings"]]
    assert len(names) == len(set(names))
    for finding in found["findings"]:
        assert set(finding) == {"name", "severity", "says", "numbers", "figure"}
        assert finding["severity"] in ("fine", "watch", "problem")
        assert finding["figure"].startswith("report.html#")
    json.dumps(found, allow_nan=False)


def test_text_is_88_columns_wide_but_for_commands(base):
    for state in STATES:
        found = diagnose(in_state(base, state))
        lines = found.to_text().split("\n")
        assert (
            max(len(line) for line in lines if not line.strip().startswith("$")) <= 88
        )
        flat = " ".join(found.to_text().split())
        for sentence in found.sentences:
            assert " ".join(sentence.split()) in flat
        for item in found.advice:
            if item.command is not None:
                assert f"$ {item.command}\n" in found.to_text() + "\n"


def test_what_happened_is_the_verdict(base):
    run = in_state(base, "SQUEEZE")
    assert what_happened(run) == diagnose(run).sentences


def test_a_baseline_adds_what_differs_and_no_sentence_to_the_verdict(tmp_path):
    one = Trajectory.load(write_run(tmp_path / "a"))
    drift = {kind: total / 2 for kind, total in DPO_DRIFT.items()}
    other = Trajectory.load(write_run(tmp_path / "b", drift=drift))
    found = diagnose(other, one)
    assert found.compared == compare_in_words(one, other)
    assert found.sentences == diagnose(other).sentences
    assert what_happened(other, one) == [*found.sentences, *found.compared]
    assert found.findings[-1].says == " ".join(found.compared)
    assert "Against the baseline" in found.to_text()
    assert set(found.to_dict()) == KEYS


def test_the_command_prints_the_same_in_words_and_in_json(tmp_path, capsys):
    path = write_run(tmp_path / "run")
    assert main(["diagnose", str(path)]) == 0
    printed = capsys.readouterr().out
    assert main(["diagnose", str(path), "--json", "--split", "train"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == KEYS
    for sentence in found["verdict"]:
        assert textwrap.fill(sentence, 88, break_on_hyphens=False) in printed
    assert main(["diagnose", str(path), "--split", "none"]) != 0


# --- runs that can say little


def test_one_observation_gives_no_state(tmp_path):
    found = diagnose(Trajectory.load(write_run(tmp_path / "r", steps=(0,))))
    assert found.to_dict()["state"] is None
    assert found.sentences[0].startswith("One observation so far")
    assert found.advice == []
    assert "One observation so far" in found.to_text()


def test_of_a_diverged_model_nothing_else_is_said(base):
    logp = base.columns["logp"].copy()
    logp[-2:] = np.nan
    run = dataclasses.replace(base, columns={**base.columns, "logp": logp})
    found = diagnose(run)
    (only,) = found.sentences
    assert only.startswith("The model diverged: at update 100")
    assert found.to_dict()["state"] is None
    assert found.findings[0].severity == "problem"


def test_without_chosen_the_state_is_unknown_and_the_facts_are_told(tmp_path):
    run = Trajectory.load(write_run(tmp_path / "r", drift={"rejected": -9.0}))
    found = diagnose(run)
    text = " ".join(found.sentences)
    assert found.to_dict()["state"] is None
    assert "cannot be judged" in text
    assert "1 of 1 kinds fell" in text


def test_a_run_with_sums_alone_is_judged_by_them(tmp_path):
    """As an imported one: no token ids, no counts, and but for sums no columns."""
    run = Trajectory.load(write_run(tmp_path / "r", noise=0.2))
    names = [n for n in run.probes.column_names if n != "response_ids"]
    unknown = np.full_like(run.columns["logp"], np.nan)
    columns = {
        name: values if name in ("logp", "argmax_logp") else unknown
        for name, values in run.columns.items()
    }
    run = dataclasses.replace(
        run,
        probes=run.probes.select(names),
        n_tokens=np.zeros_like(run.n_tokens),
        columns=columns,
    )
    found = diagnose(with_log(run, []))
    assert found.to_dict()["state"] == "SQUEEZE"
    names = {finding.name for finding in found.findings}
    assert not names & {"peakiness", "per_token", "overfit", "steps_too_large"}


@pytest.mark.parametrize(
    ("column", "gone"),
    [
        ("argmax_logp", {"per_token"}),
        ("entropy", {"peakiness"}),
        ("top1, p_norm2", {"peakiness"}),
        ("irrelevant_test", set()),
    ],
    ids=["greedy", "entropy", "two", "kind"],
)
def test_columns_that_are_not_theirs_are_owned_up_to_and_not_used(base, column, gone):
    odd = {"column": column, "what": "something is odd."}
    run = in_state(base, "SQUEEZE")
    before = {finding.name for finding in diagnose(run).findings}
    assert {"peakiness", "per_token"} <= before
    found = diagnose(with_info(run, defects=[odd, {}]))
    names = {finding.name for finding in found.findings}
    assert names == (before - gone) | {"defects"}
    assert "something is odd (1 more in run.json)." in " ".join(found.sentences)


def told(found):
    """All that a diagnosis says of the run itself."""
    own = [item.do + item.because for item in found.advice if item.evidence == "own"]
    return " ".join(found.sentences + [f.says for f in found.findings] + own)


@pytest.mark.parametrize("state", list(STATES))
def test_a_run_that_counts_evaluations_is_never_told_in_updates(base, state):
    run = with_log(in_state(base, state), [])
    shape = np.array([0.0, 0.5, 1.0, 0.6, 0.2])  # so that chosen peaks
    peaked = with_log(planted(base, {"chosen": 9.0}, greedy=9.0, shape=shape), [])
    still = with_log(planted(base, {}, noise=0), [])
    lost = base.columns["logp"].copy()
    lost[-2:] = np.nan
    gone = dataclasses.replace(base, columns={**base.columns, "logp": lost})
    gap = dataclasses.replace(run, missing=(75,))
    for one in (run, peaked, still, gone, gap):
        assert re.search(r"\bupdates?\b", told(diagnose(one)))
        counted = told(diagnose(with_info(one, step_unit="evaluation")))
        assert not re.search(r"\bupdates?\b", counted)
        assert re.search(r"\bevaluations?\b", counted)
    both = [with_info(one, step_unit="evaluation") for one in (base, run)]
    assert "update" not in " ".join(compare_in_words(*both))
    assert "At equal evaluations (100)" in compare_in_words(*both)[0]


@pytest.mark.parametrize(
    ("prompts", "means", "says"),
    [
        (
            1,
            KINDS,
            {"Only means over prompts are recorded, so they have no intervals."},
        ),
        (
            4,
            KINDS[1:2],
            {"Only means over prompts are recorded for rejected", "Only 4"},
        ),
        (24, KINDS[1:2], {"Only means over prompts are recorded for rejected"}),
        (1, (), {"Fewer than two prompts"}),
    ],
    ids=["all", "one-and-few", "one-and-many", "one-prompt"],
)
def test_means_alone_are_told_as_such(tmp_path, prompts, means, says):
    drift = dict.fromkeys(KINDS, -9.0)
    info = {"means_only": list(means)} if means else {}
    path = write_run(tmp_path / "r", drift=drift, prompts=prompts, info=info)
    found = diagnose(Trajectory.load(path))
    text = told(found)
    assert all(part in text for part in says)
    assert "1 prompts" not in text
    named = {f.name for f in found.findings}
    assert ("means_only" in named) == bool(means)
    assert ("few_prompts" in named) == any("Only means" not in part for part in says)
    if prompts == 1:
        assert "did not clearly move" not in text
        assert "along chosen, changed: +" in text
