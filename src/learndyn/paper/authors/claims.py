"""The authors' published runs as seeds of the reproduction, and claims on the import.

Each import takes the roles of our own runs. The claims compare numbers that were read
off the published files with what the import gives again; they hold for runs of these
names alone.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from learndyn.diagnose.paths import GREEDY, mean_path
from learndyn.errors import BadInput
from learndyn.paper.authors.import_folder import import_folder
from learndyn.paper.claims import Absent, Claim, Measured, Statement, claims_of
from learndyn.paper.finetuning.recorded import Recorded, path_of
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.record.run_info import RunInfo
from learndyn.record.trajectory import Trajectory


_KINDS = (
    *("chosen", "chosen_initial", "chosen_semantic", "chosen_format", "rejected"),
    *("rejected_semantic", "rejected_format", "irrelevant_train", "irrelevant_test"),
    *("irrelevant_human", "random_permuted", "random_words"),
)

_START: dict[str, tuple[float, ...]] = {
    "pythia-410m": (
        *(-151.982, -151.659, -155.893, -136.009, -121.351, -135.302),
        *(-121.821, -193.407, -161.160, -187.900, -401.350, -361.761),
    ),
    "pythia-1b": (
        *(-132.252, -134.706, -138.060, -119.508, -103.647, -119.182),
        *(-106.477, -173.597, -143.852, -167.931, -385.090, -350.402),
    ),
    "Qwen1.5-0.5B": (
        *(-132.666, -143.721, -135.475, -115.808, -104.608, -117.611),
        *(-103.968, -176.215, -144.146, -146.100, -373.521, -339.780),
    ),
    "Qwen1.5-1.8B": (
        *(-122.781, -138.673, -128.320, -110.738, -97.141, -112.159),
        *(-99.733, -164.466, -136.158, -128.794, -361.791, -331.231),
    ),
}
"""Mean log pi of `_KINDS` before training, nats, over the 500 training prompts."""

_TOLERANCE = 1e-3
"""Nats; the numbers above are rounded to half of it."""

_ELSEWHERE = 1.0
"""Nats; farther off a run may start from another checkpoint, if its name allows it."""

_Point = tuple[str, str | int, float]
"""Kind; "first", "last" or the number of an evaluation; nats to two decimals."""

_PATHS: dict[str, tuple[_Point, ...]] = {
    "prob_pythia410m_dpo": (
        ("chosen", "first", -151.98),
        ("chosen", 25, -140.23),
        ("chosen", "last", -146.34),
        ("rejected", "first", -121.35),
        ("rejected", "last", -197.64),
    ),
    "verifyargmax_pythia1b_dpo_ep10": (
        ("chosen", "first", -132.25),
        ("chosen", 6, -124.57),
        ("chosen", "last", -138.96),
        ("rejected", "first", -103.65),
        ("rejected", "last", -291.79),
    ),
    "extend_sft_qwen18_observe": (
        ("chosen", "first", -122.78),
        ("chosen", "last", -79.20),
        ("rejected", "first", -97.14),
        ("rejected", "last", -60.58),
    ),
    "pythia410_baseline_sft_verify_argmax_bug": (
        ("chosen", "first", -151.98),
        ("chosen", "last", -92.42),
        (GREEDY, "first", -61.56),
        (GREEDY, "last", -44.47),
    ),
    "qwen05_baseline_sft_checkbug": (
        ("chosen", "first", -132.67),
        ("chosen", "last", -87.38),
        (GREEDY, "first", -51.58),
        (GREEDY, "last", -41.34),
    ),
}
"""Points of published trajectories, by the name of their folder."""

_ROUNDING = 0.006
"""Nats: half of the last decimal, and a little."""


def _at_start(one: Recorded) -> Measured:
    """Largest distance to the model's numbers before training.

    SFT starts from that model, and for the runs in `_PATHS` it is known; another run
    that is far off may start from elsewhere.
    """
    run = _only(one)
    name = run.run.info.model.removesuffix(" (guessed)")
    if name not in _START:
        raise Absent(f"no known numbers for {name or 'a model without a name'}")
    known = dict(zip(_KINDS, _START[name], strict=True))
    kinds = [kind for kind in known if kind in run.kinds]
    if not kinds:
        raise Absent("no known number for any kind of the run")
    apart = [abs(float(_mean(run, kind)[0]) - known[kind]) for kind in kinds]
    worst = _largest(apart)
    starts_there = one.seed in _PATHS or run.run.info.method in ("sft", "extend-sft")
    if worst > _ELSEWHERE and not starts_there:
        raise Absent("the run probably starts from another checkpoint")
    return Measured(one.seed, worst, worst <= _TOLERANCE)


def _along_the_way(one: Recorded) -> Measured:
    """Largest distance to the points of its published trajectory; infinite where the
    run lacks one."""
    run = _only(one)
    if one.seed not in _PATHS:
        raise Absent("no known points for a run of this name")
    worst = _largest([_apart(run, point) for point in _PATHS[str(one.seed)]])
    return Measured(one.seed, worst, worst <= _ROUNDING)


def _apart(run: Trajectory, point: _Point) -> float:
    kind, where, value = point
    index = int({"first": 0, "last": -1}.get(str(where), where))
    try:
        return abs(float(_mean(run, kind)[index]) - value)
    except (KeyError, IndexError):  # no such kind, or too few evaluations
        return math.inf


def _largest(apart: Sequence[float]) -> float:
    """The largest distance; one that is not known is as far as can be."""
    return max(each if math.isfinite(each) else math.inf for each in apart)


def _only(one: Recorded) -> Trajectory:
    if not one.runs:
        raise Absent("the folder's name does not say what was trained")
    return next(iter(one.runs.values()))


def _mean(run: Trajectory, kind: str) -> np.ndarray:
    return mean_path(path_of(run, kind))


_ANCHORS = (
    Statement(
        "anchors-start",
        "The authors' files, first evaluation",
        "An import gives the log-probabilities before training again.",
        f"largest distance over kinds to the known means <= {_TOLERANCE:g} nats",
        _at_start,
        "",
    ),
    Statement(
        "anchors-path",
        "The authors' files, trajectories",
        "An import gives the known points of the trajectory again.",
        f"largest distance to points known to two decimals <= {_ROUNDING:g} nats",
        _along_the_way,
        "",
    ),
)


def anchor_claims(seeds: Sequence[Recorded]) -> tuple[Claim, ...]:
    """Both anchors, tested on imported runs."""
    return claims_of(_ANCHORS, seeds)


@dataclass(frozen=True)
class Imports:
    """What was made of a folder of result folders."""

    seeds: list[Recorded]
    refused: list[str]
    """Folders that could not be read, each with the reason."""


def imported(folder: Path, out: Path, *, overwrite: bool = False) -> Imports:
    """Import `folder` itself, or else every result folder in it, into `out/NAME`.

    What was imported whole before is read again, not imported again, unless
    `overwrite`. A folder that holds several runs gives its main one; the others, which
    are pieces of restarted processes, are imported beside it and not drawn. Of a folder
    that cannot be read beside others that can a warning tells.

    Raises:
        BadInput: if there is no folder at `folder`, or none with a result in it.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is not a folder. Give the folder of the authors' results."
        )
    try:
        return Imports([_imported(folder, out, overwrite)], [])
    except BadInput as error:
        refused = [f"{folder.name}: {error}"]
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    if inside:  # then it need not be a result itself
        refused = []
    seeds: list[Recorded] = []
    for source in inside:
        try:
            seeds.append(_imported(source, out, overwrite))
        except BadInput as error:
            refused.append(f"{source.name}: {error}")
    if not seeds:
        raise BadInput(
            f"{folder} holds no readable result of the authors:\n" + "\n".join(refused)
        )
    for each in refused:
        warnings.warn(f"left out because it cannot be read: {each}", stacklevel=2)
    return Imports(seeds, refused)


def _imported(source: Path, out: Path, overwrite: bool) -> Recorded:
    path = out / source.resolve().name
    if overwrite or not _whole(path):
        import_folder(source, path, overwrite=overwrite or is_run(path))
    return _recorded(path.name, path)


def _whole(path: Path) -> bool:
    """Whether an import is there that was not stopped halfway."""
    if not is_run(path):
        return False
    run = RunDirectory.open(path)
    return len(run.steps) == run.info.imported.get("observations")


def _recorded(name: str, path: Path) -> Recorded:
    run = Trajectory.load(path)
    role = _role_of(run.run.info)
    runs = {} if role is None else {role: run}
    return Recorded(name, runs, vocabulary=run.run.info.vocabulary)


def _role_of(info: RunInfo) -> str | None:
    """What an imported run stands for; None where its name does not say.

    SFT on another kind than chosen is a run that learns that kind.
    """
    method = info.method
    if method not in ("sft", "dpo", "extend-sft"):
        return None
    trained = info.imported.get("trained_on") or "chosen"
    kind = AUTHORS_KINDS.get(trained, trained)
    return f"learn-{kind}" if method == "sft" and kind != "chosen" else method
