"""Which watched prompts were trained on and which were held out.

A run's own record says so, where it has one (`trained` of run.json: the rows that the
trainer had, matched to the probes). Without it there is the probes' column `split`,
which only says what somebody meant, so such groups are called "marked".
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Groups:
    """Probes of prompts that were trained on, and of prompts that were not."""

    trained: Bool[np.ndarray, " probe"]
    held_out: Bool[np.ndarray, " probe"]
    """Probes in neither: of a prompt that was trained on with another answer, or of a
    third split."""
    recorded: bool
    """Whether the run's record says so; else the column `split`."""
    other: str
    """The split of the held-out prompts; empty where the record says so."""
    misplaced: tuple[int, int] = (0, 0)
    """Prompts marked train that were not trained on, and prompts marked otherwise that
    were."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Groups | None":
        """The groups of all probes; None where neither record nor column has two."""
        split = _by_split(trajectory)
        record = _recorded(trajectory)
        return split if record is None else record

    @property
    def names(self) -> tuple[str, str]:
        """Both groups, for a sentence: "... on prompts trained on"."""
        if self.recorded:
            return "prompts trained on", "held-out prompts"
        return "prompts marked train", f"prompts marked {self.other}"


def _by_split(trajectory: Trajectory) -> Groups | None:
    splits = sorted(set(trajectory.split_of.tolist()))
    others = [name for name in splits if name != "train"]
    if "train" not in splits or not others:
        return None
    if len(others) > 1 and "test" not in others:
        return None
    other = "test" if "test" in others else others[0]
    split_of = trajectory.split_of
    return Groups(split_of == "train", split_of == other, False, other)


def _recorded(trajectory: Trajectory) -> Groups | None:
    return None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of the probes of prompts that have chosen and rejected, prompt by prompt."""

    chosen: Int[np.ndarray, " prompt"]
    rejected: Int[np.ndarray, " prompt"]
    where: str
    """Which prompts these are, for a sentence: "prompts trained on"."""


def trained_pairs(trajectory: Trajectory, split: str | None = None) -> Pairs | None:
    """The pairs that were trained on, as far as that is known; else all. None below two
    prompts."""
    kinds = ("chosen", "rejected")
    if not set(kinds) <= set(trajectory.kinds):
        return None
    here, where = trained_probes(trajectory, split)
    mask = [here & (trajectory.kind_of == kind) for kind in kinds]
    both = set(trajectory.prompt_of[mask[0]]) & set(trajectory.prompt_of[mask[1]])
    if len(both) < 2:
        return None
    rows = [np.flatnonzero(m & np.isin(trajectory.prompt_of, list(both))) for m in mask]
    order = [r[np.argsort(trajectory.prompt_of[r], kind="stable")] for r in rows]
    return Pairs(order[0], order[1], where)


def trained_probes(
    trajectory: Trajectory, split: str | None = None
) -> tuple[Bool[np.ndarray, " probe"], str]:
    """Probes of the prompts that were trained on, as far as that is known, else all;
    and what to call these prompts."""
    if split is not None:
        return trajectory.split_of == split, f"prompts of split {split}"
    groups = Groups.of(trajectory)
    if groups is None or groups.trained.sum() < 2:
        return np.ones(len(trajectory.kind_of), dtype=bool), "all watched prompts"
    return groups.trained, groups.names[0]
