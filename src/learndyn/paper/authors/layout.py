"""Which column of a published result file holds what.

The authors' code wrote its columns in the order in which a dict was filled, and that
order changed. With K kinds of response:

    a   5 + K    logp argmax rest A p_e energy of chosen, then logp of the others
    b   4 + 2 K  the same, with A after each logp
    c   5 + K    A logp argmax rest p_e energy of chosen, then A of the others
    d   4 + 2 K  as c, with logp after each A
    e   1 + K    logp argmax of chosen, then logp of the others

In a, b and e the columns without a kind of their own were overwritten by every kind in
turn: they are those of the last one, not of chosen. In c and d that is mended.
The JSON lines name their columns; a .npy file names none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from learndyn.errors import BadInput
from learndyn.probes.kinds import PROBED, our_kind


_QUANTITIES: dict[str, str] = {
    "argmax_prob_logits": "argmax_logp",
    "except_argmax_prob_logits": "rest_logp",
    "A_o": "a_norm",
    "p_e": "p_gap",
    "energy": "energy",
}
"""The authors' columns that name no kind -> our quantity. `a_norm` is the Frobenius
norm of A = I - 1 pi^T, which we keep as `p_norm2`."""

_OVERWRITTEN = ("argmax_logp", "rest_logp", "a_norm", "p_gap", "energy")
"""Quantities of columns that name no kind."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a file."""

    name: str
    """As the file has it."""
    quantity: str | None
    """"logp", one of `_OVERWRITTEN`, or None where the name is unknown."""
    kind: str | None
    """Our kind, where the name has one."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a file are."""

    letter: str
    """"a" to "e" as above, or "unknown"."""
    columns: tuple[Column, ...]
    split: str = "train"
    """Whether training or held-out probes were scored."""

    @property
    def kinds(self) -> list[str]:
        """Our kinds whose log-probabilities the file has, in its order."""
        return [c.kind for c in self.columns if c.quantity == "logp" and c.kind]

    @property
    def left_out(self) -> list[str]:
        """Columns whose name says nothing to us."""
        return [c.name for c in self.columns if c.quantity is None]

    @property
    def along(self) -> str | None:
        """The kind that the columns without a kind are of; None without any kind."""
        if not self.kinds:
            return None
        mended = self.letter in ("c", "d") and "chosen" in self.kinds
        return "chosen" if mended else self.kinds[-1]

    def place(self, quantity: str, kind: str | None = None) -> int | None:
        """Position of a column; None where the file has none."""
        key = (quantity, kind)
        for index, column in enumerate(self.columns):
            if (column.quantity, column.kind) == key:
                return index
        return None


def layout_of_names(names: Sequence[str], where: str) -> Layout:
    """The layout of columns that have names.

    Raises:
        BadInput: if no column is a log-probability, or two are of the same kind.
    """
    columns = tuple(_column(name) for name in names)
    known = [(c.quantity, c.kind) for c in columns if c.quantity]
    twice = sorted({f"{q} of {k}" for q, k in known if known.count((q, k)) > 1})
    if twice:
        raise BadInput(f"{where} has two columns for {', '.join(twice)}.")
    if not any(quantity == "logp" for quantity, _ in known):
        raise BadInput(
            f"{where} has no column logps_eval_SET/KIND, so the authors' trainer did "
            f"not write it. Its columns: {', '.join(names)[:300]}."
        )
    split = "test" if any("_test/" in name for name in names) else "train"
    return Layout(_letter(columns), columns, split)


def layout_of_values(means: Float[np.ndarray, "step column"], where: str) -> Layout:
    """The layout of columns without names, by their number and what each can be.

    A log-probability is not above zero, A is large (its square is above V - 2), p_e is
    within 0 and sqrt 2, energy within 0 and 1. Only the twelve kinds of the authors'
    trainer can be named.

    Raises:
        BadInput: if no layout fits, or more than one does.
    """
    width = means.shape[1]
    fits = [layout for layout in _named() if len(layout.columns) == width]
    possible = [layout for layout in fits if _can_be(layout, means)]
    if len(possible) != 1:
        letters = ", ".join(layout.letter for layout in possible or fits) or "none"
        raise BadInput(
            f"{where} has {width} columns without names, and {len(possible)} of the "
            f"known layouts fit them (by their number alone: {letters}). Put the run's "
            "prob_train_metrics.json beside it, which names them."
        )
    return possible[0]


def impossible(layout: Layout, means: Float[np.ndarray, "step column"]) -> list[Column]:
    """Columns with values that their quantity cannot have."""
    return [
        column
        for index, column in enumerate(layout.columns)
        if column.quantity and not _within(column.quantity, means[:, index])
    ]


def _column(name: str) -> Column:
    if name in _QUANTITIES:
        return Column(name, _QUANTITIES[name], None)
    head, slash, kind = name.partition("/")
    if slash and kind and head.startswith("logps_eval_"):
        return Column(name, "logp", our_kind(kind))
    if name.endswith("_A_o") and len(name) > len("_A_o"):
        return Column(name, "a_norm", our_kind(name.removesuffix("_A_o")))
    return Column(name, None, None)


def _letter(columns: Sequence[Column]) -> str:
    logps = [i for i, c in enumerate(columns) if c.quantity == "logp"]
    norms = [i for i, c in enumerate(columns) if c.quantity == "a_norm" and c.kind]
    bare = any(c.quantity == "a_norm" and not c.kind for c in columns)
    if not any(c.quantity == "argmax_logp" for c in columns) or (bare and norms):
        return "unknown"
    if bare:
        return "a"
    if not norms:
        return "e"
    if norms[0] > logps[0]:
        return "b"
    return "c" if len(logps) < len(norms) else "d"


def _named() -> list[Layout]:
    """The five layouts with the twelve kinds of the authors' trainer."""
    logp = {kind: [f"logps_eval_prob_train/{kind}"] for kind in PROBED}
    norm = {kind: [f"{kind}_A_o"] for kind in PROBED}
    scalars = ["argmax_prob_logits", "except_argmax_prob_logits"]
    rest = ["p_e", "energy"]
    others = PROBED[1:]
    orders = {
        "a": logp["chosen"] + scalars + ["A_o", *rest] + _each(others, logp),
        "b": logp["chosen"] + scalars + norm["chosen"] + rest,
        "c": norm["chosen"] + logp["chosen"] + scalars + rest + _each(others, norm),
        "d": norm["chosen"] + logp["chosen"] + scalars + rest,
        "e": logp["chosen"] + scalars[:1] + _each(others, logp),
    }
    orders["b"] += _each(others, logp, norm)
    orders["d"] += _each(others, norm, logp)
    layouts = [layout_of_names(names, letter) for letter, names in orders.items()]
    return [
        replace(f, letter=letter) for f, letter in zip(layouts, orders, strict=True)
    ]


def _each(kinds: Sequence[str], *parts: dict[str, list[str]]) -> list[str]:
    return [name for kind in kinds for part in parts for name in part[kind]]


def _can_be(layout: Layout, means: Float[np.ndarray, "step column"]) -> bool:
    return not impossible(layout, means)


def _within(quantity: str, values: Float[np.ndarray, " step"]) -> bool:
    """Whether all known values are ones that the quantity can have."""
    known = values[np.isfinite(values)]
    limits = {
        "p_gap": (0.0, np.sqrt(2)),
        "energy": (0.0, 1.0),
        "a_norm": (2.0, np.inf),
    }
    low, high = limits.get(quantity, (-np.inf, 0.0))
    slack = 1e-6  # means of float32 values, summed in another order
    return bool(np.all((known >= low - slack) & (known <= high + slack)))
