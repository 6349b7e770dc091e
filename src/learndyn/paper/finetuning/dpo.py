"""DPO and its squeezing effect (Section 4.2, Figure 4): claims and figures.

The figures show what falls, what rises, and where the mass went.
"""

from collections.abc import Sequence

import numpy as np

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import GREEDY, mean_path
from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.squeeze_index import squeeze_index
from learndyn.diagnose.state import state_of
from learndyn.paper.claims import Absent, Measured, Statement
from learndyn.paper.figures import Line, small_multiples
from learndyn.paper.finetuning.lines import (
    ends,
    in_words,
    kinds_lines,
    line,
    lines,
    mean_line,
    panel,
    sentence,
)
from learndyn.paper.finetuning.recorded import (
    Recorded,
    change,
    difference,
    probed_split,
)
from learndyn.paper.finetuning.sft import CHANGE, of_seeds
from learndyn.paper.finetuning.statements import (
    Measure,
    above,
    along_chosen,
    below,
    measured,
    run_of,
    values,
)
from learndyn.show.chart import LINE, TEXT, Chart, Style


FIGURE = "Section 4.2, Figure 4"

_DELTA = 0.02
"""Smallest change that counts, relative to the start."""

STEP_ZERO = 1e-4
"""Largest reward margin before any update: the reference is the policy itself."""


def step_zero(one: Recorded) -> Measured:
    """The reward margin that the trainer logged with its first update's loss, which it
    computes before that update."""
    run = run_of(one, "dpo")
    rows = [r for r in run.train_log if "rewards/margins" in r and r.get("step") == 1]
    if not rows:
        raise Absent("the trainer's log has no reward margin of the first update")
    margin = abs(float(rows[0]["rewards/margins"]))
    return Measured(one.seed, margin, margin <= STEP_ZERO)


def margin_grows(one: Recorded) -> Measured:
    """Change of log pi(chosen) - log pi(rejected) on the probes."""
    moved = change(values(one, "dpo", "chosen") - values(one, "dpo", "rejected"))
    return measured(one, moved, above(moved))


def rejected_falls_fastest(one: Recorded) -> Measured:
    """Change of rejected minus that of the kind that falls most of all others."""
    rejected = values(one, "dpo", "rejected")
    others = {
        kind: values(one, "dpo", kind)
        for kind in run_of(one, "dpo").kinds
        if kind != "rejected"
    }
    if not others:
        raise Absent("the dpo run probes only rejected")
    fastest = min(others.values(), key=lambda path: change(path).mean)
    between = difference(rejected[-1] - rejected[0], fastest[-1] - fastest[0])
    return measured(one, between, below(between))


def chosen_rises_first(one: Recorded) -> Measured:
    """Highest mean change of chosen after the start."""
    moved = change(values(one, "dpo", "chosen"), _top(one))
    return measured(one, moved, above(moved))


def chosen_falls_later(one: Recorded) -> Measured:
    """Change of chosen from its highest mean to the end; a path that is highest at the
    start has no "later"."""
    path, top = values(one, "dpo", "chosen"), _top(one, start=0)
    moved = difference(path[-1], path[top])
    return measured(one, moved, top > 0 and below(moved))


def _top(one: Recorded, start: int = 1) -> int:
    path = values(one, "dpo", "chosen")
    means = mean_path(path - path[0])[start:]
    return start + int(np.argmax(np.where(np.isfinite(means), means, -np.inf)))


def all_fall(kinds: tuple[str, ...] | None = None) -> Measure:
    """Number of kinds whose change over DPO is not below zero: none. Of `kinds` all
    have to be probed; None are those that are."""

    def measure(one: Recorded) -> Measured:
        asked = kinds or run_of(one, "dpo").kinds
        moved = [change(values(one, "dpo", kind)) for kind in asked]
        left = float(sum(not below(each) for each in moved))
        return Measured(one.seed, left, left == 0.0)

    return measure


def argmax_rises(split: str) -> Measure:
    """Relative change of the argmax along chosen."""

    def measure(one: Recorded) -> Measured:
        path = values(one, "dpo", GREEDY, split)
        run = run_of(one, "dpo")
        known = split if split in set(run.split_of.tolist()) else None
        gain = squeeze_evidence(run, split=known).greedy_relative
        if gain is None or not np.isfinite(path).any():
            raise Absent("the dpo run has no greedy path")
        return measured(one, gain, above(gain, _DELTA))

    return measure


def is_squeezed(one: Recorded) -> Measured:
    """Change of the greedy path minus that of chosen, in nats, over the last fifth of
    DPO; holds in the state SQUEEZE."""
    run = run_of(one, "dpo")
    along_chosen(run)
    known = probed_split(run)
    report = state_of(run, split=known)
    if report.sq is None:
        raise Absent(report.reason or "the dpo run cannot be judged")
    return measured(one, report.sq.nats, report.state == "SQUEEZE")


