"""Answers as strips of tokens, each on a background that says how it moved.

A token's colour and line come from a fixed list of styles, chosen by numbers; its text
is escaped. The number stands under each token, so that colour is never all there is.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from learndyn.diagnose.numbers import Scale
from learndyn.diagnose.updates.update import Explanation, on_one_line
from learndyn.probes.kinds import in_paper_order
from learndyn.record.forces import Forces
from learndyn.show.page import TINTS, coloured, cut, text


_PROMPTS = 2
"""Prompts whose answers are shown."""
_ANSWERS = 2
"""Answers shown of each prompt: chosen and rejected where it has them."""
_MOST_TOKENS = 160
"""Tokens shown of one answer; the rest is counted."""
_NO_TEXT = "\N{NO-BREAK SPACE}"
"""Stands for the first tokens of a letter that has several: its cell keeps its height.
"""


@dataclass(frozen=True, eq=False)
class _Strips:
    """What all strips of a page share."""

    forces: Forces
    values: Float[np.ndarray, " token"]
    """Nats, of every token of the record."""
    top: float
    """Nats from which on a token has the strongest colour."""
    scale: Scale
    lines: bool
    """Whether a line under each token says what dominated there."""


def token_strips(forces: Forces, explanation: Explanation, probes: pa.Table) -> str:
    """The answers of the prompts that moved most, token by token.

    Empty where the record has no token texts, or no token moved.
    """
    rows = _rows(forces, probes)
    measured = (
        bool(np.isfinite(forces.token_actual).any()) and not explanation.fit.noisy
    )
    values = forces.token_actual if measured else forces.token_predicted
    shown = np.concatenate([values[_span(forces, r)] for group in rows for r in group])
    known = np.abs(shown[np.isfinite(shown)])
    if len(forces.token_text) != len(values) or not known.any():
        return ""
    # one token that moved far more than all others would leave these without colour
    top = float(np.quantile(known, 0.98)) or float(known.max())
    lines = {"pull", "push"} <= set(forces.token_parts) and explanation.fit.trusted
    strips = _Strips(forces, values, top, explanation.scale.finer([top]), lines)
    keys = probes.select(["prompt_id", "kind", "prompt"]).to_pylist()
    parts = ["<h3>Token by token</h3>", _legend(strips, measured)]
    for group in rows:
        asked = keys[forces.probe_ids[group[0]]]
        prompt = cut(str(asked["prompt"]).strip(), 300)
        parts.append(
            f"<p class='muted'>Prompt {text(asked['prompt_id'])}: {text(prompt)}</p>"
        )
        for row in group:
            kind = keys[forces.probe_ids[row]]["kind"]
            total = strips.scale.value(float(values[_span(forces, row)].sum()))
            parts.append(
                f"<p>{coloured(kind).html}: {text(total)} {text(strips.scale.unit)}</p>"
            )
            parts.append(_strip(strips, row))
    return "".join(parts)


def _rows(forces: Forces, probes: pa.Table) -> list[list[int]]:
    """Rows of the record: of the prompts that moved most, a few answers each."""
    prompt_of, kind_of = (
        np.array(probes[name].to_pylist())[forces.probe_ids].tolist()
        for name in ("prompt_id", "kind")
    )
    of: dict[str, dict[str, int]] = {}
    for row, (prompt, kind) in enumerate(zip(prompt_of, kind_of, strict=True)):
        of.setdefault(prompt, {})[kind] = row
    answers = {prompt: _answers(rows) for prompt, rows in of.items()}
    size = np.abs(np.nan_to_num(forces.predicted, posinf=0.0, neginf=0.0))
    # a prompt with both sides of the pair first, then by how much they moved
    order = sorted(
        answers,
        key=lambda p: ({"chosen", "rejected"} <= set(of[p]), size[answers[p]].sum()),
        reverse=True,
    )
    return [answers[prompt] for prompt in order[:_PROMPTS]]


def _answers(rows: dict[str, int]) -> list[int]:
    first = [kind for kind in ("chosen", "rejected") if kind in rows]
    rest = [kind for kind in in_paper_order(set(rows)) if kind not in first]
    return [rows[kind] for kind in (first + rest)[:_ANSWERS]]


def _span(forces: Forces, row: int) -> slice:
    start = int(forces.n_tokens[:row].sum())
    return slice(start, start + int(forces.n_tokens[row]))


def _strip(strips: _Strips, row: int) -> str:
    span = _span(strips.forces, row)
    places = range(span.start, min(span.stop, span.start + _MOST_TOKENS))
    tokens = "".join(_token(strips, place) for place in places)
    left = span.stop - span.start - len(places)
    more = f" <span class='muted'>… {left} more tokens</span>" if left else ""
    return f"<div class='strip'>{tokens}{more}</div>"


def _token(strips: _Strips, place: int) -> str:
    value = float(strips.values[place])
    styles = ["t", *_level(value, strips.top)]
    if strips.lines:
        pull, push = (
            abs(float(strips.forces.token_parts[name][place]))
            for name in ("pull", "push")
        )
        styles += ["pull"] * (pull > push) + ["push"] * (push > pull)
    number = strips.scale.value(value) if math.isfinite(value) else "?"
    return (
        f"<span class='{' '.join(styles)}'>"
        f"{text(on_one_line(strips.forces.token_text[place]) or _NO_TEXT)}"
        f"<span class='n'>{text(number)}</span></span>"
    )


def _level(value: float, top: float) -> list[str]:
    """The style of a change: none below an eighth of `top`, then four steps."""
    if not abs(value) >= top / 8:
        return []
    level = min(len(TINTS), math.ceil(len(TINTS) * abs(value) / top))
    return [f"{'u' if value > 0 else 'd'}{level}"]


def _legend(strips: _Strips, measured: bool) -> str:
    scale, top = strips.scale, strips.top
    samples = "".join(
        f"<span class='t {''.join(_level(share * top, top))}'>"
        f"{text(scale.value(share * top))}</span>"
        for share in (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
    )
    lines = (
        " The line under a token: <span class='pull'>pull</span> or "
        "<span class='push'>push</span>, whichever was the larger there."
    )
    return (
        f"<p class='muted'>{'Actual' if measured else 'Predicted'} change of each "
        f"token's log π, in {text(scale.unit)}: blue is likelier, brown less likely. "
        "The prompts are those whose answers moved most, so they are no average."
        f"{lines if strips.lines else ''}</p><div class='strip'>{samples}</div>"
    )
