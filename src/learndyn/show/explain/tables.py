"""The tables of one update's forces, and the table of all recorded updates."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from learndyn.diagnose.numbers import Scale, counted, figures
from learndyn.diagnose.updates.update import (
    AROUND,
    Explanation,
    KindForces,
    TopToken,
    explain,
    on_one_line,
)
from learndyn.errors import BadInput
from learndyn.record.files import to_plain
from learndyn.record.run_directory import RunDirectory
from learndyn.show.page import (
    Markup,
    coloured,
    cut,
    interval_cell,
    table,
    text as escaped,
)


_MOST_STEPS = 40
"""Recorded updates in the table of all of them; of more, some evenly chosen ones."""


_DOUBT = (
    "<p class='note'>Not to be trusted here: predicted does not agree with actual.</p>"
)


def kind_rows(explanation: Explanation) -> list[list[str]]:
    """Actual, predicted and parts of every kind as plain text, the head first."""
    scale = explanation.scale
    head = [
        f"kind, {scale.unit}",
        "actual [95 %]",
        "predicted",
        *explanation.parts,
        "prompts",
    ]
    return [head] + [
        [
            kind.kind,
            f"{scale.value(kind.actual.mean)} {scale.limits(kind.actual)}",
            scale.value(kind.predicted.mean),
            *(scale.value(part.mean) for part in kind.parts.values()),
            str(kind.predicted.n),
        ]
        for kind in explanation.kinds
    ]


def kinds_table(explanation: Explanation) -> str:
    """The same on the page; "" where nothing is known of any kind."""
    if not explanation.kinds:
        return ""
    scale, (head, *rows) = explanation.scale, kind_rows(explanation)
    cells = [
        [
            coloured(kind.kind),
            interval_cell(scale.of_interval(kind.actual), scale.digits),
            *row[2:],
        ]
        for kind, row in zip(explanation.kinds, rows, strict=True)
    ]
    parts = (
        f"{' + '.join(explanation.parts)} = predicted. " if explanation.parts else ""
    )
    return table(head, cells) + (
        f"<p class='muted'>Mean change of log π per response in this one update. "
        f"{escaped(parts)}Intervals are over prompts.</p>"
    )


def top_tokens(explanation: Explanation, text: bool) -> str:
    """The most influential training tokens, each in its context if `text` is true."""
    influence = explanation.influence
    if influence is None or not influence.top:
        return ""
    scale = explanation.scale.finer(token.change for token in influence.top)
    head = (
        f"{scale.unit}",
        "moved most",
        "the loss",
        *["token"] * text,
        "answer of the batch, token",
    )
    rows = [
        [
            scale.value(token.change),
            coloured(token.kind),
            "raised it" if token.raised else "lowered it",
            *([_in_context(token)] if text else []),
            f"{token.example + 1}{f' ({token.role})' * bool(token.role)}, "
            f"token {token.position + 1}",
        ]
        for token in influence.top
    ]
    doubt = "" if explanation.fit.trusted else _DOUBT
    return (
        f"<h3>Training tokens that moved the probes most</h3>{doubt}"
        f"{table(head, rows)}<p class='muted'>Of {influence.tokens} tokens in the "
        "batch, by the kind that each moved most; mean over the watched probes of that "
        "kind, to first order.</p>"
    )


def _in_context(token: TopToken) -> Markup:
    before, after = (
        escaped(on_one_line(words)) for words in (token.before, token.after)
    )
    dots = "… " if token.position > AROUND else ""
    example = cut(token.example_text, 160)
    below = f"<div class='muted'>{escaped(example)}</div>" if example else ""
    return Markup(
        f"{dots}{before}<span class='at'>{escaped(on_one_line(token.token))}</span>"
        f"{after}{below}",
        running=True,
    )


def steps_table(run: RunDirectory, probes: pa.Table, steps: list[int]) -> str:
    """All recorded updates: how well each was predicted, and what moved chosen."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), _MOST_STEPS))
    shown = [steps[round(place)] for place in places]
    explanations: list[Explanation] = []
    problems: list[str] = []
    for step in shown:
        try:
            explanations.append(explain(run.read_forces(step, influence=False), probes))
        except BadInput as error:
            problems.append(f"<p class='note'>{escaped(error)}</p>")
    names = list(dict.fromkeys(name for one in explanations for name in one.parts))
    main = "chosen" if any(one.of("chosen") for one in explanations) else None
    kinds = [
        one.of(main) if main else next(iter(one.kinds), None) for one in explanations
    ]
    moved = [_values(kind, names) for kind in kinds]
    scale = Scale.of(value for values in moved for value in values)
    rows = [
        [str(one.step), _percent(one.fit.relative_error), *map(scale.value, values)]
        for one, values in zip(explanations, moved, strict=True)
    ]
    what = main or "the first kind"
    head = ("update to step", "relative error", f"{what}, actual", *names)
    fewer = f" {len(shown)} of {len(steps)} are shown." * (len(shown) < len(steps))
    return (
        f"<h3>All recorded updates</h3>{table(head, rows)}{''.join(problems)}"
        f"<p class='muted'>Mean change of {escaped(what)} per response, and what each "
        f"part made of it, in {escaped(scale.unit)}.{fewer}</p>"
    )


def _values(kind: KindForces | None, names: list[str]) -> list[float]:
    """Actual change and parts of one kind, nats; NaN for what is not known."""
    if kind is None:
        return [math.nan] * (1 + len(names))
    parts = (kind.parts.get(name) for name in names)
    return [kind.actual.mean, *(math.nan if p is None else p.mean for p in parts)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "unknown"


def facts(explanation: Explanation) -> list[tuple[str, str]]:
    """How well it was predicted, and what the record says of itself."""
    fit = explanation.fit
    numbers = {
        "relative error": fit.relative_error,
        "r²": fit.r2,
        "slope": fit.slope,
        "probes above 3 × rounding": fit.above_noise,
        "cancellation": explanation.cancellation,
        "missing from the parts": explanation.gap,
        **{f"share of {name}": share for name, share in explanation.shares.items()},
    }
    rows = [(name, figures(value)) for name, value in numbers.items()]
    prompts = counted(explanation.prompts, "prompt")
    rows.append(("answers", f"{fit.probes}, to {prompts}"))
    shown_elsewhere = {
        "relative_error",
        "r2",
        "slope",
        "noise",
        "hypothetical",
        "notes",
    }
    return rows + [
        (str(key).replace("_", " "), cut(_plain(value)))
        for key, value in to_plain(explanation.info).items()
        if key not in shown_elsewhere and value not in (None, "", [], {})
    ]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return figures(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}".replace("_", " ") for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value)
