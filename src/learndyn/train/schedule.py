"""When a run is observed, and whether in full or on its panel."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from learndyn.errors import BadInput
from learndyn.probes.panel import Panel
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedProbes


Every = int | Literal["log"]

_LOG_STEPS = frozenset(round(10 ** (i / 8)) for i in range(0, 80))
"""Steps of `every="log"`: eight per decade (1, 2, 3, 4, 6, 7, 10, 13, 18, ...)."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to observe; all numbers but the seed are updates or prompts.

    Raises:
        BadInput: if a number is too small or not whole, or if `full_every` or
            `panel_seed` is given without `panel`.
    """

    every: Every = 25
    """Updates between observations, or "log"."""
    panel: int | None = None
    """Prompts that are scored between full observations; None: all of them."""
    full_every: int | None = None
    """Updates between full observations, beside the first and the last."""
    panel_seed: int = 0

    def __post_init__(self) -> None:
        if self.every != "log" and not _is_count(self.every, 1):
            raise BadInput(
                f"every={self.every!r}: give a number of updates >= 1, or 'log'."
            )
        if self.panel is None:
            for name, value, default in (
                ("full_every", self.full_every, None),
                ("panel_seed", self.panel_seed, 0),
            ):
                if value != default:
                    raise BadInput(
                        f"{name}={value} needs panel=N: without a panel every "
                        "observation scores all prompts."
                    )
            return
        if not _is_count(self.panel, 2):
            raise BadInput(
                f"panel={self.panel!r}: give 2 prompts or more, since fewer have no "
                "standard error. 50 or more are useful."
            )
        if self.full_every is not None and not _is_count(self.full_every, 1):
            raise BadInput(
                f"full_every={self.full_every!r}: give a number of updates >= 1, or "
                "leave it out: the first and the last observation are full anyway."
            )

    def draw(self, probes: ProbeSet) -> Panel | None:
        """The panel of these probes; None without one."""
        if self.panel is None:
            return None
        return Panel.draw(
            probes, self.panel, seed=self.panel_seed, full_every=self.full_every
        )

    def is_due(self, step: int, panel: Panel | None = None) -> bool:
        """Whether an observation is due after update `step`."""
        if panel is not None and _is_multiple(step, panel.full_every):
            return True
        if self.every == "log":
            return step in _LOG_STEPS
        return step % self.every == 0

    def is_kth(self, step: int, panel: Panel | None, every: int) -> bool:
        """Whether the observation after `step` is due, and the k-th, 2k-th, ..."""
        if not self.is_due(step, panel):
            return False
        if self.every == "log":
            count = sum(s <= step for s in _LOG_STEPS)
        else:
            count = step // self.every
        full = None if panel is None else panel.full_every
        if full is not None:  # full observations between the regular ones count too
            count += sum(
                not Schedule(self.every).is_due(s) for s in range(full, step + 1, full)
            )
        return count % every == 0

    def check_same(self, panel: Panel | None, run: str) -> None:
        """A resumed run goes on with its own `panel`, whether or not it is named again.

        Raises:
            BadInput: if another panel is given.
        """
        if self.panel is None:
            return
        if panel is None:
            raise BadInput(
                f"cannot continue {run} with panel={self.panel}: it scores all prompts "
                "at every observation. Leave panel= out, or choose another out=."
            )
        now = Panel(None, self.panel, panel.of, self.panel_seed, self.full_every)
        if str(now) != str(panel):
            raise BadInput(
                f"cannot continue {run} with {now}: it began with {panel}, and a "
                "panel stays the same throughout. Give the same, or leave them out, or "
                "choose another out=."
            )


@dataclass(frozen=True, eq=False)
class Subset:
    """The panel's part of a tokenized probe set."""

    probes: TokenizedProbes
    rows: Int[np.ndarray, " row"]
    """Where its probes stand in the whole set, ascending."""
    tokens: Bool[np.ndarray, " token"]
    """Which tokens, flat over the whole set, are its own."""

    @classmethod
    def of(cls, whole: TokenizedProbes, panel: Panel | None) -> "Subset | None":
        """None where all probes are scored at every observation."""
        if panel is None or panel.prompts is None:
            return None
        prompts = set(panel.prompts)
        chosen = np.array([probe.prompt_id in prompts for probe in whole.probes])
        rows = np.flatnonzero(chosen).astype(np.int32)
        tokens = np.repeat(chosen, whole.n_tokens)
        return cls(whole.select(rows.tolist()), rows, tokens)


def is_full(step: int, panel: Panel | None) -> bool:
    """Whether an observation at `step`, if there is one, scores all prompts.

    The first and the last observation of a run are full in any case.
    """
    if panel is None or panel.prompts is None:
        return True
    return _is_multiple(step, panel.full_every)


def _is_multiple(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _is_count(value: Any, least: int) -> bool:
    """Whether it is a whole number >= `least`; True and False are not numbers."""
    return (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and int(value) >= least
    )
