"""One run on one prompt axis: every kind's path, the margin, and when it gets there.

    margin(t) = mean over prompts of [(logp chosen - logp rejected)(t) - same at start]
    gap(t)    = mean over prompts of  (logp chosen - logp rejected)(t)

Both are in nats, not times beta. The margin is zero where each run starts; the gap has
one zero for all runs.

Where a run has a panel, its full observations score more prompts than those between
them, and a mean over whoever was scored would jump by the difference of the prompts. So
every path through time is over prompts that were scored at each of its steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float

from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


GREEDY = "greedy path"
"""Name of the argmax log-probability along chosen, where kinds are listed."""

NO_GREEDY = "the probes have no chosen answers, so no greedy path."


@dataclass(frozen=True, eq=False)
class Paths:
    """Values of every kind with one prompt axis; NaN where a prompt lacks a kind, or
    was not scored."""

    prompts: tuple[str, ...]
    """Prompt ids, sorted."""
    steps: Float[np.ndarray, " step"]
    logp: dict[str, Float[np.ndarray, "step prompt"]]
    """Summed log-probability of each kind, in nats; kinds in the paper's order."""
    n_tokens: dict[str, Float[np.ndarray, " prompt"]]
    """Scored tokens of each response."""
    greedy: Float[np.ndarray, "step prompt"] | None
    """Sum over chosen's positions of the largest log-probability, in nats."""
    scored: Bool[np.ndarray, "step prompt"]
    """Whether all probes of a prompt were scored: false outside the panel where an
    observation is of the panel."""

    @classmethod
    def of(cls, trajectory: Trajectory, split: str | None = None) -> "Paths":
        """Bring a run's values onto one prompt axis.

        Done once for a trajectory and a split, which many answers are made from: what
        it returns is shared, so it is for reading.
        """
        known = _KNOWN.setdefault(trajectory, {})
        if split not in known:
            known[split] = cls._read(trajectory, split)
        return known[split]

    @classmethod
    def _read(cls, trajectory: Trajectory, split: str | None) -> "Paths":
        of_split = np.ones(len(trajectory.probes), dtype=bool)
        if split is not None:
            of_split = trajectory.split_of == split
        if not of_split.any():
            splits = ", ".join(sorted(set(trajectory.split_of.tolist())))
            raise BadInput(
                f"{trajectory.run.path} has no probe of split {split}. "
                f"It has: {splits}."
            )
        prompts = tuple(sorted(set(trajectory.prompt_of[of_split].tolist())))
        kinds = [
            k for k in trajectory.kinds if (of_split & (trajectory.kind_of == k)).any()
        ]

        def on_axis(values: np.ndarray, kind: str) -> Float[np.ndarray, "step prompt"]:
            rows = trajectory.rows(kind, split)
            return _spread(values[:, rows], trajectory.prompt_of[rows], prompts)

        columns = trajectory.columns
        tokens = trajectory.n_tokens[None, :]
        return cls(
            prompts,
            trajectory.steps.astype(np.float64),
            {kind: on_axis(columns["logp"], kind) for kind in kinds},
            {kind: on_axis(tokens, kind)[0] for kind in kinds},
            on_axis(columns["argmax_logp"], "chosen") if "chosen" in kinds else None,
            _scored(trajectory, of_split, prompts),
        )

    @property
    def full(self) -> Bool[np.ndarray, " step"]:
        """Steps at which every prompt was scored."""
        return np.asarray(self.scored.all(axis=1))

    @property
    def panel(self) -> Bool[np.ndarray, " prompt"]:
        """Prompts that were scored at every step."""
        return np.asarray(self.scored.all(axis=0))

    def cut(
        self,
        prompts: Bool[np.ndarray, " prompt"] | None = None,
        steps: Bool[np.ndarray, " step"] | None = None,
    ) -> "Paths":
        """Only these prompts and steps."""
        if prompts is None:
            prompts = np.ones(len(self.prompts), dtype=bool)
        if steps is None:
            steps = np.ones(len(self.steps), dtype=bool)

        def part(values: Any) -> Any:
            return values[steps][:, prompts]

        return Paths(
            tuple(p for p, keep in zip(self.prompts, prompts, strict=True) if keep),
            self.steps[steps],
            {kind: part(values) for kind, values in self.logp.items()},
            {kind: counts[prompts] for kind, counts in self.n_tokens.items()},
            None if self.greedy is None else part(self.greedy),
            part(self.scored),
        )

    def common(self) -> "Paths":
        """The same prompts at every step: the panel's; or, where these hold none of the
        panel's prompts, all prompts at the full observations."""
        if self.scored.all():
            return self
        return self.cut(self.panel) if self.panel.any() else self.cut(steps=self.full)

    @property
    def gap(self) -> Float[np.ndarray, "step prompt"] | None:
        """logp chosen - logp rejected, in nats; None without both kinds."""
        if "chosen" not in self.logp or "rejected" not in self.logp:
            return None
        return self.logp["chosen"] - self.logp["rejected"]

    @property
    def margin(self) -> Float[np.ndarray, "step prompt"] | None:
        """The gap minus the gap at the start, in nats; None without both kinds."""
        return None if self.gap is None else self.gap - self.gap[0]

    def with_greedy(self) -> dict[str, Float[np.ndarray, "step prompt"]]:
        """All kinds, and the greedy path under the name `GREEDY` where known."""
        extra = {} if self.greedy is None else {GREEDY: self.greedy}
        return self.logp | extra


