"""Columns of a published file that do not hold what their names say, with evidence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from learndyn.record.authors_kinds import NOT_AS_NAMED
from learndyn.record.authors_layout import Column, impossible
from learndyn.record.authors_runs import Found


def defects_of(found: Found) -> list[dict[str, Any]]:
    """Columns with the values of something else: `column`, `what`, `evidence`."""
    wrong = _greedy(found)
    outside = impossible(found.layout, found.means)
    if outside:
        named = ", ".join(column.name for column in outside)
        what = f"{named} has values that this quantity cannot have"
        wrong.append(_entry(_ours(outside), what, columns=len(outside)))
    if found.layout.split == "train":
        wrong += [
            _entry(kind, NOT_AS_NAMED[kind])
            for kind in found.layout.kinds
            if kind in NOT_AS_NAMED
        ]
    return wrong


def remarks_on(found: Found) -> list[str]:
    """What is known of columns that are what they say, but not exactly."""
    said = []
    place = found.layout.place("rest_logp")
    if place is not None:
        values = found.values[:, place]
        lost = int(np.sum(~np.isfinite(values)))
        if lost:
            said.append(
                f"rest_logp: {lost} of {values.size} values are not finite. It was "
                "taken as log(1 - max pi) in float32, where 1 - max pi can be 0."
            )
    if any(column.quantity == "a_norm" for column in found.layout.columns):
        said.append(
            "p_norm2 comes from ||A||: it is the square of the mean over tokens of "
            "||pi||, which is below the mean of its square."
        )
    return said


def _greedy(found: Found) -> list[dict[str, Any]]:
    layout = found.layout
    place, chosen = layout.place("argmax_logp"), layout.place("logp", "chosen")
    if place is None or chosen is None:
        return []
    top, label = found.values[:, place], found.values[:, chosen]
    both = np.isfinite(top) & np.isfinite(label)
    below = int(np.sum(top[both] < label[both]))
    what = "argmax_logp is below chosen's own logp, which no largest one can be"
    if layout.along != "chosen":
        what = (
            f"argmax_logp is along {layout.along}, not along chosen; its relative "
            "change can be read, its level cannot"
        )
    elif not below:
        return []
    return [
        _entry("argmax_logp", what, compared=int(both.sum()), below_chosen=below),
    ]


def _ours(columns: Sequence[Column]) -> str:
    """Our words for columns, by which whoever reads a run knows what not to trust: the
    quantity, and the kind where it has one."""
    names: dict[str, None] = {}
    for column in columns:
        if column.quantity == "a_norm" and column.kind not in (None, "chosen"):
            continue  # what we keep as p_norm2 is chosen's
        quantity = "p_norm2" if column.quantity == "a_norm" else column.quantity
        names |= dict.fromkeys(each for each in (quantity, column.kind) if each)
    return ", ".join(names or dict.fromkeys(f"a_norm of {c.kind}" for c in columns))


def _entry(column: str, what: str, **evidence: int) -> dict[str, Any]:
    return {"column": column, "what": what, "evidence": evidence}
