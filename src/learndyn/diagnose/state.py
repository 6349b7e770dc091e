"""Which of six things happened in a run: the rule, in nats.

All are changes since the first observation, as means over the last 20 % of the
observations, paired over prompts:

    C    change of log pi(chosen)
    G    change of the greedy path, sum over chosen's positions of max_v log pi(v)
    SQ   G - C, the same positions of the same prompt, so that nats compare
    OT   change of log pi(first model's favourite), per token, over chosen's positions
         where that favourite is not chosen's own token

"Up" and "down" mean that the mean is at least delta = 0.01 nats per token (1 % of a
token's probability) and that two whole 99 % intervals lie on one side of zero: of nats
per token pooled over all tokens, and of the mean over prompts of each one's own nats
per token, so that a few long answers do not carry a name. The first line that holds
names the run:

    STILL      every change within -delta .. delta, surely
    COLLAPSE   C down, and G up on new peaks: OT down by 0.5 nats and more
    COLLAPSE   C, G and every watched kind down
    SQUEEZE    G up, SQ up, OT not down; of training that pushes nothing down: never
    FIT        C up; or C within -delta .. delta, surely, and the margin up
    DISPLACED  C down
    UNDECIDED  else

Why nats and not relative changes: docs/diagnosis.md has the runs that these named
wrongly, the rates of false alarms and misses of this rule, and its truth table. The
99 % are for the false alarms: two names are read as alarms, SQUEEZE and DISPLACED, and
one-sided 0.5 % each keeps both together below 1 % where nothing changed.

Where no values per token are recorded, OT is unknown. Then only the size of the fall
can tell new peaks: chosen lost more than it had at the start. That name is not sure.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from learndyn.diagnose.intervals import (
    Interval,
    known,
    paired_bootstrap,
    pooled_bootstrap,
)
from learndyn.diagnose.paths import (
    NO_GREEDY,
    Paths,
    end_change,
    off_target,
)
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.record.trajectory import Trajectory


State = Literal["FIT", "SQUEEZE", "DISPLACED", "COLLAPSE", "STILL", "UNDECIDED"]

DELTA = 0.01
"""Smallest change that counts, nats per token."""

TOKENS = 100.0
"""Tokens that a response is taken to have where a run does not know: the smallest
change that counts is then 1 nat per response."""

_NEW_PEAKS = 0.5
"""Nats per token that former favourites lose where a model has collapsed onto new ones:
they keep 61 % of their probability. Measured: docs/diagnosis.md, new peaks."""

_LEVEL = 0.99

_IN_A_ROW = 3
"""Observations in a row that make an onset."""


@dataclass(frozen=True, slots=True)
class Move:
    """How far one thing moved since the first observation, with 95 % intervals."""

    nats: Interval
    """Per response, mean over prompts."""
    per_token: Interval
    """Sum of nats / sum of tokens; NaN where the run knows no tokens."""
    surely: Interval
    """The size that names a state, with its 99 % interval: nats per token, or per
    hundredth of a response where the run knows no tokens."""
    rates: Interval
    """Mean over prompts of each one's own size, with its 99 % interval."""

    @property
    def up(self) -> bool:
        """Whether it surely rose by a size that counts; by the mean alone where there
        is no interval."""
        low = self.surely.low <= 0 or self.rates.low <= 0
        return self.surely.mean >= DELTA and not low

    @property
    def down(self) -> bool:
        """Whether it surely fell by a size that counts, likewise."""
        high = self.surely.high >= 0 or self.rates.high >= 0
        return self.surely.mean <= -DELTA and not high

    @property
    def still(self) -> bool:
        """Whether it surely moved by less than what counts, likewise."""
        ends = [self.surely.low, self.surely.high] if self.known else [self.surely.mean]
        return all(abs(end) < DELTA for end in ends)

    @property
    def counted(self) -> bool:
        """Whether the run knows the tokens."""
        return not math.isnan(self.per_token.mean)

    @property
    def size(self) -> Interval:
        """Nats per token, or per response where the run knows no tokens."""
        return self.per_token if self.counted else self.nats

    @property
    def known(self) -> bool:
        """Whether it has an interval."""
        return known(self.surely)

    @property
    def matters(self) -> bool:
        """Whether the 95 % interval excludes zero, and the mean is a size that counts:
        what a sentence may call a rise or a fall."""
        return self.nats.excludes_zero and abs(self.surely.mean) >= DELTA


