"""`learndyn paper reproduce`: every figure of the paper, each beside its claim.

OUT/
  reproduction.html   the claims, each beside its figure
  claims.json         the same for programs
  figures/            PNG and SVG of every figure
  seeds/SEED/STAGE/   run directories; theory.json, right-STAGE.json
  digits/SEED.json    what was measured on images of digits
  runs/NAME/          imported runs, with --authors
  reproduce.json      the settings, by which a stopped command is continued

Finetuning, theory, digits and softmax each give claims and figures from what they
measured and wrote to disk. A part without a seed gives its claims as not applicable,
and no figure.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.paper.authors.claims import anchor_claims
from learndyn.paper.claims import Claim
from learndyn.paper.figures import PaperFigure
from learndyn.paper.finetuning.chapters import paper_claims
from learndyn.paper.finetuning.recorded import Recorded
from learndyn.paper.finetuning.runs import (
    HELD_OUT,
    finished,
    recorded,
    run_stage,
    stages_of,
)
from learndyn.record.files import dumps, write_whole
from learndyn.world.jobs import Job, cores, run_jobs
from learndyn.world.stages import Experiment, embedded_model_path


_PARTS = ("runs", "theory", "digits", "softmax")
"""What can be reproduced; theory needs the runs."""

_MARKER = "reproduce.json"

_FOLDERS = ("seeds", "digits", "runs", "figures", "logs")
"""What a reproduction holds besides its page, its claims and its marker."""


@dataclass(frozen=True)
class ReproduceSettings:
    """What is reproduced, from what, and where it goes."""

    out: Path = Path("runs/reproduce")
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data and training order; a claim is tested on each."""
    model: str | None = None
    """Folder or hub id; None: the embedded model."""
    data: str | None = None
    """Preference data; None: the embedded world."""
    probes: str | None = None
    """Probe file; None: built from the data."""
    authors: Path | None = None
    """Folder of the authors' result folders, or one of these: draw them instead."""
    images: Path | None = None
    """Folder of MNIST's IDX files; None: scikit-learn's digits."""
    jobs: int | None = None
    """Processes at once; None: the cores that this process may use, or 1 with `model`,
    as each holds one."""
    parts: tuple[str, ...] = _PARTS

    @property
    def key(self) -> dict[str, Any]:
        """What finished stages depend on, beside their seed."""
        given = {"model": self.model, "data": self.data, "probes": self.probes}
        given |= {"authors": self.authors, "images": self.images}
        return {k: None if v is None else str(v) for k, v in given.items()}


