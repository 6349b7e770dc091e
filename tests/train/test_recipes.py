"""Recipes: what they train equals what they say, and they refuse what they cannot."""

import dataclasses
import json

import numpy as np
import plain_loop
import pytest
import torch
import transformers
from models import byte_tokenizer, save_tiny, tiny_model
from runs import data, probes, recipe
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig

from learndyn.errors import BadInput
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.data import read_data
from learndyn.probes.tokenize import PairTokenizer
from learndyn.record.trajectory import Trajectory
from learndyn.train.launch import launch
from learndyn.train.presets import coerce_fields
from learndyn.train.recipes import _paper_warmup, dpo, extend, sft
from learndyn.train.reference import check_reference
from learndyn.train.session import disable_dropout
from learndyn.train.settings import RunConfig


IN_ORDER = {
    "max_steps": 6,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
}


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_paper_preset_equals_a_plain_torch_loop(tmp_path, method):
    # A Llama has no key biases. Their gradient is 0 but for rounding (softmax does not
    # see a shift), and RMSprop makes full steps of it: no two programs agree there.
    settings = recipe(tmp_path, "llama", trainer=IN_ORDER)
    start = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    tokenizer = byte_tokenizer()
    examples = []
    for row in data().rows:
        chosen, rejected = (
            plain_loop.encode(tokenizer, row.prompt, row.responses[kind])
            for kind in ("chosen", "rejected")
        )
        examples.append(chosen if method == "sft" else (chosen, rejected))
    expected = plain_loop.train(start, examples, method, 6, lr=1e-3, warmup=2)

    {"sft": sft, "dpo": dpo}[method](settings, data(), probes())

    trained = load_model(tmp_path / "run" / "model").state_dict()
    moved = max(
        float((trained[name] - value).abs().max())
        for name, value in start.state_dict().items()
    )
    assert moved > 1e-3  # there is something to agree on
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5)


def test_summed_sft_loss_is_the_same_with_gradient_accumulation(tmp_path):
    whole = {**IN_ORDER, "max_steps": 3, "per_device_train_batch_size": 4}
    parts = {
        **whole,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    for name, trainer in (("a", whole), ("b", parts)):
        settings = recipe(tmp_path, "llama", trainer=trainer, out=tmp_path / name)
        sft(settings, data(), probes())
    a = load_model(tmp_path / "a" / "model").state_dict()
    b = load_model(tmp_path / "b" / "model").state_dict()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=2e-5)


