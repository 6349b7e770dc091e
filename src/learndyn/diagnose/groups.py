"""Which watched prompts were trained on and which were held out.

A run's own record says so, where it has one (`trained` of run.json: the rows that the
trainer had, matched to the probes). Without it there is the probes' column `split`,
which only says what somebody meant, so such groups are called "marked".
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.diagnose.intervals import Interval, group_difference, paired_bootstrap
from learndyn.diagnose.paths import LAST, Paths, end_change
from learndyn.diagnose.state import DELTA, TOKENS, Move, move
from learndyn.record.run_info import RunInfo
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class _Groups:
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
    def of(cls, trajectory: Trajectory) -> "_Groups | None":
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


def _by_split(trajectory: Trajectory) -> _Groups | None:
    splits = sorted(set(trajectory.split_of.tolist()))
    others = [name for name in splits if name != "train"]
    if "train" not in splits or not others:
        return None
    if len(others) > 1 and "test" not in others:
        return None
    other = "test" if "test" in others else others[0]
    split_of = trajectory.split_of
    return _Groups(split_of == "train", split_of == other, False, other)


def _recorded(trajectory: Trajectory) -> _Groups | None:
    """The groups as the run recorded them; None where it did not."""
    record = trajectory.run.info.trained
    if record is None or record.matched_by is None:
        return None
    prompts, raised = set(record.prompts), sorted(record.raised)
    rows = np.array(raised, dtype=int)
    rows = rows[(rows >= 0) & (rows < len(trajectory.kind_of))]
    chosen = rows[trajectory.kind_of[rows] == "chosen"]
    # an online method trains on prompts and on its own answers to them
    trained = set(trajectory.prompt_of[chosen].tolist()) if len(rows) else prompts
    of_trained = np.isin(trajectory.prompt_of, list(trained))
    held_out = ~np.isin(trajectory.prompt_of, list(prompts | trained))
    marked = trajectory.split_of == "train"

    def count(probes: Bool[np.ndarray, " probe"]) -> int:
        return len(set(trajectory.prompt_of[probes].tolist()))

    misplaced = count(marked & held_out), count(~marked & ~held_out)
    return _Groups(of_trained, held_out, True, "", misplaced)


def misplaced(trajectory: Trajectory) -> tuple[int, int] | None:
    """Prompts marked train that were not trained on, and prompts marked otherwise that
    were; None where it is not recorded what was trained on."""
    groups = _recorded(trajectory)
    if groups is None:
        return None
    return groups.misplaced


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
    groups = _Groups.of(trajectory)
    if groups is None or groups.trained.sum() < 2:
        return np.ones(len(trajectory.kind_of), dtype=bool), "all watched prompts"
    return groups.trained, groups.names[0]


@dataclass(frozen=True, eq=False)
class Side:
    """One group of prompts: means over the last 20 % of the observations."""

    chosen: Move
    margin: Move | None
    """None without pairs."""
    change: Float[np.ndarray, " prompt"]
    """Of chosen, nats."""
    tokens: Float[np.ndarray, " prompt"]
    pairs: Float[np.ndarray, " pair"]
    """Change of the margin of each pair, nats; none without pairs."""

    @classmethod
    def of(cls, paths: Paths, prompts: set[str], seed: int = 0) -> "Side | None":
        """Measure these prompts; None below two that have chosen."""
        of_group = np.array([prompt in prompts for prompt in paths.prompts])
        if not of_group.any():
            return None
        paths = paths.cut(of_group).common()
        if len(paths.steps) < 2:
            return None
        change, tokens = end_change(paths.logp["chosen"]), paths.n_tokens["chosen"]
        if np.isfinite(change).sum() < 2:
            return None
        gap = paths.gap
        margin = None if gap is None else end_change(gap)
        if margin is not None and np.isfinite(margin).sum() < 2:
            margin = None
        return cls(
            move(change, tokens, seed),
            None if margin is None else move(margin, tokens, seed),
            change,
            tokens,
            np.array([]) if margin is None else margin[np.isfinite(margin)],
        )


@dataclass(frozen=True)
class Generalisation:
    """What a run did to prompts that it trained on, and to others."""

    everyone: Side
    """All watched prompts."""
    trained: Side | None
    held_out: Side | None
    gap: Interval | None
    """Chosen's change on trained prompts beyond held-out ones, in `unit`."""
    margin_gap: Interval | None
    """The margin's change beyond that of held-out ones, nats per response."""
    log: Interval | None
    """The logged margin on trained rows, nats per response: of the last 20 % of rows.
    None of a loss whose rewards are not beta times the change since the start."""
    epochs: float | None
    """Of the log."""
    names: tuple[str, str]
    recorded: bool
    """Whether the run's record says what was trained on."""

    @classmethod
    def of(cls, trajectory: Trajectory, *, seed: int = 0) -> "Generalisation | None":
        """Measure it; None without chosen, or where neither the prompts nor the log
        say what was trained on."""
        paths = Paths.of(trajectory)
        everyone = None
        if "chosen" in paths.logp:
            everyone = Side.of(paths, set(paths.prompts), seed)
        groups, log = _Groups.of(trajectory), _logged_margin(trajectory)
        if everyone is None or (groups is None and log is None):
            return None
        sides: list[Side | None] = [None, None]
        if groups is not None:
            masks = (groups.trained, groups.held_out)
            sides = [
                Side.of(paths, set(trajectory.prompt_of[mask].tolist()), seed)
                for mask in masks
            ]
        one, other = sides
        gap, margin_gap = None, None
        if one is not None and other is not None:
            gap = group_difference(_rates(one), _rates(other), seed=seed)
            pairs = [side.pairs for side in (one, other)]
            if all(len(pair) >= 2 for pair in pairs):
                each = [(pair, np.ones_like(pair)) for pair in pairs]
                margin_gap = group_difference(each[0], each[1], seed=seed)
        return cls(
            everyone,
            one,
            other,
            gap,
            margin_gap,
            log,
            _epochs(trajectory.train_log),
            ("", "") if groups is None else groups.names,
            groups is not None and groups.recorded,
        )

    @property
    def unit(self) -> str:
        """What sizes of chosen are in."""
        return "nats per token" if self._counted else "nats per response"

    @property
    def smallest(self) -> float:
        """Smallest change of chosen that counts, in `unit`."""
        return DELTA if self._counted else TOKENS * DELTA

    @property
    def _counted(self) -> bool:
        return self.everyone.chosen.counted


