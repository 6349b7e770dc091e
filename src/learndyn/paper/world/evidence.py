r"""The measurements behind `docs/embedded-world.md`: seeds, controls, who moved what.

    python -m learndyn.paper.world.evidence --out runs/evidence --seeds 0 1 2

Each seed draws its own rows and training order. Finished cells are kept, so a stopped
measurement continues where it was. `--models` gives models of several pretraining
seeds. The tables say what is claimed and whether it held.

One of them splits the first DPO update by the sign of its push: who moved what. At
that update policy and reference agree, so every pair has the same weight
c = beta sigmoid(0) = beta/2, and the step uphill is

    d  =  P ( c E[grad log pi(y+)]  -  c E[grad log pi(y-)] )  =  d_pull + d_push

with P the optimizer's preconditioner: 1 for SGD; for RMSprop, whose first average is
(1 - alpha) g^2, it is 1 / (sqrt(0.01) |g| + eps). The change of any statistic along
each part is a central finite difference of two scorings.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.two_runs.compare import Difference, compare
from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import (
    Direction,
    checked,
    moved,
    norm,
    parameters_of,
    plus,
)
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.predict import default_step
from learndyn.forces.split import sign_gradients
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import (
    PairTokenizer,
    TokenizedPair,
    TokenizedProbes,
    tokenize,
)
from learndyn.record.trajectory import Trajectory
from learndyn.world.stages import (
    PROBED,
    STAGES,
    Experiment,
    Stage,
    World,
    embedded_model_path,
    graded,
    make_world,
    pairs_for_dpo,
    probed,
    sampled,
    with_rejected,
)


_Cell = dict[str, Any]


def _to_markdown(cells: Sequence[_Cell]) -> str:
    """All tables and the list of claims, as Markdown."""
    if not cells:
        return "Nothing is measured yet.\n"
    parts = [
        "### DPO after SFT, at a probe margin of 25 nats\n",
        "Small steps (lr 1e-5, 400 updates):\n",
        _table(_main("dpo"), cells),
        "The demo's steps (lr 3e-5, 200 updates):\n",
        _table(_main("demo"), cells),
        "### Controls\n",
        "Change of the argmax along chosen, small steps, at a margin of 25 nats, or at "
        "the last update where it is marked *.\n",
        _table(_CONTROLS, cells),
        "### Who moved the argmax: the first update, per nat of margin\n",
        _table(_SPLIT, cells),
        "### Extend against DPO, three ways to compare\n",
        "The demo's steps. Differences, extend minus DPO, of chosen and of the argmax "
        "along it: of their changes at equal updates and at matched margin, of their "
        "levels at matched gap.\n",
        _table(_EXTEND, cells),
        "### Claims\n",
        _claims(cells),
    ]
    return "\n".join(parts)


def _table(columns: dict[str, Callable[[_Cell], str]], cells: Sequence[_Cell]) -> str:
    lines = [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    lines += [
        "| " + " | ".join(column(cell) for column in columns.values()) + " |"
        for cell in cells
    ]
    return "\n".join(lines) + "\n"


def _interval(value: list[float] | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "not reached"
    mean, low, high = (scale * number for number in value)
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return text.replace("-", "−")


def _percent(value: list[float] | None) -> str:
    return _interval(value, 100, 1)


def _control(name: str) -> Callable[[_Cell], str]:
    def show(cell: _Cell) -> str:
        return _percent(cell[name]["argmax_relative"]) + _star(cell[name])

    return show


def _star(run: dict[str, Any]) -> str:
    """Marks a run that never came to the margin, with the margin it came to."""
    return "" if run["reached"] else f" * margin {run['margin'][0]:.1f}"


def _rate(optimizer: str, part: str, what: str) -> Callable[[_Cell], str]:
    def show(cell: _Cell) -> str:
        return f"{cell['split'][optimizer][part][what]:+.3f}".replace("-", "−")

    return show


def _extended(by: str, what: str) -> Callable[[_Cell], str]:
    return lambda cell: _interval(cell["extend"][by][what])


_NAMES: dict[str, Callable[[_Cell], str]] = {
    "model": lambda cell: str(cell["model"]).removeprefix("seed-"),
    "data": lambda cell: str(cell["seed"]),
}


def _main(run: str) -> dict[str, Callable[[_Cell], str]]:
    return {
        **_NAMES,
        "update": lambda cell: f"{cell[run]['step']:.0f}{_star(cell[run])}",
        "chosen, nats": lambda cell: _interval(cell[run]["chosen"]),
        "argmax along chosen, %": lambda cell: _percent(cell[run]["argmax_relative"]),
        "off-target, nats/token": lambda cell: _interval(cell[run]["off_target"]),
        "kinds down (surely)": lambda cell: (
            f"{cell[run]['down']} ({cell[run]['surely_down']}) of "
            f"{len(cell[run]['kinds'])}"
        ),
        "right after SFT / last update": lambda cell: (
            f"{cell['strict_after_sft']:.0%} / {cell[f'strict_after_{run}']:.0%}"
        ),
    }


_CONTROLS: dict[str, Callable[[_Cell], str]] = {
    **_NAMES,
    "curt (the default), %": _control("dpo"),
    "flat wordings, %": _control("flat"),
    "word salad, %": _control("salad"),
    "on-policy, %": _control("on-policy"),
}

_SPLIT: dict[str, Callable[[_Cell], str]] = {
    **_NAMES,
    "argmax by y+, RMSprop": _rate("rmsprop", "pull", "argmax"),
    "argmax by y−, RMSprop": _rate("rmsprop", "push", "argmax"),
    "argmax by y+, SGD": _rate("sgd", "pull", "argmax"),
    "argmax by y−, SGD": _rate("sgd", "push", "argmax"),
    "chosen by y+, RMSprop": _rate("rmsprop", "pull", "chosen"),
    "chosen by y−, RMSprop": _rate("rmsprop", "push", "chosen"),
    "rejected by y−, RMSprop": _rate("rmsprop", "push", "rejected"),
}

_EXTEND: dict[str, Callable[[_Cell], str]] = {
    **_NAMES,
    "chosen, equal updates": _extended("updates", "chosen"),
    "chosen, matched margin": _extended("margin", "chosen"),
    "chosen, matched gap": _extended("gap", "chosen"),
    "argmax, equal updates": _extended("updates", "argmax"),
    "argmax, matched margin": _extended("margin", "argmax"),
    "argmax, matched gap": _extended("gap", "argmax"),
    "right after extend": lambda cell: f"{cell['strict_after_extend']:.0%}",
}


def _fell(run: str) -> Callable[[_Cell], bool]:
    return lambda cell: cell[run]["reached"] and cell[run]["chosen"][2] < 0


def _rose(run: str) -> Callable[[_Cell], bool]:
    def holds(cell: _Cell) -> bool:
        mean, low, _ = cell[run]["argmax_relative"]
        return cell[run]["reached"] and mean > 0.02 and low > 0

    return holds


def _off_target_rose(run: str) -> Callable[[_Cell], bool]:
    return lambda cell: cell[run]["reached"] and cell[run]["off_target"][0] > 0


def _kinds_fell(run: str) -> Callable[[_Cell], bool]:
    def holds(cell: _Cell) -> bool:
        evidence = cell[run]
        return evidence["reached"] and evidence["down"] >= 0.8 * len(evidence["kinds"])

    return holds


def _by_push(optimizer: str) -> Callable[[_Cell], bool]:
    def holds(cell: _Cell) -> bool:
        parts = cell["split"][optimizer]
        return parts["push"]["argmax"] > max(0.0, parts["pull"]["argmax"])

    return holds


def _small(cell: _Cell, name: str) -> bool:
    return abs(cell[name]["argmax_relative"][0]) < 0.02


_SQUEEZE: dict[str, Callable[[str], Callable[[_Cell], bool]]] = {
    "chosen is below its start, interval excluding 0": _fell,
    "the argmax along chosen rose by > 2 %, interval excluding 0": _rose,
    "the off-target argmax rose": _off_target_rose,
    "at least 80 % of the kinds are down": _kinds_fell,
}

_CLAIMS: dict[str, Callable[[_Cell], bool]] = {
    "Greedy answers to held-out prompts are right in every respect for >= 80 % after "
    "SFT": lambda c: c["strict_after_sft"] >= 0.8,
    **{f"Demo's steps, margin 25: {what}": of("demo") for what, of in _SQUEEZE.items()},
    **{f"Small steps, margin 25: {what}": of("dpo") for what, of in _SQUEEZE.items()},
    "Flat wordings: the argmax is not up (interval not above 0)": lambda c: (
        c["flat"]["argmax_relative"][1] <= 0
    ),
    "Word salad: the argmax moved by < 2 %": lambda c: _small(c, "salad"),
    "On-policy: the argmax moved by < 2 %": lambda c: _small(c, "on-policy"),
    "The y− part of the first update carries the argmax's rise, SGD": _by_push("sgd"),
    "The y− part of the first update carries the argmax's rise, RMSprop": _by_push(
        "rmsprop"
    ),
}
"""A claim about margin 25 counts as failed where the run did not come so far."""


def _claims(cells: Sequence[_Cell]) -> str:
    lines = ["| claim | held in | failed in (model, data) |", "|---|---|---|"]
    for claim, holds in _CLAIMS.items():
        failed = [f"({_NAMES['model'](c)}, {c['seed']})" for c in cells if not holds(c)]
        lines.append(
            f"| {claim} | {len(cells) - len(failed)} of {len(cells)} | "
            f"{' '.join(failed) or '—'} |"
        )
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Rates:
    """Rate of change of each probe along one part of the update, nats per unit step."""

    logp: Float[np.ndarray, " probe"]
    argmax_logp: Float[np.ndarray, " probe"]
    token_start_logp: Float[np.ndarray, " token"]


@dataclass(frozen=True)
class _SignSplit:
    """Pull the chosen up and push the rejected down; the two add up to `both`."""

    pull: _Rates
    push: _Rates
    both: _Rates
    """Measured along the whole update, not summed: the difference to the sum is the
    error of the finite differences."""


def _split_first_update(
    model: Any,
    chosen: Sequence[TokenizedPair],
    rejected: Sequence[TokenizedPair],
    probes: TokenizedProbes,
    *,
    beta: float = 0.1,
    optimizer: Literal["sgd", "rmsprop"] = "rmsprop",
    batch_size: int = 32,
) -> _SignSplit:
    """Split what the first DPO update on these pairs does to the probes.

    The model's weights are bit-identical afterwards, also after an error.

    Raises:
        BadInput: if there are not as many chosen as rejected, or a gradient is zero or
            not finite.
    """
    if len(chosen) != len(rejected) or not chosen:
        raise BadInput(
            f"{len(chosen)} chosen and {len(rejected)} rejected responses: a DPO "
            "update needs as many of both, and at least one."
        )
    scorer = Scorer.attach(model, probes.pairs, batch_size=batch_size)
    signs = sign_gradients(TokenLogps.of(scorer), _batch(chosen, rejected, beta))
    pull, push = (
        {name: -part for name, part in signs[sign].items()} for sign in ("pull", "push")
    )
    total = plus(pull, push)
    if optimizer == "rmsprop":
        scale = {name: 1 / (0.1 * g.abs() + 1e-8) for name, g in total.items()}
        pull, push, total = (_times(scale, part) for part in (pull, push, total))
    first = scorer.observe().token_argmax_id
    return _SignSplit(
        _change(scorer, pull, first),
        _change(scorer, push, first),
        _change(scorer, total, first),
    )


def _batch(
    chosen: Sequence[TokenizedPair], rejected: Sequence[TokenizedPair], beta: float
) -> Batch:
    """DPO's push where policy and reference agree: -+ beta/2, averaged over pairs."""
    weight = beta / 2 / len(chosen)
    counts = [sum(len(p.response_ids) for p in pairs) for pairs in (chosen, rejected)]
    roles = ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
    return Batch(
        (*chosen, *rejected), np.repeat([-weight, weight], counts), tuple(roles)
    )