def test_summed_logps_equal_those_that_an_unmodified_dpo_trainer_logs(tmp_path):
    from datasets import Dataset

    folder = save_tiny(tmp_path / "model", "llama")
    rows = data().rows
    dataset = Dataset.from_list(
        [
            {
                "prompt": row.prompt,
                "chosen": row.responses["chosen"],
                "rejected": row.responses["rejected"],
            }
            for row in rows
        ]
    )
    model, reference = load_model(folder), load_model(folder)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            str(tmp_path / "trl"),
            per_device_train_batch_size=4,
            max_steps=3,
            logging_steps=1,
            learning_rate=0.0,
            bf16=False,
            activation_checkpointing=False,
            train_sampling_strategy="sequential",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=dataset,
        processing_class=load_tokenizer(folder),
    )
    trainer.train()
    encode = PairTokenizer(load_tokenizer(folder))
    for side in ("chosen", "rejected"):
        pairs = [encode(row.prompt, row.responses[side]) for row in rows]
        sums = [
            float(part.sum())
            for part in Scorer.attach(model, pairs)
            .rows()
            .logp.split([len(pair.response_ids) for pair in pairs])
        ]
        ours = np.reshape(sums, (3, 4)).mean(1)
        logged = [
            row[f"logps/{side}"]
            for row in trainer.state.log_history
            if f"logps/{side}" in row
        ]
        np.testing.assert_allclose(ours, logged, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loss", ["ipo", "hinge", "robust", "sppo_hard", "apo_zero"])
def test_any_trl_loss_type_runs(tmp_path, loss):
    trainer = {"loss_type": loss, "max_steps": 1}
    if loss == "robust":
        trainer["label_smoothing"] = "0.1"
    run = dpo(recipe(tmp_path, trainer=trainer), data(), probes())
    assert run.steps == [0, 1]
    assert run.info["trainer"]["loss_type"] == [loss]


def test_sft_trains_on_any_column(tmp_path):
    big = {"learning_rate": 1e-3, "max_steps": 6}
    settings = recipe(tmp_path, trainer=big)
    sft(settings, data(), probes(), kinds=("rejected",))
    change = np.diff(
        Trajectory.load(settings.out).values("logp", "rejected", "train").mean(1)
    )
    assert change.sum() > 1


def test_extend_trains_on_both_answers_of_a_row_in_turn_and_then_dpo(tmp_path):
    settings = recipe(tmp_path, trainer={"max_steps": 2}, out=tmp_path / "x")
    one_epoch = {"use_cpu": True, "num_train_epochs": 1}
    settings = dataclasses.replace(settings, sft_trainer=one_epoch)
    runs = extend(settings, data(), probes())
    first, second = runs
    assert first.info["kinds"] == ["chosen", "rejected"]
    assert first.info["final_step"] == 6  # 12 rows x 2 answers / batch 4
    assert second.info["model"] == str(tmp_path / "x" / "sft" / "model")
    assert second.info["extend"] is True
    end = first.read_observation(6).logp
    np.testing.assert_allclose(second.read_observation(0).logp, end, atol=1e-3)


def test_lora_trains_the_adapter_alone_against_the_base_as_reference(tmp_path):
    settings = recipe(tmp_path, "llama", lora=True, lora_rank=2)
    run = dpo(settings, data(), probes())
    assert run.info["trainable_parameters"] < 0.5 * run.info["parameters"]
    assert run.info["reference_gap"] == 0.0
    reloaded = load_model(settings.out / "model")
    encode = PairTokenizer(load_tokenizer(settings.model), 512, 256)
    row = data().rows[0]
    pairs = [encode(row.prompt, row.responses["chosen"])]
    assert float(Scorer.attach(reloaded, pairs).rows().logp.sum()) < 0


def test_a_run_is_replayed_from_its_own_config(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": row.prompt, **row.responses} for row in data().rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = recipe(tmp_path, trainer={"learning_rate": 1e-3})
    run = sft(settings, read_data(path), probes(), kinds=("rejected",))
    again = {"out": str(tmp_path / "again")}
    (other,) = launch(RunConfig.resolve(settings.out / "config.yaml", again))
    assert other.info["kinds"] == ["rejected"]
    assert other.steps == run.steps
    for step in run.steps:
        np.testing.assert_array_equal(
            run.read_observation(step).logp, other.read_observation(step).logp
        )


def test_reference_of_other_weights_stops_the_run_and_is_named(tmp_path):
    encode = PairTokenizer(byte_tokenizer())
    pairs = [encode(r.prompt, r.responses["chosen"]) for r in data().rows]
    policy = tiny_model("llama")
    assert check_reference(policy, tiny_model("llama"), pairs) < 1e-4
    with pytest.raises(BadInput, match=r"12 of 12 .*weights differ, first in model\."):
        check_reference(policy, tiny_model("llama", seed=1), pairs)


def test_half_precision_reference_stops_the_run_and_is_named():
    encode = PairTokenizer(byte_tokenizer())
    pairs = [encode(r.prompt, r.responses["chosen"]) for r in data().rows]
    half = tiny_model("llama").to(torch.bfloat16)
    with pytest.raises(BadInput, match=r"reference is in torch\.bfloat16"):
        check_reference(tiny_model("llama"), half, pairs)


def test_every_dropout_is_disabled_functional_attention_dropout_too():
    model = tiny_model("gpt_neox", attention_dropout=0.3, hidden_dropout=0.2)
    assert disable_dropout(model)
    model.train()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_paper_warmup_starts_above_zero_and_ends_constant():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = _paper_warmup(optimizer, 150)
    rates = []
    for _ in range(200):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 151)
    assert rates[149] == pytest.approx(150 / 151)
    assert rates[150:] == [1.0] * 50


def test_the_word_no_stays_a_word():
    assert coerce_fields(SFTConfig, {"save_strategy": "no"}) == {"save_strategy": "no"}
    assert coerce_fields(SFTConfig, {"save_strategy": False}) == {"save_strategy": "no"}


def test_text_becomes_the_type_of_the_field():
    values = {"learning_rate": "5e-7", "max_steps": "3", "bf16": "false"}
    resolved = coerce_fields(SFTConfig, {**values, "optim": "rmsprop"})
    assert resolved == {
        "learning_rate": 5e-7,
        "max_steps": 3,
        "bf16": False,
        "optim": "rmsprop",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1}, "no field 'learning_rat'. Did you mean learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate needs a number, not 'fast'"),
        ({"max_steps": "many"}, "max_steps needs a whole number, not 'many'"),
        ({"bf16": "perhaps"}, "bf16 needs true or false, not 'perhaps'"),
        ({"learning_rate": "nan"}, "learning_rate is nan: give a finite number"),
        (
            {"learning_rate": -1},
            "learning_rate is -1: give a finite number that is not",
        ),
        ({"max_grad_norm": ".inf"}, "max_grad_norm is inf: give a finite number"),
    ],
)
def test_a_wrong_trainer_setting_is_named(overrides, message):
    with pytest.raises(BadInput, match=message):
        coerce_fields(SFTConfig, overrides)


