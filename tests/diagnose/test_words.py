"""Sentences: they carry diagnose's numbers and claim no more than the intervals."""

import pytest
from synthetic import write_run

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats, number, signed
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.state import DELTA, state_of
from learndyn.diagnose.two_runs.compare import compare
from learndyn.diagnose.two_runs.words import compare_in_words, names
from learndyn.diagnose.verdict import what_happened
from learndyn.record.trajectory import Trajectory


SQUEEZED = "tokens the model already favoured"


def load(path, **options):
    return Trajectory.load(write_run(path, **options))


def said(trajectory, *arguments):
    return " ".join(what_happened(trajectory, *arguments))


def test_squeezing_is_named_with_its_numbers(tmp_path):
    trajectory = load(tmp_path / "run", info={"beta": 0.1})
    sentences = what_happened(trajectory)
    text, state = " ".join(sentences), state_of(trajectory)
    assert sentences[0].startswith(f"Chosen fell: {number(state.chosen.nats)} nats per")
    assert "onto tokens the model already favoured" in sentences[0]
    for move in (state.rejected, state.greedy, state.margin):
        assert number(move.nats) in text
    assert number(state.off_target.per_token) in text
    assert f"rewards/chosen {signed(0.1 * state.chosen.nats.mean)}" in sentences[0]
    assert "Of 3 watched kinds of answer 3 fell and 0 rose." in text


def test_without_beta_no_reward_is_made_up(tmp_path):
    assert "rewards/" not in said(load(tmp_path / "run"))


def test_a_fit_is_not_called_squeezing(tmp_path):
    drift = {"chosen": 30.0, "rejected": -9.0, "irrelevant_train": -5.0}
    text = said(load(tmp_path / "run", drift=drift, greedy=1.0))
    assert text.startswith("Training does what it should: chosen rose by ")
    assert "SQUEEZE" not in text
    assert SQUEEZED not in text


def test_a_collapse_is_told_from_squeezing(tmp_path):
    for chosen, words in (
        (-20.0, "everything watched fell, the model's own favourites too"),
        (-4.0, "probability went to answers that nobody watches"),
    ):
        drift = {"chosen": chosen, "rejected": -30.0}
        text = said(load(tmp_path / f"{chosen}", drift=drift, greedy=-5.0))
        assert words in text
        assert SQUEEZED not in text


def test_a_run_that_did_not_move_is_said_not_to_have_moved(tmp_path):
    drift = {"chosen": 0.01, "rejected": -0.01}
    text = said(load(tmp_path / "run", drift=drift, greedy=0.01))
    assert text.startswith("Nothing moved by a size that counts: chosen changed by ")
    assert "No sign of a bug, and no effect yet." in text


def test_an_unsure_greedy_path_is_never_called_squeezing_outright(tmp_path):
    trajectory = load(tmp_path / "run", greedy=0.8)
    chosen = trajectory.rows("chosen")
    trajectory.columns["argmax_logp"][-1, chosen[::2]] += 5.0
    trajectory.columns["argmax_logp"][-1, chosen[1::2]] -= 5.0
    greedy = state_of(trajectory).greedy
    assert greedy.surely.mean > DELTA > greedy.surely.low
    text = said(trajectory)
    assert "and the model's own favourites did not clearly gain it" in text
    assert "(greedy path) did not clearly change" in text
    assert "squeez" not in text
    assert SQUEEZED not in text


def test_a_change_whose_interval_holds_zero_is_not_called_a_fall(tmp_path):
    trajectory = load(tmp_path / "run", drift={"chosen": -0.2, "rejected": -20.0})
    chosen = trajectory.rows("chosen")
    trajectory.columns["logp"][-1, chosen[::2]] += 6.0
    trajectory.columns["logp"][-1, chosen[1::2]] -= 6.0
    text = said(trajectory)
    assert ", and chosen did not clearly change, " in text
    assert "1 fell and 0 rose; 1 did not clearly change" in text
    assert "times as much as chosen" not in text
    assert "by the fall of rejected alone" in text


def test_sft_is_not_told_in_margins_or_squeezing(tmp_path):
    drift = {"chosen": 9.0, "rejected": 4.0, "irrelevant_train": 3.0}
    for greedy in (4.0, 20.0):  # the greedy path may gain more than chosen
        path = tmp_path / f"{greedy}"
        text = said(load(path, drift=drift, greedy=greedy, info={"method": "sft"}))
        assert text.startswith("Training does what it should: chosen rose by ")
        assert "No sign of a bug." in text
        for word in ("margin", "squeez", "SQUEEZE", "rewards/", SQUEEZED):
            assert word not in text


