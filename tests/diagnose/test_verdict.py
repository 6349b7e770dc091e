"""The verdict: one state, ten sentences at most, none stronger than its interval."""

import dataclasses
import json
import re
import shutil
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from planted import planted, with_column, with_info, with_log
from synthetic import DPO_DRIFT, write_run

from learndyn.cli import main
from learndyn.diagnose.intervals import paired_bootstrap
from learndyn.diagnose.numbers import number
from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.verdict import (
    _MOST,
    _sentence_count,
    diagnose,
    what_happened,
)
from learndyn.record.files import to_plain
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


KINDS = ("chosen", "rejected", "irrelevant_train", "irrelevant_test")
KEYS = {
    *("run", "state", "sure", "chosen", "rejected", "margin", "greedy", "sq"),
    *("sx", "sx_interval", "onset_step", "chosen_peak_step"),
    *("kinds", "findings", "advice", "verdict"),
}
STATES = {
    "SQUEEZE": ({"chosen": -4.0, "rejected": -40.0, "irrelevant_train": -8.0}, 6.0),
    "FIT": ({"chosen": 20.0, "rejected": -9.0, "irrelevant_train": -5.0}, 1.0),
    "DISPLACED": ({"chosen": -4.0, "rejected": -40.0, "irrelevant_train": 8.0}, -1.0),
    "COLLAPSE": ({"chosen": -4.0, "rejected": -30.0, "irrelevant_train": -8.0}, -5.0),
    "STILL": ({"chosen": 0.02, "rejected": -0.03, "irrelevant_train": 0.01}, 0.01),
}
SQUEEZED = "tokens the model already favoured"


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

ANSWERS = {
    "SQUEEZE": ("Chosen fell: ", SQUEEZED),
    "FIT": ("Training does what it should: chosen rose by ", "Training does what"),
    "DISPLACED": ("Chosen fell: ", "did not go to the model's own favourites"),
    "COLLAPSE": ("Chosen fell: ", "went to answers that nobody watches"),
    "STILL": ("Nothing moved by a size that counts: ", "no effect yet"),
}


@pytest.mark.parametrize("state", ANSWERS)
def test_every_state_has_its_answer_and_no_other_s(base, state):
    found = diagnose(in_state(base, state))
    text = " ".join(found.sentences)
    assert found.to_dict()["state"] == state
    assert found.state.sure
    assert f"State after 100 updates: {state} (" in text
    assert "), sure over 24 prompts of this run" in text
    start, then = ANSWERS[state]
    assert found.sentences[0].startswith(start)
    assert number(found.state.chosen.nats) in found.sentences[0]
    for _, other in ANSWERS.values():
        assert (other in " ".join(found.sentences[:2])) == (other == then)


@pytest.mark.parametrize("state", ANSWERS)
def test_the_second_sentence_says_whether_it_is_a_bug(base, state):
    said = diagnose(in_state(base, state)).sentences[1]
    fell = state in ("SQUEEZE", "DISPLACED", "COLLAPSE")
    assert said.startswith("Probably not a bug: " if fell else "No sign of a bug")


def test_a_path_that_is_not_sure_is_called_undecided(base):
    drift = {"chosen": -0.3, "rejected": -0.3}
    found = diagnose(planted(base, drift, greedy=0.9, spread=3.0))
    assert found.state.state == "UNDECIDED"
    assert not found.state.sure
    text = " ".join(found.sentences)
    assert text.startswith("Chosen did not clearly change: ")
    assert "UNDECIDED (these prompts cannot tell), not sure over 24 prompts" in text
    for claim in ("squeez", SQUEEZED, "Probably not a bug", "fell:", "SQUEEZE"):
        assert claim not in text


def test_a_collapse_by_a_nat_per_token_is_called_a_fault(base):
    drift = dict.fromkeys(KINDS, -12.0)
    found = diagnose(planted(base, drift, greedy=-5.0, noise=0.1))
    assert found.state.state == "COLLAPSE"
    assert found.sentences[0].startswith("The model has degenerated: everything")
    assert found.sentences[1].startswith("Probably a fault: steps that are far too")
    assert "not a bug" not in " ".join(found.sentences)


