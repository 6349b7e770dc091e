"""Remedies that others measured, and the commands of ours that act on a run.

Each remedy has its source and what speaks against it. Which of them a run is given is
for its findings to say.
"""

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice
from learndyn.diagnose.numbers import counted, figures, number
from learndyn.diagnose.state import DELTA, Move
from learndyn.errors import BadInput
from learndyn.record.method import as_losses
from learndyn.record.run_info import read_run_json


_EXTEND = Advice(
    "Train on chosen and rejected with SFT first, then the same DPO (extend).",
    "Rejected answers that the model finds likely leave a push less to squeeze; in the "
    "paper, answers after extend were preferred to plain DPO's in 65 to 69 % of "
    "ChatGPT's judgements and 52 to 60 % of Claude's.",
    "cited",
    "Ren & Sutherland 2025, Section 4.3 and Table 1, arXiv 2407.10490",
    "An independent replication with a reward model found 50.5, 53.6 and 49.6 % after "
    "2, 4 and 6 epochs: no clear gain. In our embedded world the greedy path rose more "
    "with extend, not less (docs/embedded-world.md).",
)

_SMALLER_STEPS = Advice(
    "Divide the learning rate by 10, from a checkpoint before the fall.",
    "In the paper's published result files DPO of two models at a large learning rate "
    "lost everything; at 5e-7 the same runs did not.",
    "cited",
    "result files of Ren & Sutherland 2025, arXiv 2407.10490, read by us",
    "Two models, one seed each.",
)

_KEEP_CHOSEN_UP = Advice(
    "Add a log-likelihood term on chosen to the loss (RPO). In your own script: "
    'DPOConfig(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]).',
    "With the term chosen's log-probability rose during training; without it, it fell.",
    "cited",
    "Pang et al. 2024, Iterative RPO, arXiv 2404.19733",
    "Measured on reasoning data; the weight is one more setting, and users report "
    "conflicting experience with it.",
)

_FILTER_PAIRS = Advice(
    "Leave out pairs whose two answers the model represents alike (a high CHES score); "
    "the command scores every pair.",
    "Such pairs made chosen fall most; leaving them out mitigated it.",
    "cited",
    "Razin et al. 2024, arXiv 2410.08847",
    "Measured on refusal data with a few models.",
)

_WORTH_A_REMEDY = 0.05
"""Nats per token that chosen must have lost before a remedy comes first: 5 % of a
token's probability."""

_MOST_PROMPTS = 2_000
"""Prompts beyond which watching more is not advised: the effect is then too small to
matter."""


def extend(facts: Facts) -> list[Advice]:
    """The paper's remedy, as a command; none where the model before this run's SFT,
    from which extend starts, is not known."""
    base = _base_of(facts)
    if base is None:
        return []
    command = again(facts, "extend", "--model", base, method="extend")
    return [] if command is None else [replace(_EXTEND, command=command)]


def smaller_steps(facts: Facts) -> Advice:
    """A tenth of this run's learning rate, as a command."""
    rate = facts.trajectory.run.info.learning_rate
    if rate is None or rate <= 0:
        return _SMALLER_STEPS
    tenth = f"{rate / 10:.3g}"
    command = again(facts, "smaller-steps", "--learning_rate", tenth)
    do = (
        f"Start again with a tenth of the learning rate, {tenth} instead of {rate:g}, "
        "or from a checkpoint before the fall."
    )
    return replace(_SMALLER_STEPS, do=do, command=command)


def nothing_yet(facts: Facts) -> list[Advice]:
    """To wait, where chosen lost so little that no remedy is worth its price."""
    chosen = facts.state.chosen
    if chosen is None or chosen.surely.mean <= -_WORTH_A_REMEDY:
        return []
    return [
        Advice(
            "Nothing at this size: go on and watch chosen. If it goes on falling, what "
            "follows may help.",
            f"Chosen lost {figures(abs(chosen.surely.mean), 2)} nats per token, which "
            f"leaves a token {figures(100 * math.exp(chosen.surely.mean), 3)} % of its "
            "probability.",
        )
    ]


