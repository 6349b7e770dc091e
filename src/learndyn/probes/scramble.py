"""The texts of one row taken apart: white space, words, what a chat template adds."""

import random
import re
from collections.abc import Callable

from learndyn.probes.data import Row


def lead(row: Row) -> str:
    """The white space that the chosen text begins with."""
    chosen = row.responses["chosen"]
    return chosen[: len(chosen) - len(chosen.lstrip())]


def core(row: Row) -> str:
    """The chosen text without white space around it; empty if there is none."""
    return row.responses.get("chosen", "").strip()


def _inner(row: Row, text: str) -> str:
    """A response without what the chat template writes around it."""
    before, after = row.frame or ("", "")
    return text.removeprefix(before).removesuffix(after)


def words_of(row: Row) -> list[str]:
    """All words of the row's chosen and rejected responses."""
    if row.frame is None:
        return []
    texts = [row.responses.get(kind, "") for kind in ("chosen", "rejected")]
    return [word for text in texts for word in _inner(row, text).split()]


def refilled(row: Row, words_for: Callable[[list[str]], list[str]]) -> str | None:
    """Chosen with other words in the places of its own; its white space stays."""
    if row.frame is None:
        return None
    text = _inner(row, row.responses["chosen"])
    new = words_for(text.split())
    if not new:
        return None
    before, after = row.frame
    parts = iter(new)
    return before + re.sub(r"\S+", lambda _: next(parts), text) + after


def permuted(row: Row, chance: random.Random) -> str | None:
    """Chosen with its words in another order; None if there is no other."""

    def shuffled(words: list[str]) -> list[str]:
        if len(set(words)) < 2:
            return []
        order = list(words)
        while order == words:
            chance.shuffle(order)
        return order

    return refilled(row, shuffled)
