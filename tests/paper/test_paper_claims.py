"""Every claim about finetuned models passes where it is true, else it fails."""

import math

import numpy as np
import pytest
from paper_world import DPO, GOOD, OTHERS, REST, RIGHT, SFT, world, write
from simulated import simulated

from learndyn.diagnose.paths import GREEDY
from learndyn.paper.authors.claims import _KINDS, _PATHS, _START, anchor_claims
from learndyn.paper.claims import claims_of
from learndyn.paper.finetuning.chapters import _STATEMENTS, paper_claims
from learndyn.paper.finetuning.recorded import Recorded, difference
from learndyn.paper.finetuning.statements import above, below


STATEMENT = {statement.name: statement for statement in _STATEMENTS}
NAMES = list(STATEMENT)

UP, DOWN, FLAT = (0, 1, 2, 3, 4), (0, -1, -2, -3, -4), (0, 0, 0, 0, 0)

EXTENDED = GOOD["extend-dpo"]

SPOILT = {
    "sft-chosen-rises": {"sft": SFT | {"chosen": DOWN}},
    "sft-rephrase-rises": {"sft": SFT | {"chosen_semantic": DOWN}},
    "sft-rephrase-rises-less": {"sft": SFT | {"chosen_semantic": SFT["chosen"]}},
    "sft-rejected-rises-then-falls": {"sft": SFT | {"rejected": UP}},
    "sft-rejected-lags": {"sft": SFT | {"rejected": (0, 12, 18, 22, 25)}},
    "sft-others-answers-rise": {"sft": SFT | {"irrelevant_train": FLAT}},
    "sft-others-answers-above-unseen": {
        "sft": SFT | {"irrelevant_test": (0, 2, 3, 4, 5)}
    },
    "sft-unrelated-falls": {"sft": SFT | {"irrelevant_human": UP}},
    "sft-permuted-falls": {"sft": SFT | {"random_permuted": UP}},
    "sft-random-falls": {"sft": SFT | {"random_words": UP}},
    "sft-greedy-rises": {"sft": SFT | {GREEDY: DOWN}},
    "learn-own-kind-most": {
        "learn-rejected": {**GOOD["learn-rejected"], "chosen": (0, 9, 14, 19, 24)}
    },
    "learn-chosen-lifts-its-rephrase": {
        "learn-chosen": {**GOOD["learn-chosen"], "rejected_semantic": (0, 5, 7, 9, 11)}
    },
    "learn-rejected-lifts-its-rephrase": {
        "learn-rejected": {
            **GOOD["learn-rejected"],
            "chosen_semantic": (0, 5, 7, 9, 11),
        }
    },
    "lbk-trained-kind-most": {
        "learn-chosen": {**GOOD["learn-chosen"], "random_words": (0, -9, -15, -20, -30)}
    },
    "sign-delta-order": {
        "learn-chosen": {**GOOD["learn-chosen"], "irrelevant_human": (0, 5, 7, 9, 11)}
    },
    "dpo-margin-grows": {"dpo": DPO | {"rejected": UP}},
    "dpo-rejected-falls-fastest": {
        "dpo": DPO | {"random_words": (0, -20, -40, -60, -80)}
    },
    "dpo-chosen-rises-first": {"dpo": DPO | {"chosen": DOWN}},
    "dpo-chosen-falls-later": {"dpo": DPO | {"chosen": UP}},
    "dpo-rephrases-fall": {"dpo": DPO | {"chosen_semantic": UP}},
    "dpo-all-kinds-fall": {"dpo": DPO | {"random_words": UP}},
    "dpo-argmax-rises": {"dpo": DPO | {GREEDY: FLAT}},
    "dpo-rest-falls": {"dpo": DPO | {REST: UP}},
    "dpo-squeezes": {"dpo": DPO | {"chosen": (0, 5, 8, 11, 14)}},
    "dpo-less-on-policy": {"on-policy": {**GOOD["on-policy"], GREEDY: (0, 2, 4, 6, 8)}},
    "dpo-rejected-falls-less-on-policy": {"on-policy": DPO},
    "extend-sft-rejected-rises": {"extend-sft": SFT | {"rejected": DOWN}},
    "extend-sft-rejected-higher": {"extend-sft": SFT | {"rejected": DOWN}},
    "extend-argmax-rises-less": {"extend-dpo": {**EXTENDED, GREEDY: (0, 3, 5, 7, 9)}},
    "extend-squeezes-less": {"extend-dpo": {**DPO, GREEDY: (0, 3, 5, 7, 9)}},
    "extend-others-fall-less": {
        "extend-dpo": {**EXTENDED, **dict.fromkeys(OTHERS, (0, -10, -20, -30, -40))}
    },
    "extend-chosen-higher": {"extend-dpo": {**EXTENDED, "chosen": (0, -2, -4, -6, -9)}},
    "extend-chosen-higher-at-margin": {
        "extend-dpo": {**EXTENDED, "chosen": (0, -2, -4, -6, -9)}
    },
}
"""Statement -> runs that make it wrong; others have tests of their own."""

