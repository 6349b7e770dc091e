"""What forces cost, in units of one forward over the same probes.

    python benchmarks/forces.py                        # anywhere, embedded world
    python benchmarks/forces.py --probes probes.jsonl  # the authors' HH probe file
    python benchmarks/forces.py --probes probes.jsonl --json forces.json

Two units stand beside each other: a plain forward (whole sequences side by side in
batches of 8 of similar length, logits at response positions alone, no gradient; what
most code would do), and `score`, the fastest exact way there is. Time is process CPU
seconds of one thread; ways are interleaved over `--repeats` rounds, and the fastest
round of each counts. Memory is the peak of resident memory in a fresh process per way,
above what was resident once model and probes were there (Linux).

"influence" is one row of the map: a backward pass over one probe and a forward-mode
pass over a batch of 8 training responses; its unit is the sum of one forward over
each. Models are random, of published shapes; the probes are the ones of a few prompts
whose lengths are typical of the file, as in probing.py, which has the details.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probing import (
    SHAPES,
    clock,
    described,
    lengths,
    load,
    number,
    processor,
    resident,
    said,
    table,
    typical,
)

from learndyn.forces.batch import Batch
from learndyn.forces.direction import parameters_of, scaled
from learndyn.forces.predict import Predictor, _central_difference
from learndyn.forces.split import (
    group_changes,
    group_directions,
    influence,
)
from learndyn.measure.tiers import PaddedTier
from learndyn.probes.tokenize import TokenizedProbes


PROMPTS = 2
"""Typical prompts whose probes are followed."""

TRAINED = 8
"""Responses in the batch of the influence map."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One model, its probes, and a direction."""

    predictor: Predictor
    direction: dict[str, torch.Tensor]
    batch: Batch

    @classmethod
    def of(cls, shape: str, probes: TokenizedProbes) -> "Setting":
        model = SHAPES[shape].make()
        predictor = Predictor.attach(model, probes.pairs)
        chance = torch.Generator().manual_seed(0)
        direction = {
            name: torch.randn(p.shape, generator=chance) * 1e-3
            for name, p in parameters_of(model).items()
        }
        pairs = probes.pairs[:TRAINED]
        tokens = sum(len(pair.response_ids) for pair in pairs)
        push = np.where(np.arange(tokens) % 2, 1.0, -1.0) / tokens
        return cls(predictor, direction, Batch(pairs, push, ("",) * len(pairs)))


def plain(setting: Setting) -> None:
    replace(setting.predictor.logps, tier=PaddedTier()).values()


def score(setting: Setting) -> None:
    setting.predictor.scorer.rows()


def forward_mode(setting: Setting) -> None:
    reader = setting.predictor.forward_mode
    assert reader is not None
    reader.tangents(setting.direction)


def finite_difference(setting: Setting) -> None:
    _central_difference(setting.predictor.scorer, setting.direction)


def backward(setting: Setting) -> None:
    reader = setting.predictor.logps
    reader.pullback(np.ones(reader.plan.n_tokens))


def layers_along(setting: Setting) -> None:
    groups = group_directions(setting.predictor.model, setting.direction)
    for part in groups.values():
        setting.predictor.along(part)


def layers(setting: Setting) -> None:
    groups = group_directions(setting.predictor.model, setting.direction)
    group_changes(setting.predictor.logps, groups)


def one_row(setting: Setting) -> None:
    weights = np.zeros((1, setting.predictor.logps.plan.n_tokens))
    weights[0, : setting.predictor.logps.offsets[1]] = 1.0
    influence(setting.predictor, setting.batch, lambda g: scaled(g, -1e-3), weights)


def row_unit(setting: Setting) -> None:
    for pairs in (setting.predictor.scorer.plan.pairs[:1], setting.batch.pairs):
        replace(setting.predictor.logps.on(pairs), tier=PaddedTier()).values()


def row_unit_scored(setting: Setting) -> None:
    for pairs in (setting.predictor.scorer.plan.pairs[:1], setting.batch.pairs):
        setting.predictor.scorer.on(pairs).rows()


Way = Callable[[Setting], None]

WAYS: dict[str, tuple[Way, Way, Way]] = {
    "plain forward": (plain, plain, score),
    "`score`": (score, plain, score),
    "forward mode, one direction": (forward_mode, plain, score),
    "central finite difference": (finite_difference, plain, score),
    "gradient of all probes' logp": (backward, plain, score),
    "all layers, forward mode along each": (layers_along, plain, score),
    "all layers, a backward pass per probe": (layers, plain, score),
    "influence, one row": (one_row, row_unit, row_unit_scored),
}
"""What is timed, and its two units."""


@dataclass(frozen=True)
class Result:
    """One way over one model."""

    way: str
    seconds: list[float]
    plain: float
    """Its first unit in seconds: the fastest round."""
    score: float
    extra_mb: float

    @property
    def best(self) -> float:
        return min(self.seconds)


def peak(shape: str, way: str, probes: TokenizedProbes) -> float:
    """Extra resident memory of a process that does this one thing, in MB."""
    torch.set_num_threads(1)
    setting = Setting.of(shape, probes)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    WAYS[way][0](setting)
    return resident("VmHWM") - before


def measure(shape: str, probes: TokenizedProbes, repeats: int) -> list[Result]:
    with said(f"{shape}: model, self-tests"):
        setting = Setting.of(shape, probes)
    done = list(dict.fromkeys(way for ways in WAYS.values() for way in ways))
    seconds: dict[Way, list[float]] = {way: [] for way in done}
    for number_of in range(repeats + 1):
        with said(f"{shape}: round {number_of} of {repeats}"):
            for way in done:
                began = clock("cpu")
                way(setting)
                if number_of:  # the first round warms up
                    seconds[way].append(clock("cpu") - began)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        extra = {}
        for way in WAYS:
            with said(f"{shape}: memory of {way}"):
                extra[way] = fresh.submit(peak, shape, way, probes).result()
    return [
        Result(name, seconds[own], min(seconds[a]), min(seconds[b]), extra[name])
        for name, (own, a, b) in WAYS.items()
    ]


def shown(shape: str, results: list[Result]) -> str:
    rows = [
        [
            r.way,
            f"{r.best:.2f}",
            f"{statistics.median(r.seconds):.2f}",
            number(r.best / r.plain, ".2f"),
            number(r.best / r.score, ".2f"),
            f"{r.extra_mb:.0f}",
        ]
        for r in results
    ]
    head = [shape, "CPU s: best", "median", "plain forwards", "times `score`"]
    return table([*head, "extra MB"], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", help="probe file (default: the embedded world's)")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=["neox-70m", "qwen2-0.1b"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    probes = typical(load(args.probes), args.prompts)
    print(f"{processor()}, torch {torch.__version__}, one thread.", end=" ")
    print(f"Probes: {len(probes)} responses, {described(lengths(probes.pairs))}.")
    found: dict[str, Any] = {"command": sys.argv, "torch": torch.__version__}
    for shape in args.shapes:
        results = measure(shape, probes, args.repeats)
        found[shape] = [asdict(result) for result in results]
        print(f"\n{shown(shape, results)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
