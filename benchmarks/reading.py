"""What reading costs: `report`, `diagnose` and `compare` on runs of the largest shape.

    python benchmarks/reading.py                # 500 prompts x 13 kinds x 200 looks
    python benchmarks/reading.py --prompts 100 --observations 50 --json out.json
    python benchmarks/reading.py --keep runs/made-up  # made once, read often

Makes two finished DPO runs of made-up numbers, with about 60 tokens per answer, and
runs each command on them in a fresh process, as a user does. Wall time is that of the
whole process, imports included; memory is the peak of its resident set (Linux). Where
`--browser` names Chromium, both pages are opened with it, and what they write to its
console is counted. Exits with 1 where a command takes more than `--seconds` or
`--gigabytes`, or a page has a fault.

Numbers follow one another as in a run, so that curves look like curves, and are rounded
as float32 is on disk; every observation has token lists of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learndyn.probes.kinds import PAPER_KINDS
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory


TOKENS = 60
"""Tokens per answer, on average."""
EVERY = 25

DRIFT = {"chosen": -12.0, "rejected": -45.0, "irrelevant": -9.0, "random": -20.0}
"""Change of a kind's family over the run, nats per answer."""


def probe_table(prompts: int, chance: np.random.Generator) -> pa.Table:
    """Texts and token ids of `prompts` prompts with all 13 kinds."""
    keys = [(f"p{i:05d}", kind) for i in range(prompts) for kind in PAPER_KINDS]
    counts = chance.integers(TOKENS // 2, 3 * TOKENS // 2, len(keys))
    words = ["the", "horse", "hay", "to", "feed", "well", "not", "often", "water", "a"]
    texts = [" ".join(chance.choice(words, n)) for n in counts]
    return pa.table(
        {
            "probe_id": np.arange(len(keys)),
            "prompt_id": [prompt for prompt, _ in keys],
            "kind": [kind for _, kind in keys],
            "prompt": [
                f"Human: what about {prompt}?\n\nAssistant:" for prompt, _ in keys
            ],
            "response": texts,
            "split": ["train"] * len(keys),
            "rendered": [False] * len(keys),
            "n_tokens": counts,
            "truncated": [False] * len(keys),
            "has_eos": [True] * len(keys),
            "prompt_ids": [[1, 2, 3]] * len(keys),
            "response_ids": [chance.integers(5, 5000, n).tolist() for n in counts],
        }
    )


def write_run(path: Path, prompts: int, observations: int, seed: int) -> None:
    """A finished DPO run; the probes are the same for every seed."""
    probes = probe_table(prompts, np.random.default_rng(0))
    chance = np.random.default_rng(seed + 1)
    counts = probes["n_tokens"].to_numpy().astype(np.int32)
    labels = probes["response_ids"].combine_chunks().flatten().to_numpy()
    owner = np.repeat(np.arange(len(counts)), counts)
    info = {
        "method": "dpo",
        "finished": True,
        "probe_fingerprint": "f" * 64,
        "tokenizer_sha256": "t" * 64,
        "model": "made-up",
        "dtype": "float32",
        "every": EVERY,
        "settings": {"beta": 0.1, "learning_rate": 5e-7},
    }
    run = RunDirectory.create(path, probes, info)
    drift = np.array([DRIFT[kind.split("_")[0]] for kind in probes["kind"].to_pylist()])
    drift = drift * (1 + 0.4 * chance.standard_normal(len(drift))) * (1 + 0.2 * seed)
    begin = -chance.gamma(1.5, 1.2, len(labels))
    top = begin * chance.uniform(0.0, 1.0, len(labels))
    ids = np.where(chance.random(len(labels)) < 0.5, labels, 7).astype(np.int32)
    for look in range(observations):
        share = (look / max(1, observations - 1)) ** 0.7
        token = begin + share * (drift / counts)[owner] * chance.uniform(
            0.8, 1.2, len(labels)
        )
        token = np.minimum(token, -1e-3).astype(np.float32)
        argmax = np.maximum(token, (1 - 0.3 * share) * top).astype(np.float32)
        seen = _observe(EVERY * look, counts, owner, token, argmax, ids)
        # as `write_observation`, without waiting for the disk
        path = run.observation_path(seen.step)
        pq.write_table(seen.to_table(), path, compression="zstd")
        if look:
            run.append_log(
                {
                    "step": EVERY * look,
                    "loss": 0.69 - 0.5 * share,
                    "grad_norm": 3.0,
                    "rewards/margins": 3.3 * share,
                }
            )


def _observe(
    step: int,
    counts: np.ndarray,
    owner: np.ndarray,
    token: np.ndarray,
    argmax: np.ndarray,
    ids: np.ndarray,
) -> Observation:
    n = len(counts)
    certain = np.bincount(owner, np.exp(argmax), minlength=n) / counts
    return Observation(
        step=step,
        n_tokens=counts,
        logp=np.bincount(owner, token, minlength=n),
        argmax_logp=np.bincount(owner, argmax, minlength=n),
        rest_logp=-2.0 * counts,
        entropy=3 * (1 - certain),
        p_norm2=certain**2,
        p_gap=1 - 0.5 * certain,
        energy=1 - np.bincount(owner, np.exp(token), minlength=n) / counts,
        top1=np.bincount(owner, token == argmax, minlength=n) / counts,
        token_logp=token,
        token_argmax_logp=argmax,
        token_start_logp=argmax,
        token_argmax_id=ids,
    )


MEASURE = """
import resource, sys
from learndyn.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, status, file=sys.stderr)
"""


def measured(*arguments: str) -> dict[str, Any]:
    """Wall time and peak memory of one command in a fresh process."""
    began = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    kilobytes, status = found.stderr.strip().splitlines()[-1].split()
    assert status == "0", found.stderr
    return {
        "command": arguments[0],
        "seconds": wall,
        "cpu_seconds": after.ru_utime
        + after.ru_stime
        - before.ru_utime
        - before.ru_stime,
        "gigabytes": int(kilobytes) / 2**20,
    }


def faults(page: Path, browser: str, profile: Path) -> list[str]:
    """What a page writes to the browser's console."""
    found = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--enable-logging=stderr", f"--user-data-dir={profile}"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "</footer>" in found.stdout
    return [line for line in found.stderr.splitlines() if "CONSOLE" in line]


def main() -> int:
    """Make the runs, read them, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--observations", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="folder of the runs, made if absent")
    parser.add_argument("--browser", help="Chromium, to open the pages with")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.keep is None else args.keep
        return _read_all(folder, args)


def _read_all(folder: Path, args: argparse.Namespace) -> int:
    runs = [folder / name for name in ("dpo", "other")]
    for seed, run in enumerate(runs):
        if not run.exists():
            write_run(run, args.prompts, args.observations, seed)
    one, two = map(str, runs)
    rows = [
        measured("report", one),
        measured("diagnose", one),
        measured("compare", one, two, "--out", str(folder / "compared")),
    ]
    size = sum(f.stat().st_size for f in runs[0].rglob("*.parquet"))
    probes = pq.read_metadata(runs[0] / "probes.parquet").num_rows
    print(
        f"{probes} probes x {args.observations} observations, "
        f"{size / 2**30:.2f} GB on disk per run"
    )
    print(f"{'command':10} {'wall s':>8} {'CPU s':>8} {'peak GB':>8}")
    for row in rows:
        print(
            f"{row['command']:10} {row['seconds']:8.2f} {row['cpu_seconds']:8.2f} "
            f"{row['gigabytes']:8.2f}"
        )
    bad = [
        row
        for row in rows
        if row["seconds"] > args.seconds or row["gigabytes"] > args.gigabytes
    ]
    if args.browser is not None:
        for page in (runs[0] / "report.html", folder / "compared" / "compare.html"):
            found = faults(page, args.browser, folder / "profile")
            print(
                f"{page.name}: {page.stat().st_size / 2**20:.1f} MB, "
                f"{len(found)} faults in the browser's console"
            )
            bad += [{"command": page.name, "faults": found}] if found else []
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=2))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
