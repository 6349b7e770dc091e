"""Training prompts against held-out ones, and the log against the probes."""

import dataclasses

import numpy as np
import pytest
from planted import planted, with_column, with_info, with_log, with_splits
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.overfit import Overfit
from learndyn.diagnose.findings.signs.split_disagrees import SplitDisagrees
from learndyn.diagnose.groups import Generalisation, _logged_margin
from learndyn.diagnose.verdict import diagnose
from learndyn.record.trajectory import Trajectory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    options = {"prompts": 40, "steps": (0, 10, 20, 30, 40, 50), "log": False}
    drift = {"chosen": 0.0, "rejected": 0.0}
    return Trajectory.load(write_run(path, drift=drift, **options))


def groups(base, chosen, rejected=(0.0, 0.0), marked=True, **options):
    """Changes of chosen and rejected on 20 prompts marked train and 20 marked test."""
    run = planted(base, {"chosen": 1.0, "rejected": 1.0}, noise=0.1, **options)
    for kind, sizes in (("chosen", chosen), ("rejected", rejected)):
        path = run.values("logp", kind)
        train = np.array([int(p[1:]) % 2 == 0 for p in run.prompt_of[run.rows(kind)]])
        moved = path[0] + (path - path[0]) * np.where(train, *sizes)
        run = with_column(run, "logp", kind, moved)
    if not marked:
        return run
    odd = np.array([int(prompt[1:]) % 2 for prompt in run.prompt_of])
    return with_splits(run, np.where(odd, "test", "train"))


def rows(margin, count=10, **first):
    """A log whose rewards/margins end at `margin` nats (beta 0.1)."""
    log = [
        {
            "step": i + 1,
            "rewards/margins": 0.1 * margin * min(1, i / 5),
            "epoch": 1.5 * i,
        }
        for i in range(count)
    ]
    log[0].update(first)
    return log


DPO = {"method": "dpo", "beta": 0.1}


def test_pairs_that_gain_a_margin_where_they_are_trained_alone_are_memorised(base):
    run = with_info(groups(base, (-30, -55), (-80, -50)), **DPO)
    finding = Overfit.detect(Facts(with_log(run, rows(50))))
    assert finding.severity == "problem"
    assert finding.says.startswith("The pairs are memorised in 13.5 epochs: the margin")
    one, other = (finding.numbers[f"{g}_margin"][0] for g in ("trained", "held_out"))
    assert one == pytest.approx(50, rel=0.1)
    assert -10 < other < 0
    first, bug, *rest = diagnose(with_log(run, rows(50))).sentences
    assert first == finding.says
    assert bug.startswith("This is no bug in the code, but too much training")
    assert finding.says not in rest


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [((10, 9), (-10, -9)), ((10, 4), (-10, -4)), ((0.5, 0.0), (-0.5, 0.0))],
    ids=["alike", "less", "too-little"],
)
def test_pairs_that_generalise_are_not_memorised(base, chosen, rejected):
    run = with_info(groups(base, chosen, rejected), **DPO)
    assert Overfit.detect(Facts(run)).severity != "problem"


def test_a_logged_margin_that_the_probes_do_not_have_is_a_problem(base):
    run = with_info(groups(base, (1, 1), (-0.6, -0.6), marked=False), **DPO)
    finding = Overfit.detect(Facts(with_log(run, rows(34))))
    assert finding.severity == "problem"
    assert finding.says.startswith(
        "On the rows that it trains on the log's margin is +3"
    )
    assert "on watched prompts it changed by +1.6" in finding.says
    assert "or these are not the prompts that it trains on" in finding.says
    half = Overfit.detect(Facts(with_log(run, rows(4))))
    assert half.severity == "watch"
    like = Overfit.detect(Facts(with_log(run, rows(1.8))))
    assert like.severity == "fine"
    assert "Which of these were held out is not recorded" in like.says


def test_a_margin_that_falls_is_left_to_exchanged_pairs(base):
    run = with_info(groups(base, (-4, -4), (4, 4), marked=False), **DPO)
    assert Overfit.detect(Facts(with_log(run, rows(8)))).severity == "fine"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "cpo", "trainer": {"loss_type": "simpo"}},
        {"method": "sft"},
        {"method": "dpo", "trainer": {"ld_alpha": 0.5}},
        {"method": "dpo", "trainer": {"sync_ref_model": True}},
        {"method": "dpo", "beta": None},
    ],
)
def test_rewards_that_are_not_beta_times_the_change_are_not_read(base, changes):
    run = with_log(with_info(base, **(DPO | changes)), rows(34))
    assert _logged_margin(run) is None
    assert Overfit.detect(Facts(run)) is None


def test_a_log_that_does_not_begin_at_zero_is_not_read(base):
    run = with_info(base, **DPO)
    assert _logged_margin(with_log(run, rows(34))).mean == pytest.approx(34)
    assert _logged_margin(with_log(run, rows(34, **{"rewards/margins": 5.3}))) is None


