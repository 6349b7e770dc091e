"""Remedies that others measured, and the commands of ours that act on a run.

Each remedy has its source and what speaks against it. Which of them a run is given is
for its findings to say.
"""

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import counted, number, percent
from learndyn.diagnose.state import DELTA
from learndyn.errors import BadInput
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
    "lost everything (the kinds that did best by −18 % and −17 %); at 5e-7 the same "
    "runs did not.",
    "cited",
    "result files of Ren & Sutherland 2025, arXiv 2407.10490, read by us",
    "Two models, one seed each.",
)

AGAINST_SQUEEZING = [
    Advice(
        "Add a log-likelihood term on chosen to the loss (RPO; TRL: loss_type sigmoid "
        "and sft with loss_weights).",
        "With it chosen's log-probability rises during training, without it it falls.",
        "cited",
        "Pang et al. 2024, Iterative RPO, arXiv 2404.19733",
        "Measured on reasoning data; the weight is one more setting, and users report "
        "conflicting experience with it.",
    ),
    Advice(
        "Use a loss that penalises a fall of chosen (DPOP) or that stops pushing "
        "rejected where it is unlikely already (Gate-DPO).",
        "On HH, Pythia-410M's chosen changed by −11.9 nats with DPO and by +1.2 and "
        "+1.3 with two gates; other answers by −27.6 and by −1.4 and −3.9.",
        "cited",
        "Gate-DPO: arXiv 2605.02626; DPOP: Pal et al. 2024, arXiv 2402.13228",
        "Their authors' own numbers.",
    ),
    Advice(
        "Leave out pairs whose two answers the model represents alike (a high CHES "
        "score).",
        "Such pairs made chosen fall most; leaving them out mitigated it.",
        "cited",
        "Razin et al. 2024, arXiv 2410.08847",
        "Measured on refusal data with a few models.",
        "learndyn diagnose --model MODEL --data PAIRS",
    ),
    Advice(
        "Sample rejected answers from the model that is trained (on-policy pairs).",
        "An answer that the model finds likely does not lie in a valley, where a push "
        "squeezes most.",
        "cited",
        "Ren & Sutherland 2025, Section 3.3, arXiv 2407.10490",
        "In our embedded world the control with on-policy pairs kept the margin at 0, "
        "and the greedy path drifted by up to 2.7 % (docs/embedded-world.md).",
    ),
]

_UNKNOWN_BASE = "BASE"
"""Stands in a command for a model that we do not know."""

_MOST_PROMPTS = 20_000
"""Prompts beyond which watching more is not advised: the effect is then too small to
matter."""


def extend(facts: Facts) -> Advice:
    """The paper's remedy, as a command."""
    # extend does its own SFT, so it starts from the model before this run's
    base = _base_of(facts)
    command = again(facts, "extend", "--model", base, method="extend")
    if command is None:
        given = f"--model {shlex.quote(base)} --data PAIRS --probes PROBES --out RUN"
        command = f"learndyn run extend {given}"
    limits = _EXTEND.limits
    if base == _UNKNOWN_BASE:
        limits = f"{limits} {base} is the model before its SFT."
    return replace(_EXTEND, limits=limits, command=command)


def smaller_steps(facts: Facts) -> Advice:
    """A tenth of this run's learning rate, as a command."""
    rate = facts.trajectory.run.info.learning_rate
    command = None
    if rate is not None and rate > 0:
        rate = f"{rate / 10:.3g}"
        command = again(facts, "smaller-steps", "--learning_rate", rate)
    return replace(_SMALLER_STEPS, command=command)


def look_for_faults(facts: Facts) -> Advice:
    """Template, EOS and columns."""
    path = f"{shown(facts.trajectory.run.path)}/probes.parquet"
    return Advice(
        "If that does not help, look for a fault: is the template the one the model "
        "was trained with, does every answer end in EOS, are the columns right?",
        f"{facts.state.best_kind}, the kind that did best, changed by "
        f"{percent(facts.state.best.mean)}: training that fits does not do that.",
        command=f"learndyn probes check {shlex.quote(path)}",
    )


def train_longer(facts: Facts) -> Advice:
    """Next to nothing moved."""
    steps = int(facts.trajectory.steps[-1])
    name, largest = max(
        facts.evidence.relative.items(), key=lambda item: _size(item[1])
    )
    return Advice(
        "Train longer before judging.",
        f"After {counted(steps, facts.unit)} {name} changed most, by "
        f"{percent(largest.mean)} of its log-probability.",
        limits="Whether longer training helps was not measured.",
    )


def more_prompts(facts: Facts) -> list[Advice]:
    """How many prompts would do, as intervals shrink with the root of their number."""
    ends = {
        "squeeze index": facts.state.sx,
        "relative change of the greedy path": facts.state.greedy,
        "relative change of the kind that did best": facts.state.best,
    }
    unsure = {k: end for k, end in ends.items() if end.low <= DELTA <= end.high}
    name = max(unsure, key=lambda key: _needed(unsure[key]), default="")
    if not name or (needed := _needed(unsure[name])) > _MOST_PROMPTS:
        return []
    return [
        Advice(
            f"Watch more prompts: about {round(needed, -1):.0f} would do.",
            f"Over {facts.state.prompts} prompts the {name} is "
            f"{number(unsure[name], 3)}, and the threshold is {DELTA}. Intervals "
            "shrink with the root of the number of prompts.",
            limits="This holds if the effect stays as large as it looks now.",
        )
    ]


def again(
    facts: Facts, suffix: str, *changes: str, method: str | None = None
) -> str | None:
    """Train once more as this run did, with changes; None where its config.yaml cannot
    be replayed: it has none, or its data is no file and no hub id."""
    path = facts.trajectory.run.path
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    data: Any = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, str) or not re.fullmatch(r"\S+", data):
        return None
    method = method or ("sft" if facts.sft else "dpo")
    run = shown(path)
    words = ["--config", f"{run}/config.yaml", *changes, "--out", f"{run}-{suffix}"]
    return f"learndyn run {method} {shlex.join(words)}"


def _base_of(facts: Facts) -> str:
    """The model that SFT started from, where this run started from an SFT run's `model`
    folder that is still there and names a hub id; else a placeholder."""
    started = Path(facts.trajectory.run.info.model)
    if started.name != "model":
        return _UNKNOWN_BASE
    try:
        before = read_run_json(started.parent)
    except BadInput:
        return _UNKNOWN_BASE
    hub = before.sft and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", before.model)
    return before.model if hub else _UNKNOWN_BASE


def shown(path: Path) -> str:
    """A run's path as a page may hold it: without the folders above, unless it was
    given relative to here. From inside the folder it is named as from beside it."""
    inside = path.name in ("", "..")
    return path.resolve().name if path.is_absolute() or inside else path.as_posix()


def _needed(end: Interval) -> float:
    """Prompts at which this interval would end at the threshold; infinite where its
    mean lies on it."""
    distance = abs(end.mean - DELTA)
    half = (end.high - end.low) / 2
    return math.inf if distance == 0 else end.n * (half / distance) ** 2


def _size(share: Interval) -> float:
    return abs(share.mean) if math.isfinite(share.mean) else -1.0