def test_chosen_that_is_still_above_its_start_is_not_said_to_fall(base):
    drift = {**STATES["SQUEEZE"][0], "chosen": 1.0, "irrelevant_test": -3.0}
    said = diagnose(planted(base, drift, greedy=9.0, noise=0.2)).sentences
    assert said[0].startswith("Chosen rose: ")
    assert SQUEEZED in said[0]
    assert "hosen fell" not in " ".join(said)


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
    assert text.startswith("Training does what it should: chosen rose by ")
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
    """Each kind's change, the greedy path's and the margin's, intervals made here."""

    def change(column, kind):
        values = run.values(column, kind)
        return values[-1] - values[0]

    kinds = {kind: change("logp", kind) for kind in run.kinds}
    gap = kinds["chosen"] - kinds["rejected"]
    *every, path, margin = (
        paired_bootstrap(values).at()
        for values in (*kinds.values(), change("argmax_logp", "chosen"), gap)
    )
    return dict(zip(kinds, every, strict=True)), path, margin


def above(interval):
    """A rise that a sentence may name: 8 tokens a response, 0.01 nats a token."""
    return interval.low > 0 and interval.mean >= 0.08


def below(interval):
    return interval.high < 0 and interval.mean <= -0.08


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
    kinds, path, gap = independent(run)
    assert sum(map(_sentence_count, said)) <= _MOST
    fell = sum(map(below, kinds.values()))
    rose = sum(map(above, kinds.values()))
    counted = f"Of 4 watched kinds of answer {fell} fell and {rose} rose"
    assert counted in text or "watched kinds" not in text  # a fault may need the room
    chosen, rejected = kinds["chosen"], kinds["rejected"]
    claims = {
        "path) gained": above(path),
        "path) lost": below(path),
        "Chosen fell": below(chosen),
        "chosen fell": below(chosen),
        "Chosen rose": above(chosen),
        "chosen rose": above(chosen),
        "Training does what it should": (above(chosen) or gap.above_zero)
        and not below(chosen)
        and rejected.mean < chosen.mean,
        "Nothing moved": fell == rose == 0,
        "has degenerated": below(chosen) and (fell == 4 or above(path)),
        "so did every other watched answer": fell == 4 and below(path),
        "the push on rejected squeezes": below(rejected)
        and above(path)
        and below(chosen),
        SQUEEZED: above(path) and path.mean > chosen.mean,
        "favourites: they fell too": below(path),
        "own favourites gained": above(path),
        "margin grew": gap.above_zero,
        "% of it by the fall of rejected": below(rejected) and gap.above_zero,
        "by the fall of rejected alone": below(rejected) and gap.above_zero,
        "because rejected fell": below(rejected) and below(chosen),
        "SFT raises the answers": below(chosen) and method == "sft",
        "Watch irrelevant_train": above(kinds["irrelevant_train"]),
        "Chosen was highest": found.facts.peak.fall.high < 0,
        "are probably exchanged": chosen.high < 0 and rejected.low > 0,
    }
    if method == "sft":
        claims["Training does what it should"] = above(chosen)
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
    run = with_info(run, reference_gap=7.0, defects=[{"what": "One. Two. Three. Four"}])
    said = diagnose(run).sentences
    assert sum(map(_sentence_count, said)) <= _MOST
    text = " ".join(said)
    assert said[0].startswith("Policy and reference")
    for kept in ("Chosen fell: ", "State after", "approximately"):
        assert kept in text
    assert "watched kinds" not in text  # ranked last


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


def after_sft(base, tmp_path, data="pairs.jsonl"):
    """The same after an SFT run of ours, with a config.yaml that can be replayed."""
    (tmp_path / "sft" / "model").mkdir(parents=True, exist_ok=True)
    info = {"schema_version": 1, "method": "sft", "model": "org/base"}
    (tmp_path / "sft" / "run.json").write_text(json.dumps(info))
    path = tmp_path / "my run"
    shutil.copytree(base.run.path, path, dirs_exist_ok=True)
    (path / "config.yaml").write_text(f"data: {data}\nmodel: m\n")
    info = {**base.run.info, "model": str(tmp_path / "sft" / "model")}
    return dataclasses.replace(base, run=RunDirectory(path, info))


def test_extend_is_named_with_its_replication_unless_it_was_done(base, tmp_path):
    run = after_sft(in_state(base, "SQUEEZE"), tmp_path)
    (extend,) = [item for item in diagnose(run).advice if "(extend)" in item.do]
    assert "50.5, 53.6 and 49.6 %" in extend.limits
    for other in (
        with_info(run, extend=True),
        after_sft(in_state(base, "DISPLACED"), tmp_path),  # nothing was squeezed
        in_state(base, "SQUEEZE"),  # the model before its SFT is not known
    ):
        assert not any("(extend)" in item.do for item in diagnose(other).advice)
    assert diagnose(in_state(base, "FIT")).advice == []


