"""Does the model grow surer of other tokens than chosen's, as answers that repeat show?

A distribution that is squeezed onto few tokens is peaky: ||pi||^2 rises and the entropy
falls. Ren & Sutherland 2025 (Section 4) link that to answers that repeat phrases. All
training that fits makes the model surer, so the sign needs three things along chosen:

    mean ||pi||^2 rises surely, by more than `_LEAST`
    it rises surely more than mean pi(y), the probability of chosen's own tokens
    log pi(chosen) does not surely rise

Which tokens gained tells two cases apart: the model's former favourites, which is
squeezing, or tokens that it did not favour before, where these lost surely: new peaks,
answers that repeat one token or end at once.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, limits_of
from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.diagnose.numbers import number
from learndyn.diagnose.paths import paired
from learndyn.record.trajectory import Trajectory


_LEAST = 0.05
"""Rise of mean ||pi||^2 below which the model is not called surer. No unit. Trainings
that changed no answer to the eye moved it by 0.02; one whose answers end at once by
0.5."""

_COLUMNS = frozenset({"p_norm2", "energy", "logp", "entropy", "top1"})
"""What is read of chosen."""


@dataclass(frozen=True, slots=True)
class _Sharpening:
    """How sure the model is along chosen: changes from the first to the last look."""

    p_norm2: Interval
    """Mean over tokens of ||pi||^2; no unit."""
    beyond: Interval
    """Change of mean ||pi||^2 minus change of mean pi(y), y chosen's own tokens."""
    chosen: Interval
    """Change of log pi(chosen), nats per response."""
    entropy: Interval | None
    """Mean over tokens, nats."""
    top1: Interval | None
    """Share of chosen's tokens that are the argmax."""
    a_norm: tuple[float, float] | None
    """||A||_F at the first and the last look, sqrt(V - 2 + V mean ||pi||^2), where the
    run has the number of logits V (Ren & Sutherland 2025, Appendix C)."""

    @property
    def sure(self) -> bool:
        """Whether all three signs are there."""
        return (
            self.p_norm2.above_zero
            and self.p_norm2.mean > _LEAST
            and self.beyond.above_zero
            and not self.chosen.above_zero
        )


class Peakiness(Finding):
    """Along chosen the model grows surer of tokens that are not chosen's."""

    name = "peakiness"
    section = "verdict"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the run has no such numbers."""
        change = None
        if not _COLUMNS & set(facts.trajectory.defects):
            change = _sharpening(facts.trajectory, facts.split)
        if change is None:
            return None
        numbers = {
            "p_norm2": limits_of(change.p_norm2),
            "beyond_chosen": limits_of(change.beyond),
            "entropy": limits_of(change.entropy),
            "top1": limits_of(change.top1),
            "a_norm": None if change.a_norm is None else list(change.a_norm),
        }
        surer = f"mean ||π||² {number(change.p_norm2)}"
        if not change.sure:
            says = f"Along chosen the model {_why_not(change)}: {surer}."
            return cls("fine", says, numbers)
        off = facts.state.off_target
        numbers["off_target"] = limits_of(None if off is None else off.per_token)
        says = (
            f"Along chosen the model grew surer, of other tokens than chosen's "
            f"({surer}; "
            f"{number(change.beyond)} beyond the probability of chosen's tokens)"
        )
        if off is not None and off.down:
            says += (
                ", and not of its former favourites, which changed by "
                f"{number(off.per_token)} nats per token: new peaks, as where answers "
                "repeat a token or end at once. Generate a few answers and look."
            )
        else:
            says += ", as models do whose answers repeat. Generate a few and look."
        return cls("watch", says, numbers)


def _why_not(change: _Sharpening) -> str:
    if not (change.p_norm2.above_zero and change.p_norm2.mean > _LEAST):
        return "did not grow surer"
    if change.chosen.above_zero:
        return "grew surer while chosen rose, as in a fit"
    return "did not surely grow surer of other tokens than chosen's"


def _sharpening(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> _Sharpening | None:
    """Compare the first look with the last; None where the run has no such numbers."""
    moved = {name: _change(trajectory, name, split) for name in _COLUMNS}
    known = [moved[name] for name in ("p_norm2", "energy", "logp")]
    values = [item for item in known if item is not None]
    if len(values) < len(known):
        return None
    p_norm2, energy, logp = values
    means = {
        name: None if item is None else paired_bootstrap(item, seed=seed).at()
        for name, item in moved.items()
    }
    return _Sharpening(
        paired_bootstrap(p_norm2, seed=seed).at(),
        paired_bootstrap(p_norm2 + energy, seed=seed).at(),  # energy is 1 - pi(y)
        paired_bootstrap(logp, seed=seed).at(),
        means["entropy"],
        means["top1"],
        _a_norm(trajectory, split),
    )


def _change(
    trajectory: Trajectory, column: str, split: str | None
) -> Float[np.ndarray, " prompt"] | None:
    """Last minus first of each chosen probe that was scored at both."""
    ends = _ends(trajectory, column, split)
    if ends is None or np.isfinite(ends[1] - ends[0]).sum() < 2:
        return None
    return ends[1] - ends[0]


def _ends(
    trajectory: Trajectory, column: str, split: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    of_split = True if split is None else trajectory.split_of == split
    if not ((trajectory.kind_of == "chosen") & of_split).any():
        return None
    values = trajectory.values(column, "chosen", split)
    scored = trajectory.covered[:, trajectory.rows("chosen", split)]
    steps, prompts = paired(values, scored)
    if scored[-1].all():  # a full last look: all prompts, not the panel's alone
        return values[0], values[-1]
    path = values[steps][:, prompts]
    return path[0], path[-1]


def _a_norm(trajectory: Trajectory, split: str | None) -> tuple[float, float] | None:
    size = trajectory.run.info.vocabulary
    ends = _ends(trajectory, "p_norm2", split)
    if size is None or size < 2 or ends is None:
        return None
    both = np.isfinite(ends[0]) & np.isfinite(ends[1])
    if not both.any():
        return None
    first, last = (math.sqrt(size - 2 + size * float(end[both].mean())) for end in ends)
    return first, last