def test_sft_that_lowers_chosen_is_said_to_be_wrong(tmp_path):
    text = said(load(tmp_path / "run", info={"method": "sft"}))
    assert text.startswith("Chosen fell: ")
    assert "Probably a fault: SFT raises the answers that it trains on." in text
    # a greedy path that surely gained is not said to have stood still
    assert "while the model's own favourites gained" in text
    assert "did not go to the model's own favourites" not in text


def test_chosen_that_turned_back_is_said_with_its_peak(tmp_path):
    trajectory = load(tmp_path / "run", drift={"chosen": 4.0, "rejected": -20.0})
    trajectory.columns["logp"][-1, trajectory.rows("chosen")] -= 6
    assert "Chosen was highest at update 75" in said(trajectory)


def test_one_observation_says_that_no_change_can_be_shown(tmp_path):
    text = said(load(tmp_path / "run", steps=(0,)))
    assert text.startswith("One observation so far")


def test_few_prompts_and_lost_values_are_owned_up_to(tmp_path):
    trajectory = load(tmp_path / "run", prompts=4)
    trajectory.columns["logp"][-1, 0] = float("nan")
    text = said(trajectory)
    assert "Only 4 prompts" in text
    assert "1 of 12 last log-probabilities are not finite" in text


def test_of_a_diverged_model_nothing_else_is_said(tmp_path):
    trajectory = load(tmp_path / "run")
    trajectory.columns["logp"][-2:, :] = float("nan")
    (only,) = what_happened(trajectory)
    assert only.startswith("The model diverged: at update 100")
    assert "first seen at update 75" in only


def test_runs_of_one_name_are_told_apart_by_the_folder_above(tmp_path):
    (tmp_path / "extend").mkdir()
    one, other = load(tmp_path / "dpo"), load(tmp_path / "extend" / "dpo")
    assert names(one, other) == (f"{tmp_path.name}/dpo", "extend/dpo")


def test_a_probe_set_without_chosen_still_gives_sentences(tmp_path):
    text = said(load(tmp_path / "run", drift={"custom": -3.0}))
    assert "cannot be judged: the probes have no chosen answers" in text
    assert text.count("no chosen answers") == 1
    assert "Of 1 watched kind of answer 1 fell and 0 rose." in text


def test_two_runs_are_compared_at_updates_margin_and_gap(tmp_path):
    a = load(tmp_path / "dpo")
    b = load(tmp_path / "extend", drift={"chosen": -1.0, "rejected": -30.0})
    b_full = load(
        tmp_path / "extend-dpo",
        drift={"chosen": -1.0, "rejected": -30.0, "irrelevant_train": -3.0},
    )
    text = " ".join(compare_in_words(a, b_full))
    for words in ("equal updates (100)", "matched DPO margin", "matched absolute gap"):
        assert words in text
    assert "extend-dpo" in text
    assert "irrelevant" not in " ".join(compare_in_words(a, b))
    assert said(b_full, a).endswith(text)


def test_a_difference_whose_interval_holds_zero_is_not_distinguishable(tmp_path):
    a = load(tmp_path / "a")
    text = " ".join(compare_in_words(a, a))
    assert text.count("not distinguishable") == 3


def test_sft_and_dpo_are_compared_at_equal_updates_only(tmp_path):
    sft, dpo = load(tmp_path / "sft", info={"method": "sft"}), load(tmp_path / "dpo")
    for runs in ((sft, dpo), (dpo, sft)):
        answer, at_updates, unlike = compare_in_words(*runs)
        assert "one of them is supervised finetuning" in answer
        assert "equal updates" in at_updates
        assert "sft is supervised finetuning and dpo trains on preferences" in unlike
    assert not any("unlike" in one for one in compare_in_words(dpo, dpo))