ELSEWHERE = {
    *("sft-held-out-alike", "sft-held-out-chosen-rises", "dpo-argmax-rises-held-out"),
    *("dpo-step-zero", "extend-answers-better", "extend-starts-no-better"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return {role: write(folder, role, changes) for role, changes in GOOD.items()}


def outcome(name, seeds):
    """One claim's outcome; the other statements are not looked at."""
    (claim,) = claims_of([STATEMENT[name]], seeds)
    assert claim.name == name
    return claim.outcome


def test_every_claim_passes_where_everything_is_as_the_paper_says(tmp_path, good):
    claims = paper_claims([world(tmp_path, good=good)])
    assert {claim.name for claim in claims if claim.outcome != "PASS"} == set()
    assert len({claim.name for claim in claims}) == len(claims) >= 35


def test_every_claim_has_a_case_in_which_it_fails():
    assert set(SPOILT) | ELSEWHERE == set(NAMES)
    assert not set(SPOILT) & ELSEWHERE


@pytest.mark.parametrize("name", SPOILT)
def test_a_claim_fails_where_the_runs_say_otherwise(tmp_path, good, name):
    runs = {role: write(tmp_path, role, c) for role, c in SPOILT[name].items()}
    assert outcome(name, [world(tmp_path, runs, good=good)]) == "FAIL"


@pytest.mark.parametrize(
    ("name", "role", "held_out"),
    [
        ("sft-held-out-alike", "sft", {k: v[::-1] for k, v in SFT.items()}),
        (
            "sft-held-out-alike",
            "sft",
            {k: tuple(-x for x in v) for k, v in SFT.items()},
        ),
        ("sft-held-out-chosen-rises", "sft", SFT | {"chosen": DOWN}),
        ("dpo-argmax-rises-held-out", "dpo", DPO | {GREEDY: FLAT}),
    ],
    ids=["reversed", "negated", "chosen", "argmax"],
)
def test_held_out_prompts_can_say_otherwise(tmp_path, good, name, role, held_out):
    run = write(tmp_path, role, GOOD[role], held_out=held_out)
    assert outcome(name, [world(tmp_path, {role: run}, good=good)]) == "FAIL"


def test_held_out_prompts_do_not_move_the_other_claims(tmp_path, good):
    upside_down = {k: tuple(-x for x in v) for k, v in DPO.items()}
    run = write(tmp_path, "dpo", DPO, held_out=upside_down)
    claims = paper_claims([world(tmp_path, {"dpo": run}, good=good)])
    spoilt = {claim.name for claim in claims if claim.outcome != "PASS"}
    # the comparisons at matched points take all probes, as `learndyn compare` does
    matched = {"extend-chosen-higher", "extend-chosen-higher-at-margin"}
    assert spoilt - matched == {"dpo-argmax-rises-held-out"}


@pytest.mark.parametrize(
    ("margin", "wanted"), [(0.0, "PASS"), (3e-4, "FAIL"), (None, "N-A")]
)
def test_the_margin_of_the_first_update_is_zero_or_it_is_not(
    tmp_path, good, margin, wanted
):
    run = write(tmp_path, "dpo", DPO, margin=margin)
    assert (
        outcome("dpo-step-zero", [world(tmp_path, {"dpo": run}, good=good)]) == wanted
    )


def test_grades_decide_table_1(tmp_path, good):
    worse = {**RIGHT, "extend-dpo": RIGHT["dpo"]}
    one = world(tmp_path, good=good, right=worse)
    assert outcome("extend-answers-better", [one]) == "FAIL"
    better = {**RIGHT, "extend-sft": [True] * 100}
    one = world(tmp_path, good=good, right=better)
    assert outcome("extend-starts-no-better", [one]) == "FAIL"
    few = {**RIGHT, "sft": [True, False] * 10, "extend-sft": [False, True] * 10}
    one = world(tmp_path, good=good, right=few)  # alike, but 20 prompts cannot say so
    assert outcome("extend-starts-no-better", [one]) == "FAIL"
    most = {**RIGHT, "sft": [True] * 100, "extend-sft": [True] * 100}
    one = world(tmp_path, good=good, right=most)
    assert outcome("extend-starts-no-better", [one]) == "N-A"
    one = world(tmp_path, good=good, right={})
    assert outcome("extend-answers-better", [one]) == "N-A"


def test_a_path_that_is_highest_at_its_start_does_not_fall_later(tmp_path, good):
    run = write(tmp_path, "dpo", DPO | {"chosen": DOWN})
    assert (
        outcome("dpo-chosen-falls-later", [world(tmp_path, {"dpo": run}, good=good)])
        == "FAIL"
    )


@pytest.mark.parametrize("name", ["dpo-rephrases-fall", "dpo-all-kinds-fall"])
def test_a_kind_falls_where_its_interval_does(tmp_path, good, name):
    slight = DPO | {"chosen_format": (0, 0, 0, 0, -1e-4)}  # in the noise of prompts
    run = write(tmp_path, "dpo", slight)
    path = run.values("logp", "chosen_format", "train")
    moved = path[-1] - path[0]
    assert abs(moved.mean()) < moved.std() / math.sqrt(len(moved))
    assert outcome(name, [world(tmp_path, {"dpo": run}, good=good)]) == "FAIL"


def test_both_rephrases_have_to_be_probed(tmp_path, good):
    one_kind = {k: v for k, v in DPO.items() if k != "chosen_format"}
    run = write(tmp_path, "dpo", one_kind)
    found = outcome("dpo-rephrases-fall", [world(tmp_path, {"dpo": run}, good=good)])
    assert found == "N-A"


def test_a_claim_that_holds_on_some_seeds_only_has_failed(tmp_path, good):
    spoilt = write(tmp_path, "sft", SFT | {"chosen": DOWN})
    seeds = [world(tmp_path, good=good), world(tmp_path, {"sft": spoilt}, good=good)]
    claim = next(c for c in paper_claims(seeds) if c.name == "sft-chosen-rises")
    assert (claim.outcome, claim.holding, len(claim.measured)) == ("FAIL", 1, 2)


def test_without_runs_every_claim_says_why_it_is_not_applicable():
    for claim in paper_claims([Recorded("an import", {})]):
        assert claim.outcome == "N-A"
        assert claim.note
    assert {claim.outcome for claim in paper_claims([])} == {"N-A"}


def test_a_seed_that_lacks_a_run_is_named_in_the_note(tmp_path, good):
    seeds = [world(tmp_path, good=good), world(tmp_path, {"sft": None}, good=good)]
    claim = next(c for c in paper_claims(seeds) if c.name == "sft-chosen-rises")
    assert claim.outcome == "PASS"
    assert "Not measured on 1 of 2: the sft run is missing." in claim.note


def test_the_measured_number_is_the_change_itself(tmp_path, good):
    claims = {c.name: c for c in paper_claims([world(tmp_path, good=good)])}
    path = good["sft"].values("logp", "chosen", "train")
    wanted = float((path[-1] - path[0]).mean())
    (found,) = claims["sft-chosen-rises"].measured
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < wanted < found.high
    assert wanted == pytest.approx(20, abs=2)


def test_a_difference_without_pairs_has_no_interval():
    alone = np.array([3.0, math.nan, math.nan])
    many = np.array([math.nan, 1.0, 2.0])
    found = difference(alone, many)
    assert found.mean == 1.5
    assert math.isnan(found.low)
    assert above(found)
    assert not above(found, 2.0)
    assert below(found, 2.0)


# The authors' files.


def test_anchors_hold_on_the_authors_files(tmp_path, shared_data):
    from learndyn.paper.authors.claims import imported

    seeds = imported(shared_data / "authors", tmp_path).seeds
    claims = {claim.name: claim for claim in anchor_claims(seeds)}
    assert {claim.outcome for claim in claims.values()} == {"PASS"}
    assert {one.seed for one in claims["anchors-start"].measured} == {
        str(one.seed) for one in seeds
    }
    assert {one.seed for one in claims["anchors-path"].measured} <= set(_PATHS)
    assert len(claims["anchors-path"].measured) == 4
    dpo = next(one for one in seeds if one.seed == "prob_pythia410m_dpo")
    found = {claim.name: claim.outcome for claim in paper_claims([dpo])}
    assert found["dpo-margin-grows"] == "PASS"
    for name in ("dpo-squeezes", "dpo-argmax-rises", "dpo-rest-falls"):
        assert found[name] == "N-A"  # its greedy path is along random words


def test_anchors_fail_where_a_number_is_off(tmp_path, shared_data, monkeypatch):
    from learndyn.paper.authors.claims import imported

    folder = shared_data / "authors" / "prob_pythia410m_dpo"
    seeds = imported(folder, tmp_path).seeds
    name = "pythia-410m"
    monkeypatch.setitem(_START, name, (_START[name][0] + 0.01, *_START[name][1:]))
    monkeypatch.setitem(_PATHS, "prob_pythia410m_dpo", (("chosen", 25, -140.25),))
    assert [claim.outcome for claim in anchor_claims(seeds)] == ["FAIL", "FAIL"]


def anchored(name, method="dpo", *, kinds=_KINDS, off=0.0, steps=26):
    """Outcomes of the anchors for a made run that begins `off` nats from the known."""
    start = dict(zip(_KINDS, _START["pythia-410m"], strict=True))
    paths = {kind: np.full((steps, 3), start[kind] + off) for kind in kinds}
    told = {"method": method, "model": "pythia-410m (guessed)"}
    one = Recorded(name, {method: simulated(paths, info=told)})
    return {claim.name: claim.outcome for claim in anchor_claims([one])}


@pytest.mark.parametrize(
    ("name", "method", "off", "wanted"),
    [
        ("prob_pythia410m_dpo", "dpo", 0.0, "PASS"),
        ("prob_pythia410m_dpo", "dpo", 40.0, "FAIL"),
        ("pythia410_sft_again", "sft", 40.0, "FAIL"),
        ("pythia410_dpo_again", "dpo", 40.0, "N-A"),
        ("pythia410_dpo_again", "dpo", 0.5, "FAIL"),
        ("prob_pythia410m_dpo", "dpo", math.nan, "FAIL"),
    ],
)
def test_a_start_that_is_known_must_be_met(name, method, off, wanted):
    assert anchored(name, method, off=off)["anchors-start"] == wanted


def test_a_run_that_lacks_what_is_known_fails_and_stops_nothing():
    name = "prob_pythia410m_dpo"
    assert anchored(name, kinds=("rejected", "random_words")) == {
        "anchors-start": "PASS",
        "anchors-path": "FAIL",
    }
    assert anchored(name, steps=3)["anchors-path"] == "FAIL"
