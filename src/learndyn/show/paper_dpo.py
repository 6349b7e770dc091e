"""The paper's figures of DPO: what falls, what rises, and where the mass went."""

from collections.abc import Sequence

import numpy as np

from learndyn.diagnose.paths import GREEDY, mean_path
from learndyn.diagnose.state import state_of
from learndyn.lab.recorded import Recorded, probed_split
from learndyn.show.canvas import Sheet
from learndyn.show.palette import LINE, TEXT, Style
from learndyn.show.panels import Line, small_multiples
from learndyn.show.paper_lines import (
    ends,
    kinds_lines,
    line,
    lines,
    mean_line,
    panel,
    sentence,
    told,
)
from learndyn.show.paper_sft import CHANGE, of_seeds


OTHERS = (
    *("chosen_semantic", "chosen_format", "rejected_semantic", "rejected_format"),
    *("irrelevant_train", "irrelevant_test", "irrelevant_human"),
    *("random_permuted", "random_words"),
)

ROLES = {
    "dpo": ("off-policy", Style(LINE["rejected"], TEXT["rejected"], (), 2.2, 0.2)),
    "on-policy": (
        "on-policy",
        Style(LINE["irrelevant"], TEXT["irrelevant"], (6.0, 3.0), 2.0, 0.2),
    ),
    "extend-dpo": (
        "after extend",
        Style(LINE["chosen"], TEXT["chosen"], (), 2.2, 0.2),
    ),
}
"""Name and style of each DPO run, where runs are compared."""


def chosen_and_rejected(seeds: Sequence[Recorded], width: int) -> Sheet:
    """The two answers of a pair and the greedy path, at two scales."""
    panels = [
        panel(
            seeds,
            "Chosen and the greedy path",
            kinds_lines(seeds, "dpo", ("chosen", GREEDY)),
        ),
        panel(
            seeds,
            "The same with rejected",
            kinds_lines(seeds, "dpo", ("chosen", "rejected", GREEDY)),
        ),
    ]
    found = sentence(
        *(told(k, ends(seeds, "dpo", k)) for k in ("chosen", "rejected", GREEDY))
    )
    return small_multiples(width, f"DPO: {found} nats", _unit(seeds), panels)


def rephrases(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Rephrases of both answers during DPO."""
    both = {
        "Of chosen": (
            *("chosen", "chosen_semantic", "chosen_format", "chosen_initial"),
            "chosen_selfr",
        ),
        "Of rejected": ("rejected_semantic", "rejected_format"),
    }
    return _two(seeds, both, "rephrases", width)


def irrelevant_and_random(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Answers that have nothing to do with the prompt."""
    both = {
        "Irrelevant": ("irrelevant_train", "irrelevant_test", "irrelevant_human"),
        "Random": ("random_permuted", "random_words"),
    }
    return _two(seeds, both, "irrelevant and random answers", width)


def _two(
    seeds: Sequence[Recorded], both: dict[str, tuple[str, ...]], what: str, width: int
) -> Sheet:
    panels = []
    for title, kinds in both.items():
        found = kinds_lines(seeds, "dpo", kinds)
        if any(one.name != "chosen" for one in found):
            panels.append(panel(seeds, title, found))
    kinds = [k for some in both.values() for k in some if k != "chosen"]
    moved = [v for v in (ends(seeds, "dpo", k) for k in kinds) if v is not None]
    fell = sum(value < 0 for value in moved)
    title = f"DPO: {fell} of {len(moved)} {what} fall"
    return small_multiples(width, title, _unit(seeds), panels)


def where_the_mass_went(seeds: Sequence[Recorded], width: int) -> Sheet:
    """The favourites along chosen against all other tokens there."""
    rest = _rest(seeds)
    panels = [panel(seeds, "The favourites, Σ log max π", lines(_greedy(seeds)))]
    if rest is not None:
        panels.append(panel(seeds, "All other tokens, Σ log(1 − max π)", (rest,)))
    found = [told("the favourites", ends(seeds, "dpo", GREEDY))]
    if rest is not None:
        value = float(np.mean([y[-1] for _, y in rest.runs]))
        found.append(told("all other tokens", value))
    title = f"Where the mass went along chosen: {sentence(*found)} nats"
    return small_multiples(width, title, _unit(seeds), panels)


def _greedy(seeds: Sequence[Recorded]) -> Line | None:
    return line(seeds, "dpo", GREEDY, name="favourites")


def _rest(seeds: Sequence[Recorded]) -> Line | None:
    runs = []
    for one in seeds:
        run = one.runs.get("dpo")
        if run is None or "chosen" not in run.kinds:
            continue
        split = probed_split(run)
        path = run.values("rest_logp", "chosen", split)
        means = mean_path(path - path[0])
        if np.isfinite(means).all():
            runs.append((run.steps.astype(np.float64), means))
    other = Style(LINE["other"], TEXT["other"], (), 2.2, 0.2)
    return Line("all others", other, tuple(runs)) if runs else None


def on_policy(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Off-policy against on-policy rejected answers, same updates, same probes."""
    difference = [
        told(name, ends(seeds, role, GREEDY))
        for role, (name, _) in ROLES.items()
        if role != "extend-dpo"
    ]
    title = f"The favourites: {sentence(*difference)} nats"
    return compared(seeds, ("dpo", "on-policy"), title, width)


def compared(
    seeds: Sequence[Recorded], roles: Sequence[str], title: str, width: int
) -> Sheet:
    """Chosen, rejected, the others and the greedy path of several DPO runs."""
    panels = []
    for kind in ("chosen", "rejected", "others", GREEDY):
        found = []
        for role in roles:
            name, style = ROLES[role]
            if role == "dpo" and "extend-dpo" in roles:
                name = "plain"  # against extend this is what matters of it
            if kind == "others":
                found.append(mean_line(seeds, role, OTHERS, name, style))
            else:
                found.append(line(seeds, role, kind, name=name, style=style))
        if lines(*found):
            heading = "all other kinds, mean" if kind == "others" else kind
            panels.append(panel(seeds, heading, lines(*found)))
    return small_multiples(width, title, _unit(seeds), panels)


def squeeze_index(seeds: Sequence[Recorded], width: int) -> Sheet:
    """The squeeze index of every DPO run over its updates."""
    found = []
    last = []
    for role, (name, style) in ROLES.items():
        runs = []
        for one in seeds:
            run = one.runs.get(role)
            if run is None or len(run.steps) < 2:
                continue
            split = probed_split(run)
            report = state_of(run, split=split)
            if np.isfinite(report.index.mean).all() and len(report.steps):
                runs.append((report.steps, 100 * report.index.mean))
        if runs:
            found.append(Line(name, style, tuple(runs)))
            last.append(told(name, float(np.mean([y[-1] for _, y in runs])), " %"))
    title = f"Squeeze index at the end: {sentence(*last)}"
    unit = (
        "Relative gain of the greedy path minus that of the kind that gains most, %"
        + of_seeds(seeds)
    )
    return small_multiples(width, title, unit, [panel(seeds, "", found)], tall=300)


def _unit(seeds: Sequence[Recorded]) -> str:
    return CHANGE + of_seeds(seeds)
