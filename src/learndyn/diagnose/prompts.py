"""Which prompts were squeezed, and which tokens gained what their answers lost.

A prompt is squeezed where its greedy path rises and its chosen answer falls: the mean
over prompts may hide that half of them are and half are not. The sign of a change is
taken as it is, so where next to nothing moved about one prompt in four has these signs
by chance; read the share beside the changes themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.intervals import Interval, share_interval
from learndyn.diagnose.paths import Paths, off_target
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt's changes from first to last observation, nats per response."""

    prompt_id: str
    probe: int
    """Row of its chosen answer in the table of probes: prompt and answer as text."""
    chosen: float
    rejected: float | None
    """None where the prompt has no rejected answer."""
    greedy: float
    """Sum over chosen's positions of the largest log-probability."""
    off_target: float | None
    """Sum over the positions of chosen whose first favourite is not the label, of that
    favourite's log-probability. None where token ids are not known."""
    tokens: int
    """Scored tokens of chosen; 0 where not known."""

    @property
    def squeezed(self) -> bool:
        """Whether the greedy path rose and chosen fell."""
        return self.depth > 0

    @property
    def depth(self) -> float:
        """How far both moved that way, nats: the smaller of the greedy path's rise and
        chosen's fall; negative where one moved the other way."""
        return min(self.greedy, -self.chosen)


@dataclass(frozen=True)
class ByPrompt:
    """All prompts with chosen at the last observation, the most squeezed first."""

    step: float
    """Optimizer updates at the last observation."""
    rows: tuple[PromptRow, ...]
    squeezed: Interval
    """Share of prompts whose greedy path rose and whose chosen fell."""


def by_prompt(trajectory: Trajectory, split: str | None = None) -> ByPrompt | None:
    """Every prompt's changes; those of the panel where the last observation is of it.

    Prompts whose values are not finite (the model had diverged on them) are left out.
    None where no probe is chosen.
    """
    paths = Paths.of(trajectory, split)
    if not paths.full[-1]:
        paths = paths.common()
    if paths.greedy is None:
        return None
    chosen = paths.logp["chosen"][-1] - paths.logp["chosen"][0]
    greedy = paths.greedy[-1] - paths.greedy[0]
    unknown = np.full(len(chosen), np.nan)
    rejected = unknown
    if "rejected" in paths.logp:
        rejected = paths.logp["rejected"][-1] - paths.logp["rejected"][0]
    off = off_target(trajectory, paths, [len(paths.steps) - 1])
    tokens = np.nan_to_num(paths.n_tokens["chosen"]).astype(int)
    astray = off[0][0] if off is not None and tokens.any() else unknown
    probes = trajectory.rows("chosen", split)
    probe_of = dict(zip(trajectory.prompt_of[probes].tolist(), probes, strict=True))
    whole = np.isfinite(chosen) & np.isfinite(greedy)
    rows = [
        PromptRow(
            paths.prompts[i],
            int(probe_of[paths.prompts[i]]),
            float(chosen[i]),
            _known(rejected[i]),
            float(greedy[i]),
            _known(astray[i]),
            int(tokens[i]),
        )
        for i in np.flatnonzero(whole)
    ]
    rows.sort(key=lambda row: (-row.depth, row.prompt_id))
    squeezed = share_interval(sum(row.squeezed for row in rows), len(rows))
    return ByPrompt(float(paths.steps[-1]), tuple(rows), squeezed)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One position of a chosen answer; changes since the first observation, in nats."""

    position: int
    """0 is the answer's first token."""
    label: int
    """Id of the answer's own token."""
    label_change: float
    first_favourite: int
    """Id of the argmax at the first observation."""
    first_favourite_change: float
    last_favourite: int
    """Id of the argmax at the last observation."""
    last_favourite_logp: float
    """Its log-probability there, in nats."""

    @property
    def off_target(self) -> bool:
        """Whether the model's first favourite was another token than the answer's."""
        return self.first_favourite != self.label


@dataclass(frozen=True, slots=True)
class Favourite:
    """One token as a wrong favourite: the argmax at a position of another label."""

    token: int
    positions_before: int
    """Positions of chosen answers where it is so at the first observation."""
    positions: int
    """The same at the last observation."""
    mass_before: float
    """Its probability there, summed over these positions; first observation."""
    mass: float

    @property
    def gain(self) -> float:
        """Probability that it gained as a wrong favourite, summed over positions."""
        return self.mass - self.mass_before


