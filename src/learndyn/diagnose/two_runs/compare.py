"""Two runs on the same answers: what differs, and how much of it is progress.

At equal updates the run that moves faster looks different only because it is further.
So runs are compared at three points:

    updates   both after the same number of updates
    margin    both where their own DPO margin first reaches m*. Its zero is each run's
              own start, so a run that starts with a wide gap must go further
    gap       both where logp chosen - logp rejected first reaches the same value

At "updates" and "margin" changes since each run's own start are compared, at "gap" the
levels of logp themselves. The intervals resample prompts, the same for both runs, and
look up the point anew in each resample. A resample is lost where a run starts beyond
the point or never reaches it, and those that are left favour prompts that get there. So
a point that loses more than 20 % is refused, and the largest point that loses no more
is taken, if it is at least half as far: near the start any two runs are alike.

Runs that watched other answers, or scored them as other tokens, are refused. Where a
run has a panel, both runs are compared over the prompts that both scored at all
observations that the look-up needs. At "updates" these are the first one and those at
the point, so two finished runs are compared over all prompts.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.diagnose.intervals import (
    Interval,
    band,
    ratio_of_sums,
    resample_weights,
)
from learndyn.diagnose.paths import Paths, off_target
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


def together(a: Paths, b: Paths) -> tuple[Paths, Paths]:
    """Both runs on the prompts that each of them scored at every observation.

    With fewer than two such prompts: on all prompts, at their full observations.
    """
    shared = a.panel & b.panel
    if shared.sum() < 2:
        return a.cut(steps=a.full), b.cut(steps=b.full)
    return a.cut(shared), b.cut(shared)


def _together_at(a: Paths, b: Paths, step: float) -> tuple[Paths, Paths]:
    """Both runs on the prompts that each scored first and around `step`."""
    shared = np.ones(len(a.prompts), dtype=bool)
    for side in (a, b):
        after = min(int(np.searchsorted(side.steps, step)), len(side.steps) - 1)
        exact = side.steps[after] <= step
        around = [after] if exact else [max(after - 1, 0), after]
        shared &= side.scored[[0, *around]].all(axis=0)
    return together(a, b) if shared.sum() < 2 else (a.cut(shared), b.cut(shared))


def _same_probes(a: Trajectory, b: Trajectory) -> None:
    """Refuse runs that watched other answers."""
    prints = [t.run.info.probe_fingerprint for t in (a, b)]
    if prints[0] is None or prints[0] != prints[1]:
        raise BadInput(
            f"{a.run.path} and {b.run.path} cannot be compared: they watched other "
            f"answers (probe fingerprints {str(prints[0])[:12]} and "
            f"{str(prints[1])[:12]}). Use runs with the same probe set."
        )


def _same_tokens(a: Trajectory, b: Trajectory) -> None:
    """A log-probability is of tokens: the same text as other tokens has another."""
    hashes = [str(t.run.info.tokenizer_sha256)[:12] for t in (a, b)]
    where = f"{a.run.path} and {b.run.path} cannot be compared:"
    if hashes[0] != hashes[1]:
        raise BadInput(
            f"{where} their tokenizers differ (SHA-256 {hashes[0]} and {hashes[1]}), "
            "and log-probabilities of other tokens are not comparable. Use runs of "
            "models with one tokenizer."
        )
    keys = [("prompt_id", "ascending"), ("kind", "ascending")]
    one, other = (t.probes.sort_by(keys) for t in (a, b))
    ids = ["prompt_ids", "response_ids"]
    if one.select(ids).equals(other.select(ids)):
        return
    names = ["prompt_id", "kind", "n_tokens", *ids]
    rows, others = (table.select(names).to_pylist() for table in (one, other))
    of = {(row["prompt_id"], row["kind"]): row for row in others}
    pairs = [(row, of.get((row["prompt_id"], row["kind"]), row)) for row in rows]
    differ = [(x, y) for x, y in pairs if x != y]
    if not differ:
        return
    x, y = differ[0]
    lengths = [t.run.info.max_length for t in (a, b)]
    raise BadInput(
        f"{where} {len(differ)} of {len(one)} probes have other token ids. Of "
        f"{x['kind']} of prompt {x['prompt_id']} they scored {x['n_tokens']} and "
        f"{y['n_tokens']} tokens after prompts of {len(x['prompt_ids'])} and "
        f"{len(y['prompt_ids'])}; max_length was {lengths[0]} and {lengths[1]}. Give "
        "both runs the same limits, or score one model anew with `learndyn score "
        "MODEL --run RUN`."
    )


By = Literal["updates", "margin", "gap"]

LOST = 0.2
"""Share of resamples that may be lost at a matched point."""

_LEAST = 0.5
"""An earlier point is at least this share of the way to the one first looked at."""


@dataclass(frozen=True)
class Difference:
    """One quantity in both runs at the matched point, in nats."""

    a: float
    b: float
    difference: Interval
    """b - a, paired over prompts."""


@dataclass(frozen=True)
class Comparison:
    """Run b against run a at one matched point."""

    by: By
    at: float | None
    """Updates, margin or gap at which both are looked at; None if there is no such
    point, or it is refused, and then `reason` says why."""
    step_a: float = float("nan")
    """Updates that run a needed to get there; fractional between observations."""
    step_b: float = float("nan")
    kinds: dict[str, Difference] = field(default_factory=dict)
    """Changes since the own start; levels of logp when matched by gap."""
    greedy: Difference | None = None
    """The same for argmax_logp along chosen."""
    off_target: Difference | None = None
    """Change of the own first favourites that are not chosen's tokens, nats per such
    token. None when matched by gap: it is a change and has no level."""
    prompts: int = 0
    """Prompts looked at: all, or those that both runs scored where it matters."""
    of: int = 0
    """Prompts that there are."""
    lost_share: float = 0.0
    """Share of resamples in which a run starts beyond the point or never reaches it.
    They are left out of the intervals. Where the point is refused, the share there."""
    reason: str | None = None
    """Why there are no numbers; with numbers, why an earlier point was taken."""


def compare(
    a: Trajectory,
    b: Trajectory,
    by: By,
    *,
    at: float | None = None,
    fraction: float = 0.8,
    split: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare run `b` with run `a` at one matched point, over the probes of `split`.

    Without `at`: the last update that both have; `fraction` of the smaller final
    margin; or, for the gap, `fraction` of the way from the higher of the two starts to
    the lower of the two ends, a stretch that both runs pass through. Close to the end
    of a run many resamples would never reach the point.

    Where that point loses more than 20 % of the resamples, an earlier one is taken; an
    `at` that does so is refused. Where there is no point, or `at` lies outside a run,
    the result has no numbers and its `reason` says why.
    """
    sides = _sides(a, b, by, at, split)
    prompts, of = len(sides[0].paths.prompts), len(Paths.of(a, split).prompts)
    given = at is not None
    if at is None:
        at, reason = _matched_point(by, sides, fraction)
        if at is None:
            return Comparison(by, None, prompts=prompts, of=of, reason=reason)
    everyone = np.ones((1, prompts))
    if not all(side.reach(at, everyone).reached[0] for side in sides):
        reason = f"a run starts beyond {at:.4g} or never reaches it."
        return Comparison(by, None, prompts=prompts, of=of, reason=reason)
    weights = resample_weights(prompts, seed=seed)
    point, lost, reason = _tenable(by, sides, at, weights, given=given)
    if point is None:
        return Comparison(
            by, None, prompts=prompts, of=of, lost_share=lost, reason=reason
        )
    at = point
    whole = (sides[0].reach(at, everyone), sides[1].reach(at, everyone))
    drawn = (sides[0].reach(at, weights), sides[1].reach(at, weights))
    result = _differences(sides, whole, drawn, weights)
    return Comparison(
        by,
        at,
        step_a=float(whole[0].of(sides[0].paths.steps)[0]),
        step_b=float(whole[1].of(sides[1].paths.steps)[0]),
        greedy=result.pop("greedy", None),
        off_target=result.pop("off_target", None),
        kinds={name.removeprefix("kind:"): d for name, d in result.items()},
        prompts=prompts,
        of=of,
        lost_share=lost,
        reason=reason,
    )


