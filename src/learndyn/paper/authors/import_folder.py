"""Makes run directories of the result folders that Ren & Sutherland published.

The folders hold no step, no name for a column of an array, and often the rows of
several processes; `docs/authors.md` has what is known of them. An import lists columns
that do not hold what their names say, with the evidence. The authors' spellings of
kinds are read in `learndyn.probes.kinds` and nowhere else.
"""

import importlib.metadata
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.errors import BadInput
from learndyn.paper.authors.layout import Column, impossible
from learndyn.paper.authors.probes import (
    norms_of_others,
    observation_of,
    probes_of,
    table_of,
    vocabulary,
)
from learndyn.paper.authors.runs import FolderRun, find_runs, ranges
from learndyn.probes.kinds import NOT_AS_NAMED
from learndyn.record.files import visible
from learndyn.record.run_directory import RunDirectory, refuse_taken


def _defects_of(run: FolderRun) -> list[dict[str, Any]]:
    """Columns with the values of something else: `column`, `what`, `evidence`."""
    wrong = _greedy(run)
    outside = impossible(run.layout, run.means)
    if outside:
        named = ", ".join(column.name for column in outside)
        what = f"{named} has values that this quantity cannot have"
        wrong.append(_entry(_ours(outside), what, columns=len(outside)))
    if run.layout.split == "train":
        wrong += [
            _entry(kind, NOT_AS_NAMED[kind])
            for kind in run.layout.kinds
            if kind in NOT_AS_NAMED
        ]
    return wrong


def _remarks_on(run: FolderRun) -> list[str]:
    """What is known of columns that are what they say, but not exactly."""
    remarks = []
    place = run.layout.place("rest_logp")
    if place is not None:
        values = run.values[:, place]
        lost = int(np.sum(~np.isfinite(values)))
        if lost:
            remarks.append(
                f"rest_logp: {lost} of {values.size} values are not finite. It was "
                "taken as log(1 - max pi) in float32, where 1 - max pi can be 0."
            )
    if any(column.quantity == "a_norm" for column in run.layout.columns):
        remarks.append(
            "p_norm2 comes from ||A||: it is the square of the mean over tokens of "
            "||pi||, which is below the mean of its square."
        )
    return remarks


def _greedy(run: FolderRun) -> list[dict[str, Any]]:
    layout = run.layout
    place, chosen = layout.place("argmax_logp"), layout.place("logp", "chosen")
    if place is None or chosen is None:
        return []
    top, label = run.values[:, place], run.values[:, chosen]
    both = np.isfinite(top) & np.isfinite(label)
    below = int(np.sum(top[both] < label[both]))
    what = "argmax_logp is below chosen's own logp, which no largest one can be"
    if layout.along != "chosen":
        what = (
            f"argmax_logp is along {layout.along}, not along chosen; its relative "
            "change can be read, its level cannot"
        )
    elif not below:
        return []
    return [
        _entry("argmax_logp", what, compared=int(both.sum()), below_chosen=below),
    ]


def _ours(columns: Sequence[Column]) -> str:
    """Our words for columns, by which whoever reads a run knows what not to trust: the
    quantity, and the kind where it has one."""
    names: dict[str, None] = {}
    for column in columns:
        if column.quantity == "a_norm" and column.kind not in (None, "chosen"):
            continue  # what we keep as p_norm2 is chosen's
        quantity = "p_norm2" if column.quantity == "a_norm" else column.quantity
        names |= dict.fromkeys(each for each in (quantity, column.kind) if each)
    return ", ".join(names or dict.fromkeys(f"a_norm of {c.kind}" for c in columns))


def _entry(column: str, what: str, **evidence: int) -> dict[str, Any]:
    return {"column": column, "what": what, "evidence": evidence}


_MODELS = {
    r"pythia[-_]?410": "pythia-410m",
    r"pythia[-_]?1b": "pythia-1b",
    r"pythia[-_]?1\.?4": "pythia-1.4b",
    r"pythia[-_]?2\.?8": "pythia-2.8b",
    r"qwen[-_]?0\.?5": "Qwen1.5-0.5B",
    r"qwen[-_]?1\.?8": "Qwen1.5-1.8B",
    r"qwen[-_]?4": "Qwen1.5-4B",
}
"""What a folder's name contains -> the model that it most likely means."""


@dataclass(frozen=True)
class ImportedRun:
    """One run directory that was made."""

    run: str
    """Its path."""
    layout: str
    observations: int
    prompts: int | None
    """None where only means over prompts are known."""
    kinds: list[str]
    """Kinds with log-probabilities."""
    lines: list[int | None]
    """Line of the JSON file that each observation is, from 0; None without one."""
    metrics: str | None
    array: str | None
    method: str | None
    """Guessed from the folder's name."""
    model: str | None
    """Guessed from the folder's name."""
    defects: list[dict[str, Any]]
    """Columns that are not what their names say: `column`, `what`, `evidence`."""
    columns_left_out: list[str]
    """Columns whose names say nothing to us."""
    notes: list[str]
    """How the run was told from others, and what is not exact."""


