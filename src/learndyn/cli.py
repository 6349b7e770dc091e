"""The command line: one command, one subcommand per job.

Each subcommand imports what it needs when it runs, so that `learndyn report` never
loads torch. Answers go to standard output, progress and errors to standard error. Exit
status: 0 done, 2 bad input, 1 anything else.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status."""
    # No telemetry leaves a user's machine because they watched a run.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = _parser()
    known, unknown = parser.parse_known_args(arguments)
    try:
        if unknown and known.job is not _run:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        known.unknown = unknown
        known.job(known)
    except BadInput as error:
        print(f"learndyn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives until the process ends
        return 1
    except OSError as error:
        print(f"learndyn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; continue this run with --resume" if known.job is _run else ""
        print(f"learndyn: stopped{hint}", file=sys.stderr)
        return 1
    return 0


def _demo(args: argparse.Namespace) -> None:
    _quiet()
    from learndyn.lab.demo import DemoSettings, demo

    settings = DemoSettings(
        out=args.out, seed=args.seed, model=args.model, data=args.data, empty=args.empty
    )
    result = demo(settings, overwrite=args.overwrite)
    if args.json:
        _print_json(result.to_dict())
    else:
        print(result.to_text())


def _probes_build(args: argparse.Namespace) -> None:
    from learndyn.probes.build import build_probes
    from learndyn.probes.data import read_data
    from learndyn.record.atomic import write_whole
    from learndyn.record.authors import AUTHORS_KINDS

    if args.out.exists() and not args.overwrite:
        raise BadInput(f"{args.out} exists. Choose another --out, or --overwrite it.")
    options: dict[str, Any] = {
        "aliases": AUTHORS_KINDS,
        "empty": args.empty,
        "mismatched": args.mismatched,
        "tokenizer": _tokenizer(args.tokenizer),
    }
    train = read_data(args.data, split=args.split, **options)
    test = None
    if args.test_data is not None or args.test_split is not None:
        source = args.test_data or args.data
        test = read_data(source, split=args.test_split or "test", **options)
    probes = build_probes(
        train, test, prompts=args.prompts, seed=args.seed, kinds=args.kinds
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, probes.save)
    summary = {
        "out": str(args.out),
        "prompts": len(probes.prompt_ids),
        "kinds": probes.kinds,
        "probes": len(probes),
        "fingerprint": probes.fingerprint,
    }
    if args.json:
        _print_json(summary)
        return
    print(
        f"{len(probes)} probes: {len(probes.prompt_ids)} prompts x "
        f"{len(probes.kinds)} kinds ({', '.join(probes.kinds)})\n"
        f"written to {args.out}, fingerprint {probes.fingerprint[:12]}"
    )


def _probes_check(args: argparse.Namespace) -> None:
    from learndyn.probes.build import load_probes
    from learndyn.probes.check import check
    from learndyn.record.authors import AUTHORS_KINDS

    tokenizer = _tokenizer(args.tokenizer)
    probes = load_probes(
        args.file, aliases=AUTHORS_KINDS, empty="keep", tokenizer=tokenizer
    )
    report = check(probes, tokenizer)
    if args.json:
        _print_json(report.to_dict())
    else:
        print(report.to_text())


def _run(args: argparse.Namespace) -> None:
    _quiet()
    from learndyn.show.report import write_report
    from learndyn.train.launch import RunSettings, launch, method_and_fields

    own = {
        name: value
        for name, value in vars(args).items()
        if name not in _NOT_SETTINGS and value is not None
    }
    method, trainer, sft_trainer = method_and_fields(args.unknown)
    if method is not None:
        own["method"] = method
    overrides = {**own, "trainer": trainer, "sft_trainer": sft_trainer}
    settings = RunSettings.resolve(args.config, overrides)
    runs = launch(settings, resume=args.resume, overwrite=args.overwrite)
    pages = [write_report([run.path], overwrite=True) for run in runs]
    if args.json:
        done = [
            {"run": str(run.path), "steps": run.steps, "report": str(page)}
            for run, page in zip(runs, pages, strict=True)
        ]
        _print_json({"runs": done})
        return
    from learndyn.diagnose.words import what_happened
    from learndyn.record.trajectory import Trajectory

    for run, page in zip(runs, pages, strict=True):
        print(f"{run.path}: {len(run.steps)} observations, the last at {run.steps[-1]}")
        for sentence in what_happened(Trajectory.load(run.path)):
            print(f"  {sentence}")
        print(f"  report: {page}")


def _score(args: argparse.Namespace) -> None:
    _quiet()
    from learndyn.measure.offline import score_checkpoint

    result = score_checkpoint(
        args.model,
        probes=args.probes,
        run=args.run,
        out=args.out,
        batch_size=args.batch_size,
        max_length=args.max_length,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        overwrite=args.overwrite,
    )
    if args.json:
        _print_json(result.to_dict())
    else:
        print(result.to_text())


def _report(args: argparse.Namespace) -> None:
    from learndyn.show.report import write_report

    page = write_report(
        args.runs, args.out, text=not args.no_text, overwrite=args.overwrite
    )
    if args.json:
        _print_json({"report": str(page)})
    else:
        print(page)


_DTYPES = ("float32", "bfloat16", "float64")

_NOT_SETTINGS = {
    "job",
    "unknown",
    "config",
    "resume",
    "overwrite",
    "json",
    "subcommand",
}


def _tokenizer(source: str | None) -> Any:
    if source is None:
        return None
    _quiet()
    from learndyn.measure.load import load_tokenizer

    return load_tokenizer(source)


def _quiet() -> None:
    """Keep transformers' and datasets' own bars and notes off the screen."""
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # other libraries' use of each other's old names is nothing a user can mend
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = lambda message, *_, **__: f"learndyn: warning: {message}\n"
    try:
        import datasets
    except ImportError:
        return
    datasets.disable_progress_bars()


def _print_json(value: Any) -> None:
    from learndyn.record.run_directory import to_plain

    text = json.dumps(to_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learndyn",
        description="See what each update of a finetuning run does to the answers you "
        "care about.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version("learndyn"))
    jobs = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    _add_demo(jobs)
    _add_probes(jobs)
    _add_run(jobs)
    _add_score(jobs)
    _add_report(jobs)
    return parser


def _job(jobs: Any, name: str, function: Any, about: str) -> argparse.ArgumentParser:
    # No abbreviations: --lr must not become --lora-rank, nor --beta a flag of ours.
    job = jobs.add_parser(name, help=about, description=about, allow_abbrev=False)
    job.set_defaults(job=function)
    job.add_argument(
        "--json", action="store_true", help="print one JSON object to standard output"
    )
    return job


def _add_demo(jobs: Any) -> None:
    about = "SFT then DPO, and extend then DPO, watched and explained"
    job = _job(jobs, "demo", _demo, about)
    job.add_argument("--out", type=Path, default=Path("runs/demo"))
    job.add_argument("--seed", type=int, default=0)
    job.add_argument("--model", help="folder or hub id (default: the embedded model)")
    job.add_argument("--data", help="preference data (default: the embedded world)")
    job.add_argument("--empty", choices=["error", "keep", "drop"], default="error")
    job.add_argument("--overwrite", action="store_true")


def _add_probes(jobs: Any) -> None:
    about = "build or check a probe set"
    inner = jobs.add_parser("probes", help=about, description=about).add_subparsers(
        required=True, metavar="SUBCOMMAND"
    )
    build = _job(inner, "build", _probes_build, "make probes from preference data")
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
    check = _job(inner, "check", _probes_check, "report the confounds that fool people")
    check.add_argument("file", help="probe file, or any wide file")
    check.add_argument(
        "--tokenizer",
        help="folder or hub id: to count tokens, and whose chat template",
    )


def _add_reading(job: argparse.ArgumentParser) -> None:
    job.add_argument(
        "--empty",
        choices=["error", "keep", "drop"],
        default=None if job.get_default("job") is _run else "error",
        help="empty responses: stop (default), score end-of-text alone, or leave out",
    )
    job.add_argument(
        "--mismatched",
        choices=["error", "drop"],
        default=None if job.get_default("job") is _run else "error",
        help="rows whose chosen and rejected answer different prompts",
    )


def _add_run(jobs: Any) -> None:
    about = "train with TRL and watch: sft, dpo or extend"
    job = _job(jobs, "run", _run, about)
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
    job.add_argument("--preset", choices=["paper", "trl"], help="default: paper")
    job.add_argument("--seed", type=int)
    job.add_argument("--dtype", choices=_DTYPES)
    job.add_argument("--lora", action="store_true", default=None)
    job.add_argument("--lora-rank", type=int)
    job.add_argument("--lora-alpha", type=int)
    job.add_argument("--max-length", type=int, help="most tokens of prompt + response")
    job.add_argument("--max-prompt-length", type=int)
    job.add_argument("--batch-size", type=int, help="sequences scored at once")
    job.add_argument("--trust-remote-code", action="store_true", default=None)
    job.add_argument("--resume", action="store_true", help="continue a stopped run")
    job.add_argument("--overwrite", action="store_true")


def _updates(text: str) -> int | str:
    if text != "log" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of updates, nor log")
    return text if text == "log" else int(text)


def _add_score(jobs: Any) -> None:
    job = _job(jobs, "score", _score, "score probes with a model or checkpoint")
    job.add_argument("model", help="folder or hub id")
    job.add_argument("--probes", help="probe file, or a run whose texts to score")
    job.add_argument("--run", type=Path, help="use this run's probes and token ids")
    job.add_argument("--out", type=Path, help="Parquet file to write, one row a probe")
    job.add_argument("--batch-size", type=int, default=8)
    job.add_argument(
        "--max-length", type=int, help="with --probes (default: 1024 tokens)"
    )
    job.add_argument(
        "--dtype", choices=_DTYPES, help="default: the run's, else float32"
    )
    job.add_argument("--trust-remote-code", action="store_true")
    job.add_argument("--overwrite", action="store_true")


def _add_report(jobs: Any) -> None:
    job = _job(jobs, "report", _report, "write report.html from run directories")
    job.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    job.add_argument("--out", type=Path, help="folder (default: the run directory)")
    job.add_argument("--no-text", action="store_true", help="leave out all texts")
    job.add_argument(
        "--overwrite", action="store_true", help="replace a page of another program"
    )


if __name__ == "__main__":
    sys.exit(main())
