"""Which training tokens moved the probes: the few that did most of it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.record.forces import Influence


TOP = 12
"""Training tokens in the list of the most influential ones."""
TOP_OF_KIND = 3
"""And in the list of each kind."""
AROUND = 6
"""Tokens of the same response shown before and after."""


@dataclass(frozen=True, slots=True)
class TopToken:
    """One training token and the kind that it moved most."""

    example: int
    position: int
    role: str
    before: str
    """The tokens of its response just before it, as far as they are recorded."""
    token: str
    after: str
    example_text: str
    push: float
    """dL/dlogp: below 0 the update raised the token, above 0 it lowered it."""
    kind: str
    change: float
    """Nats: mean over the kind's watched probes."""

    @property
    def raised(self) -> bool:
        """Whether the update raised this token."""
        return self.push < 0


@dataclass(frozen=True)
class InfluenceSummary:
    """The training tokens that moved the probes most."""

    tokens: int
    """Training tokens of the batch."""
    top: list[TopToken]
    """By the kind that each moved most, the largest first."""
    of_kind: dict[str, list[TopToken]]
    share: float
    """Of the sum over tokens of |change of the kind moved most|, what `top` makes."""
    roles: dict[str, frozenset[str]]
    """Of the tokens that the loss raises ("pull") and lowers ("push")."""

    def to_list(self, *, text: bool) -> list[dict[str, Any]]:
        """`top` for JSON; without any training text if `text` is false."""
        hidden = () if text else ("before", "token", "after", "example_text")
        rows = [asdict(token) for token in self.top]
        return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


def summed_up(influence: Influence) -> InfluenceSummary:
    """The most influential training tokens, overall and of each kind.

    What is not finite counts as zero.
    """
    change = np.nan_to_num(influence.change, nan=0.0, posinf=0.0, neginf=0.0)
    size = np.abs(change)
    if size.size == 0:
        return InfluenceSummary(len(influence.token), [], {}, float("nan"), {})
    most = size.max(axis=1)
    first = _largest(most, TOP)
    moved = size.argmax(axis=1)
    total = float(most.sum())
    return InfluenceSummary(
        tokens=len(most),
        top=[_token(influence, row, int(moved[row])) for row in first],
        of_kind={
            kind: [
                _token(influence, row, column)
                for row in _largest(size[:, column], TOP_OF_KIND)
            ]
            for column, kind in enumerate(influence.kinds)
        },
        share=float(most[first].sum()) / total if total else float("nan"),
        roles={
            "pull": _roles(influence, influence.push < 0),
            "push": _roles(influence, influence.push > 0),
        },
    )


def _roles(influence: Influence, which: Bool[np.ndarray, " token"]) -> frozenset[str]:
    return frozenset(influence.role[row] for row in np.flatnonzero(which))


def on_one_line(token: str) -> str:
    """A token's text with its line breaks and tabs as signs."""
    return token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "")


def _largest(size: Float[np.ndarray, " token"], count: int) -> Int[np.ndarray, " row"]:
    order = np.argsort(-size, kind="stable")[:count]
    return order[size[order] > 0]


def _token(influence: Influence, row: np.integer | int, kind: int) -> TopToken:
    example, place = influence.example[row], influence.position[row]
    same = influence.example == example
    distance = influence.position - place
    before = np.flatnonzero(same & (distance < 0) & (distance >= -AROUND))
    after = np.flatnonzero(same & (distance > 0) & (distance <= AROUND))
    return TopToken(
        example=int(example),
        position=int(place),
        role=influence.role[row],
        before=_joined(influence, before),
        token=influence.token[row],
        after=_joined(influence, after),
        example_text=influence.example_text.get(int(example), ""),
        push=float(influence.push[row]),
        kind=influence.kinds[kind],
        change=float(influence.change[row, kind]),
    )


def _joined(influence: Influence, rows: Int[np.ndarray, " row"]) -> str:
    order = rows[np.argsort(influence.position[rows], kind="stable")]
    return "".join(influence.token[row] for row in order)
