"""What became of the end-of-text token at the end of answers, beside other tokens.

A run keeps token ids, not names, so the end-of-text token is known by where it stands:
it is the last token of every answer that is not cut, but for what a chat template
writes after it (a line break).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.diagnose.intervals import Interval, paired_bootstrap, pooled_bootstrap
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


_NEARLY_ALL = 0.9
"""Share of the answers that end in one and the same token, where it is end-of-text."""


EOS_MOVES = 0.05
"""Nats by which end-of-text moves where it counts: the model stops 5 % more or less
often at each end. Small trainings that saw their ends lowered it by 0.002 nats at most
while they raised the answers; with the end masked it was 0.2 in 40 updates."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of some answers, from the first observation to the last."""

    eos: Interval
    """Change of log pi(end-of-text) at the end of the answer, nats."""
    others: Interval
    """Change of the tokens before it, nats per token."""
    start: float
    """Mean of log pi(end-of-text) at the first observation, nats."""
    end: float
    """The same at the last observation."""


@dataclass(frozen=True, eq=False)
class Endings:
    """The ends of all probes; NaN where a probe has no end-of-text token, or was not
    scored at the last observation."""

    first: Float[np.ndarray, " probe"]
    """log pi(end-of-text) at the first observation, nats."""
    last: Float[np.ndarray, " probe"]
    others: Float[np.ndarray, " probe"]
    """Change of the sum over the tokens before it, nats."""
    tokens: Int[np.ndarray, " probe"]
    """How many these are."""
    ends: Bool[np.ndarray, " probe"]
    """Whether an answer ends in the end-of-text token."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Endings | None":
        """Read them; None where the run has no values per token, or no token ids."""
        probes, counts = trajectory.probes, trajectory.n_tokens
        if "response_ids" not in probes.column_names or not counts.sum():
            return None
        if {"logp", "token_logp"} & set(trajectory.defects):
            return None
        ids = probes["response_ids"].combine_chunks().flatten().to_numpy()
        try:
            values = [_by_probe(trajectory, at) for at in (0, -1)]
        except BadInput:
            return None
        if len(ids) != counts.sum() or any(len(v) != len(ids) for v in values):
            return None
        bounds = np.concatenate([[0], np.cumsum(counts)])
        back, ends = _end_of_text(trajectory, ids, bounds)
        place = np.where(ends, bounds[1:] - 1 - back, 0)
        owner = np.repeat(np.arange(len(counts)), counts)
        before = ends[owner] & (np.arange(len(ids)) < place[owner])
        moved = (values[1] - values[0])[before]
        return cls(
            np.where(ends, values[0][place], np.nan),
            np.where(ends, values[1][place], np.nan),
            np.bincount(owner[before], moved, minlength=len(counts)).astype(float),
            np.bincount(owner[before], minlength=len(counts)),
            ends,
        )

    def at(self, rows: Int[np.ndarray, " row"], *, seed: int = 0) -> Ending | None:
        """The end of the answers in these rows, of one kind and so of one prompt each;
        None below two."""
        change = (self.last - self.first)[rows]
        known = np.isfinite(change)
        if known.sum() < 2:
            return None
        rows, change = rows[known], change[known]
        return Ending(
            paired_bootstrap(change, seed=seed).at(),
            pooled_bootstrap(
                self.others[rows], self.tokens[rows].astype(float), seed=seed
            ).at(),
            float(self.first[rows].mean()),
            float(self.last[rows].mean()),
        )


def _by_probe(trajectory: Trajectory, at: int) -> Float[np.ndarray, " token"]:
    """Log-probability of every response token; NaN where its probe was not scored."""
    scored = np.repeat(trajectory.covered[at], trajectory.n_tokens)
    read = trajectory.tokens("token_logp", int(trajectory.steps[at]))
    values = np.full(len(scored), np.nan)
    if len(read) == scored.sum():
        values[scored] = read
    return values


def _end_of_text(
    trajectory: Trajectory,
    ids: Int[np.ndarray, " token"],
    bounds: Int[np.ndarray, " bound"],
) -> tuple[int, Bool[np.ndarray, " probe"]]:
    """How many tokens from the last one end-of-text stands, and which probes end so."""
    lengths = np.diff(bounds)
    flagged = lengths > 1
    names = trajectory.probes.column_names
    if "has_eos" in names:
        flagged &= np.array(trajectory.probes["has_eos"].to_pylist(), dtype=bool)
    rendered = False
    if "rendered" in names:
        rendered = any(trajectory.probes["rendered"].to_pylist())
    if not flagged.any():
        return 0, flagged
    best, choice = np.inf, (0, np.zeros_like(flagged))
    for back in range(2 if rendered else 1):
        place = np.where(flagged & (lengths > back), bounds[1:] - 1 - back, 0)
        token = np.bincount(ids[place[flagged]]).argmax()
        ends = flagged & (lengths > back) & (ids[place] == token)
        share = ends.sum() / flagged.sum()
        # inside the answers end-of-text never stands, a line break does
        elsewhere = (ids == token).sum() - ends.sum()
        if share >= _NEARLY_ALL and elsewhere < best:
            best, choice = elsewhere, (back, ends)
    return choice