@dataclass(frozen=True, eq=False)
class StateReport:
    """The state of a run and what it rests on."""

    state: State
    """UNDECIDED also where nothing can be judged; `reason` then says why."""
    sure: bool
    """Whether 99 % intervals over prompts put the state beyond doubt. Other seeds of
    the training may differ."""
    chosen: Move | None = None
    rejected: Move | None = None
    margin: Move | None = None
    """Change of log pi(chosen) - log pi(rejected); not times beta."""
    greedy: Move | None = None
    sq: Move | None = None
    """Change of the greedy path minus that of chosen."""
    off_target: Move | None = None
    """Nats per token of former favourites off the labels, at the last observation; None
    where the run has no values per token."""
    kinds: Mapping[str, Move] = field(default_factory=dict)
    """Every watched kind of answer, chosen and rejected too."""
    labels: tuple[str, ...] = ()
    """Kinds that hold labels, not answers: they decide nothing."""
    start: float = float("nan")
    """Mean of log pi(chosen) at the first observation, nats per response."""
    new_peaks: bool = False
    """Whether the greedy path rose onto tokens that the first model did not favour."""
    onset_step: int | None = None
    """Updates at the first of three observations in a row (of fewer, where the run has
    fewer) whose means show it: SQUEEZE G and SQ of delta, DISPLACED and COLLAPSE a fall
    of chosen of delta. None where never."""
    first_sure_step: int | None = None
    """Updates at the first observation whose 99 % intervals show it."""
    prompts: int = 0
    """Prompts that C is a mean over."""
    reason: str | None = None
    """Why nothing can be judged; None where it can."""


def state_of(
    trajectory: Trajectory, *, split: str | None = None, seed: int = 0
) -> StateReport:
    """Judge one run, over the same prompts at every observation.

    Where the run has a panel these are the panel's. Values that are not finite (the
    model had diverged) are left out of their observation, and of the start.
    """
    paths = Paths.of(trajectory, split).common()
    if len(paths.steps) < 2:
        reason = "one observation: nothing to compare it with."
        return StateReport("UNDECIDED", False, reason=reason)
    ends = {kind: end_change(path) for kind, path in paths.logp.items()}
    labels = _labels(trajectory, split)
    kinds = {
        kind: move(change, paths.n_tokens[kind], seed)
        for kind, change in ends.items()
        if kind not in labels
    }
    if paths.greedy is None:
        return StateReport(
            "UNDECIDED", False, kinds=kinds, labels=labels, reason=NO_GREEDY
        )
    greedy = end_change(paths.greedy)
    if not np.isfinite(ends["chosen"] + greedy).any():
        reason = "no finite value in the last observations: the model had diverged."
        return StateReport("UNDECIDED", False, reason=reason)
    tokens = paths.n_tokens["chosen"]
    gap = None if paths.gap is None else end_change(paths.gap)
    report = StateReport(
        "UNDECIDED",
        False,
        chosen=kinds["chosen"],
        rejected=kinds.get("rejected"),
        margin=None if gap is None else move(gap, tokens, seed),
        greedy=move(greedy, tokens, seed),
        sq=move(greedy - ends["chosen"], tokens, seed),
        off_target=_off_target(trajectory, paths, seed),
        kinds=kinds,
        labels=labels,
        start=float(np.nanmean(paths.logp["chosen"][0])),
        prompts=kinds["chosen"].nats.n,
    )
    return _named(report, pushes_down=_pushes_down(trajectory), paths=paths, seed=seed)


def _named(
    report: StateReport,
    *,
    pushes_down: bool = True,
    paths: Paths | None = None,
    seed: int = 0,
) -> StateReport:
    """The report with its state, by the rule at the head of this file.

    `pushes_down` is false of training that only raises answers. With `paths`, also
    since when.
    """
    c, g, sq, off = report.chosen, report.greedy, report.sq, report.off_target
    assert c is not None
    assert g is not None
    assert sq is not None
    moves = [*report.kinds.values(), g]
    sure = all(move.known for move in (c, g, sq))
    state: State = "UNDECIDED"
    new_peaks = c.down and g.up and off is not None and off.surely.mean <= -_NEW_PEAKS
    new_peaks = bool(new_peaks and off is not None and off.down)
    if c.down and g.up and off is None and c.nats.mean < report.start:
        state, sure, new_peaks = "COLLAPSE", False, True
    elif all(move.still for move in moves):
        state, sure = "STILL", sure and all(move.known for move in moves)
    elif new_peaks:
        state = "COLLAPSE"
    elif all(move.down for move in moves):
        state, sure = "COLLAPSE", sure and all(move.known for move in moves)
    elif g.up and sq.up and pushes_down and not (off is not None and off.down):
        state = "SQUEEZE"
    elif c.up or (c.still and report.margin is not None and report.margin.up):
        state = "FIT"
    elif c.down:
        state = "DISPLACED"
    else:
        sure = False
    onset, first = _since(state, paths, seed)
    return replace(
        report,
        state=state,
        sure=sure,
        new_peaks=new_peaks,
        onset_step=onset,
        first_sure_step=first,
    )


