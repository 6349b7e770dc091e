"""The measurements behind `docs/embedded-world.md`: seeds, controls, who moved what.

    python -m learndyn.lab.evidence --out runs/evidence --seeds 0 1 2

Each seed draws its own rows and training order. Finished cells are kept, so a stopped
measurement continues where it was. `--models` gives models of several pretraining
seeds.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.diagnose.compare import Difference, compare
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.evaluate.generate import generate
from learndyn.forces.sign_split import SignSplit, split_first_update
from learndyn.lab import chain
from learndyn.lab.embedded import embedded_model_path
from learndyn.lab.evidence_tables import to_markdown
from learndyn.probes.data import Data
from learndyn.probes.tokenize import PairTokenizer, tokenize
from learndyn.record.run_directory import is_run
from learndyn.record.trajectory import Trajectory
from learndyn.train.progress import progress_bar
from learndyn.train.recipes import dpo, sft
from learndyn.train.resume import is_finished


MARGIN = 25.0
"""Nats of probe margin at which runs are looked at."""

GRADIENT_ROWS = 320
"""Rows whose gradient makes the update that is split; none of them is probed."""


def measure(model: Path, seed: int, folder: Path) -> dict[str, Any]:
    """One cell: all runs of one pretrained model and one seed."""
    world = chain.make_world(seed)
    stage = _Stages(model, seed, folder)
    base = stage.sft("sft", world, ("chosen",))
    found: dict[str, Any] = {"model": model.name, "seed": seed}
    found["strict_after_sft"] = chain.share_right(base / "model", world.test)
    found["split"] = _split(base / "model", world)

    main = stage.dpo("dpo", world, base)
    found["dpo"] = _looked_at(main, MARGIN)
    found["strict_after_dpo"] = chain.share_right(main / "model", world.test)

    salad = chain.make_world(seed, rejected="salad")
    # salad is at the margin within some 20 updates; there is nothing to see after that
    early = {"max_steps": 100}
    run = stage.dpo("dpo-salad", salad, base, early)
    found["salad"] = _looked_at(run, MARGIN)

    sampled = world
    if not is_finished(folder / "dpo-on-policy"):
        answers = _sample(base / "model", chain.pairs_for_dpo(world), seed)
        sampled = chain.with_rejected(world, answers)
    run = stage.dpo("dpo-on-policy", sampled, base)
    found["on-policy"] = _looked_at(run, MARGIN)

    flat = chain.make_world(seed, wording="flat")
    flat_base = stage.sft("sft-flat", flat, ("chosen",))
    run = stage.dpo("dpo-flat", flat, flat_base)
    found["flat"] = _looked_at(run, MARGIN)

    both = stage.sft("extend-sft", world, ("chosen", "rejected"))
    plain = stage.dpo("demo-dpo", world, base, chain.DPO)
    extended = stage.dpo("demo-extend-dpo", world, both, chain.DPO)
    found["demo"] = _looked_at(plain, MARGIN)
    found["strict_after_demo"] = chain.share_right(plain / "model", world.test)
    found["strict_after_extend"] = chain.share_right(extended / "model", world.test)
    found["extend"] = _compared(plain, extended)
    return found


class _Stages:
    """Runs one stage unless it is finished already."""

    def __init__(self, model: Path, seed: int, folder: Path) -> None:
        self.model, self.seed, self.folder = model, seed, folder

    def sft(self, name: str, world: chain.World, kinds: tuple[str, ...]) -> Path:
        out = self.folder / name
        if not is_finished(out):
            recipe = chain.recipe(
                out, chain.SFT, model=self.model, seed=self.seed, overwrite=is_run(out)
            )
            recipe = replace(recipe, every=100)
            sft(recipe, world.train, world.probes, kinds=kinds)
        return out

    def dpo(
        self,
        name: str,
        world: chain.World,
        start: Path,
        trainer: dict[str, Any] | None = None,
    ) -> Path:
        out = self.folder / name
        if not is_finished(out):
            recipe = chain.recipe(
                out,
                {**chain.CAREFUL_DPO, **(trainer or {})},
                model=start / "model",
                seed=self.seed,
                overwrite=is_run(out),
            )
            recipe = replace(recipe, every=10)
            dpo(recipe, chain.pairs_for_dpo(world), world.probes)
        return out


def _looked_at(path: Path, margin: float) -> dict[str, Any]:
    """Evidence at the margin, or at the end if the run never reached it."""
    trajectory = Trajectory.load(path)
    seen = squeeze_evidence(trajectory, at_margin=margin)
    reached = seen.step is not None
    if not reached:
        seen = squeeze_evidence(trajectory)
    moved = [interval.mean for interval in seen.kinds.values()]
    return {
        "reached": reached,
        "step": seen.step,
        "margin": _plain(seen.margin),
        "chosen": _plain(seen.chosen),
        "chosen_relative": _plain(seen.chosen_relative),
        "argmax": _plain(seen.greedy),
        "argmax_relative": _plain(seen.greedy_relative),
        "off_target": _plain(seen.off_target),
        "rejected": _plain(seen.rejected),
        "kinds": {kind: _plain(interval) for kind, interval in seen.kinds.items()},
        "down": sum(value < 0 for value in moved),
        "surely_down": seen.falling,
    }


def _compared(one: Path, other: Path) -> dict[str, Any]:
    a, b = Trajectory.load(one), Trajectory.load(other)
    found: dict[str, Any] = {}
    for by in ("updates", "margin", "gap"):
        result = compare(a, b, by)
        found[by] = {
            "at": result.at,
            "step_a": result.step_a,
            "step_b": result.step_b,
            "lost_share": result.lost_share,
            "chosen": _difference(result.kinds.get("chosen")),
            "argmax": _difference(result.greedy),
            "off_target": _difference(result.off_target),
        }
    return found


def _split(model: Path, world: chain.World) -> dict[str, Any]:
    """Rates of the first update's parts, per nat of the margin that it adds, for the
    optimizer that the runs use and for plain gradient descent."""
    loaded, tokenizer = chain.load(model)
    encode = PairTokenizer(tokenizer, 256, 128)
    rows = world.train.rows[chain.PROBED : chain.PROBED + GRADIENT_ROWS]
    chosen, rejected = (
        [encode(row.prompt, row.responses[kind]) for row in rows]
        for kind in ("chosen", "rejected")
    )
    probes = tokenize(world.probes, tokenizer, max_length=256)
    kinds = np.array([probe.kind for probe in world.probes])
    return {
        "rmsprop": _rates(split_first_update(loaded, chosen, rejected, probes), kinds),
        "sgd": _rates(
            split_first_update(loaded, chosen, rejected, probes, optimizer="sgd"), kinds
        ),
    }


def _rates(parts: SignSplit, kinds: np.ndarray) -> dict[str, Any]:
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


def _sample(model: Path, pairs: Data, seed: int) -> list[str]:
    loaded, tokenizer = chain.load(model)
    prompts = [row.prompt for row in pairs.rows]
    bar = progress_bar("sampling on-policy answers")
    return generate(
        loaded,
        tokenizer,
        prompts,
        max_new_tokens=64,
        temperature=1.0,
        seed=seed,
        batch_size=64,
        progress=bar,
    )


def _difference(found: Difference | None) -> list[float] | None:
    return None if found is None else _plain(found.difference)


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
                found = measure(model, seed, folder)
                result.write_text(json.dumps(found, indent=1))
    cells = [
        json.loads(path.read_text())
        for path in sorted(args.out.glob("*/measured.json"))
    ]
    (args.out / "tables.md").write_text(to_markdown(cells))
    print(to_markdown(cells))


if __name__ == "__main__":
    main()