def _check(settings: ReproduceSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        BadInput: if they do.
    """
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise BadInput(
            f"seeds={','.join(map(str, settings.seeds))}: give one seed or more, "
            "each once."
        )
    unknown = sorted(set(settings.parts) - set(_PARTS))
    if unknown:
        raise BadInput(
            f"parts has {', '.join(unknown)}: choose from {', '.join(_PARTS)}."
        )
    if "theory" in settings.parts and "runs" not in settings.parts:
        raise BadInput(
            "the part theory is measured on the part runs: name both in parts."
        )
    if settings.probes is not None and settings.data is None:
        raise BadInput(
            "probes= needs data=: the embedded world, the default, makes its own "
            "probes. Give the data that the probes were built from."
        )
    if settings.authors is not None and (settings.model or settings.data):
        raise BadInput(
            "authors= draws recorded runs and trains none, so model= and data= cannot "
            "be used with it. Leave one of them out."
        )


def _prepare(settings: ReproduceSettings, overwrite: bool) -> None:
    """An empty folder with a marker, or the same reproduction, to be continued.

    Raises:
        BadInput: if `out` holds anything else, or a reproduction with other settings
            and `overwrite` is false, or one whose marker cannot be read, or if to
            overwrite it would remove an input.
    """
    out, marker = settings.out, settings.out / _MARKER
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file. Name a folder with out=.")
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise BadInput(
            f"{out} holds files but not a reproduction, so it is left alone. Choose "
            "another out=."
        )
    if marker.is_file():
        if not overwrite:
            before = _read_marker(marker).get("settings")
            if before != settings.key:
                raise BadInput(
                    f"{out} holds a reproduction with other settings: {before}. Choose "
                    "another out=, or start anew with overwrite=True."
                )
            return
        _spare_inputs(settings)
        for name in _FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("claims.json", "reproduction.html", _MARKER):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_state(settings, {})


def _spare_inputs(settings: ReproduceSettings) -> None:
    """Refuse to remove what the new reproduction is to be made from."""
    for name, given in settings.key.items():
        if given is None:
            continue
        path, out = Path(given).resolve(), settings.out.resolve()
        removed = [(out / folder).resolve() for folder in _FOLDERS]
        if path == out or any(path.is_relative_to(each) for each in removed):
            raise BadInput(
                f"overwrite=True would remove {given}, which {name}= names: it is in "
                f"{settings.out}. Copy it elsewhere first, or choose another out=."
            )


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        state = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:  # bytes that are no UTF-8, too
        state = None
    if not isinstance(state, dict):
        raise BadInput(
            f"{marker} cannot be read: it is cut off or not JSON. Start anew with "
            "overwrite=True, or choose another out=."
        )
    return state


def _read_times(settings: ReproduceSettings) -> dict[str, Any]:
    """How long each job took, of this command and of those before it.

    Raises:
        BadInput: if the marker of `out` cannot be read.
    """
    return _read_marker(settings.out / _MARKER).get("times", {})


def _write_state(settings: ReproduceSettings, times: dict[str, Any]) -> None:
    """Keep the settings, by which a stopped command is continued, and the times."""
    text = dumps({"settings": settings.key, "times": times}, indent=1)
    write_whole(
        settings.out / _MARKER, lambda path: path.write_text(text, encoding="utf-8")
    )


@dataclass(frozen=True)
class Reproduction:
    """What was found."""

    page: Path
    claims: tuple[Claim, ...]
    figures: int
    seconds: float
    """Wall-clock time of this command; finished stages were not done again."""

    @property
    def counts(self) -> dict[str, int]:
        """Claims by outcome."""
        outcomes = [claim.outcome for claim in self.claims]
        return {outcome: outcomes.count(outcome) for outcome in ("PASS", "FAIL", "N-A")}

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "page": str(self.page),
            "counts": self.counts,
            "figures": self.figures,
            "seconds": round(self.seconds, 1),
            "claims": [claim.to_dict() for claim in self.claims],
        }

    def to_text(self) -> str:
        """A line per claim, the counts, and the page."""
        wide = max((len(claim.name) for claim in self.claims), default=0)
        lines = [
            f"{claim.outcome:4}  {claim.name:{wide}}  "
            + (f"{claim.holding} of {len(claim.measured)}" if claim.measured else "—")
            for claim in self.claims
        ]
        counts = self.counts
        return "\n".join(
            [
                *lines,
                "",
                f"{counts['PASS']} of {len(self.claims)} claims reproduced, "
                f"{counts['FAIL']} failed, {counts['N-A']} not applicable; "
                f"{self.figures} figures.",
                f"Page: {self.page}",
            ]
        )


def reproduce(settings: ReproduceSettings, *, overwrite: bool = False) -> Reproduction:
    """Make what is missing of runs and measurements, test all claims, draw all figures.

    Raises:
        BadInput: if `out` holds anything else, or a reproduction with other settings
            (and `overwrite` is false), or as the recipes.
    """
    begin = time.monotonic()
    _check(settings)
    _prepare(settings, overwrite)
    reproducer = _Reproducer(settings)
    own = settings.authors is None
    seeds = reproducer.make_runs() if own else reproducer.import_runs(overwrite)
    claims, figures = reproducer.draw(seeds)
    from learndyn.paper.page import write_page

    page = write_page(settings.out, claims, figures, reproducer.facts(seeds))
    text = dumps({"claims": [claim.to_dict() for claim in claims]}, indent=1)
    write_whole(
        settings.out / "claims.json",
        lambda path: path.write_text(text, encoding="utf-8"),
    )
    seconds = time.monotonic() - begin
    return Reproduction(page, tuple(claims), len(figures), seconds)


class _Reproducer:
    """All that one reproduction finds, part by part."""

    def __init__(self, settings: ReproduceSettings) -> None:
        self.settings = settings
        self.refused: list[str] = []
        """Folders of the authors that could not be read, each with the reason."""
        self.experiments = [
            Experiment(
                settings.out / "seeds" / str(seed),
                seed,
                settings.model,
                settings.data,
                settings.probes,
                empty="drop",
                held_out=HELD_OUT,
            )
            for seed in settings.seeds
        ]

    def make_runs(self) -> list[Recorded]:
        """Train and measure what is missing."""
        settings = self.settings
        jobs = self._run_jobs() if "runs" in settings.parts else []
        if "digits" in settings.parts:
            jobs += self._digit_jobs()
        own = settings.model is not None
        usual = 1 if own else cores()
        processes = usual if settings.jobs is None else settings.jobs
        threads = None if own else 1  # more threads help a larger model
        done = run_jobs(jobs, processes, settings.out / "logs", threads=threads)
        new = {
            name: {"seconds": one.seconds, "processor": one.processor}
            for name, one in done.items()
        }
        _write_state(settings, _read_times(settings) | new)
        return [recorded(one) for one in self.experiments if "runs" in settings.parts]

    def import_runs(self, overwrite: bool) -> list[Recorded]:
        """Read the authors' runs."""
        from learndyn.paper.authors.claims import imported

        settings = self.settings
        assert settings.authors is not None
        imports = imported(settings.authors, settings.out / "runs", overwrite=overwrite)
        self.refused = imports.refused
        return imports.seeds

    def draw(self, seeds: Sequence[Recorded]) -> tuple[list[Claim], list[PaperFigure]]:
        """Every claim, and every figure for which there are numbers."""
        from learndyn.paper.finetuning.chapters import paper_figures

        settings, own = self.settings, self.settings.authors is None
        claims = list(paper_claims(seeds))
        figures = paper_figures(seeds) if seeds else []
        if not own:
            claims += anchor_claims(seeds)
        parts = settings.parts if own else ()
        without = "" if own else "the authors published no numbers of this"
        for name, part in (
            ("theory", _theory),
            ("digits", _digits),
            ("softmax", _softmax),
        ):
            some, more = part(settings.out, settings.seeds if name in parts else ())
            claims += [
                replace(one, note=without or "left out of this reproduction")
                if not one.measured and name not in parts
                else one
                for one in some
            ]
            figures += more
        return claims, figures

    def facts(self, seeds: Sequence[Recorded]) -> list[tuple[str, str]]:
        """Settings, versions and times, for the foot of the page."""
        from learndyn.train.provenance import versions

        settings = self.settings
        rows = [(name, value) for name, value in settings.key.items() if value]
        rows += [("left out because it cannot be read", each) for each in self.refused]
        rows.append(("seeds", ", ".join(str(one.seed) for one in seeds) or "none"))
        rows += [(f"version of {name}", text) for name, text in versions().items()]
        times = _read_times(settings)
        rows += [
            (name, f"{one['seconds']:.0f} s, {one['processor']:.0f} processor seconds")
            for name, one in sorted(times.items())
        ]
        return rows

    def _run_jobs(self) -> list[Job]:
        jobs: list[Job] = []
        for experiment in self.experiments:
            seed = experiment.seed
            stages = stages_of(experiment)
            experiment = replace(experiment)  # without the rows, for other processes
            for name, stage in stages.items():
                if not finished(experiment, name):
                    work = (experiment, stage)
                    needs = (f"seed {seed}: {stage.after}",)
                    jobs.append(Job(f"seed {seed}: {name}", run_stage, work, needs))
            path = experiment.folder / "theory.json"
            if "theory" in self.settings.parts and not path.exists():
                needs = tuple(f"seed {seed}: {stage}" for stage in ("sft", "dpo"))
                model = Path(experiment.model or embedded_model_path())
                work = (seed, experiment.folder, model, path)
                jobs.append(
                    Job(f"seed {seed}: theory", _measure_theory_of, work, needs)
                )
        return sorted(jobs, key=lambda job: _order(job.name))

    def _digit_jobs(self) -> list[Job]:

        folder = self.settings.out / "digits"
        return [
            Job(
                f"digits {seed}",
                _measure_digits_of,
                (seed, self.settings.images, folder / f"{seed}.json"),
            )
            for seed in self.settings.seeds
            if not (folder / f"{seed}.json").exists()
        ]


def _order(name: str) -> int:
    """Long chains first: two processes then end at about the same time."""
    stage = name.partition(": ")[2]
    order = ("sft", "extend-sft", "dpo", "extend-dpo", "on-policy", "theory")
    return order.index(stage) if stage in order else len(order)


_Part = tuple[list[Claim], list[PaperFigure]]

_REASON = "reason"
"""Key of a file that says why there is no measurement."""


def _measure_theory_of(seed: int, folder: Path, model: Path, path: Path) -> None:
    """Measure one seed's theory on its finished runs and keep it at `path`.

    Where its model or probes do not allow it, the reason is kept instead.
    """
    from learndyn.paper.theory.measure import measure_theory

    runs = {role: folder / role for role in ("sft", "dpo")}
    try:
        result = measure_theory(seed, runs, model=model).to_dict()
    except BadInput as error:  # a model of one's own may not have what it takes
        result = {_REASON: str(error)}
    _keep(result, path)


def _measure_digits_of(seed: int, images: Path | None, path: Path) -> None:
    """Measure learning on images of digits with one seed and keep it at `path`."""
    from learndyn.paper.digits.measure import measure_digits

    _keep(measure_digits(seed, images).to_dict(), path)


def _theory(out: Path, seeds: Sequence[int]) -> _Part:
    """The decomposition, the kernels, the proxies, peakiness and residuals."""
    from learndyn.paper.theory.claims import theory_claims
    from learndyn.paper.theory.result import TheoryResult

    paths = [out / "seeds" / str(seed) / "theory.json" for seed in seeds]
    given = _read(paths)
    results = [TheoryResult.from_dict(one) for one in given if _REASON not in one]
    refused = [one[_REASON] for one in given if _REASON in one]
    reasons = "; ".join(dict.fromkeys(refused))
    claims = list(theory_claims(results))
    if not results:
        return [replace(c, note=reasons) if reasons else c for c in claims], []
    from learndyn.paper.theory.figures import theory_figures

    if refused:
        left = f"Not measured on {len(refused)} of {len(given)}: {reasons}"
        claims = [replace(c, note=f"{c.note} {left}".strip()) for c in claims]
    return claims, theory_figures(results)


def _digits(out: Path, seeds: Sequence[int]) -> _Part:
    """The paper's first figure."""
    from learndyn.paper.digits.claims import digits_claims
    from learndyn.paper.digits.result import DigitsResult

    paths = [out / "digits" / f"{seed}.json" for seed in seeds]
    results = [DigitsResult.from_dict(one) for one in _read(paths)]
    if not results:
        return list(digits_claims(results)), []
    from learndyn.paper.digits.figures import digit_figures

    return list(digits_claims(results)), digit_figures(results)


def _softmax(out: Path, seeds: Sequence[int]) -> _Part:
    """The squeezing effect on one softmax (Appendix E); nothing is kept of it."""
    from learndyn.paper.softmax.claims import softmax_claims

    if not seeds:
        return list(softmax_claims(seeds)), []
    from learndyn.paper.softmax.figures import softmax_figures

    return list(softmax_claims(seeds)), softmax_figures()


def _keep(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result)  # NaN stays NaN
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    there = [path for path in paths if path.exists()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in there]
