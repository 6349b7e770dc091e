"""Answers of other training prompts against each control that is fair."""

import numpy as np
import pytest
from planted import planted, with_column, with_info, with_kinds, with_tokens
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.hallucination import Hallucination
from learndyn.record.trajectory import Trajectory


TEST, HUMAN = "irrelevant_test", "irrelevant_human"
KINDS = ("chosen", "rejected", "irrelevant_train", TEST, HUMAN)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    options = {"prompts": 40, "steps": (0, 10, 20, 30, 40, 50)}
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0), **options))


def rising(base, train, test, human, **options):
    drift = {"irrelevant_train": train, TEST: test, HUMAN: human}
    return planted(base, drift, **options)


def test_answers_of_other_training_prompts_that_rise_alone_are_found(base):
    run = rising(base, 6.0, 1.0, 2.0)
    finding = Hallucination.detect(Facts(run))
    assert (finding.severity, finding.at) == ("watch", "kinds")
    assert finding.says.startswith("A sign of hallucination")
    assert finding.numbers["fair"] == [TEST, HUMAN]
    ends = {
        kind: np.diff(run.values("logp", kind)[[0, -1]], axis=0)[0] for kind in KINDS
    }
    for kind in (TEST, HUMAN):
        beyond = (ends["irrelevant_train"] - ends[kind]).mean() / 8  # tokens
        assert finding.numbers[f"beyond_{kind}"][0] == pytest.approx(beyond)


@pytest.mark.parametrize(
    ("train", "test", "human"),
    [(6.0, 6.0, 6.0), (6.0, 1.0, 6.0), (6.0, 6.0, 1.0), (-6, -9, -9), (0.03, -9, -9)],
    ids=["all-rise", "one-control", "the-other-control", "all-fall", "too-little"],
)
def test_both_controls_are_needed_and_a_rise(base, train, test, human):
    run = rising(base, train, test, human, seed=3)
    assert Hallucination.detect(Facts(run)).severity == "fine"


def test_a_control_of_another_length_is_left_out_with_its_numbers(base):
    run = rising(base, 6.0, 6.0, 1.0)
    finding = Hallucination.detect(Facts(with_tokens(run, HUMAN, 5)))
    assert finding.severity == "fine"
    assert finding.says.endswith(
        "Left out: irrelevant_human is of another length (5 tokens, irrelevant_train "
        "has 8)."
    )
    level = with_column(run, "logp", HUMAN, run.values("logp", HUMAN) + 7.5)
    near = Hallucination.detect(Facts(with_tokens(level, HUMAN, 7)))
    assert near.numbers["fair"] == [TEST, HUMAN]
    alone = Hallucination.detect(Facts(with_tokens(rising(base, 6, 1, 9), HUMAN, 5)))
    assert alone.severity == "watch"


def test_a_control_of_another_style_is_left_out(base):
    run = rising(base, 6.0, 6.0, 1.0)
    for level, fair in ((-60.0 - 3.0, True), (-60.0 - 8.0, False)):
        path = run.values("logp", HUMAN) - run.values("logp", HUMAN)[0] + level
        other = with_column(run, "logp", HUMAN, path)
        finding = Hallucination.detect(Facts(other))
        assert (HUMAN in finding.numbers["fair"]) is fair
    assert "of another style (at the start −8.5 nats per token" in finding.says


def test_without_a_fair_control_it_cannot_be_told_and_why(base):
    run = with_tokens(with_tokens(rising(base, 6, 1, 1), HUMAN, 5), TEST, 20)
    finding = Hallucination.detect(Facts(run))
    assert (finding.severity, finding.place) == ("watch", None)
    assert finding.says.startswith(
        "Whether there is hallucination cannot be told, because irrelevant_test is of "
        "another length (20 tokens"
    )
    none = rising(with_kinds(base, KINDS[:3]), 6.0, 0.0, 0.0)
    finding = Hallucination.detect(Facts(none))
    assert "because the probes have neither irrelevant_test nor" in finding.says
    assert Hallucination.detect(Facts(with_kinds(base, KINDS[:2]))) is None


def test_answers_that_are_training_text_are_no_control(base):
    odd = {"column": TEST, "what": "irrelevant_test is training text."}
    run = with_info(rising(base, 6.0, 6.0, 1.0), defects=[odd])
    finding = Hallucination.detect(Facts(run))
    assert (finding.severity, finding.numbers["fair"]) == ("watch", [HUMAN])
    assert finding.says.endswith("Left out: irrelevant_test is training text.")


def test_equal_rises_are_seldom_called_hallucination(base):
    runs = [rising(base, 3, 3, 3, spread=4.0, seed=seed) for seed in range(100)]
    found = [Hallucination.detect(Facts(run)).severity == "watch" for run in runs]
    assert np.mean(found) < 0.05
