"""The method of a run is known by any trainer's name for it, and from its log."""

import json

import pytest
from hypothesis import given, strategies as st
from synthetic import information, write_run

from learndyn.record.method import Method
from learndyn.record.run_directory import RunDirectory
from learndyn.record.run_info import RunInfo


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpo", "dpo"),
        ("axolotldpo", "dpo"),
        ("UnslothDPO", "dpo"),
        ("onlinedpo", "online_dpo"),
        ("NashMD", "nash_md"),
        ("extend-SFT", "extend-sft"),
        ("asyncgrpo", "grpo"),
        ("sdpo", "sdpo"),  # distillation, although it ends in "dpo"
        ("explain", "explain"),
        ("<i>dpo", "<i>dpo"),
        ("", ""),
    ],
)
def test_a_name_ends_with_the_method(name, expected):
    assert Method.named(name).name == expected


@pytest.mark.parametrize(
    ("classes", "losses", "expected"),
    [
        (["CustomDPOTrainer", "DPOTrainer", "Trainer"], (), "dpo"),
        (["MyTrainer", "DPOTrainer", "Trainer"], ("ipo",), "ipo"),
        (["AxolotlDPOConfig", "DPOConfig"], ("sigmoid", "sft"), "dpo"),
        (["DPOTrainer"], ("sft",), "sft"),
        (["UnslothKTOConfig"], ("kto",), "kto"),
        (["CPOTrainer"], ("simpo",), "simpo"),
        (["CPOTrainer"], ("ipo",), "cpo"),  # of CPO's own, without a reference
        (["CustomDPOTrainer"], ("orpo",), "orpo"),  # LLaMA-Factory's pref_loss
        (["GKDTrainer", "SFTTrainer", "Trainer"], (), "gkd"),
        (["OnlineDPOTrainer"], ("sigmoid",), "online_dpo"),
        (["PairwiseTrainer", "Trainer"], (), "reward"),
        (["CustomSeq2SeqTrainer", "Seq2SeqTrainer", "Trainer"], (), ""),
        (["TrainingArguments"], (), ""),
    ],
)
def test_the_first_class_that_is_named_after_a_method_tells_it(
    classes, losses, expected
):
    assert Method.of_classes(classes, losses).name == expected


@pytest.mark.parametrize(
    ("name", "beta", "family", "reference", "pushes"),
    [
        ("sft", None, "sft", False, False),
        ("extend-sft", None, "sft", False, False),
        ("dpo", 0.1, "preference", True, True),
        ("ipo", 0.1, "preference", True, True),
        ("simpo", 2.0, "preference", False, True),
        ("cpo", 0.1, "preference", False, True),
        ("orpo", 0.1, "preference", False, True),
        ("kto", 0.1, "unpaired", True, False),
        ("bco", 0.1, "unpaired", True, False),
        ("grpo", 0.0, "online", False, False),
        ("grpo", 0.04, "online", True, False),
        ("grpo", None, "online", None, False),
        ("ppo", None, "online", True, False),
        ("gkd", 0.5, "unknown", None, None),
        ("reward", None, "unknown", None, None),
        ("mine", None, "unknown", None, None),
    ],
)
def test_what_a_method_does(name, beta, family, reference, pushes):
    method = Method.named(name, (), beta)
    assert (method.family, method.has_reference) == (family, reference)
    assert method.pushes_rejected is pushes
    info = RunInfo.of({"method": name, "trainer": {"beta": beta}})
    assert (info.family, info.has_reference) == (family, reference)
    assert info.pushes_rejected is pushes
    assert info.sft is (family == "sft")


@pytest.mark.parametrize(
    ("columns", "name", "family"),
    [
        ("input_ids attention_mask labels", "sft", "sft"),
        ("input_ids labels images videos audios", "sft", "sft"),  # LLaMA-Factory
        ("chosen_input_ids chosen_labels rejected_input_ids", "", "preference"),
        ("prompt_ids chosen_ids rejected_ids", "", "preference"),
        ("prompt chosen rejected", "", "preference"),
        ("input_ids labels kl_input_ids kl_labels kto_tags", "kto", "unpaired"),
        ("prompt completion label", "kto", "unpaired"),
        ("text label", "", "unknown"),
        ("prompt", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_columns_tell_what_no_name_does(columns, name, family):
    method = Method.of_columns(columns.split())
    assert (method.name, method.family) == (name, family)


def paired(reward, rows=3) -> list[dict]:
    """Rows of a log, with the reward that `reward` makes of log pi."""
    logps = [{"chosen": -50.0 - i, "rejected": -60.0 - 3 * i} for i in range(rows)]
    return [
        {f"logps/{kind}": value for kind, value in row.items()}
        | {f"rewards/{kind}": reward(value) for kind, value in row.items()}
        for row in logps
    ]


@pytest.mark.parametrize(
    ("rows", "name", "family", "reference"),
    [
        (paired(lambda logp: 0.1 * (logp + 50)), "dpo", "preference", True),
        (paired(lambda logp: 0.0), "dpo", "preference", True),
        (paired(lambda logp: 2 * logp), "", "preference", False),
        (paired(lambda logp: 2 * logp, rows=1), "", "preference", None),
        ([{"rewards/chosen": 0.1, "kl": 0.0}], "kto", "unpaired", True),
        ([{"rewards/rejected": 0.1, "log_odds_ratio": 1}], "orpo", "preference", False),
        ([{"reward": 1.0, "kl": 0.1}], "", "online", None),
        (
            [{"reward": 1.0, "reward_std": 0.1, "frac_reward_zero_std": 0.0}],
            *("grpo", "online", None),
        ),
        ([{"loss": 1.0, "mean_token_accuracy": 0.5}], "sft", "sft", False),
        ([{"loss": 1.0, "grad_norm": 0.5}], "", "unknown", None),
        ([], "", "unknown", None),
    ],
)
def test_the_log_tells_the_method_of_a_run_without_one(
    tmp_path, rows, name, family, reference
):
    path = write_run(tmp_path / "run", info={"method": None}, log=False)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "train.jsonl").write_text(text, encoding="utf-8")
    info = RunDirectory.open(path).info
    assert (info.method, info.family, info.has_reference) == (name, family, reference)
    assert info["method"] is None  # the file is not changed


def test_old_runs_are_read_with_the_method_that_their_settings_tell():
    old = RunInfo.of(information(method="cpo", trainer={"loss_type": "simpo"}))
    assert (old.method, old.has_reference, old.sft) == ("simpo", False, False)
    ipo = RunInfo.of(information(method="dpo", trainer={"loss_type": ["ipo"]}))
    assert (ipo.method, ipo.has_reference) == ("ipo", True)


def test_a_recorded_family_counts_where_the_name_says_nothing():
    entries = {"method": None, "family": "preference", "has_reference": False}
    info = RunInfo.of(entries)
    assert (info.method, info.family) == ("", "preference")
    assert (info.has_reference, info.pushes_rejected) == (False, True)
    assert RunInfo.of({"family": "odd", "has_reference": 1}).has_reference is None


@given(st.text(), st.lists(st.text(), max_size=2))
def test_any_text_is_a_name(name, losses):
    assert Method.named(name, losses).family in (
        *("sft", "preference", "unpaired", "online", "unknown"),
    )
