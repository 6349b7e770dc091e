"""DPO with TRL, watched by one callback.

    python examples/dpo_with_callback.py Qwen/Qwen2.5-0.5B pairs.jsonl runs/dpo

`pairs.jsonl` has one JSON object a line: prompt, chosen, rejected, as text.
"""

import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import learndyn


def main(model: str, data: str, out: str, updates: int = 100) -> None:
    """Train for so many updates; print what happened to the watched answers."""
    pairs = learndyn.read_data(data)
    # 32 prompts, each with its answers and with every kind that needs no model
    probes = learndyn.build_probes(pairs, prompts=32, or_fewer=True)
    rows = [
        {"prompt": row.prompt, **{k: row.responses[k] for k in ("chosen", "rejected")}}
        for row in pairs.rows
    ]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        ref_model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(
            str(Path(out) / "checkpoints"),
            max_steps=updates,
            learning_rate=5e-7,
            per_device_train_batch_size=4,
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[
            learndyn.LearningDynamicsCallback(
                probes, out=str(Path(out) / "run"), every=max(1, updates // 8)
            )
        ],
    )
    trainer.train()
    print(learndyn.diagnose(Path(out) / "run"))
    print(learndyn.write_report(Path(out) / "run"))


if __name__ == "__main__":
    main(*sys.argv[1:4])