@dataclass(frozen=True)
class Imported:
    """What was found in a folder, and what was made of it."""

    folder: str
    runs: list[ImportedRun]
    """The main run first."""
    left_out: list[str]
    """Files and lines that were not used, each with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """For a terminal, at most 88 columns wide."""
        parts = [f"{self.folder}: {_count(len(self.runs), 'run')}"]
        for run in self.runs:
            parts += ["", *_run_in_words(run)]
        if self.left_out:
            parts += ["", "left out:"]
            parts += [line for what in self.left_out for line in _wrapped(what)]
        return visible("\n".join(parts))


def import_folder(
    folder: str | Path,
    out: str | Path,
    *,
    probes: str | Path | None = None,
    overwrite: bool = False,
) -> Imported:
    """Make a run directory of each run in a result folder: `out`, then `out`-2 ...

    The first is that of the .npy file; without one it is the longest. `probes` is the
    authors' probe file, for the texts. The evaluations are numbered from 0, since the
    files hold no step.

    Raises:
        BadInput: if the folder holds no result that can be read, `probes` is not what
            was watched, or something is at `out` and `overwrite` is false.
    """
    folder, out = Path(folder), _named(Path(out))
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is not a folder. Give the folder of one experiment, which holds "
            "prob_train_metrics.json or logp_npy_all_chosen.npy, or both."
        )
    in_folder, left_out = find_runs(folder)
    given = None if probes is None else Path(probes)
    # these refuse probe files that do not fit, before anything is written
    watched = [probes_of(run, given) for run in in_folder]
    names = [out.name] + [f"{out.name}-{i}" for i in range(2, len(in_folder) + 1)]
    paths = [out.with_name(name) for name in names]
    for path in paths:  # all, before any is written
        refuse_taken(path, overwrite, resume=None)
    runs = []
    for run, path, texts in zip(in_folder, paths, watched, strict=True):
        size = vocabulary(run, folder.name)
        imported = ImportedRun(
            run=str(path),
            layout=run.layout.letter,
            observations=len(run.values),
            prompts=None if run.means_only else run.values.shape[2],
            kinds=run.layout.kinds,
            lines=run.lines,
            metrics=run.metrics,
            array=run.array,
            method=_method(folder.name),
            model=_model(folder.name),
            defects=_defects_of(run),
            columns_left_out=run.layout.left_out,
            notes=[*run.notes, *_of_probes(run, given), *_remarks_on(run)],
        )
        info = _info(folder.name, imported, run, size) | {
            "probe_fingerprint": texts.fingerprint
        }
        made = RunDirectory.create(path, table_of(texts), info, overwrite=overwrite)
        for step in range(len(run.values)):
            made.write_observation(observation_of(run, step, texts, size))
        if run.array is not None:  # the authors write it at the end
            made.update_info(finished=True)
        runs.append(imported)
    return Imported(str(folder), runs, [*left_out, *_older(out, len(in_folder))])


def _older(out: Path, made: int) -> list[str]:
    """What a former import of more runs left beside this one's."""
    path = out.with_name(f"{out.name}-{made + 1}")
    return [f"{path.name} was there before: not of this import."] * path.exists()


def _named(out: Path) -> Path:
    """`out` with a name: "." and ".." have none, and the runs are named after it."""
    if out.name in ("", ".."):
        out = out.resolve()
    if not out.name:
        raise BadInput(f"{out} cannot name a run directory. Choose another out=.")
    return out


def _info(
    folder: str, imported: ImportedRun, run: FolderRun, size: int | None
) -> dict[str, Any]:
    """What run.json keeps. Names that were guessed say so."""
    known: dict[str, Any] = {"step_unit": "evaluation"}
    if imported.method is not None:
        known["method"] = imported.method
    if imported.model is not None:
        known["model"] = f"{imported.model} (guessed)"
    if size is not None:
        # Token ids are not known: what can be said of the tokenizer is its V.
        known["tokenizer_sha256"] = f"vocab {size}"
    supervised = re.fullmatch(r"logp_npy_all_(.+)\.npy", run.array or "")
    if run.means_only:
        known["means_only"] = imported.kinds
    others = norms_of_others(run)
    if others:
        known["a_norm"] = others
    return known | {
        "imported": {
            "folder": folder,
            "layout": imported.layout,
            "observations": imported.observations,
            "metrics": imported.metrics,
            "array": imported.array,
            "trained_on": supervised.group(1) if supervised else None,
            "lines": ranges(imported.lines),
            "greedy_path_along": run.layout.along,
            "vocabulary": size,
            "columns_left_out": imported.columns_left_out,
            "notes": imported.notes,
        },
        "guessed": [n for n in ("method", "model") if getattr(imported, n) is not None],
        "defects": imported.defects,
        "versions": {"learndyn": importlib.metadata.version("learndyn")},
    }


def _of_probes(run: FolderRun, given: Path | None) -> list[str]:
    if given is None or not run.means_only:
        return []
    return [
        "Only means over prompts are recorded, so the texts of probes= are not in it."
    ]


def _method(name: str) -> str | None:
    """What a folder's name says was done, as `learndyn run` calls it."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    method = next((w for w in ("dpo", "ipo", "sft") if w in words), None)
    return "extend-sft" if method == "sft" and "extend" in words else method


def _model(name: str) -> str | None:
    hits = (m for pattern, m in _MODELS.items() if re.search(pattern, name.lower()))
    return next(hits, None)


def _run_in_words(run: ImportedRun) -> list[str]:
    values = "means alone" if run.prompts is None else _count(run.prompts, "prompt")
    parts = [
        f"{run.run}",
        f"  layout {run.layout}: {_count(run.observations, 'observation')}, {values}, "
        f"{_count(len(run.kinds), 'kind')}",
    ]
    guesses = [g for g in (run.method, run.model) if g]
    if guesses:
        parts.append(f"  {', '.join(guesses)} (guessed from the folder's name)")
    if run.metrics:
        parts += _wrapped(f"lines {ranges(run.lines)} of {run.metrics}")
    if run.columns_left_out:
        parts += _wrapped(f"unknown columns: {', '.join(run.columns_left_out)}")
    for defect in run.defects:
        evidence = ", ".join(f"{k} {v}" for k, v in defect["evidence"].items())
        ending = f" ({evidence})" if evidence else ""
        parts += _wrapped(f"{defect['column']}: {defect['what']}{ending}")
    return parts + [line for note in run.notes for line in _wrapped(note)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, 88, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