def rest_falls(one: Recorded) -> Measured:
    """Change of sum log(1 - max pi) along chosen: what all but the favourites have."""
    run = run_of(one, "dpo")
    if "chosen" not in run.kinds:
        raise Absent("the dpo run has no chosen probes")
    along_chosen(run)
    known = probed_split(run)
    path = run.values("rest_logp", "chosen", known)
    if not np.isfinite(path[[0, -1]]).any():
        raise Absent("the dpo run did not record the log-probability of the rest")
    moved = change(path)
    return measured(one, moved, below(moved))


def less_on_policy(one: Recorded) -> Measured:
    """Change of the argmax along chosen, off-policy minus on-policy."""
    off, on = (values(one, role, GREEDY) for role in ("dpo", "on-policy"))
    between = difference(off[-1] - off[0], on[-1] - on[0])
    return measured(one, between, above(between))


def falls_less_on_policy(one: Recorded) -> Measured:
    """Change of rejected, off-policy minus on-policy."""
    off, on = (values(one, role, "rejected") for role in ("dpo", "on-policy"))
    between: Interval = difference(off[-1] - off[0], on[-1] - on[0])
    return measured(one, between, below(between))


DPO_STATEMENTS = (
    Statement(
        "dpo-step-zero",
        "Section 3.2, Equation 6",
        "Before the first update policy and reference agree.",
        f"|reward margin| logged with the first update's loss <= {STEP_ZERO:g}",
        step_zero,
        "dpo_chosen_and_rejected",
    ),
    Statement(
        "dpo-margin-grows",
        FIGURE,
        "DPO separates chosen from rejected.",
        "change of log π(chosen) − log π(rejected) > 0, 95 % interval above 0",
        margin_grows,
        "dpo_chosen_and_rejected",
    ),
    Statement(
        "dpo-rejected-falls-fastest",
        FIGURE,
        "Of all answers the rejected one falls most.",
        "change of rejected minus change of the other kind that falls most, "
        "95 % interval below 0",
        rejected_falls_fastest,
        "dpo_chosen_and_rejected",
        note="The other kind is picked after the fact, which is against the claim.",
    ),
    Statement(
        "dpo-chosen-rises-first",
        FIGURE,
        "Chosen rises at the beginning of DPO.",
        "highest mean change of chosen after the start > 0, 95 % interval above 0",
        chosen_rises_first,
        "dpo_chosen_and_rejected",
        note="The peak is picked after the fact, which favours the claim.",
    ),
    Statement(
        "dpo-chosen-falls-later",
        FIGURE,
        "Later even chosen falls.",
        "its highest mean comes after the start; change of chosen from there to the "
        "end, 95 % interval below 0",
        chosen_falls_later,
        "dpo_chosen_and_rejected",
        note="The peak is picked after the fact, which favours the claim.",
    ),
    Statement(
        "dpo-rephrases-fall",
        FIGURE,
        "Rephrases of chosen fall during DPO.",
        "kinds among chosen_semantic and chosen_format whose change does not have its "
        "95 % interval below 0: none",
        all_fall(("chosen_semantic", "chosen_format")),
        "dpo_rephrases",
        unit="kinds",
    ),
    Statement(
        "dpo-all-kinds-fall",
        FIGURE,
        "Every observed answer becomes less likely, but for the greedy one.",
        "kinds whose change does not have its 95 % interval below 0: none",
        all_fall(),
        "dpo_irrelevant_and_random",
        unit="kinds",
    ),
    Statement(
        "dpo-argmax-rises",
        FIGURE,
        "What the model favours already becomes more likely.",
        f"relative change of Σ log max π along chosen > {_DELTA:.0%}, 95 % interval "
        "above it",
        argmax_rises("train"),
        "dpo_where_the_mass_went",
        unit="share",
    ),
    Statement(
        "dpo-argmax-rises-held-out",
        "Section 4.2, D_probtest",
        "The same holds for prompts that were never trained on.",
        f"the same on held-out prompts: > {_DELTA:.0%}, 95 % interval above it",
        argmax_rises("test"),
        "dpo_held_out",
        unit="share",
    ),
    Statement(
        "dpo-rest-falls",
        "Section 3.3; Appendix C, Figure 9",
        "The mass comes from all tokens but the favourites.",
        "change of Σ log(1 − max π) along chosen < 0, 95 % interval below 0",
        rest_falls,
        "dpo_where_the_mass_went",
    ),
    Statement(
        "dpo-squeezes",
        "Section 3.3",
        "DPO on off-policy pairs shows the squeezing effect.",
        "state SQUEEZE (99 % intervals, last fifth): the greedy path rises, and more "
        "than chosen; shown: by how much more",
        is_squeezed,
        "dpo_where_the_mass_went",
    ),
    Statement(
        "dpo-less-on-policy",
        "Section 3.3",
        "With answers of the model's own as rejected, the favourites rise less.",
        "change of the argmax along chosen, off-policy minus on-policy, at equal "
        "updates, 95 % interval above 0",
        less_on_policy,
        "dpo_on_policy",
    ),
    Statement(
        "dpo-rejected-falls-less-on-policy",
        "Section 3.3",
        "Then the off-policy rejected answers fall less, too.",
        "change of rejected, off-policy minus on-policy, at equal updates, 95 % "
        "interval below 0",
        falls_less_on_policy,
        "dpo_on_policy",
    ),
)

