"""Whether the diagnosis names a known cause in its first two sentences.

    python benchmarks/causes.py --out DIR             # 14 causes, 3 seeds each
    python benchmarks/causes.py --out DIR lr-10x --seeds 1

Trains the runs of `tests/support/causes.py`, about 5 CPU seconds each and 12 per seed
for the model they start from, unless DIR holds them already; `--fresh` trains them
again. A cause counts as named where the words of its `named` pattern occur. Exits 1 if
one was not named.
"""

import argparse
import contextlib
import re
import sys
import time
from pathlib import Path

import torch
from datasets.utils.logging import disable_progress_bar


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from causes import CAUSES, train

from learndyn import diagnose


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("causes", nargs="*", help="which ones (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--fresh", action="store_true", help="train again")
    given = parser.parse_args()
    if unknown := set(given.causes) - set(CAUSES):
        parser.error(f"no such cause: {', '.join(unknown)}. There are {list(CAUSES)}.")
    torch.set_num_threads(1)
    disable_progress_bar()
    print("| cause | seed | CPU s | state | named | first two sentences |")
    print("|---|--:|--:|---|---|---|")
    named = runs = 0
    for cause in given.causes or CAUSES:
        for seed in range(given.seeds):
            run, seconds = trained(cause, seed, given.out, given.fresh)
            row, is_named = judged(cause, run)
            print(f"| {cause} | {seed} | {seconds} | {row} |", flush=True)
            named, runs = named + is_named, runs + 1
    print(f"\nNamed: {named} of {runs}.")
    return 0 if named == runs else 1


def trained(cause: str, seed: int, out: Path, fresh: bool) -> tuple[Path, str]:
    """The run directory, and the CPU seconds that it took; "-" if it was there."""
    folder = out / f"{cause}-{seed}"
    if (folder / "run" / "run.json").exists() and not fresh:
        return folder / "run", "-"
    begun = time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        train(cause, seed, folder, out / "models")
    return folder / "run", f"{time.process_time() - begun:.1f}"


def judged(cause: str, run: Path) -> tuple[str, bool]:
    """State, whether the cause is named, and what was said; and whether again."""
    diagnosis = diagnose(run)
    sentences = " ".join(diagnosis.sentences[:2])
    is_named = bool(re.search(CAUSES[cause].named, sentences))
    state = diagnosis.state.state if diagnosis.state else "-"
    return f"{state} | {'yes' if is_named else 'NO'} | {sentences}", is_named


if __name__ == "__main__":
    sys.exit(main())