@dataclass(frozen=True, eq=False)
class ChosenTokens:
    """The positions of all chosen answers, at the first and the last observation.

    Read once, then asked for one prompt or for all.
    """

    prompt: np.ndarray
    """Prompt id (text) of each position."""
    position: Int[np.ndarray, " token"]
    label: Int[np.ndarray, " token"]
    favourite: Int[np.ndarray, "two token"]
    """Id of the argmax, first and last."""
    favourite_logp: Float[np.ndarray, "two token"]
    """Its log-probability at the same observation."""
    label_change: Float[np.ndarray, " token"]
    start_change: Float[np.ndarray, " token"]
    """Change of the first observation's argmax."""

    @classmethod
    def of(
        cls, trajectory: Trajectory, split: str | None = None
    ) -> "ChosenTokens | None":
        """Read them: of all prompts that the last observation is of.

        None where no probe is chosen, or where the run has no values per token.
        """
        chosen = trajectory.kind_of == "chosen"
        if split is not None:
            chosen &= trajectory.split_of == split
        if "response_ids" not in trajectory.probes.column_names or not chosen.any():
            return None
        labels = trajectory.probes["response_ids"].combine_chunks().flatten().to_numpy()
        first = trajectory.observation(int(trajectory.steps[0]))
        last = trajectory.observation(int(trajectory.steps[-1]))
        if len(labels) == 0 or len(labels) != len(first.token_logp):
            return None
        scored = np.zeros(len(chosen), dtype=bool)
        scored[last.ids] = True
        here = np.repeat(chosen & scored, first.n_tokens)
        there = np.repeat(chosen[last.ids], last.n_tokens)
        owner = np.repeat(np.arange(len(chosen)), first.n_tokens)
        position = np.arange(len(labels)) - first.offsets[owner]

        def change(name: str) -> Float[np.ndarray, " token"]:
            now, begin = getattr(last, name)[there], getattr(first, name)[here]
            return now.astype(np.float64) - begin

        def both(name: str) -> np.ndarray:
            return np.stack([getattr(first, name)[here], getattr(last, name)[there]])

        return cls(
            trajectory.prompt_of[owner[here]],
            position[here],
            labels[here],
            both("token_argmax_id"),
            both("token_argmax_logp").astype(np.float64),
            change("token_logp"),
            change("token_start_logp"),
        )

    def rows(self, prompt_id: str) -> list[TokenRow]:
        """The positions of one prompt's answer, in order."""
        return [
            TokenRow(
                int(self.position[i]),
                int(self.label[i]),
                float(self.label_change[i]),
                int(self.favourite[0, i]),
                float(self.start_change[i]),
                int(self.favourite[1, i]),
                float(self.favourite_logp[1, i]),
            )
            for i in np.flatnonzero(self.prompt == prompt_id)
        ]

    def favourites(self, most: int = 10) -> list[Favourite]:
        """The tokens that gained most probability as wrong favourites; only gains."""
        wrong = (self.favourite != self.label) & np.isfinite(self.favourite_logp)
        mass = np.where(wrong, np.exp(self.favourite_logp), 0.0)
        tokens, place = np.unique(self.favourite, return_inverse=True)
        place = place.reshape(self.favourite.shape)

        def total(when: int, values: np.ndarray) -> np.ndarray:
            return np.bincount(place[when], values[when], minlength=len(tokens))

        masses = [total(when, mass) for when in (0, 1)]
        counts = [total(when, wrong) for when in (0, 1)]
        order = np.lexsort([tokens, masses[0] - masses[1]])[:most]
        return [
            Favourite(
                int(tokens[i]),
                int(counts[0][i]),
                int(counts[1][i]),
                float(masses[0][i]),
                float(masses[1][i]),
            )
            for i in order
            if masses[1][i] > masses[0][i]
        ]


def token_texts(trajectory: Trajectory) -> Mapping[int, str]:
    """Text of token ids, as far as the run keeps them: where forces were recorded.

    Probes keep ids only, and ids are turned into text by the model's tokenizer alone.
    A force record has the text of each token of the answers that it is about.
    """
    steps = trajectory.run.forces_steps
    if not steps or "response_ids" not in trajectory.probes.column_names:
        return {}
    forces = trajectory.run.read_forces(steps[0], influence=False)
    answers = trajectory.probes["response_ids"].take(forces.probe_ids)
    ids = answers.combine_chunks().flatten().to_pylist()
    if len(ids) != len(forces.token_text):
        return {}
    return dict(zip(ids, forces.token_text, strict=True))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
