"""Nothing moves, or the loss stays at 0.693: each cause by what shows it."""

import pytest
from planted import planted, with_info, with_log

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.not_training import NotTraining


LN2 = 0.6931471824645996


@pytest.fixture
def still(base):
    """Not one number moves, and the trainer logged nothing."""
    return with_log(planted(base, {}, noise=0.0), [])


@pytest.fixture
def hardly(base):
    """Answers move by 0.005 nats per token at most."""
    return with_log(planted(base, {"rejected": -0.04}, noise=0.1), [])


def pairs(rows=6, **changes):
    """What DPO logs where policy and reference stay equal."""
    row = {
        "loss": LN2,
        "grad_norm": 3.5,
        "learning_rate": 1e-5,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "rewards/accuracies": 0.0,
        "rewards/margins": 0.0,
        "logps/chosen": -20.5,
        "logps/rejected": -31.25,
    }
    return [{"step": s + 1} | row | changes for s in range(rows)]


def found(run, log, **info):
    run = with_log(with_info(run, **info), log)
    facts = Facts(run)
    finding = NotTraining.detect(facts)
    headline = finding.headline(facts)
    assert len((headline or "").split()) <= 20
    return finding, headline, finding.advice(facts)


def test_a_run_in_which_nothing_moved_is_found(still):
    finding = NotTraining.detect(Facts(still))
    assert finding.severity == "problem"
    assert "Check that the learning rate is above 0" in finding.says
    logged = with_log(still, [{"step": s, "learning_rate": 0.0} for s in (1, 2)])
    assert (
        "logged learning rate is 0 throughout" in NotTraining.detect(Facts(logged)).says
    )


def test_answers_that_move_are_training(base):
    run = with_log(planted(base, {"rejected": -0.2}, noise=0.0), [])
    finding = NotTraining.detect(Facts(run))
    assert finding.severity == "fine"
    assert "the largest change is 0.2 nats" in finding.says


def test_one_answer_alone_is_no_change_that_matters(still):
    still.columns["logp"][-1, 3] += 0.01
    finding, headline, _ = found(
        still, pairs(grad_norm=1.0, **{"rewards/chosen": 1e-4})
    )
    assert (finding.severity, headline) == ("watch", None)
    assert "the largest change of one answer is 0.01 nats" in finding.says
    assert "Excluded: beta 0" not in finding.says  # its beta is not known
    for phrase in ("identical pairs", "a learning rate of 0", "frozen weights"):
        assert phrase in finding.says


# --- identical pairs


def same(**changes):
    one = {"logps/chosen": -20.5, "logps/rejected": -20.5, "grad_norm": 1e-8}
    return pairs(**(one | changes))


def test_identical_pairs_are_found_though_the_probes_move(still, base):
    finding, headline, (advice,) = found(still, same())
    assert finding.numbers["cause"] == "identical_pairs"
    assert headline == (
        "Chosen and rejected are the same to the trainer: rewards/margins is exactly "
        "0, so the loss stays at 0.693."
    )
    assert "trainer.train_dataset[0]" in advice.do
    moving = planted(base, {"chosen": 6.0, "rejected": 6.0})  # by a term on chosen
    log = same(**{"rewards/chosen": 0.6, "rewards/rejected": 0.6})
    assert found(moving, log)[0].numbers["cause"] == "identical_pairs"
    old = [{k: v for k, v in row.items() if "logps" not in k} for row in log]
    assert found(moving, old)[0].numbers["cause"] == "identical_pairs"


def test_answers_cut_to_one_text_are_truncation_s(still):
    finding, headline, (advice,) = found(still, same(), trainer={"max_length": 4})
    assert finding.numbers["cause"] == "nothing_left"
    assert "prompts fill max_length (4)" in headline
    assert "Raise max_length" in advice.do
    empty = {"logps/chosen": 0.0, "logps/rejected": 0.0}
    assert found(still, same(**empty))[0].numbers["cause"] == "nothing_left"
    fits = found(still, same(), trainer={"max_length": 64})
    assert fits[0].numbers["cause"] == "identical_pairs"


# --- beta, the rate, frozen weights


def test_beta_0_is_named_for_methods_that_have_one(still):
    log = pairs(grad_norm=0.0)
    finding, headline, (advice,) = found(still, log, trainer={"beta": 0.0})
    assert finding.numbers["cause"] == "beta_zero"
    assert headline.startswith("beta is 0, so the loss does not depend on the model")
    assert "Set beta above 0" in advice.do
    other = found(still, [], method="grpo", trainer={"beta": 0.0})[0]
    assert other.numbers["cause"] is None
    half = found(still, log, trainer={"beta": 0.1, "label_smoothing": 0.5})[0]
    assert half.numbers["cause"] == "label_smoothing"


def test_a_rate_of_0_is_told_from_frozen_weights(still):
    zero = found(still, pairs(learning_rate=0.0))
    assert zero[0].numbers["cause"] == "rate_zero"
    assert "gradient norm is up to 3.5" in zero[0].says
    frozen = found(still, pairs(grad_norm=0.0))
    assert frozen[0].numbers["cause"] == "frozen"
    assert "is_trainable=True" in frozen[2][0].do
    counted = {"parameters": 1000, "trainable_parameters": 0}
    none = found(still, pairs(), **counted)[0]
    assert none.numbers["cause"] == "frozen"
    assert "0 of 1,000 parameters" in none.says


