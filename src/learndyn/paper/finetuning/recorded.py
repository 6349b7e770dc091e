"""The finished runs of one seed, by the role that they have in the paper.

Light: figures read it too, and load nothing heavy with it.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.diagnose.paths import Paths
from learndyn.record.trajectory import Trajectory


LEARNT = (
    "chosen",
    "chosen_semantic",
    "chosen_format",
    "rejected",
    "rejected_semantic",
    "irrelevant_human",
    "random_words",
)
"""Kinds that get a run of their own: the columns of the heat map."""

GRADED = ("sft", "dpo", "extend-sft", "extend-dpo")
"""Stages whose models answer held-out prompts."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The runs of one seed of data and training, or those of one import."""

    seed: int | str
    runs: dict[str, Trajectory]
    """Role (a key of `STAGES`, or `learn-KIND`) -> its run."""
    right: dict[str, list[bool]] = field(default_factory=dict)
    """Stage -> of each held-out prompt whether it was answered right."""
    vocabulary: int | None = None
    """Logits of the model, its padding included."""

    @classmethod
    def load(
        cls,
        seed: int | str,
        folder: Path,
        stages: Iterable[str],
        vocabulary: int | None = None,
    ) -> "Recorded":
        """Read the run directories `folder/STAGE`, and their grades where there are.

        Raises:
            BadInput: as `Trajectory.load`.
        """
        runs = {stage: Trajectory.load(folder / stage) for stage in stages}
        exams = {stage: grades_path(folder, stage) for stage in runs}
        right = {s: json.loads(p.read_text()) for s, p in exams.items() if p.exists()}
        return cls(seed, runs, right, vocabulary)


def grades_path(folder: Path, stage: str) -> Path:
    """Where the grades of a stage's model are kept."""
    return folder / f"right-{stage}.json"


def probed_split(run: Trajectory) -> str | None:
    """The split that the paper's figures are of; None, all probes, where it lacks."""
    return "train" if "train" in set(run.split_of.tolist()) else None


def path_of(
    run: Trajectory, kind: str, split: str = "train"
) -> Float[np.ndarray, "step prompt"]:
    """Summed log-probability of a kind, or of the greedy path, in nats.

    Of the prompts of `split`; where a run has no split "train", all are such. Over the
    same prompts at every step (see `Paths.common`).

    Raises:
        KeyError: if no probe is of this kind, or of this split.
    """
    splits = set(run.split_of.tolist())
    if split == "test" and split not in splits:
        raise KeyError(split)
    known = split if split in splits else None
    return Paths.of(run, known).common().with_greedy()[kind]


def change(values: Float[np.ndarray, "step prompt"], at: int = -1) -> Interval:
    """Mean change from the first observation to that at index `at`, in nats."""
    return paired_bootstrap(values[at] - values[0]).at()


def difference(
    one: Float[np.ndarray, " prompt"], other: Float[np.ndarray, " prompt"]
) -> Interval:
    """`one` minus `other`: paired over prompts, where at least two prompts have both.

    Of a kind whose mean alone is known there are no pairs: then it is the difference of
    the means, without an interval.
    """
    if len(one) == len(other):
        paired = one - other
        if np.isfinite(paired).sum() >= 2:
            return paired_bootstrap(paired).at()
    means = [float(np.mean(v[np.isfinite(v)])) for v in (one, other)]
    return Interval(means[0] - means[1], math.nan, math.nan)


def learnt_by(seeds: Sequence[Recorded]) -> list[str]:
    """Kinds that every seed has a run of, in the order of `LEARNT`."""
    return [k for k in LEARNT if seeds and all(f"learn-{k}" in s.runs for s in seeds)]
