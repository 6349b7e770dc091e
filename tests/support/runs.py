"""Small real runs: data, probes and settings that several tests share."""

from pathlib import Path
from typing import Any

from models import save_tiny

from learndyn.probes.build import build_probes
from learndyn.probes.data import Data, Row
from learndyn.probes.probe import ProbeSet
from learndyn.train.settings import RunConfig


ANSWERS = ["vinegar", "some hay", "a long walk", "twice a day", "the red kettle"]


def data(rows: int = 12, split: str = "train") -> Data:
    """Preference rows with distinct prompts, one kind more than DPO needs."""
    return Data(
        tuple(
            Row(
                f"{split}-{i:03d}",
                f"\n\nHuman: What about case {split} {i}?\n\nAssistant:",
                {
                    "chosen": f" Use {ANSWERS[i % 5]}, then wait {i + 2} {split} days.",
                    "rejected": f" No idea, maybe {ANSWERS[(i + 2) % 5]}.",
                    "chosen_semantic": f" {ANSWERS[i % 5].title()}, for {i + 2} days.",
                },
            )
            for i in range(rows)
        ),
        source=f"{split}-made-in-test",
        split=split,
        sha256="0" * 64,
    )


def probes(prompts: int = 3) -> ProbeSet:
    """A few prompts of `data`, every kind that needs no model."""
    return build_probes(data(), data(6, "test"), prompts=prompts, seed=0)


def recipe(folder: Path, family: str = "gpt2", **changes: Any) -> RunConfig:
    """A run of a tiny model saved in `folder`, eight updates unless told otherwise."""
    model = folder / f"model-{family}"
    if not model.exists():
        save_tiny(model, family)
    trainer = {
        "max_steps": 8,
        "warmup_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
        **changes.pop("trainer", {}),
    }
    settings: dict[str, Any] = {"every": 3, "out": folder / "run", **changes}
    return RunConfig(model=str(model), trainer=trainer, **settings)