def test_a_rate_that_ends_at_0_is_not_0_throughout(still):
    log = pairs()
    log[-1]["learning_rate"] = 0.0
    assert found(still, log)[0].numbers["cause"] != "rate_zero"


def test_gradients_without_any_change_are_of_other_weights(still):
    finding, headline, _ = found(still, pairs())
    assert finding.numbers["cause"] == "other_weights"
    assert "does not hold the weights that are watched" in headline


# --- a shared reference


def test_rewards_of_exactly_0_in_a_run_that_moves_are_a_shared_reference(base):
    moving = planted(base, {"chosen": 4.0, "rejected": -9.0})
    finding, headline, (advice,) = found(moving, pairs())
    assert finding.numbers["cause"] == "shared_reference"
    assert "so the loss stays at 0.693" in headline
    assert "copy.deepcopy" in advice.do


@pytest.mark.parametrize(
    "changes",
    [
        {"log": {"rewards/chosen": 1e-6}},
        {"info": {"method": "cpo"}},
        {"info": {"trainer": {"sync_ref_model": True}}},
    ],
    ids=["rewards-move", "no-reference", "synced-on-purpose"],
)
def test_other_rewards_and_methods_have_no_shared_reference(base, changes):
    moving = planted(base, {"chosen": 4.0, "rejected": -9.0})
    log = pairs(**changes.get("log", {}))
    assert found(moving, log, **changes.get("info", {}))[0].severity == "fine"


# --- half precision and small steps


def small(rate):
    return pairs(learning_rate=rate, **{"rewards/chosen": 1e-5})


def test_steps_that_round_away_are_named_with_the_weights_that_lose_them(hardly):
    finding, headline, (advice,) = found(hardly, small(5e-7), dtype="bfloat16")
    assert finding.numbers["cause"] == "rounded_away"
    assert "in bfloat16 and the steps of 5e−7 round away" in headline
    assert "above 0.000256" in finding.says
    assert "float32" in advice.do


@pytest.mark.parametrize(
    ("rate", "info"),
    [
        (5e-7, {"dtype": "float32"}),
        (1e-3, {"dtype": "bfloat16"}),
        (5e-7, {"dtype": "bfloat16", "parameters": 100, "trainable_parameters": 9}),
    ],
    ids=["float32", "large-steps", "adapter"],
)
def test_steps_that_do_not_round_away_are_not_blamed(hardly, rate, info):
    assert found(hardly, small(rate), **info)[0].numbers["cause"] != "rounded_away"


def test_half_precision_that_moves_is_not_blamed(base):
    moving = planted(base, {"rejected": -9.0})
    assert found(moving, small(5e-7), dtype="bfloat16")[0].severity == "fine"


def test_a_far_too_small_rate_is_named(hardly):
    finding, headline, _ = found(hardly, small(1e-9))
    assert finding.numbers["cause"] == "rate_too_small"
    assert headline == "The learning rate is far too small: 1e−9."
    assert found(hardly, small(1e-7))[0].numbers["cause"] is None


# --- warm-up


def rising(rows=6, top=1e-6):
    log = small(0.0)[:rows]
    return [row | {"learning_rate": top * row["step"] / 10} for row in log]


def test_only_a_warm_up_that_goes_on_asks_for_longer_training(hardly):
    trainer = {"learning_rate": 1e-6, "warmup_steps": 10}
    finding, headline, (advice,) = found(
        hardly, rising(), finished=False, trainer=trainer
    )
    assert (finding.severity, headline) == ("watch", None)
    assert advice.do.startswith("Train longer")
    ended = found(hardly, rising(), finished=True, trainer=trainer)
    assert ended[0].numbers["cause"] == "warm_up_too_long"
    assert "came to 6e−7 of 1e−6" in ended[1]
    over = found(hardly, rising(top=1.7e-6), finished=False, trainer=trainer)
    assert over[0].numbers["cause"] is None


# --- rewards without spread


def groups(share, rows=6, std=0.0):
    row = {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 1e-6, "reward": 1.0}
    row |= {"reward_std": std, "frac_reward_zero_std": share}
    return [{"step": s + 1} | row for s in range(rows)]


def test_rewards_without_spread_are_named_whatever_the_method_is_called(still):
    for info in (
        {"method": "grpo"},
        {"method": None, "family": "online"},
        {"method": "rloo"},
    ):
        finding, headline, (advice,) = found(still, groups(1.0), **info)
        assert finding.numbers["cause"] == "no_reward_spread"
        assert headline.startswith("All answers of a group get the same reward")
        assert "num_generations" in advice.do
    old = [{"step": s, "reward": 0.0, "reward_std": 0.0} for s in (1, 2, 3)]
    assert found(still, old, method="grpo")[0].numbers["cause"] == "no_reward_spread"


def test_some_groups_without_spread_are_usual(base, still):
    moving = planted(base, {"chosen": 9.0})
    finding = found(moving, groups(0.5, std=0.4), method="grpo")[0]
    assert finding.severity == "fine"
    half = found(still, groups(0.5, std=0.4), method="grpo")[0]
    assert half.numbers["cause"] == "frozen"
