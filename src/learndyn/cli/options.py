"""The subcommands and their flags."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from learndyn.cli import answers, jobs, worlds
from learndyn.cli.parts import subcommand


_DTYPES = ("float32", "bfloat16", "float64")

_LOADED_IN = (
    "precision in which the weights are loaded; bfloat16 rounds the model itself, "
    "which --precision does not (default: "
)


def make_parser() -> argparse.ArgumentParser:
    """All subcommands and their flags."""
    parser = argparse.ArgumentParser(
        prog="learndyn",
        description="See what each update of a finetuning run does to the answers you "
        "care about.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version("learndyn"))
    found = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    _add_demo(found)
    _add_probes(found)
    _add_run(found)
    _add_score(found)
    _add_explain(found)
    _add_report(found)
    answers.add(found)
    worlds.add(found)
    return parser


def _add_demo(found: Any) -> None:
    about = "SFT then DPO, and extend then DPO, watched and explained"
    job = subcommand(found, "demo", jobs.demo, about)
    job.add_argument("--out", type=Path, default=Path("runs/demo"))
    job.add_argument("--seed", type=int, default=0)
    job.add_argument("--model", help="folder or hub id (default: the embedded model)")
    job.add_argument("--data", help="preference data (default: the embedded world)")
    job.add_argument("--empty", choices=["error", "keep", "drop"], default="error")
    job.add_argument("--overwrite", action="store_true")


def _add_probes(found: Any) -> None:
    about = "build or check a probe set"
    inner = found.add_parser("probes", help=about, description=about).add_subparsers(
        required=True, metavar="SUBCOMMAND"
    )
    build = subcommand(
        inner, "build", jobs.probes_build, "make probes from preference data"
    )
    build.add_argument("data", help="file, folder or hub id")
    build.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    build.add_argument("--split", default="train")
    build.add_argument("--test-data", help="held-out data, for irrelevant_test")
    build.add_argument("--test-split")
    build.add_argument("--prompts", type=int, help="how many (default: all)")
    build.add_argument("--kinds", nargs="+", metavar="KIND", help="only these")
    build.add_argument("--seed", type=int, default=0)
    _add_reading(build)
    build.add_argument("--tokenizer", help="for chat messages: whose chat template")
    build.add_argument("--overwrite", action="store_true")
    check = subcommand(
        inner, "check", jobs.probes_check, "report the confounds that fool people"
    )
    check.add_argument("file", help="probe file, or any wide file")
    check.add_argument(
        "--tokenizer",
        help="folder or hub id: to count tokens, and whose chat template",
    )


def _add_reading(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--empty",
        choices=["error", "keep", "drop"],
        default=None if job.get_default("job") is jobs.run else "error",
        help="empty responses: stop (default), score end-of-text alone, or leave out",
    )
    job.add_argument(
        "--mismatched",
        choices=["error", "drop"],
        default=None if job.get_default("job") is jobs.run else "error",
        help="rows whose chosen and rejected answer different prompts",
    )


def _add_run(found: Any) -> None:
    about = "train with TRL and watch: sft, dpo or extend"
    job = subcommand(found, "run", jobs.run, about)
    job.usage = "learndyn run {sft,dpo,extend} [options] [--FIELD VALUE ...]"
    job.epilog = (
        "Every field of TRL's SFTConfig or DPOConfig is a flag too: --learning_rate "
        "1e-6 --beta 0.05 --loss_type ipo; with --sft.NAME for the SFT stage of extend."
    )
    job.add_argument("--config", type=Path, help="YAML, such as a run's config.yaml")
    job.add_argument("--model", help="folder or hub id to start from")
    job.add_argument("--data", help="file, folder or hub id to train on")
    job.add_argument("--split", help="split to train on (default: train)")
    job.add_argument("--limit", type=int, help="train on the first rows only")
    job.add_argument("--test-data", help="held-out data, for probes alone")
    job.add_argument("--test-split")
    _add_reading(job)
    job.add_argument("--probes", help="probe file (default: built from the data)")
    job.add_argument(
        "--prompts", type=int, help="prompts to watch (default: up to 100)"
    )
    job.add_argument("--kinds", nargs="+", metavar="KIND", help="sft: train on these")
    job.add_argument("--out", help="run directory to write")
    job.add_argument(
        "--every",
        type=_updates,
        help="updates between observations, or log (default: 25)",
    )
    job.add_argument(
        "--panel",
        type=int,
        metavar="N",
        help="prompts scored between full observations",
    )
    job.add_argument("--full-every", type=int, help="updates between full observations")
    job.add_argument("--panel-seed", type=int, help="which prompts (default: 0)")
    job.add_argument(
        "--forces",
        type=int,
        metavar="K",
        help="explain the update before every k-th observation: see explain RUN",
    )
    job.add_argument(
        "--forces-prompts", type=int, help="on this many prompts (default: 16)"
    )
    job.add_argument("--preset", choices=["paper", "trl"], help="default: paper")
    job.add_argument("--seed", type=int)
    job.add_argument("--dtype", choices=_DTYPES, help=_LOADED_IN + "float32)")
    job.add_argument("--lora", action="store_true", default=None)
    job.add_argument("--lora-rank", type=int)
    job.add_argument("--lora-alpha", type=int)
    job.add_argument("--max-length", type=int, help="most tokens of prompt + response")
    job.add_argument("--max-prompt-length", type=int)
    _add_scoring(job)
    job.add_argument("--trust-remote-code", action="store_true", default=None)
    job.add_argument("--resume", action="store_true", help="continue a stopped run")
    job.add_argument("--overwrite", action="store_true")


def _add_scoring(job: argparse.ArgumentParser) -> None:
    own = job.get_default("job") is not jobs.run
    job.add_argument(
        "--batch-size" if own else "--score-batch-size",
        type=int,
        default=8 if own else None,
        help="sequences scored at once, where a model needs padding (default: 8)",
    )
    job.add_argument(
        "--exactness",
        choices=["auto", "strict"],
        default="auto" if own else None,
        help="a fast way of scoring that fails its self-test: warn and take the next "
        "(default), or stop",
    )
    job.add_argument(
        "--precision",
        choices=["bfloat16", "exact"] if own else ["bfloat16"],
        help="bfloat16: score approximately, computing in bfloat16 with the weights as "
        "loaded, such as float32; all numbers are labelled (default: "
        + ("as the run of --run was scored, else exact)" if own else "exactly)"),
    )


def _updates(text: str) -> int | str:
    if text != "log" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of updates, nor log")
    return text if text == "log" else int(text)


def _add_score(found: Any) -> None:
    job = subcommand(
        found, "score", jobs.score, "score probes with a model or checkpoint"
    )
    job.add_argument("model", help="folder or hub id")
    job.add_argument("--probes", help="probe file, or a run whose texts to score")
    job.add_argument("--run", type=Path, help="use this run's probes and token ids")
    job.add_argument("--out", type=Path, help="Parquet file to write, one row a probe")
    _add_scoring(job)
    job.add_argument(
        "--max-length", type=int, help="with --probes (default: 1024 tokens)"
    )
    job.add_argument(
        "--dtype", choices=_DTYPES, help=_LOADED_IN + "the run's, else float32)"
    )
    job.add_argument("--trust-remote-code", action="store_true")
    job.add_argument("--overwrite", action="store_true")


def _add_explain(found: Any) -> None:
    about = "which part of one update moved which answer: recorded, or hypothetical"
    job = subcommand(found, "explain", jobs.explain, about)
    job.add_argument(
        "run", type=Path, nargs="?", metavar="RUN", help="a run with recorded forces"
    )
    job.add_argument("--step", type=int, help="of RUN (default: the last recorded)")
    job.add_argument(
        "--model", help="explain one hypothetical update of this model (folder, hub id)"
    )
    job.add_argument("--data", help="with --model: file, folder or hub id to train on")
    job.add_argument("--split", help="of the data (default: train)")
    job.add_argument("--loss", help="with --model (default: dpo; see docs/losses.md)")
    job.add_argument(
        "--loss-option",
        action="append",
        metavar="NAME=VALUE",
        help="such as beta=0.05; may be given again",
    )
    job.add_argument("--probes", help="probe file (default: built from the data)")
    job.add_argument("--kinds", nargs="+", metavar="KIND", help="only these probes")
    job.add_argument("--prompts", type=int, help="prompts to watch (default: 16)")
    job.add_argument(
        "--batch", type=int, help="rows to train on, watched ones first (default: 16)"
    )
    job.add_argument("--optimizer", choices=["sgd", "adamw", "rmsprop"])
    job.add_argument(
        "--lr",
        type=float,
        help="(default: sgd moves the weights by 1e-5 of their norm; others 1e-6)",
    )
    job.add_argument("--reference", help="model that the loss compares with")
    job.add_argument(
        "--method",
        choices=["auto", "forward-mode", "finite difference"],
        help="how the change is predicted (default: by trial)",
    )
    job.add_argument("--empty", choices=["error", "keep", "drop"])
    job.add_argument("--mismatched", choices=["error", "drop"])
    job.add_argument("--max-length", type=int)
    job.add_argument("--dtype", choices=_DTYPES)
    job.add_argument("--seed", type=int)
    job.add_argument("--trust-remote-code", action="store_true", default=None)
    job.add_argument(
        "--out",
        type=Path,
        help="with --model: run directory to write (default: runs/explain); with RUN: "
        "folder of the page (default: RUN)",
    )
    job.add_argument(
        "--no-text",
        action="store_true",
        help="leave all texts off the page; the run itself keeps them",
    )
    job.add_argument("--overwrite", action="store_true")


def _add_report(found: Any) -> None:
    job = subcommand(
        found, "report", jobs.report, "write report.html from run directories"
    )
    job.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    job.add_argument("--out", type=Path, help="folder (default: the run directory)")
    job.add_argument("--no-text", action="store_true", help="leave out all texts")
    job.add_argument(
        "--overwrite", action="store_true", help="replace a page of another program"
    )
