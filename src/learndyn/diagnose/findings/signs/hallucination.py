"""Do answers of other training prompts become likelier than answers never seen?

Finetuning raises the training answers of other prompts along with a prompt's own (Ren &
Sutherland 2025, Section 4.1: facts or phrases of question B used to answer A). So
`irrelevant_train` is set against answers that no update trained on, to the same
prompts: `irrelevant_test` and `irrelevant_human`, each by itself. What all of them do
together is style; what the first does beyond the others is memory of training answers.

A control is fair where it is of like length (25 %) and, token for token, about as
likely at the start (0.5 nats): otherwise another style is what parts them. The sign is
there where irrelevant_train rises surely beyond each fair control; without a fair one
it cannot be told. Sizes are in nats per token, since lengths still differ a little.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Finding, Place, limits_of
from learndyn.diagnose.intervals import Interval, paired_bootstrap, rate_difference
from learndyn.diagnose.numbers import number, signed
from learndyn.diagnose.paths import Paths, end_change
from learndyn.diagnose.state import DELTA, TOKENS, Move, move


_SEEN = "irrelevant_train"

_CONTROLS = ("irrelevant_test", "irrelevant_human")

_LENGTH = 0.25
"""Largest difference in length of a fair control, as a share of the longer one."""

_LEVEL = 0.5
"""Largest difference at the start of a fair control, nats per token. Answers of one
source differed by up to 0.26 where the first model was trained on one half of them."""


@dataclass(frozen=True)
class _Control:
    """Answers never seen, beside irrelevant_train on the same prompts."""

    kind: str
    beyond: Interval
    """Change of irrelevant_train beyond this kind's, nats per token."""
    nats: Interval
    """The same, nats per response."""
    unfair: str
    """Why it is no fair control, with the numbers; empty where it is one."""

    @property
    def shows(self) -> bool:
        """Whether irrelevant_train surely rose beyond it, by a size that counts."""
        return self.beyond.above_zero and self.beyond.mean >= DELTA


class Hallucination(Finding):
    """Answers of other training prompts rise beyond answers never seen."""

    name = "hallucination"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the probes lack irrelevant_train, or two prompts of it."""
        seen = _seen(facts)
        if seen is None:
            return None
        controls = _controls(facts)
        fair = [control for control in controls if not control.unfair]
        numbers: dict[str, Any] = {"irrelevant_train": limits_of(seen.nats)}
        for control in controls:
            numbers[f"beyond_{control.kind}"] = limits_of(control.beyond)
        numbers["fair"] = [control.kind for control in fair]
        rose = f"{_SEEN} changed by {_in_words(seen)}"
        left_out = "".join(f" Left out: {c.unfair}." for c in controls if c.unfair)
        if not seen.up:
            says = f"Answers of other training prompts did not surely rise: {rose}."
            return cls("fine", says, numbers)
        if not fair:
            why = "; ".join(c.unfair for c in controls)
            if not why:
                why = f"the probes have neither {' nor '.join(_CONTROLS)}"
            says = (
                f"Whether there is hallucination cannot be told, because {why}. {rose}."
            )
            return cls("watch", says, numbers)
        beyond = " and ".join(f"{_beyond(c)} more than {c.kind}" for c in fair)
        if all(control.shows for control in fair):
            says = (
                "A sign of hallucination: answers of other training prompts became "
                f"likelier than answers never seen: {rose}, {beyond}.{left_out}"
            )
            return cls("watch", says, numbers)
        says = (
            f"No sure sign of hallucination: {rose}, {beyond}: answers never seen rose "
            f"about as much.{left_out}"
        )
        return cls("fine", says, numbers)

    @property
    def place(self) -> Place | None:
        """Nowhere where it cannot be told: the list says why."""
        return super().place if self.numbers["fair"] else None


def _in_words(seen: Move) -> str:
    unit = "token" if seen.counted else "response"
    return f"{number(seen.size)} nats per {unit}"


def _beyond(control: _Control) -> str:
    return f"{number(control.beyond)} nats per token"


def _seen(facts: Facts) -> Move | None:
    """Change of irrelevant_train over the run."""
    paths = _paths(facts)
    if _SEEN not in paths.logp or len(paths.steps) < 2:
        return None
    change = end_change(paths.logp[_SEEN])
    if np.isfinite(change).sum() < 2:
        return None
    return move(change, paths.n_tokens[_SEEN])


def _controls(facts: Facts) -> list[_Control]:
    """The kinds never seen, of those that two prompts have."""
    paths, odd = _paths(facts), facts.trajectory.defects
    out = []
    for kind in _CONTROLS:
        if kind not in paths.logp:
            continue
        both = np.isfinite(end_change(paths.logp[_SEEN]) + end_change(paths.logp[kind]))
        if both.sum() < 2:
            continue
        ours, theirs = (_Part.of(paths, k, both) for k in (_SEEN, kind))
        out.append(
            _Control(
                kind,
                rate_difference(
                    (ours.change, ours.weights), (theirs.change, theirs.weights)
                ),
                paired_bootstrap(ours.change - theirs.change).at(),
                odd.get(kind) or _unfair(ours, theirs, kind),
            )
        )
    return out


@dataclass(frozen=True, eq=False)
class _Part:
    """One kind on the prompts that have both."""

    change: Float[np.ndarray, " prompt"]
    start: Float[np.ndarray, " prompt"]
    tokens: Float[np.ndarray, " prompt"]
    counted: bool

    @classmethod
    def of(cls, paths: Paths, kind: str, both: np.ndarray) -> "_Part":
        path, tokens = paths.logp[kind], paths.n_tokens[kind][both]
        return cls(
            end_change(path)[both], path[0, both], tokens, bool(np.nansum(tokens))
        )

    @property
    def weights(self) -> Float[np.ndarray, " prompt"]:
        """Tokens; `TOKENS` each where they are not known."""
        return self.tokens if self.counted else np.full(len(self.tokens), TOKENS)

    @property
    def level(self) -> float:
        """Nats per token at the start."""
        return float(self.start.sum() / self.weights.sum())


def _unfair(ours: _Part, theirs: _Part, kind: str) -> str:
    one, other = (float(part.weights.mean()) for part in (ours, theirs))
    if ours.counted and abs(one - other) > _LENGTH * max(one, other):
        return (
            f"{kind} is of another length ({other:.0f} tokens, {_SEEN} has {one:.0f})"
        )
    if abs(ours.level - theirs.level) > _LEVEL:
        return (
            f"{kind} is of another style (at the start {signed(theirs.level)} nats per "
            f"token, {_SEEN} {signed(ours.level)})"
        )
    return ""


def _paths(facts: Facts) -> Paths:
    return Paths.of(facts.trajectory, facts.split).common()