def _times(scale: Direction, part: Direction) -> dict[str, Tensor]:
    return {name: scale[name] * part[name] for name in part}


def _change(
    scorer: Scorer, direction: Direction, first: Int[np.ndarray, " token"]
) -> _Rates:
    """Central finite differences: an observation has more than log-probabilities."""
    direction = checked(scorer.model, direction)
    weights = norm(parameters_of(scorer.model).values())
    step = default_step(scorer) * weights / norm(direction.values())
    observations = []
    for sign in (step, -step):
        with moved(scorer.model, direction, sign):
            observations.append(scorer.observe(start_ids=first))
    up, down = observations
    rate = 1 / (2 * step)
    return _Rates(
        logp=(up.logp - down.logp) * rate,
        argmax_logp=(up.argmax_logp - down.argmax_logp) * rate,
        token_start_logp=(up.token_start_logp - down.token_start_logp)
        * np.float32(rate),
    )


_MARGIN = 25.0
"""Nats of probe margin at which runs are looked at."""

_EXAM = 128
"""Held-out prompts that a stage's model answers."""

_SFT = replace(STAGES["sft"], every=100)


def _careful(name: str, **trainer: Any) -> Stage:
    """400 updates of a third of the demo's size, for the controls.

    RMSprop gives noise the same step as signal, and where there is no signal the larger
    steps wander off by some 5 %.
    """
    settings = {"learning_rate": 1e-5, "num_train_epochs": 2, **trainer}
    return replace(STAGES["dpo"], name=name, trainer=settings, every=10)