SLOW = {"chosen": -2.0, "rejected": -14.0}
"""At the margin of 9.6, four fifths of its own, a run of `FAST` is where it is."""
FAST = {"chosen": -6.0, "rejected": -42.0}


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (FAST, SLOW, "b is higher for chosen than a only by less progress: +3.9 ["),
        (SLOW, FAST, "a is higher for chosen than b only by less progress: +3.9 ["),
        (
            FAST,
            {"chosen": 2.0, "rejected": -34.0},
            "b is better for chosen than a, and not only by less progress: +7.9 [",
        ),
        (
            {"chosen": -3.0, "rejected": -42.0},
            SLOW,
            "a is better for chosen where both have made the same progress: b minus a "
            "is −",
        ),
        (FAST, FAST, "The runs cannot be told apart for chosen: a minus b is 0.0 ["),
        ({"chosen": 1.0}, {"chosen": 3.0}, "b is higher for chosen than a, by +2.0 ["),
        ({"custom": 1.0}, {"custom": 3.0}, "Which run is better for chosen cannot be"),
    ],
    ids=["slower", "swapped", "better", "opposite", "same", "unmatched", "no chosen"],
)
def test_the_first_sentence_says_which_run_is_better_and_whether_it_is_progress(
    tmp_path, a, b, answer
):
    runs = [load(tmp_path / k, drift=d, noise=0.1) for k, d in (("a", a), ("b", b))]
    first, *others = compare_in_words(*runs)
    assert first.startswith(answer)
    assert first.count(". ") == 0
    starts = ("At equal updates (100)", "At matched DPO margin", "At matched absolute")
    for one, start in zip(others, starts, strict=False):
        assert one.startswith(start)
        assert one.count(". ") == 0


def test_the_answer_is_in_rewards_where_both_runs_have_one_beta(tmp_path):
    def pair(*betas):
        folder = tmp_path / "-".join(map(str, betas))
        return [
            load(folder / str(i), drift=d, info={"trainer": {"beta": beta}})
            for i, (d, beta) in enumerate(zip((FAST, SLOW), betas, strict=True))
        ]

    runs = pair(0.2, 0.2)
    nats_higher = compare(*runs, "updates").kinds["chosen"].difference.mean
    first = compare_in_words(*runs)[0]
    assert f"(rewards/chosen {nats(0.2 * nats_higher, 2)}) after as many" in first
    assert "rewards" not in compare_in_words(*pair(0.1, 0.2))[0]


def test_where_too_many_resamples_are_lost_the_words_say_so_and_what_was_done(tmp_path):
    drift = {"chosen": -2.0, "rejected": -22.0, "irrelevant_train": -2.0}
    a = load(tmp_path / "a")
    b, c = (
        load(tmp_path / k, drift=drift, noise=4.0, seed=i) for i, k in enumerate("bc")
    )
    text = " ".join(compare_in_words(a, b))
    assert ", the largest that both reach in 80 % of the resamples; update" in text
    answer, *_, margin, gap = compare_in_words(a, c)
    why = "and no margin at least half as far loses less."
    assert answer.endswith(why)
    assert "whether that is only less progress cannot be told: 4" in answer
    assert margin.startswith("No comparison at matched DPO margin: 4")
    assert gap.startswith("No comparison at matched absolute gap: 4")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.26, "+1.3"), (-1.26, "−1.3"), (-0.01, "0.0"), (float("nan"), "unknown")],
)
def test_numbers_have_a_sign_a_true_minus_and_no_negative_zero(value, text):
    assert nats(value) == text


def test_an_unknown_interval_is_said_to_be_unknown():
    assert (
        number(Interval(1.0, float("nan"), float("nan"))) == "+1.0 [interval unknown]"
    )


def test_a_change_that_is_sure_but_tiny_is_not_told_as_one(tmp_path):
    # 0.004 nats per token: every prompt moved, and nothing happened.
    drift = {"chosen": 0.03, "rejected": 0.03, "irrelevant_train": 0.03}
    tiny = load(
        tmp_path / "run", drift=drift, greedy=0.01, noise=0.1, info={"method": "sft"}
    )
    assert squeeze_evidence(tiny).chosen.above_zero
    text = said(tiny)
    assert "Nothing moved by a size that counts" in text
    assert " fell" not in text
    for claim in ("what it should", "Watch irrelevant_train", "path) gained"):
        assert claim not in text


def test_a_tiny_fall_of_chosen_is_not_called_a_fault_of_sft(tmp_path):
    drift = {"chosen": -0.03, "rejected": -0.03}
    text = said(load(tmp_path / "r", drift=drift, noise=0.1, info={"method": "sft"}))
    assert text.startswith("Chosen changed by less than 0.01 nats per token: ")
    assert "0 fell and 0 rose; 2 did not clearly change by a size that counts" in text
    assert "fell:" not in text
    assert "fault" not in text
