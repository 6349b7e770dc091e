"""What scoring costs: `score` against one plain forward per response.

    python benchmarks/scoring.py [--probes FILE] [--prompts 4]

Prints one table. Times are process CPU seconds of one run, on one core. Peak memory is
that of a fresh subprocess per route, above what it held before (Linux). Models are
random; their vocabulary and width are those of Pythia-70M and of a 0.1B Qwen2.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learndyn.lab.chain import make_world
from learndyn.measure.score import score
from learndyn.probes.build import load_probes
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes
from learndyn.record.authors import AUTHORS_KINDS


SHAPES: dict[str, dict[str, Any]] = {
    "gpt_neox": {
        "vocab_size": 50304,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 512,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
}
ROUTES = ("one forward per response", "score, batch 1", "score, batch 8")


def make_model(shape: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape, **SHAPES[shape])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_probes(file: str | None, prompts: int, vocabulary: int) -> TokenizedProbes:
    """Real texts with ids of about the right number: four characters are a token."""
    if file is None:
        probes = make_world().probes
    else:
        probes = load_probes(file, aliases=AUTHORS_KINDS, empty="keep")
    probes = probes.select(prompts=prompts)
    chance = np.random.default_rng(0)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(chance.integers(0, vocabulary, max(1, len(text) // 4)).tolist())

    pairs = tuple(
        TokenizedPair(ids(p.prompt)[-256:], ids(p.response)[:256], False, True)
        for p in probes
    )
    return TokenizedProbes(probes, pairs, "0" * 64)


def run(route: str, model: Any, probes: TokenizedProbes) -> np.ndarray:
    if route.startswith("score"):
        return score(model, probes, batch_size=int(route.split()[-1])).logp
    sums = []
    for pair in probes.pairs:
        ids = torch.tensor([[*pair.prompt_ids, *pair.response_ids]])
        with torch.no_grad():
            logp = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(pair.response_ids)
        rows = torch.arange(len(labels)) + len(pair.prompt_ids) - 1
        sums.append(float(logp[rows, labels].double().sum()))
    return np.array(sums)


def one(shape: str, route: str, probes: TokenizedProbes) -> dict[str, Any]:
    """In a fresh process: CPU seconds and peak memory of one route."""
    model = make_model(shape)
    run(route, model, probes_of_one(probes))  # warm up
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak()
    began = time.process_time()
    sums = run(route, model, probes)
    seconds = time.process_time() - began
    return {"seconds": seconds, "extra": _peak() - before, "sums": sums.tolist()}


def probes_of_one(probes: TokenizedProbes) -> TokenizedProbes:
    kept = probes.probes.select(prompts=1)
    return TokenizedProbes(kept, probes.pairs[: len(kept)], probes.tokenizer_hash)


def _peak() -> float:
    """Peak resident memory since it was last forgotten, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", help="wide file (default: the embedded world)")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "ROUTE"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        shape, route = args.one
        probes = make_probes(args.probes, args.prompts, SHAPES[shape]["vocab_size"])
        print(json.dumps(one(shape, route, probes)))
        return
    print("| model | route | CPU s per 1000 responses | ratio | extra MB | max error |")
    print("|---|---|---|---|---|---|")
    for shape, settings in SHAPES.items():
        probes = make_probes(args.probes, args.prompts, settings["vocab_size"])
        exact = run("score, batch 1", make_model(shape).double(), probes)
        first = None
        for route in ROUTES:
            found = _fresh(shape, route, args)
            first = first or found["seconds"]
            error = np.abs(np.array(found["sums"]) - exact).max()
            cells = [
                shape,
                route,
                f"{1000 * found['seconds'] / len(probes):.0f}",
                f"{first / found['seconds']:.1f}",
                f"{found['extra']:.0f}",
                f"{error:.1e}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def _fresh(shape: str, route: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__)), "--one", shape, route]
    command += ["--prompts", str(args.prompts)]
    if args.probes:
        command += ["--probes", args.probes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