_GRADIENT_ROWS = 320
"""Rows whose gradient makes the update that is split; none of them is probed."""


def _measure(model: Path, seed: int, folder: Path) -> dict[str, Any]:
    """One cell: all runs of one pretrained model and one seed."""
    world = make_world(seed)
    experiment = Experiment(folder, seed, str(model), small=True)
    cell: dict[str, Any] = {"model": model.name, "seed": seed}

    def train(stage: Stage, rows: Data, probes: ProbeSet = world.probes) -> Path:
        if not experiment.finished(stage.name):
            experiment.train(stage, rows, probes)
        return folder / stage.name

    def share_right(path: Path) -> float:
        right = graded(path / "model", world.test, _EXAM)
        return sum(right) / len(right)

    pairs = pairs_for_dpo(world.train)
    base = train(_SFT, world.train)
    cell["strict_after_sft"] = share_right(base)
    cell["split"] = _split(base / "model", world)

    path = train(_careful("dpo"), pairs)
    cell["dpo"] = _looked_at(path, _MARGIN)
    cell["strict_after_dpo"] = share_right(path)

    salad = make_world(seed, rejected="salad")
    # salad is at the margin within some 20 updates; there is nothing to see after that
    early = _careful("dpo-salad", max_steps=100)
    path = train(early, pairs_for_dpo(salad.train), salad.probes)
    cell["salad"] = _looked_at(path, _MARGIN)

    own, own_probes = pairs, world.probes
    if not experiment.finished("dpo-on-policy"):
        own = with_rejected(pairs, sampled(base / "model", pairs, seed))
        own_probes = probed(own)
    path = train(_careful("dpo-on-policy"), own, own_probes)
    cell["on-policy"] = _looked_at(path, _MARGIN)

    flat = make_world(seed, wording="flat")
    train(replace(_SFT, name="sft-flat"), flat.train, flat.probes)
    path = train(
        replace(_careful("dpo-flat"), after="sft-flat"),
        pairs_for_dpo(flat.train),
        flat.probes,
    )
    cell["flat"] = _looked_at(path, _MARGIN)

    train(replace(STAGES["extend-sft"], every=100), world.train)
    plain = train(replace(STAGES["dpo"], name="demo-dpo", every=10), pairs)
    extended = train(
        replace(STAGES["extend-dpo"], name="demo-extend-dpo", every=10), pairs
    )
    cell["demo"] = _looked_at(plain, _MARGIN)
    cell["strict_after_demo"] = share_right(plain)
    cell["strict_after_extend"] = share_right(extended)
    cell["extend"] = _compared(plain, extended)
    return cell