@dataclass(frozen=True, eq=False)
class _Points:
    """Where each resample stands: between `before` and `before + 1`."""

    before: Int[np.ndarray, " draw"]
    weight: Float[np.ndarray, " draw"]
    reached: Bool[np.ndarray, " draw"]

    def of(self, path: Float[np.ndarray, " step *draws"]) -> Float[np.ndarray, " draw"]:
        """One value per draw, interpolated; `path` may be common to all draws."""
        after = np.minimum(self.before + 1, len(path) - 1)
        if path.ndim == 1:
            early, late = path[self.before], path[after]
        else:
            draws = np.arange(path.shape[1])
            early, late = path[self.before, draws], path[after, draws]
        # an end that has no weight may be unknown: prompts are not always scored there
        between = early + np.where(self.weight > 0, self.weight * (late - early), 0.0)
        return np.where(self.weight == 1, late, between)

    @property
    def nearest(self) -> int:
        """Index of an observation that the first draw stands on or beside."""
        return int(self.before[0] + (self.weight[0] > 0))

    def used(self, steps: int) -> Int[np.ndarray, " used"]:
        """Indices of the observations that some draw stands on, of so many."""
        return np.unique(np.minimum([self.before, self.before + 1], steps - 1))

    def among(self, used: Int[np.ndarray, " used"]) -> "_Points":
        """The same on a path that has these observations alone."""
        return replace(self, before=np.searchsorted(used, self.before))


