"""What may be done about it, where there is evidence that it helps.

The evidence is this run's own, such as the observation where chosen was highest, or
what others measured, with its source and with what speaks against it.

Remedies that others measured, each with its source and what speaks against it.

Commands of ours that act on a run, as one would type them beside it.
"""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from learndyn.diagnose.compare import is_sft
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, clock
from learndyn.diagnose.findings.state import DELTA
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats, number, percent
from learndyn.record.trajectory import Trajectory


EXTEND = Advice(
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

SMALLER_STEPS = Advice(
    "Divide the learning rate by 10, from a checkpoint before the fall.",
    "In the paper's published result files DPO of two models at a large learning rate "
    "lost everything (best kind −18 % and −17 %); at 5e-7 the same runs did not.",
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

UNKNOWN_BASE = "BASE"
"""Stands in a command for a model that we do not know."""


def again(
    trajectory: Trajectory, suffix: str, method: str, *changes: str
) -> str | None:
    """Train once more as this run did, with changes; None where its config.yaml cannot
    be replayed: it has none, or its data is no file and no hub id."""
    path = trajectory.run.path
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    data: Any = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, str) or not re.fullmatch(r"\S+", data):
        return None
    run = shown(path)
    words = ["--config", f"{run}/config.yaml", *changes, "--out", f"{run}-{suffix}"]
    return f"learndyn run {method} {shlex.join(words)}"


def base_of(trajectory: Trajectory) -> str:
    """The model that SFT started from, where this run started from an SFT run's `model`
    folder that is still there and names a hub id; else a placeholder."""
    started = trajectory.run.info.get("model")
    if not isinstance(started, str) or Path(started).name != "model":
        return UNKNOWN_BASE
    try:
        info = json.loads((Path(started).parent / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return UNKNOWN_BASE
    base = info.get("model") if isinstance(info, dict) and is_sft(info) else None
    hub = isinstance(base, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)
    return base if isinstance(base, str) and hub else UNKNOWN_BASE


def check_probes(trajectory: Trajectory) -> str:
    """Look for confounds in what this run watched."""
    path = f"{shown(trajectory.run.path)}/probes.parquet"
    return f"learndyn probes check {shlex.quote(path)}"


def shown(path: Path) -> str:
    """A run's path as a page may hold it: without the folders above, unless it was
    given relative to here. From inside the folder it is named as from beside it."""
    inside = path.name in ("", "..")
    return path.resolve().name if path.is_absolute() or inside else path.as_posix()


MOST_PROMPTS = 20_000
"""Prompts beyond which watching more is not advised: the effect is then too small to
matter."""


def advice(facts: Facts) -> list[Advice]:
    """Remedies, the first one first; none where nothing needs one."""
    if facts.problems and facts.problems[0].name in _FIRST_MEND:
        fault = facts.problems[0].name
        # a margin may have fallen since chosen's peak alone
        stop = _peak(facts) if fault == "margin_falls" else []
        return [*stop, _FIRST_MEND[fault]]
    state = facts.state
    if state.reason is not None:
        return []
    given = _peak(facts)
    if not state.sure:
        return given + _more_prompts(facts)
    if state.state == "SQUEEZE" and not facts.sft:
        tried = bool(facts.trajectory.run.info.get("extend"))
        first = [] if tried or not facts.evidence.pushed_down else [_extend(facts)]
        return given + first + AGAINST_SQUEEZING
    if state.state == "COLLAPSE":
        return [_smaller_steps(facts), _look_for_faults(facts), *given]
    if state.state == "NEUTRAL":
        return [*given, _wait(facts)]
    return given


_FIRST_MEND = {
    "not_training": Advice(
        "Check that the learning rate is above 0 and that parameters train "
        "(requires_grad, adapters, a warm-up longer than the run).",
        "No watched log-probability moved.",
        "own",
    ),
    "reference": Advice(
        "Load the reference from the very weights that training starts from, in the "
        "same precision, and give it to the trainer as ref_model.",
        "The logged rewards are not 0 where training begins. `learndyn run dpo` checks "
        "this on every training pair before the first update.",
        "own",
    ),
    "exchanged": Advice(
        "Read a few training rows and look which column is chosen.",
        "Chosen falls and rejected rises from the start.",
        "own",
        limits="If only the probes are exchanged, training is right and the names on "
        "this page are wrong.",
    ),
    "margin_falls": Advice(
        "Read a few training rows and look which column is chosen; then hold the "
        "probes against the training data.",
        "Rejected gained on chosen, which the loss pushes the other way.",
        "own",
        limits="Probes unlike the training data may fall behind without a fault.",
    ),
}
"""Where a fault was found, only that is worth mending."""


def _peak(facts: Facts) -> list[Advice]:
    """Stop where chosen was highest, if it has surely fallen since."""
    peak = facts.peak
    if peak is None or not (peak.inside and peak.fell):
        return []
    because = (
        f"Chosen was {nats(peak.rise)} nats above its start there and changed by "
        f"{number(peak.fall)} since"
    )
    if peak.margin is not None and peak.margin_end is not None:
        because += (
            f"; the margin was {nats(peak.margin)} nats there and is "
            f"{nats(peak.margin_end)} at the end"
        )
    method = "sft" if facts.sft else "dpo"
    steps = ("--max_steps", str(peak.step))
    command = again(facts.trajectory, f"until-{peak.step}", method, *steps)
    return [
        Advice(
            f"Stop at about {peak.clock} {peak.step} ({peak.others}), or take the "
            "checkpoint nearest to it.",
            f"{because}.",
            "own",
            limits="It is the peak of chosen's log-probability on these prompts; "
            "answers were not graded. A schedule that decays ends elsewhere.",
            command=command,
        )
    ]


def _extend(facts: Facts) -> Advice:
    # extend does its own SFT, so it starts from the model before this run's
    base = base_of(facts.trajectory)
    command = again(facts.trajectory, "extend", "extend", "--model", base)
    if command is None:
        given = f"--model {shlex.quote(base)} --data PAIRS --probes PROBES --out RUN"
        command = f"learndyn run extend {given}"
    limits = EXTEND.limits
    if base == UNKNOWN_BASE:
        limits = f"{limits} {base} is the model before its SFT."
    return Advice(
        EXTEND.do,
        EXTEND.because,
        "cited",
        EXTEND.source,
        limits,
        command,
    )


def _smaller_steps(facts: Facts) -> Advice:
    rate = (facts.trajectory.run.info.get("trainer") or {}).get("learning_rate")
    command = None
    if isinstance(rate, float | int) and rate > 0:
        method = "sft" if facts.sft else "dpo"
        changes = ("--learning_rate", f"{rate / 10:.3g}")
        command = again(facts.trajectory, "smaller-steps", method, *changes)
    base = SMALLER_STEPS
    return Advice(base.do, base.because, "cited", base.source, base.limits, command)


def _look_for_faults(facts: Facts) -> Advice:
    return Advice(
        "If that does not help, look for a fault: is the template the one the model "
        "was trained with, does every answer end in EOS, are the columns right?",
        f"The best kind, {facts.state.best_kind}, changed by "
        f"{percent(facts.state.best.mean)}: no training that fits does that.",
        "own",
        command=check_probes(facts.trajectory),
    )


def _wait(facts: Facts) -> Advice:
    name, largest = max(
        facts.evidence.relative.items(), key=lambda item: _size(item[1])
    )
    return Advice(
        "Train longer before judging.",
        f"After {facts.trajectory.steps[-1]} {clock(facts.trajectory)}s the largest "
        f"change is that of {name}, {percent(largest.mean)} of its log-probability.",
        "own",
        limits="That longer training helps was not measured.",
    )


def _more_prompts(facts: Facts) -> list[Advice]:
    """How many prompts would do, as intervals shrink with the root of their number."""
    ends = {
        "squeeze index": facts.state.sx,
        "relative change of the greedy path": facts.state.greedy,
        "relative change of the best kind": facts.state.best,
    }
    unsure = {k: end for k, end in ends.items() if end.low <= DELTA <= end.high}
    name = max(unsure, key=lambda key: _needed(unsure[key]), default="")
    if not name or (wanted := _needed(unsure[name])) > MOST_PROMPTS:
        return []
    return [
        Advice(
            f"Watch more prompts: about {round(wanted, -1):.0f} would do.",
            f"Over {facts.state.prompts} prompts the {name} is "
            f"{number(unsure[name], 3)}, and the threshold is {DELTA}. Intervals "
            "shrink with the root of the number of prompts.",
            "own",
            limits="If the effect stays as large as it looks now.",
        )
    ]


def _needed(end: Interval) -> float:
    """Prompts at which this interval would end at the threshold; infinite where its
    mean lies on it."""
    distance = abs(end.mean - DELTA)
    half = (end.high - end.low) / 2
    return math.inf if distance == 0 else end.n * (half / distance) ** 2


def _size(share: Interval) -> float:
    return abs(share.mean) if math.isfinite(share.mean) else -1.0