_OTHERS = (
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


def _chosen_and_rejected(seeds: Sequence[Recorded], width: int) -> Chart:
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
    changes = sentence(
        *(in_words(k, ends(seeds, "dpo", k)) for k in ("chosen", "rejected", GREEDY))
    )
    return small_multiples(width, f"DPO: {changes} nats", _unit(seeds), panels)


def rephrases(seeds: Sequence[Recorded], width: int) -> Chart:
    """Rephrases of both answers during DPO."""
    both = {
        "Of chosen": (
            *("chosen", "chosen_semantic", "chosen_format", "chosen_initial"),
            "chosen_selfr",
        ),
        "Of rejected": ("rejected_semantic", "rejected_format"),
    }
    return _two(seeds, both, "rephrases", width)


def _irrelevant_and_random(seeds: Sequence[Recorded], width: int) -> Chart:
    """Answers that have nothing to do with the prompt."""
    both = {
        "Irrelevant": ("irrelevant_train", "irrelevant_test", "irrelevant_human"),
        "Random": ("random_permuted", "random_words"),
    }
    return _two(seeds, both, "irrelevant and random answers", width)


def _two(
    seeds: Sequence[Recorded], both: dict[str, tuple[str, ...]], what: str, width: int
) -> Chart:
    panels = []
    for title, kinds in both.items():
        curves = kinds_lines(seeds, "dpo", kinds)
        if any(one.name != "chosen" for one in curves):
            panels.append(panel(seeds, title, curves))
    kinds = [k for some in both.values() for k in some if k != "chosen"]
    moved = [v for v in (ends(seeds, "dpo", k) for k in kinds) if v is not None]
    fell = sum(value < 0 for value in moved)
    title = f"DPO: {fell} of {len(moved)} {what} fall"
    return small_multiples(width, title, _unit(seeds), panels)


def _where_the_mass_went(seeds: Sequence[Recorded], width: int) -> Chart:
    """The favourites along chosen against all other tokens there."""
    rest = _rest(seeds)
    panels = [panel(seeds, "The favourites, Σ log max π", lines(_greedy(seeds)))]
    if rest is not None:
        panels.append(panel(seeds, "All other tokens, Σ log(1 − max π)", (rest,)))
    changes = [in_words("the favourites", ends(seeds, "dpo", GREEDY))]
    if rest is not None:
        value = float(np.mean([y[-1] for _, y in rest.runs]))
        changes.append(in_words("all other tokens", value))
    title = f"Where the mass went along chosen: {sentence(*changes)} nats"
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


def _on_policy(seeds: Sequence[Recorded], width: int) -> Chart:
    """Off-policy against on-policy rejected answers, same updates, same probes."""
    difference = [
        in_words(name, ends(seeds, role, GREEDY))
        for role, (name, _) in ROLES.items()
        if role != "extend-dpo"
    ]
    title = f"The favourites: {sentence(*difference)} nats"
    return compared(seeds, ("dpo", "on-policy"), title, width)


def compared(
    seeds: Sequence[Recorded], roles: Sequence[str], title: str, width: int
) -> Chart:
    """Chosen, rejected, the others and the greedy path of several DPO runs."""
    panels = []
    for kind in ("chosen", "rejected", "others", GREEDY):
        curves = []
        for role in roles:
            name, style = ROLES[role]
            if role == "dpo" and "extend-dpo" in roles:
                name = "plain"  # against extend this is what matters of it
            if kind == "others":
                curves.append(mean_line(seeds, role, _OTHERS, name, style))
            else:
                curves.append(line(seeds, role, kind, name=name, style=style))
        if lines(*curves):
            heading = "all other kinds, mean" if kind == "others" else kind
            panels.append(panel(seeds, heading, lines(*curves)))
    return small_multiples(width, title, _unit(seeds), panels)


def _squeeze_index(seeds: Sequence[Recorded], width: int) -> Chart:
    """The squeeze index of every DPO run over its updates."""
    curves = []
    last = []
    for role, (name, style) in ROLES.items():
        runs = []
        for one in seeds:
            run = one.runs.get(role)
            if run is None or len(run.steps) < 2:
                continue
            split = probed_split(run)
            index = squeeze_index(run, split)
            if index is not None and np.isfinite(index.path.mean).all():
                runs.append((index.steps, 100 * index.path.mean))
        if runs:
            curves.append(Line(name, style, tuple(runs)))
            last.append(in_words(name, float(np.mean([y[-1] for _, y in runs])), " %"))
    title = f"Squeeze index at the end: {sentence(*last)}"
    unit = (
        "Relative gain of the greedy path minus the best kind's relative gain, %"
        + of_seeds(seeds)
    )
    return small_multiples(width, title, unit, [panel(seeds, "", curves)], tall=300)


def _unit(seeds: Sequence[Recorded]) -> str:
    return CHANGE + of_seeds(seeds)