def test_extend_trains_the_adapter_of_the_first_stage_further(tmp_path):
    settings = recipe(tmp_path, "llama", lora=True, lora_rank=2, out=tmp_path / "x")
    both = {"use_cpu": True, "max_steps": 2, "learning_rate": 1e-2}
    settings = dataclasses.replace(settings, sft_trainer=both)
    first, second = extend(settings, data(), probes())
    end = first.read_observation(2).logp
    np.testing.assert_allclose(second.read_observation(0).logp, end, atol=1e-3)
    assert second.info["reference_gap"] < 1e-4


@pytest.mark.parametrize("name", ["padding_free", "packing"])
def test_settings_that_break_the_summed_loss_are_refused(tmp_path, name):
    with pytest.raises(BadInput, match=f"{name}=true cannot be used with"):
        sft(recipe(tmp_path, trainer={name: True}), data(), probes())


def test_cut_training_texts_are_counted_and_told(tmp_path):
    settings = recipe(tmp_path, trainer={"max_steps": 1}, max_length=24)
    with pytest.warns(UserWarning, match="12 of 12 chosen training texts are cut"):
        run = sft(settings, data(), probes())
    counts = {"of": 12, "truncated": 12, "without_eos": 12}
    assert run.info["training_tokens"]["chosen"] == counts


def test_resuming_with_other_settings_names_them_and_changes_nothing(tmp_path):
    settings = recipe(tmp_path, trainer={"save_steps": 4})
    run = sft(settings, data(), probes())
    changed = {**settings.trainer, "learning_rate": 0.5, "logging_steps": 1}
    again = dataclasses.replace(settings, resume=True, trainer=changed, seed=1)
    (settings.out / "model").rename(tmp_path / "kept")  # as if stopped before the end
    with pytest.raises(BadInput, match="cannot continue") as error:
        sft(again, data(), probes())
    assert "seed: began with 0, now 1" in str(error.value)
    assert "trainer.learning_rate: began with None, now '0.5'" in str(error.value)
    assert "logging_steps" not in str(error.value)
    other = dataclasses.replace(data(), sha256="1" * 64)
    with pytest.raises(BadInput, match="data: their content began as"):
        sft(dataclasses.replace(settings, resume=True), other, probes())
    assert run.steps == [0, 3, 6, 8]


def test_resuming_a_finished_run_leaves_it_as_it_is(tmp_path):
    settings = recipe(tmp_path, trainer={"save_strategy": "no"})
    run = sft(settings, data(), probes())
    before = {p: p.stat().st_mtime_ns for p in settings.out.rglob("*") if p.is_file()}
    again = sft(dataclasses.replace(settings, resume=True), data(), probes())
    assert again.steps == run.steps
    now = {p: p.stat().st_mtime_ns for p in settings.out.rglob("*") if p.is_file()}
    assert now == before


def test_resume_and_overwrite_together_are_refused(tmp_path):
    with pytest.raises(BadInput, match="choose one"):
        recipe(tmp_path, resume=True, overwrite=True)


def test_unknown_kind_to_supervise_is_refused_before_anything_is_written(tmp_path):
    settings = recipe(tmp_path)
    with pytest.raises(BadInput, match="have no 'chosen_format' to train on"):
        sft(settings, data(), probes(), kinds=("chosen_format",))
    assert not settings.out.exists()


def test_a_run_directory_that_is_taken_is_refused_before_the_model_is_loaded(tmp_path):
    settings = recipe(tmp_path, trainer={"max_steps": 1})
    sft(settings, data(), probes())
    again = dataclasses.replace(settings, model="does-not-exist")
    with pytest.raises(BadInput, match="holds a run already"):
        sft(again, data(), probes())


def test_a_folder_that_is_no_run_is_never_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    settings = recipe(tmp_path, out=tmp_path / "mine", overwrite=True)
    with pytest.raises(BadInput, match="is not a run directory"):
        sft(settings, data(), probes())
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "papper"}, "preset='papper': choose from paper, trl"),
        ({"dtype": "float16"}, "dtype='float16': choose"),
        ({"lora": True, "lora_rank": 0}, "lora_rank=0: give 1 or more"),
    ],
)
def test_a_wrong_recipe_setting_is_named(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        recipe(tmp_path, **changes)


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=9
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(BadInput, match="T5Config, which is not a causal"):
        load_model(tmp_path / "t5")
    with pytest.raises(BadInput, match="cannot load a model from"):
        load_model(tmp_path / "nothing-here")


def test_a_tokenizer_without_padding_token_pads_with_eos(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_run_shows_its_progress_also_when_transformers_is_quiet(tmp_path, capsys):
    transformers.logging.set_verbosity_error()
    settings = recipe(tmp_path, trainer={"disable_tqdm": False})
    settings.trainer.pop("disable_tqdm")
    sft(settings, data(), probes())
    assert "run: updates: 100%" in capsys.readouterr().err