def _looked_at(path: Path, margin: float) -> dict[str, Any]:
    """Evidence at the margin, or at the end if the run never reached it."""
    trajectory = Trajectory.load(path)
    evidence = squeeze_evidence(trajectory, at_margin=margin)
    reached = evidence.step is not None
    if not reached:
        evidence = squeeze_evidence(trajectory)
    moved = [interval.mean for interval in evidence.kinds.values()]
    return {
        "reached": reached,
        "step": evidence.step,
        "margin": _plain(evidence.margin),
        "chosen": _plain(evidence.chosen),
        "chosen_relative": _plain(evidence.chosen_relative),
        "argmax": _plain(evidence.greedy),
        "argmax_relative": _plain(evidence.greedy_relative),
        "off_target": _plain(evidence.off_target),
        "rejected": _plain(evidence.rejected),
        "kinds": {kind: _plain(interval) for kind, interval in evidence.kinds.items()},
        "down": sum(value < 0 for value in moved),
        "surely_down": evidence.falling,
    }


def _compared(one: Path, other: Path) -> dict[str, Any]:
    a, b = Trajectory.load(one), Trajectory.load(other)
    differences: dict[str, Any] = {}
    for by in ("updates", "margin", "gap"):
        result = compare(a, b, by)
        differences[by] = {
            "at": result.at,
            "step_a": result.step_a,
            "step_b": result.step_b,
            "lost_share": result.lost_share,
            "chosen": _difference(result.kinds.get("chosen")),
            "argmax": _difference(result.greedy),
            "off_target": _difference(result.off_target),
        }
    return differences


