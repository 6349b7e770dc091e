"""The panel: a fixed sample of the prompts, scored between full observations.

Scoring all prompts at every observation is expensive, and scoring other prompts each
time would mix differences between prompts into changes between steps. So the same N
prompts are scored throughout, and reports show their change, which is paired.

A prompt is in the panel by its rank: SHA-256 of the seed and its id. That depends
neither on the order of the probes nor on any library's random numbers, and a smaller
panel of the same seed is a part of a larger one (up to the rounding of the strata), so
that runs with panels of different sizes still share prompts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learndyn.errors import BadInput
from learndyn.probes.probe import ProbeSet


@dataclass(frozen=True)
class Panel:
    """Which prompts of a run are scored between full observations."""

    prompts: tuple[str, ...] | None
    """Their ids, sorted; None if as many were asked for as there are: then all prompts
    are scored at every observation."""
    size: int
    """How many were asked for."""
    of: int
    """How many prompts the probe set has."""
    seed: int = 0
    full_every: int | None = None
    """All prompts are scored at multiples of this many updates too."""

    @classmethod
    def draw(
        cls,
        probes: ProbeSet,
        size: int,
        *,
        seed: int = 0,
        full_every: int | None = None,
    ) -> "Panel":
        """Draw `size` prompts, from each split in proportion to its prompts."""
        splits: dict[str, set[str]] = {}
        split_of = {p.prompt_id: p.split for p in sorted(probes, key=lambda p: p.split)}
        for prompt, split in split_of.items():
            splits.setdefault(split, set()).add(prompt)
        of = len(split_of)
        if size >= of:
            return cls(None, size, of, seed, full_every)
        shares = _shares(
            {split: len(prompts) for split, prompts in splits.items()}, size
        )
        drawn = [
            prompt
            for split, prompts in splits.items()
            for prompt in sorted(prompts, key=lambda p: _rank(seed, p))[: shares[split]]
        ]
        return cls(tuple(sorted(drawn)), size, of, seed, full_every)

    @classmethod
    def of_run(cls, info: Mapping[str, Any]) -> "Panel | None":
        """The panel that a `run.json` records, or None."""
        entry = info.get("panel")
        if entry is None:
            return None
        try:
            ids = entry["prompts"]
            prompts = None if ids is None else tuple(sorted(map(str, ids)))
            size = entry["asked"] if prompts is None else len(prompts)
            return cls(
                prompts, int(size), int(entry["of"]), entry["seed"], entry["full_every"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"the entry `panel` of run.json cannot be read ({error!r}). It has "
                "`prompts` (ids), `seed`, `of` and `full_every`."
            ) from error

    def to_info(self) -> dict[str, Any]:
        """What `run.json` keeps."""
        entry: dict[str, Any] = {
            "prompts": None if self.prompts is None else list(self.prompts),
            "seed": self.seed,
            "of": self.of,
            "full_every": self.full_every,
        }
        if self.prompts is None:
            entry["asked"] = self.size
            entry["note"] = (
                f"a panel of {self.size} was asked for and there are {self.of} "
                "prompts: all of them are scored at every observation"
            )
        return entry

    def __str__(self) -> str:
        """Its settings, as the callback takes them."""
        seed, full = self.seed, self.full_every
        return f"panel={self.size}, panel_seed={seed}, full_every={full}"


def _rank(seed: int, prompt: str) -> bytes:
    # An id may hold a lone surrogate, which UTF-8 refuses.
    text = f"{seed}\n{prompt}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()


def _shares(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of `size` each split gets: in proportion, largest remainders first, and
    at least one each where there are as many as splits."""
    total = sum(counts.values())
    exact = {split: size * count / total for split, count in counts.items()}
    least = 1 if size >= len(counts) else 0
    shares = {split: max(least, int(part)) for split, part in exact.items()}
    while (missing := size - sum(shares.values())) != 0:
        # the split that is furthest from its share, by name where two are as far
        one = 1 if missing > 0 else -1
        free = [s for s, n in shares.items() if one > 0 or n > least]
        worst = max(sorted(free), key=lambda s: one * (exact[s] - shares[s]))
        shares[worst] += one
    return shares