@pytest.mark.parametrize(
    ("train", "test", "severity", "says"),
    [
        (20.0, 12.0, "problem", "SFT overfits: chosen changed by +2.6"),
        (20.0, -8.0, "problem", "The answers are memorised: chosen changed by +2.6"),
        (
            20.0,
            18.0,
            "watch",
            "Prompts marked train gain more than prompts marked test",
        ),
        (-4.0, -12.0, "watch", "Prompts marked train fall less than"),
        (0.0, -8.0, "watch", "Prompts marked train fare better than"),
        (20.0, 20.0, "fine", "Chosen changed by +2.6"),
        (20.0, 40.0, "fine", "Chosen changed by +2.6"),
        (0.01, 0.02, "fine", "Chosen stayed within 0.01 nats per token on"),
    ],
)
def test_sft_that_raises_training_answers_alone_overfits(
    base, train, test, severity, says
):
    run = with_info(groups(base, (train, test)), method="sft")
    finding = Overfit.detect(Facts(run))
    assert finding.severity == severity
    assert finding.says.startswith(says)
    recorded = "Whether they were trained on is not recorded" in finding.says
    assert recorded is (severity == "fine")


def test_lengths_of_the_groups_do_not_part_them(base):
    # held-out answers are twice as long: more nats per response, as many per token
    run = groups(base, (20.0, 40.0))
    tokens = np.where(run.split_of == "test", 16, 8)
    longer = dataclasses.replace(run, n_tokens=tokens)
    longer = with_splits(with_info(longer, method="sft"), run.split_of)
    finding = Overfit.detect(Facts(longer))
    assert finding.severity == "fine"
    assert finding.numbers["difference"][0] == pytest.approx(0, abs=0.1)


def record(run, prompts):
    """`trained` of run.json: both answers of these prompts."""
    rows = np.flatnonzero(np.isin(run.prompt_of, prompts))
    of = {
        kind: rows[run.kind_of[rows] == kind].tolist()
        for kind in ("chosen", "rejected")
    }
    return {
        "rows": 64,
        "matched_by": "ids",
        "prompts": list(prompts),
        "raised": of["chosen"],
        "lowered": of["rejected"],
    }


def test_what_was_trained_on_is_taken_from_the_run_and_not_from_the_column(base):
    run = with_info(groups(base, (20, 20)), method="sft")
    prompts = np.unique(run.prompt_of)
    path = run.values("logp", "chosen")
    early = np.arange(len(prompts)) < 20
    moved = path[0] + (path - path[0]) * np.where(early, 1.0, 0.4)
    run = with_column(run, "logp", "chosen", moved)
    assert Overfit.detect(Facts(run)).severity == "fine"
    known = with_info(run, trained=record(run, prompts[:20].tolist()))
    finding = Overfit.detect(Facts(known))
    assert finding.severity == "problem"
    assert "on prompts trained on and by" in finding.says
    assert finding.numbers["recorded"]
    differs = SplitDisagrees.detect(Facts(known))
    assert differs.numbers == {"marked_not_trained": 10, "trained_not_marked": 10}
    assert differs.severity == "watch"
    marked = np.where(np.isin(known.prompt_of, prompts[:20]), "train", "test")
    right = SplitDisagrees.detect(Facts(with_splits(known, marked)))
    assert right.says == "The probes' splits agree with what was trained on."
    assert SplitDisagrees.detect(Facts(run)) is None


def test_no_sign_of_overfitting_is_said_where_both_groups_are_recorded(base):
    run = with_info(groups(base, (20, 20)), method="sft")
    even = sorted(set(run.prompt_of[run.split_of == "train"].tolist()))
    finding = Overfit.detect(Facts(with_info(run, trained=record(run, even))))
    assert finding.severity == "fine"
    assert finding.says.startswith("No sign of overfitting: chosen changed by +2.6")
    unknown = {"rows": 64, "matched_by": None, "why_unknown": "streamed"}
    blind = Overfit.detect(Facts(with_info(run, trained=unknown)))
    assert "not recorded" in blind.says


def test_two_groups_of_equal_numbers_are_drawn_independently(base):
    # Drawn alike, twins would differ by nothing in every resample.
    run = groups(base, (20.0, 20.0))
    path = run.values("logp", "chosen").copy()
    path[:, 1::2] = path[:, 0::2]
    twins = with_column(run, "logp", "chosen", path)
    gap = Generalisation.of(twins).gap
    assert gap.mean == pytest.approx(0)
    assert gap.low < -0.03 < 0.03 < gap.high


def test_one_group_or_none_has_nothing_to_compare(base):
    assert Overfit.detect(Facts(base)) is None
    assert Overfit.detect(Facts(groups(base, (20, -8)), split="test")) is None


def test_groups_that_gain_alike_are_seldom_called_overfitting(base):
    runs = [groups(base, (8, 8), spread=3.0, seed=seed) for seed in range(100)]
    found = [Overfit.detect(Facts(run)).severity != "fine" for run in runs]
    assert np.mean(found) < 0.06
