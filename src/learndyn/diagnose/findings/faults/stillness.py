"""How far a run moved, and what its log says where it did not."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series, short
from learndyn.diagnose.findings.finding import Advice
from learndyn.diagnose.paths import Paths, last_observations
from learndyn.diagnose.state import DELTA, TOKENS
from learndyn.record.run_info import RunInfo


_TINY_GRADIENT = 1e-5
"""A gradient norm at or below this is rounding: of fp32 sums over all weights."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why nothing moves, and what to change."""

    name: str
    headline: str
    why: str
    mend: Advice
    fault: bool = True
    """Whether it is one; a warm-up that goes on is not."""


@dataclass(frozen=True, eq=False)
class Stillness:
    """What a run says about whether and why it stands still."""

    facts: Facts
    largest: float
    """The largest change of one watched answer, nats; NaN where none is known."""
    per_token: float
    """The largest mean change of one kind, nats per token (per response without token
    counts): over the last 20 % of the observations."""
    still: bool
    """Whether `per_token` is below the size that matters."""

    @classmethod
    def of(cls, facts: Facts) -> "Stillness":
        """Measure the changes of a run of two observations or more."""
        paths = Paths.of(facts.trajectory, facts.split).common()
        last = last_observations(len(paths.steps))
        largest, sizes, counted_ = [], [], True
        for kind, path in paths.with_greedy().items():
            moved = path - path[0]
            largest.append(np.nanmax(np.abs(moved), initial=-np.inf))
            change = moved[-last:].mean(axis=0)
            known = np.isfinite(change)
            tokens = paths.n_tokens.get(kind, paths.n_tokens.get("chosen"))
            total = 0.0 if tokens is None else float(np.nansum(tokens[known]))
            counted_ = counted_ and total > 0
            if known.any():
                sizes.append((abs(change[known].sum()), total, known.sum()))
        if not sizes:
            return cls(facts, float("nan"), float("nan"), False)
        top = float(max(largest))
        if counted_:
            size = max(change / total for change, total, _ in sizes)
        else:
            size = max(change / answers for change, _, answers in sizes)
        limit = DELTA if counted_ else DELTA * TOKENS
        finite = top if np.isfinite(top) else float("nan")
        return cls(facts, finite, float(size), bool(size < limit))

    @property
    def info(self) -> RunInfo:
        """The run's own entries."""
        return self.facts.trajectory.run.info

    def series(self, key: str) -> Series:
        """One key of the training log."""
        return Series.of(self.facts.trajectory.train_log, key)

    @cached_property
    def margins(self) -> Series:
        """rewards/margins, of pairs or of KTO."""
        return self.series("rewards/margins")

    @cached_property
    def norms(self) -> Series:
        """grad_norm."""
        return self.series("grad_norm")

    @cached_property
    def rates(self) -> Series:
        """learning_rate."""
        return self.series("learning_rate")

    @property
    def loss(self) -> str:
        """The last logged loss, in words."""
        values = self.series("loss").values
        return f"the loss {short(values[-1])}" if len(values) else "no loss logged"

    @property
    def updates(self) -> int:
        """Updates at the last observation."""
        return int(self.facts.trajectory.steps[-1])

    @property
    def no_push(self) -> bool:
        """Whether every logged gradient is rounding."""
        return len(self.norms) >= 2 and self.norms.largest <= _TINY_GRADIENT
