"""The embedded experiment, stage by stage: SFT, then DPO, on the embedded world.

The settings are those under which a 1M-parameter model shows the squeezing effect
within minutes; `docs/embedded-world.md` has the measurements, controls and failures.

The small LM that ships with the package.

It was pretrained on the embedded world's forum text by
`learndyn.paper.world.pretrain`; the `provenance.json` beside the weights says with
which settings. It has not seen the chat template, the skewed wordings or the pairs of
things of any row of `make_rows`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.measure.generate import generate
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.probes.build import probes_from_rows
from learndyn.probes.data import Data, Row
from learndyn.probes.probe import ProbeSet
from learndyn.train.progress import progress_bar
from learndyn.train.settings import RunConfig
from learndyn.world.world import grade, make_rows


_WEIGHTS = Path(__file__).parent / "weights"


def embedded_model_path(seed: int = 0) -> Path:
    """The folder of the LM pretrained with `seed`, for `from_pretrained`.

    The weights are float16 on disk; load them with `dtype=torch.float32` to train.
    """
    path = _WEIGHTS / f"seed-{seed}"
    if not path.is_dir():
        shipped = sorted(
            int(p.name.removeprefix("seed-")) for p in _WEIGHTS.glob("seed-*")
        )
        raise BadInput(
            f"No LM of pretraining seed {seed} ships with the package, only of "
            f"{', '.join(map(str, shipped)) or 'none'}. Make one: "
            f"python -m learndyn.paper.world.pretrain --seed {seed} --out DIR"
        )
    return path


SFT_ROWS = 2400
DPO_ROWS = 1600
PROBED = 48
"""Prompts that are probed; they are among the DPO rows."""

SFT: dict[str, Any] = {
    "learning_rate": 3e-4,
    "optim": "adamw_torch",
    "lr_scheduler_type": "linear",
    "warmup_steps": 20,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "max_grad_norm": 1.0,
    "save_strategy": "no",
}
"""One epoch over 2400 rows: 300 updates (600 on both answers)."""

DPO: dict[str, Any] = {
    "learning_rate": 3e-5,
    "optim": "rmsprop",
    "warmup_steps": 20,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "max_grad_norm": 10.0,
    "beta": 0.1,
    "save_strategy": "no",
}
"""One epoch over 1600 pairs, 200 updates: what the demo runs. Fast enough for `extend`
to come as far as plain DPO starts, so that the two can be compared in every way."""

CAREFUL_DPO: dict[str, Any] = {**DPO, "learning_rate": 1e-5, "num_train_epochs": 2}
"""400 updates of a third of the size, for the controls: RMSprop gives noise the same
step as signal, and where there is no signal the larger steps wander off by some 5 %."""


@dataclass(frozen=True)
class World:
    """Rows and probes of one seed."""

    train: Data
    test: Data
    probes: ProbeSet


def make_world(
    seed: int = 0, *, wording: str = "zipf", rejected: str = "curt", held_out: int = 200
) -> World:
    """Draw the rows of a seed; the first `PROBED` of them are probed, all 13 kinds."""
    train_rows, test_rows = make_rows(
        seed, SFT_ROWS, held_out, wording=wording, rejected=rejected
    )
    name = f"embedded world, seed {seed}, {wording}, {rejected}"
    train, test = as_data(train_rows, "train", name), as_data(test_rows, "test", name)
    return World(train, test, _probed(train))


def _probed(train: Data) -> ProbeSet:
    return probes_from_rows(replace(train, rows=train.rows[:PROBED]), "train")


def as_data(rows: Sequence[dict[str, str]], split: str, name: str) -> Data:
    """Wide rows as the recipes take them."""
    content = json.dumps(rows, ensure_ascii=False).encode()
    return Data(
        tuple(
            Row(
                row["prompt_id"],
                row["prompt"],
                {k: v for k, v in row.items() if k not in ("prompt_id", "prompt")},
            )
            for row in rows
        ),
        source=name,
        split=split,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def pairs_for_dpo(world: World) -> Data:
    """The rows that DPO trains on: the first `DPO_ROWS`."""
    return replace(world.train, rows=world.train.rows[:DPO_ROWS])


def with_rejected(world: World, answers: Sequence[str]) -> World:
    """The same world with other rejected answers for its first rows, probes too."""
    given = world.train.rows[: len(answers)]
    rows = tuple(
        replace(row, responses={**row.responses, "rejected": answer})
        for row, answer in zip(given, answers, strict=True)
    )
    source = f"{world.train.source}, rejected replaced"
    train = replace(
        world.train, rows=rows + world.train.rows[len(answers) :], source=source
    )
    return replace(world, train=train, probes=_probed(train))


def recipe(
    out: Path,
    trainer: dict[str, Any],
    *,
    model: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> RunConfig:
    """A recipe of the embedded experiment; starts from the embedded model."""
    return RunConfig(
        model=str(model or embedded_model_path()),
        out=out,
        preset="paper",  # float32, no dropout, summed SFT loss, the paper's warm-up
        seed=seed,
        score_batch_size=32,
        max_length=256,
        max_prompt_length=128,
        trainer=trainer,
        overwrite=overwrite,
    )


def share_right(model: Path, test: Data, prompts: int = 128) -> float:
    """Share of held-out prompts whose greedy answer is right in every respect."""
    loaded, tokenizer = load(model)
    asked = [row.prompt for row in test.rows[:prompts]]
    bar = progress_bar("answering held-out prompts")
    answers = generate(loaded, tokenizer, asked, max_new_tokens=64, progress=bar)
    right = [grade(p, a).strict for p, a in zip(asked, answers, strict=True)]
    return sum(right) / len(right)


def load(path: str | Path) -> tuple[Any, Any]:
    """A saved model and its tokenizer."""
    return load_model(path), load_tokenizer(path)
