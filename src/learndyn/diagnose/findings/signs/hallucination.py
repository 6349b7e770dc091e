"""Do answers of other training prompts become likelier than answers never seen?

Finetuning raises the training answers of other prompts along with a prompt's own (Ren &
Sutherland 2025, Section 4.1: facts or phrases of question B used to answer A). So
`irrelevant_train` is set against answers that no update trained on, `irrelevant_test`
and `irrelevant_human`, to the same prompts. What all of them do together is style; what
the first does beyond the others is memory of training answers.

Lengths differ between kinds, so a difference counts only where it is there in nats and
as a share of the start, g = mean change / |mean at the start|.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, limits_of
from learndyn.diagnose.intervals import (
    Interval,
    band,
    paired_bootstrap,
    pooled_bootstrap,
    ratio_of_sums,
    resample_weights,
)
from learndyn.diagnose.numbers import number, percent
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.state import DELTA
from learndyn.record.trajectory import Trajectory


_SEEN = "irrelevant_train"

_UNSEEN = ("irrelevant_test", "irrelevant_human")


@dataclass(frozen=True, slots=True)
class _Excess:
    """How other prompts' training answers moved, against answers never seen."""

    rise: Interval
    """Change of irrelevant_train, nats per response."""
    share: Interval
    """The same relative to its start."""
    unseen: tuple[str, ...]
    """The kinds that it is set against; none where the probes lack them."""
    excess: Interval | None = None
    """Change of irrelevant_train minus that of the unseen, nats, paired over prompts;
    of two unseen kinds their mean."""
    excess_share: Interval | None = None
    """Difference of the relative changes."""
    left_out: tuple[str, ...] = ()
    """Why a kind that is unseen by its name is not among `unseen`, in words."""

    @property
    def rose(self) -> bool:
        """Whether irrelevant_train surely rose, by more than the threshold."""
        return self.rise.above_zero and self.share.mean > DELTA

    @property
    def sure(self) -> bool:
        """Whether it surely rose beyond the unseen, in nats and relative."""
        return bool(
            self.rose
            and self.excess is not None
            and self.excess_share is not None
            and self.excess.above_zero
            and self.excess_share.above_zero
        )


class Hallucination(Finding):
    """Answers of other training prompts rise by more than answers never seen."""

    name = "hallucination"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the probes lack irrelevant_train, or two prompts of it."""
        excess = _excess_over_unseen(facts.trajectory, facts.split)
        if excess is None:
            return None
        numbers = {
            "irrelevant_train": limits_of(excess.rise),
            "relative": limits_of(excess.share),
            "unseen": ", ".join(excess.unseen),
            "beyond_unseen": limits_of(excess.excess),
            "beyond_unseen_relative": limits_of(excess.excess_share),
        }
        watch = excess.rose and (excess.sure or not excess.unseen)
        says = _says(excess)
        if excess.left_out:
            says += f" Left out as not unseen: {'; '.join(excess.left_out)}."
        return cls("watch" if watch else "fine", says, numbers)


def _says(excess: _Excess) -> str:
    change = f"{number(excess.rise)} nats"
    if not excess.rose:
        return (
            f"No sign of hallucination: {_SEEN} changed by {change} "
            f"({percent(excess.share.mean)})."
        )
    start = f"Watch {_SEEN}, {change}: answers of other training prompts became"
    unseen = " and ".join(excess.unseen)
    if excess.excess is None:
        return (
            f"{start} likelier, which can be a sign of hallucination; without "
            f"{' or '.join(_UNSEEN)} it cannot be told from a change of style."
        )
    if excess.sure:
        return (
            f"{start} likelier (a sign of hallucination), by "
            f"{number(excess.excess)} nats more than answers never seen ({unseen})."
        )
    return (
        f"{_SEEN} rose by {change}, but not surely more than answers never seen "
        f"({unseen}): {number(excess.excess)} nats beyond them."
    )


def _excess_over_unseen(
    trajectory: Trajectory, split: str | None = None, *, seed: int = 0
) -> _Excess | None:
    """Set irrelevant_train against the unseen kinds, at the last observation.

    A kind that run.json lists among its defects is left out, and named.
    None where the probes lack irrelevant_train, or fewer than two prompts have it.
    """
    paths = Paths.of(trajectory, split)
    if _SEEN not in paths.logp:
        return None
    if not paths.full[-1]:
        paths = paths.common()
    change, start = _moved(paths, (_SEEN,))
    if np.isfinite(change).sum() < 2:
        return None
    rise = paired_bootstrap(change, seed=seed).at()
    share = pooled_bootstrap(change, start, seed=seed).at()
    odd = trajectory.defects
    kinds = tuple(kind for kind in _UNSEEN if kind in paths.logp and kind not in odd)
    left_out = tuple(odd[k] for k in _UNSEEN if k in paths.logp and k in odd)
    others, begin = _moved(paths, kinds) if kinds else (change, start)
    both = np.isfinite(change) & np.isfinite(others)
    if not kinds or both.sum() < 2:
        return _Excess(rise, share, (), left_out=left_out)
    excess = paired_bootstrap((change - others)[both], seed=seed).at()
    pairs = [(change[both], start[both]), (others[both], begin[both])]

    def differ(weights: Float[np.ndarray, "draw prompt"]) -> np.ndarray:
        one, other = (ratio_of_sums(*pair, weights) for pair in pairs)
        return one - other

    n = int(both.sum())
    mean = differ(np.ones((1, n)))[0]
    draws = differ(resample_weights(n, seed=seed))
    relative = band(np.array(mean), draws, np.array(n)).at()
    return _Excess(rise, share, kinds, excess, relative, left_out)


def _moved(
    paths: Paths, kinds: tuple[str, ...]
) -> tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]:
    """Change and size of the start of each prompt, the mean over these kinds."""
    values = np.mean([paths.logp[kind] for kind in kinds], axis=0)
    return values[-1] - values[0], np.abs(values[0])