def _split(model: Path, world: World) -> dict[str, Any]:
    """Rates of the first update's parts, per nat of the margin that it adds, for the
    optimizer that the runs use and for plain gradient descent."""
    loaded, tokenizer = load_model(model), load_tokenizer(model)
    encode = PairTokenizer(tokenizer, 256, 128)
    rows = world.train.rows[PROBED : PROBED + _GRADIENT_ROWS]
    chosen, rejected = (
        [encode(row.prompt, row.responses[kind]) for row in rows]
        for kind in ("chosen", "rejected")
    )
    probes = tokenize(world.probes, tokenizer, max_length=256)
    kinds = np.array([probe.kind for probe in world.probes])

    def rates(optimizer: Literal["sgd", "rmsprop"]) -> dict[str, Any]:
        parts = _split_first_update(
            loaded, chosen, rejected, probes, optimizer=optimizer
        )
        return _rates(parts, kinds)

    return {"rmsprop": rates("rmsprop"), "sgd": rates("sgd")}


def _rates(parts: _SignSplit, kinds: np.ndarray) -> dict[str, Any]:
    is_chosen, is_rejected = kinds == "chosen", kinds == "rejected"
    whole = parts.both
    margin = whole.logp[is_chosen].mean() - whole.logp[is_rejected].mean()
    return {
        name: {
            "chosen": float(part.logp[is_chosen].mean() / margin),
            "rejected": float(part.logp[is_rejected].mean() / margin),
            "argmax": float(part.argmax_logp[is_chosen].mean() / margin),
        }
        for name, part in (
            ("pull", parts.pull),
            ("push", parts.push),
            ("both", parts.both),
        )
    }


def _difference(result: Difference | None) -> list[float] | None:
    return None if result is None else _plain(result.difference)


def _plain(interval: Interval | None) -> list[float] | None:
    """Mean, low, high."""
    if interval is None:
        return None
    return [float(interval.mean), float(interval.low), float(interval.high)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every cell that is not measured yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=Path, nargs="+")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for model in args.models or [embedded_model_path()]:
        for seed in args.seeds:
            folder = args.out / f"{model.name}-data-{seed}"
            result = folder / "measured.json"
            if not result.exists():
                cell = _measure(model, seed, folder)
                result.write_text(json.dumps(cell, indent=1))
    cells = [
        json.loads(path.read_text())
        for path in sorted(args.out.glob("*/measured.json"))
    ]
    (args.out / "tables.md").write_text(_to_markdown(cells))
    print(_to_markdown(cells))


if __name__ == "__main__":
    main()
