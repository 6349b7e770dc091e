"""`learndyn reproduce`: every figure of the paper, each beside its claim.

OUT/
  reproduction.html   the claims, each beside its figure
  claims.json         the same for programs
  figures/            PNG and SVG of every figure
  seeds/SEED/STAGE/   run directories; theory.json, right-STAGE.json
  digits/SEED.json    what was measured on images of digits
  runs/NAME/          imported runs, with --authors
  reproduce.json      the settings, by which a stopped command is continued
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learndyn.lab.anchor_claims import anchor_claims
from learndyn.lab.claims import Claim
from learndyn.lab.paper_claims import paper_claims
from learndyn.lab.paper_jobs import Job, run_jobs
from learndyn.lab.paper_runs import (
    Experiment,
    model_path,
    recorded,
    run_stage,
    stages_of,
)
from learndyn.lab.paper_settings import (
    ReproduceSettings as ReproduceSettings,
    check,
    prepare,
    read_times,
    write_state,
)
from learndyn.lab.recorded import Recorded
from learndyn.record.atomic import write_whole
from learndyn.record.plain import dumps
from learndyn.show.plates import Plate


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
        found = [claim.outcome for claim in self.claims]
        return {outcome: found.count(outcome) for outcome in ("PASS", "FAIL", "N-A")}

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
            + (f"{claim.held} of {len(claim.measured)}" if claim.measured else "—")
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
    check(settings)
    prepare(settings, overwrite)
    found = _Found(settings)
    own = settings.authors is None
    seeds = found.made() if own else found.imported(overwrite)
    claims, plates = found.drawn(seeds)
    from learndyn.show.reproduction import write_page

    page = write_page(settings.out, claims, plates, found.facts(seeds))
    text = dumps({"claims": [claim.to_dict() for claim in claims]}, indent=1)
    write_whole(
        settings.out / "claims.json",
        lambda path: path.write_text(text, encoding="utf-8"),
    )
    seconds = time.monotonic() - begin
    return Reproduction(page, tuple(claims), len(plates), seconds)


class _Found:
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
            )
            for seed in settings.seeds
        ]

    def made(self) -> list[Recorded]:
        """Train and measure what is missing."""
        settings = self.settings
        jobs = self._run_jobs() if "runs" in settings.parts else []
        if "digits" in settings.parts:
            jobs += self._digit_jobs()
        took = run_jobs(jobs, settings.jobs or _cores(), settings.out / "logs")
        new = {name: vars(one) for name, one in took.items()}
        write_state(settings, read_times(settings) | new)
        return [recorded(one) for one in self.experiments if "runs" in settings.parts]

    def imported(self, overwrite: bool) -> list[Recorded]:
        """Read the authors' runs."""
        from learndyn.lab.paper_imports import imported

        settings = self.settings
        assert settings.authors is not None
        found = imported(settings.authors, settings.out / "runs", overwrite=overwrite)
        self.refused = found.refused
        return found.seeds

    def drawn(self, seeds: Sequence[Recorded]) -> tuple[list[Claim], list[Plate]]:
        """Every claim and every figure that there is something to draw in."""
        from learndyn.lab.paper_parts import digits, softmax, theory
        from learndyn.show.paper_figures import paper_plates

        settings, own = self.settings, self.settings.authors is None
        claims = list(paper_claims(seeds))
        plates = paper_plates(seeds) if seeds else []
        if not own:
            claims += anchor_claims(seeds)
        parts = settings.parts if own else ()
        without = "" if own else "the authors published no numbers of this"
        for name, part in (
            ("theory", theory),
            ("digits", digits),
            ("softmax", softmax),
        ):
            some, more = part(settings.out, settings.seeds if name in parts else ())
            claims += [
                replace(one, note=without or "left out of this reproduction")
                if not one.measured and name not in parts
                else one
                for one in some
            ]
            plates += more
        return claims, plates

    def facts(self, seeds: Sequence[Recorded]) -> list[tuple[str, str]]:
        """Settings, versions and times, for the foot of the page."""
        from learndyn.train.provenance import versions

        settings = self.settings
        rows = [(name, value) for name, value in settings.key.items() if value]
        rows += [("left out, as it cannot be read", each) for each in self.refused]
        rows.append(("seeds", ", ".join(str(one.seed) for one in seeds) or "none"))
        rows += [(f"version of {name}", text) for name, text in versions().items()]
        times = read_times(settings)
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
            for stage, after in stages.items():
                if not experiment.finished(stage):
                    needs = (f"seed {seed}: {after}",) if after else ()
                    name = f"seed {seed}: {stage}"
                    jobs.append(Job(name, run_stage, (experiment, stage), needs))
            path = experiment.folder / "theory.json"
            if "theory" in self.settings.parts and not path.exists():
                from learndyn.lab.paper_parts import measure_theory_of

                needs = tuple(f"seed {seed}: {stage}" for stage in ("sft", "dpo"))
                model = model_path(experiment)
                work = (seed, experiment.folder, model, path)
                jobs.append(Job(f"seed {seed}: theory", measure_theory_of, work, needs))
        return sorted(jobs, key=lambda job: _order(job.name))

    def _digit_jobs(self) -> list[Job]:
        from learndyn.lab.paper_parts import measure_digits_of

        folder = self.settings.out / "digits"
        return [
            Job(
                f"digits {seed}",
                measure_digits_of,
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


def _cores() -> int:
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )
