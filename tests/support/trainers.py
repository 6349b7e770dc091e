"""Small unmodified trainers, of transformers and of TRL, on rows made in tests."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from runs import data, probes
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)

from learndyn.measure.load import load_model, load_tokenizer, weights_hash
from learndyn.record.run_directory import RunDirectory
from learndyn.train.callback import LearningDynamicsCallback
from learndyn.train.settings import ForceSettings


QUIET = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "learning_rate": 1e-4,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
FP32 = {"bf16": False, "activation_checkpointing": False}
"""TRL's defaults are the other way round."""

LORA = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def every_second(completions: list[str], **_: Any) -> list[float]:
    """A reward by which no two completions of a prompt are worth the same."""
    return [float(i % 2) for i in range(len(completions))]


def make_trainer(
    method: str,
    folder: str,
    out: Path,
    callbacks: tuple[TrainerCallback, ...] = (),
    *,
    lora: bool = False,
    **settings: Any,
) -> Any:
    """A trainer of "sft", "dpo", "kto", "grpo" or "plain", on two rows at a time."""
    tokenizer = load_tokenizer(folder)
    more: dict[str, Any] = {
        "model": load_model(folder),
        "processing_class": tokenizer,
        "callbacks": list(callbacks),
    }
    if lora:
        more["peft_config"] = LoraConfig(**LORA)
    if method == "plain":
        rows = [tokenizer(row.prompt)["input_ids"] for row in data().rows]
        return Trainer(
            args=TrainingArguments(str(out), **{**QUIET, **settings}),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            **more,
        )
    settings = {**QUIET, **FP32, **settings}
    dataset = Dataset.from_list(rows_of(method))
    if method == "sft":
        return SFTTrainer(
            args=SFTConfig(str(out), **settings), train_dataset=dataset, **more
        )
    if method == "grpo":
        settings = {"num_generations": 2, "max_completion_length": 8, **settings}
        return GRPOTrainer(
            args=GRPOConfig(str(out), **settings),
            train_dataset=dataset,
            reward_funcs=every_second,
            **more,
        )
    kind, config = {"dpo": (DPOTrainer, DPOConfig), "kto": (KTOTrainer, KTOConfig)}[
        method
    ]
    if not lora:
        more["ref_model"] = load_model(folder)
    return kind(args=config(str(out), **settings), train_dataset=dataset, **more)


def rows_of(method: str) -> list[dict[str, Any]]:
    """The rows as a method's trainer wants them."""
    found = []
    for i, row in enumerate(data().rows):
        chosen, rejected = (row.responses[kind] for kind in ("chosen", "rejected"))
        answers: dict[str, dict[str, Any]] = {
            "sft": {"completion": chosen},
            "dpo": {"chosen": chosen, "rejected": rejected},
            "kto": {"completion": (rejected, chosen)[i % 2], "label": bool(i % 2)},
            "grpo": {},
        }
        found.append({"prompt": row.prompt, **answers[method]})
    return found


LIGHT = ForceSettings(1, prompts=1, layers=False, influence=False)
"""Every update, at little cost."""


def watch(tmp_path, forces=LIGHT, **more) -> LearningDynamicsCallback:
    """A callback that records forces."""
    more = {"every": 1, "overwrite": True, **more}
    return LearningDynamicsCallback(
        probes(), out=tmp_path / "run", forces=forces, **more
    )


def run_of(tmp_path, method, folder, *, before=(), watching=None, **settings):
    """A finished run, watched; `before` are callbacks that come before ours."""
    callback = watch(tmp_path, **(watching or {}))
    callbacks = (*before, callback)
    make_trainer(method, folder, tmp_path / "t", callbacks, **settings).train()
    return RunDirectory.open(tmp_path / "run")


def forces_of(run: RunDirectory):
    return [run.read_forces(step) for step in run.forces_steps]


SKIPPED = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "step_time",
}


def ended(host) -> tuple:
    """Weights and logged rows after training."""
    host.train()
    rows = [
        {k: v for k, v in row.items() if k not in SKIPPED}
        for row in host.state.log_history
    ]
    return weights_hash(host.model), rows