@dataclass(frozen=True, eq=False)
class _Side:
    """One run with what is needed to look at it anywhere."""

    trajectory: Trajectory
    paths: Paths
    by: By
    values: dict[str, Float[np.ndarray, "step prompt"]]

    @classmethod
    def of(cls, trajectory: Trajectory, paths: Paths, by: By) -> "_Side":
        if by != "updates" and paths.gap is None:
            raise BadInput(
                f"{trajectory.run.path} cannot be matched by {by}: its probes lack "
                "chosen or rejected. Compare by updates."
            )
        values = {f"kind:{kind}": path for kind, path in paths.logp.items()}
        if paths.greedy is not None:
            values["greedy"] = paths.greedy
        if by != "gap":
            values = {name: path - path[0] for name, path in values.items()}
        return cls(trajectory, paths, by, values)

    def parts(self, points: "_Points") -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Name -> numerator and denominator, step x prompt, of all that is compared.

        Per-token values are read only at the observations that `points` stand on.
        """
        parts = {name: (v, np.ones_like(v)) for name, v in self.values.items()}
        if self.by == "gap":
            return parts
        used = points.used(len(self.paths.steps))
        off = off_target(self.trajectory, self.paths, used.tolist())
        if off is not None and np.nansum(off[1]) > 0:
            change = np.full((len(self.paths.steps), len(self.paths.prompts)), np.nan)
            change[used] = off[0]
            tokens = np.broadcast_to(off[1], change.shape)
            parts["off_target"] = (change, tokens)
        return parts

    def clock(
        self, weights: Float[np.ndarray, "draw prompt"]
    ) -> Float[np.ndarray, "step draw"]:
        """What the runs are matched by, at every observation in every draw."""
        values = self.paths.margin if self.by == "margin" else self.paths.gap
        if self.by == "updates" or values is None:
            return np.repeat(self.paths.steps[:, None], len(weights), axis=1)
        return ratio_of_sums(values, np.ones_like(values), weights)

    def reach(self, at: float, weights: Float[np.ndarray, "draw prompt"]) -> _Points:
        """Where each draw first reaches `at` from below."""
        clock = self.clock(weights)
        there = clock >= at
        index = np.argmax(there, axis=0)
        draws = np.arange(clock.shape[1])
        exact = clock[0] == at
        before = np.maximum(index - 1, 0)
        low, high = clock[before, draws], clock[index, draws]
        span = np.where(high > low, high - low, 1.0)
        weight = np.where(index > 0, (at - low) / span, 0.0)
        return _Points(before, weight, there.any(axis=0) & ((index > 0) | exact))


def _sides(
    a: Trajectory, b: Trajectory, by: By, at: float | None, split: str | None
) -> tuple[_Side, _Side]:
    """Both runs, on the prompts that each of them scored where they are looked at."""
    _same_probes(a, b)
    _same_tokens(a, b)
    one, other = Paths.of(a, split), Paths.of(b, split)
    if by == "updates":
        end = float(min(one.steps[-1], other.steps[-1])) if at is None else at
        one, other = _together_at(one, other, end)
    else:
        one, other = together(one, other)
    return _Side.of(a, one, by), _Side.of(b, other, by)


def _matched_point(
    by: By, sides: tuple[_Side, _Side], fraction: float
) -> tuple[float | None, str | None]:
    if by == "updates":
        return float(min(side.paths.steps[-1] for side in sides)), None
    clocks = [side.clock(np.ones((1, len(side.paths.prompts))))[:, 0] for side in sides]
    start = max(float(clock[0]) for clock in clocks)
    end = min(float(clock[-1]) for clock in clocks)
    if not end > start:
        return None, (
            f"there is no {by} that both runs pass through: the higher start is "
            f"{start:.1f} nats, the lower end {end:.1f}."
        )
    return start + fraction * (end - start), None


def _lost_share(
    sides: tuple[_Side, _Side], at: float, weights: Float[np.ndarray, "draw prompt"]
) -> float:
    """Share of resamples in which a run starts beyond `at` or never reaches it."""
    reached = [side.reach(at, weights).reached for side in sides]
    return float(np.mean(~(reached[0] & reached[1])))


def _tenable(
    by: By,
    sides: tuple[_Side, _Side],
    at: float,
    weights: Float[np.ndarray, "draw prompt"],
    *,
    given: bool,
) -> tuple[float | None, float, str | None]:
    """Where to compare: at `at`, or, unless that point is `given`, at an earlier one;
    None where too many resamples are lost. With it, the share lost and why."""
    lost = _lost_share(sides, at, weights)
    if lost <= LOST:
        return at, lost, None
    reason = (
        f"{100 * lost:.1f} % of resamples start beyond {at:.3g} nats or never reach "
        f"it, more than {100 * LOST:.0f} %"
    )
    if given:
        return None, lost, f"{reason}."
    earlier = _earlier(sides, at, weights)
    if earlier is None:
        return None, lost, f"{reason}, and no {by} at least half as far loses less."
    lost = _lost_share(sides, earlier, weights)
    return earlier, lost, f"{reason}: an earlier {by} was taken."


def _earlier(
    sides: tuple[_Side, _Side], at: float, weights: Float[np.ndarray, "draw prompt"]
) -> float | None:
    """The largest point before `at` that loses few enough resamples; None where there
    is none at least half as far from the start."""
    clocks = [side.clock(weights) for side in sides]
    whole = [side.clock(np.ones((1, weights.shape[1]))) for side in sides]
    start = max(float(clock[0, 0]) for clock in whole)
    first = np.maximum(clocks[0][0], clocks[1][0])
    furthest = np.minimum(*(np.fmax.reduce(clock, axis=0) for clock in clocks))
    for point in np.unique(furthest[furthest < at])[::-1]:
        if point < start + _LEAST * (at - start):
            return None
        if np.mean((first <= point) & (point <= furthest)) >= 1 - LOST:
            return float(point)
    return None


def _differences(
    sides: tuple[_Side, _Side],
    whole: tuple[_Points, _Points],
    drawn: tuple[_Points, _Points],
    weights: Float[np.ndarray, "draw prompt"],
) -> dict[str, Difference]:
    """Every quantity that both runs have, at the matched point."""
    lost = ~(drawn[0].reached & drawn[1].reached)
    parts = [side.parts(points) for side, points in zip(sides, drawn, strict=True)]
    everyone = np.ones((1, weights.shape[1]))
    out = {}
    for name in [name for name in parts[0] if name in parts[1]]:
        at, draws, known = [], [], True
        for part, here, there in zip(parts, whole, drawn, strict=True):
            values, tokens = part[name]
            at.append(float(here.of(ratio_of_sums(values, tokens, everyone))[0]))
            used = there.used(len(values))  # elsewhere no draw looks
            drawn_at = ratio_of_sums(values[used], tokens[used], weights)
            draws.append(there.among(used).of(drawn_at))
            known = known & np.isfinite(
                values[here.nearest] if name != "off_target" else tokens[0]
            )
        spread = np.where(lost, np.nan, draws[1] - draws[0])
        interval = band(np.array(at[1] - at[0]), spread, np.array(np.sum(known))).at()
        out[name] = Difference(at[0], at[1], interval)
    return out