def test_sft_is_never_given_a_remedy_of_preference_training(base, tmp_path):
    for state in STATES:
        run = after_sft(with_info(in_state(base, state), method="sft"), tmp_path)
        for item in diagnose(with_info(run, method="sft")).advice:
            for word in ("log-likelihood term", "(extend)", "pairs", "rejected"):
                assert word not in item.do
            assert "run dpo" not in (item.command or "")


def test_stopping_at_the_peak_is_advised_from_the_run_s_own_numbers(base):
    shape = np.array([0.0, 1.0, 0.5, 0.0, -1.0])
    run = planted(base, {"chosen": 9.0, "rejected": -9.0}, shape=shape, noise=0.1)
    first = diagnose(run).advice[0]
    assert first.evidence == "own"
    assert first.do.startswith("Stop at about update 25 (in 95 % of resamples at 25)")
    drift = {"chosen": 0.03, "rejected": -9.0}  # falls by 0.008 nats per token
    tiny = diagnose(planted(base, drift, shape=shape, noise=0.1))
    assert tiny.facts.peak.fall.below_zero
    assert not any(item.do.startswith("Stop at") for item in tiny.advice)


def test_commands_replay_the_run_s_own_config(base, tmp_path):
    run = after_sft(in_state(base, "SQUEEZE"), tmp_path)

    def commands(run):
        return [item.command for item in diagnose(run).advice if item.command]

    first, extend, _ = commands(run)
    assert first == (
        "learndyn run dpo --config 'my run/config.yaml' --loss_type "
        """'["sigmoid", "sft"]' --loss_weights '[1.0, 1.0]' --out 'my run-with-nll'"""
    )
    assert extend == (
        "learndyn run extend --config 'my run/config.yaml' --model org/base "
        "--out 'my run-extend'"
    )
    assert str(tmp_path) not in first + extend
    # what cannot be replayed is not advised as a command
    for text in ("data: embedded world, seed 0\n", ": :", "- 1\n"):
        (tmp_path / "my run" / "config.yaml").write_text(text)
        assert commands(run) == []


def test_smaller_steps_are_advised_where_the_model_degenerates(base, tmp_path):
    run = planted(base, dict.fromkeys(KINDS, -12.0), greedy=-5.0, noise=0.1)
    run = with_info(after_sft(run, tmp_path), trainer={"learning_rate": 5e-6})
    first, second = diagnose(run).advice
    assert "a tenth of the learning rate, 5e-07 instead of 5e-06" in first.do
    assert "--learning_rate 5e-07" in first.command
    assert second.command.endswith("probes.parquet'")


def test_the_prompts_that_would_do_follow_from_the_interval(base):
    drift = {"chosen": -0.3, "rejected": -0.3}
    found = diagnose(planted(base, drift, greedy=0.9, spread=3.0))
    (item,) = found.advice
    needed = int(re.search(r"about (\d+) would do", item.do)[1])
    over = []
    for size in (found.state.chosen.surely, found.state.greedy.surely):
        assert size.low < 0 < size.high
        if abs(size.mean) >= 0.01:
            half = (size.high - size.low) / 2
            over.append(size.n * (half / size.mean) ** 2)
    assert needed == pytest.approx(min(over), abs=5)
    assert needed > found.state.prompts


# --- its forms


def test_json_has_the_promised_keys(base):
    found = to_plain(diagnose(in_state(base, "SQUEEZE")).to_dict())
    assert set(found) == KEYS
    assert set(found["kinds"]["chosen"]) == {"first", "peak", "last"}
    assert len(found["sx_interval"]) == 2
    assert found["sx_interval"][0] < found["sx"] < found["sx_interval"][1]
    for name in ("chosen", "rejected", "margin", "greedy", "sq"):
        mean, low, high = found[name]
        assert low < mean < high
    assert found["sq"][0] == pytest.approx(found["greedy"][0] - found["chosen"][0])
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
    assert "Of 1 watched kind of answer 1 fell" in text


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
    assert "after as many evaluations" in compare_in_words(*both)[0]


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
        assert "did not clearly change" not in text
        assert "along chosen (greedy path) changed: " in text
        assert (
            f"By their means alone, of {len(KINDS)} watched kinds of answer 4" in text
        )