def move(
    change: Float[np.ndarray, " prompt"],
    tokens: Float[np.ndarray, " prompt"],
    seed: int = 0,
) -> Move:
    """The intervals of one change: nats of each prompt, and its tokens (0: unknown)."""
    counted = np.nansum(tokens) > 0
    weights = tokens if counted else np.full(len(change), TOKENS)
    per_token = pooled_bootstrap(change, weights, seed=seed).at()
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    rates = np.full(len(change), np.nan)
    np.divide(change, weights, out=rates, where=weights > 0)
    return Move(
        paired_bootstrap(change, seed=seed).at(),
        per_token if counted else nothing,
        pooled_bootstrap(change, weights, level=_LEVEL, seed=seed).at(),
        paired_bootstrap(rates, level=_LEVEL, seed=seed).at(),
    )


def _off_target(trajectory: Trajectory, paths: Paths, seed: int) -> Move | None:
    if {"argmax_logp", "token_start_logp"} & set(trajectory.defects):
        return None
    # files of token lists are the size of all tokens: only the last one decides
    off = off_target(trajectory, paths, [len(paths.steps) - 1])
    if off is None or not np.nansum(off[1]) > 0:
        return None
    return move(off[0][0], off[1], seed)


def _pushes_down(trajectory: Trajectory) -> bool:
    """Whether the training may push answers down; also where that is not known."""
    return not trajectory.run.info.sft


def _labels(trajectory: Trajectory, split: str | None) -> tuple[str, ...]:
    """Kinds besides the paper's whose responses are the same for most prompts: columns
    such as a language or the name of a model, that no training is about."""
    if "response" not in trajectory.probes.column_names:
        return ()
    texts = trajectory.probes["response"]
    out = []
    for kind in trajectory.kinds:
        rows = trajectory.rows(kind, split)
        if kind in PAPER_KINDS or len(rows) < 2:
            continue
        if 2 * len(set(texts.take(rows).to_pylist())) <= len(rows):
            out.append(str(kind))
    return tuple(out)


def _since(
    state: State, paths: Paths | None, seed: int
) -> tuple[int | None, int | None]:
    """Updates at the onset, and at the first observation that is sure."""
    if paths is None or paths.greedy is None:
        return None, None
    chosen, greedy = (p - p[0] for p in (paths.logp["chosen"], paths.greedy))
    wanted = {
        "SQUEEZE": (greedy, greedy - chosen),
        "DISPLACED": (-chosen,),
        "COLLAPSE": (-chosen,),
    }.get(state)
    if wanted is None:
        return None, None
    tokens = paths.n_tokens["chosen"]
    if not np.nansum(tokens) > 0:
        tokens = np.full(len(tokens), TOKENS)
    over = np.ones(len(paths.steps), dtype=bool)
    surely = over.copy()
    for change in wanted:
        weights = np.broadcast_to(tokens, change.shape)
        band = pooled_bootstrap(change, weights, level=_LEVEL, seed=seed)
        over &= band.mean >= DELTA
        surely &= (band.mean >= DELTA) & (band.low > 0)
    onset = _first(paths.steps, over, min(_IN_A_ROW, len(over) - 1))
    return onset, _first(paths.steps, surely, 1)


def _first(
    steps: Float[np.ndarray, " step"], over: Bool[np.ndarray, " step"], run: int
) -> int | None:
    """Updates at the first of `run` observations in a row that are over."""
    if run < 1 or len(over) < run:
        return None
    together = np.lib.stride_tricks.sliding_window_view(over, run).all(axis=1)
    starts = np.flatnonzero(together)
    return int(steps[starts[0]]) if len(starts) else None