def _logged_margin(trajectory: Trajectory) -> Interval | None:
    """Mean of rewards/margins / beta over the last 20 % of the rows that have it, nats
    per response; its interval is over these rows."""
    info = trajectory.run.info
    if info.family != "preference" or not info.has_reference or not info.beta:
        return None
    if _moves_reference(info) or trajectory.steps[0] > 0:
        return None
    rows = [
        (row.get("step"), float(value))
        for row in trajectory.train_log
        if isinstance(value := row.get("rewards/margins"), int | float)
        and math.isfinite(value)
    ]
    if len(rows) < 2:
        return None
    values = np.array([value for _, value in rows]) / info.beta
    if rows[0][0] == 1 and abs(values[0]) > 1:
        return None  # policy and reference differed before the first update
    last = values[-max(2, round(LAST * len(values))) :]
    return paired_bootstrap(last).at()


def _moves_reference(info: RunInfo) -> bool:
    """Whether rewards are not of the whole answers, or not since the start."""
    alpha = info.trainer.get("ld_alpha")
    cuts = isinstance(alpha, int | float) and alpha < 1
    return cuts or info.trainer.get("sync_ref_model") is True


def _epochs(log: list[dict[str, Any]]) -> float | None:
    epochs = [row["epoch"] for row in log if isinstance(row.get("epoch"), int | float)]
    return float(epochs[-1]) if epochs and epochs[-1] > 0 else None


def _rates(side: Side) -> tuple[np.ndarray, np.ndarray]:
    counted = np.nansum(side.tokens) > 0
    return side.change, side.tokens if counted else np.ones_like(side.change)