def keep_chosen_up(facts: Facts) -> list[Advice]:
    """A log-likelihood term, as a command; none where the loss has one already."""
    losses = as_losses(facts.trajectory.run.info.trainer.get("loss_type"))
    if "sft" in losses or facts.trajectory.run.info.method != "dpo":
        return []
    both = json.dumps([*(losses or ["sigmoid"]), "sft"])
    weights = json.dumps([1.0] * (len(losses or ["sigmoid"]) + 1))
    changes = ("--loss_type", both, "--loss_weights", weights)
    return [replace(_KEEP_CHOSEN_UP, command=again(facts, "with-nll", *changes))]


def filter_pairs(facts: Facts) -> list[Advice]:
    """CHES of every pair, as a command; none where model or data are not at hand."""
    config = _config(facts)
    model, data = facts.trajectory.run.info.model, config.get("data")
    if not model or not isinstance(data, str) or not re.fullmatch(r"\S+", data):
        return []
    words = ["--model", model, "--data", data]
    command = f"learndyn diagnose {shlex.join(words)}"
    return [replace(_FILTER_PAIRS, command=command)]


def look_for_faults(facts: Facts) -> Advice:
    """Template, EOS and columns."""
    path = f"{shown(facts.trajectory.run.path)}/probes.parquet"
    return Advice(
        "Look for a fault in the data: is the template the one the model was trained "
        "with, does every answer end in EOS, are the columns right?",
        "Training that fits does not lower the answers that it is about.",
        command=f"learndyn probes check {shlex.quote(path)}",
    )


def more_prompts(facts: Facts) -> list[Advice]:
    """How many prompts would do, as intervals shrink with the root of their number."""
    state = facts.state
    both = {"chosen": state.chosen, "the greedy path": state.greedy}
    unsure = {
        name: move
        for name, move in both.items()
        if move is not None and move.known and not (move.up or move.down or move.still)
    }
    needed = {name: _needed(move) for name, move in unsure.items()}
    name = min(needed, key=lambda key: needed[key], default="")
    if not name or needed[name] > _MOST_PROMPTS:
        return []
    move = unsure[name]
    return [
        Advice(
            f"Watch more prompts: about {round(needed[name], -1):.0f} would do.",
            f"Over {counted(state.prompts, 'prompt')} the change of {name} is "
            f"{number(move.surely)} nats per token (99 % interval). Intervals shrink "
            "with the root of the number of prompts.",
            limits="This holds if the effect stays as large as it looks now.",
        )
    ]


def again(
    facts: Facts, suffix: str, *changes: str, method: str | None = None
) -> str | None:
    """Train once more as this run did, with changes; None where its config.yaml cannot
    be replayed: it has none, or its data is no file and no hub id."""
    data = _config(facts).get("data")
    if not isinstance(data, str) or not re.fullmatch(r"\S+", data):
        return None
    method = method or ("sft" if facts.sft else "dpo")
    run = shown(facts.trajectory.run.path)
    words = ["--config", f"{run}/config.yaml", *changes, "--out", f"{run}-{suffix}"]
    return f"learndyn run {method} {shlex.join(words)}"


def _config(facts: Facts) -> dict[str, Any]:
    """What config.yaml of a run of ours says; empty where it has none."""
    try:
        text = (facts.trajectory.run.path / "config.yaml").read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _base_of(facts: Facts) -> str | None:
    """The model that SFT started from, where this run started from an SFT run's `model`
    folder that is still there and names a hub id."""
    started = Path(facts.trajectory.run.info.model)
    if started.name != "model":
        return None
    try:
        before = read_run_json(started.parent)
    except BadInput:
        return None
    hub = before.sft and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", before.model)
    return before.model if hub else None


def shown(path: Path) -> str:
    """A run's path as a page may hold it: without the folders above, unless it was
    given relative to here. From inside the folder it is named as from beside it."""
    inside = path.name in ("", "..")
    return path.resolve().name if path.is_absolute() or inside else path.as_posix()


def _needed(move: Move) -> float:
    """Prompts at which this interval would exclude zero; infinite where its mean is
    smaller than what counts, since more prompts would not make it count."""
    size = abs(move.surely.mean)
    half = (move.surely.high - move.surely.low) / 2
    return math.inf if size < DELTA else move.surely.n * (half / size) ** 2