@dataclass(frozen=True, slots=True)
class Between:
    """A point between two neighbouring observations."""

    before: int
    after: int
    weight: float
    """0 at the earlier observation, 1 at the later one."""

    def of(self, values: Float[np.ndarray, " step *rest"]) -> np.ndarray:
        """Values at this point, interpolated linearly."""
        early, late = values[self.before], values[self.after]
        if self.before == self.after:
            return np.asarray(early)
        return np.asarray(early + self.weight * (late - early))


def mean_path(values: Float[np.ndarray, "step prompt"]) -> Float[np.ndarray, " step"]:
    """Mean over the prompts that have a value; NaN where none has."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count == 0, np.nan, total / np.maximum(count, 1))


_KNOWN: WeakKeyDictionary[Trajectory, dict[str | None, Paths]] = WeakKeyDictionary()


def first_reach(path: Float[np.ndarray, " step"], value: float) -> Between | None:
    """Where `path` first reaches `value`, or None if it never does."""
    there = np.flatnonzero(path >= value)
    if len(there) == 0:
        return None
    index = int(there[0])
    if index == 0 or not np.isfinite(path[index - 1]):
        return Between(index, index, 0.0)
    before = float(path[index - 1])
    weight = (value - before) / (float(path[index]) - before)
    return Between(index - 1, index, weight)


def off_target(
    trajectory: Trajectory, paths: Paths, points: Sequence[int]
) -> tuple[Float[np.ndarray, "point prompt"], Float[np.ndarray, " prompt"]] | None:
    """Change of the tokens that the first model preferred to chosen's own.

    Over the positions of chosen where the first observation's argmax is not the label:
    the sum of log pi(that argmax) minus the same at the start, in nats per response, at
    each observation in `points` (indices into the steps of `paths`), NaN where a prompt
    was not scored; and the number of such positions. Above zero: wrong favourites
    gained. None where token ids are unknown.
    """
    if (
        "chosen" not in paths.logp
        or "response_ids" not in trajectory.probes.column_names
    ):
        return None
    start = int(trajectory.steps[0])
    favourite = trajectory.tokens("token_argmax_id", start)
    labels = trajectory.probes["response_ids"].combine_chunks().flatten().to_numpy()
    if len(labels) != len(favourite):
        return None
    probe_of = np.repeat(np.arange(len(trajectory.n_tokens)), trajectory.n_tokens)
    chosen = trajectory.kind_of == "chosen"
    rows = np.flatnonzero(chosen)
    astray = np.flatnonzero((favourite != labels) & chosen[probe_of])
    owner = np.searchsorted(rows, probe_of[astray])

    def spread(per_row: Float[np.ndarray, " row"]) -> Float[np.ndarray, " prompt"]:
        return _spread(per_row[None], trajectory.prompt_of[rows], paths.prompts)[0]

    def at(step: int) -> Float[np.ndarray, " position"]:
        values = trajectory.tokens("token_start_logp", step).astype(np.float64)
        scored = trajectory.covered[np.searchsorted(trajectory.steps, step)]
        if scored.all():
            return values[astray]
        there = scored[probe_of]
        place = (np.cumsum(there) - 1)[astray]  # among the tokens that were scored
        return np.where(there[astray], values[place], np.nan)

    begin = at(start)

    def moved(step: int) -> Float[np.ndarray, " prompt"]:
        scored = trajectory.covered[np.searchsorted(trajectory.steps, step), rows]
        change = np.bincount(owner, at(step) - begin, minlength=len(rows))
        # unknown also where a response that was not scored has no such position
        return spread(np.where(scored, change, np.nan))

    changes = [moved(int(paths.steps[i])) for i in points]
    counted = np.bincount(owner, minlength=len(rows)).astype(np.float64)
    return np.stack(changes), spread(counted)


def paired(
    values: Float[np.ndarray, "step prompt"], scored: Bool[np.ndarray, "step prompt"]
) -> tuple[Bool[np.ndarray, " step"], Bool[np.ndarray, " prompt"]]:
    """Steps and prompts at which `values` are of the same prompts throughout.

    All steps with the panel's prompts; or, where none of these has a value, the full
    observations with all prompts.
    """
    steps, prompts = np.ones(len(scored), dtype=bool), np.asarray(scored.all(axis=0))
    if prompts.all() or np.isfinite(values[0, prompts]).any():
        return steps, prompts
    return np.asarray(scored.all(axis=1)), np.ones(len(prompts), dtype=bool)


def _scored(
    trajectory: Trajectory,
    of_split: Bool[np.ndarray, " probe"],
    prompts: Sequence[str],
) -> Bool[np.ndarray, "step prompt"]:
    """Whether all probes of each prompt, those `of_split`, were scored."""
    position = {prompt: index for index, prompt in enumerate(prompts)}
    out = np.ones((len(trajectory.steps), len(prompts)), dtype=bool)
    covered = trajectory.covered
    for row in np.flatnonzero(of_split & ~covered.all(axis=0)):
        out[:, position[str(trajectory.prompt_of[row])]] &= covered[:, row]
    return out


def _spread(
    values: Float[np.ndarray, "step row"] | np.ndarray,
    prompt_of: np.ndarray,
    prompts: Sequence[str],
) -> Float[np.ndarray, "step prompt"]:
    """Put columns where their prompts stand in `prompts`; the others stay NaN, and
    what is not finite becomes NaN."""
    position = {prompt: index for index, prompt in enumerate(prompts)}
    rows = [i for i, prompt in enumerate(prompt_of.tolist()) if prompt in position]
    out = np.full((len(values), len(prompts)), np.nan)
    finite = np.where(np.isfinite(values[:, rows]), values[:, rows], np.nan)
    out[:, [position[prompt_of[i]] for i in rows]] = finite
    return out


LAST = 0.2
"""Share of the observations, from the end, that a run is judged by."""


def last_observations(observations: int) -> int:
    """How many observations from the end a run is judged by; never the first one."""
    return max(1, min(round(LAST * observations), observations - 1))


def with_end(
    change: Float[np.ndarray, "step prompt"], last: int
) -> Float[np.ndarray, "row prompt"]:
    """The changes, and below them each prompt's mean over its last finite values."""
    end = change[-last:]
    known = np.isfinite(end)
    count = known.sum(axis=0)
    mean = np.where(known, end, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.vstack([change, np.where(count > 0, mean, np.nan)])


def end_change(path: Float[np.ndarray, "step prompt"]) -> Float[np.ndarray, " prompt"]:
    """Each prompt's mean change over the last observations."""
    return with_end(path - path[0], last_observations(len(path)))[-1]


def outside_panel(trajectory: Trajectory, split: str | None = None) -> list[str]:
    """Kinds that no prompt of the panel has: they are followed over all prompts, at the
    full observations alone. None of them without a panel."""
    always = trajectory.covered.all(axis=0)
    start = np.isfinite(trajectory.columns["logp"][0])
    here = True if split is None else trajectory.split_of == split
    inside = set(trajectory.kind_of[always & start & here])
    outside = set(trajectory.kind_of[~always & here])
    return [kind for kind in trajectory.kinds if kind in outside - inside]
