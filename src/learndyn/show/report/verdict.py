"""The top of a run's page: what happened, is it a bug, what to do, and how sure."""

from collections.abc import Sequence

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import bracket, decimals, nats, number
from learndyn.diagnose.paths import GREEDY, LAST
from learndyn.diagnose.state import DELTA, Move, State, StateReport
from learndyn.diagnose.verdict import Diagnosis
from learndyn.show.page import (
    Markup,
    details,
    link,
    plain_table,
    sentences,
    table,
    text as escaped,
)


_FIRST = 4
"""Sentences above the fold: the answer, and three that carry it."""

_RULES: dict[State, str] = {
    "STILL": "every change within ±δ",
    "COLLAPSE": "chosen down and the greedy path up on new peaks; or chosen, the "
    "greedy path and every kind down",
    "SQUEEZE": "greedy path up, and more than chosen; former favourites off the "
    "labels not down; not in SFT",
    "FIT": "chosen up; or chosen within ±δ and the margin up",
    "DISPLACED": "chosen down",
    "UNDECIDED": "none of these",
}


def verdict_section(
    diagnosis: Diagnosis, about: str, anchor: str = "", name: str = ""
) -> str:
    """The verdict as HTML, with what the run is `about` (HTML) below its answer.

    `anchor` stands before the names of all sections of the page; `name` is the run's,
    where the page is about several.
    """
    answer = diagnosis.sentences
    more = answer[_FIRST:]
    listed = "".join(f"<li>{escaped(sentence)}</li>" for sentence in more)
    parts = [
        _chips(diagnosis, name),
        f"<h2 class='answer'>{escaped(answer[0])}</h2>",
        about,
        sentences(answer[1:_FIRST]) if answer[1:] else "",
        _numbers(diagnosis.facts),
        _remedy(diagnosis.advice[0]) if diagnosis.advice else "",
        details("More of what happened", f"<ul class='said'>{listed}</ul>")
        if more
        else "",
        _further(diagnosis.advice[1:]),
        _reached(diagnosis, anchor),
    ]
    return "".join(parts)


def _chips(diagnosis: Diagnosis, name: str) -> str:
    """The state as a word, and since when, over how many prompts."""
    state = diagnosis.state
    run = f"{escaped(name)} · " if name else ""
    if state is None or diagnosis.facts is None:
        return f"<p class='state'>{run}<span class='chip'>NO VERDICT</span></p>"
    sure = "" if state.sure else ", not surely"
    trajectory = diagnosis.facts.trajectory
    alone = "chosen" in trajectory.means_only
    prompts = "means alone" if alone else f"{state.prompts} prompts"
    about = [prompts, f"{len(state.kinds)} kinds"]
    if state.onset_step is not None:
        about.insert(0, f"since {trajectory.unit} {state.onset_step}")
    return (
        f"<p class='state'>{run}<span class='chip {state.state.lower()}'>"
        f"{state.state}{sure}</span> {escaped(' · '.join(about))}</p>"
    )


def _numbers(facts: Facts | None) -> str:
    """The three numbers that decide, large, with their limits."""
    if facts is None:
        return ""
    shown = [pair for pair in _three(facts) if pair[1] is not None][:3]
    cells = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{_large(value)}</dd></div>"
        for name, value in shown
        if value is not None
    )
    return f"<dl class='three'>{cells}</dl>" if cells else ""


def _large(value: Interval) -> str:
    digits = decimals(value.mean, value.low, value.high)
    limits = escaped(bracket(value, digits))
    return f"{escaped(nats(value.mean, digits))} <span class='limits'>{limits}</span>"


def _three(facts: Facts) -> list[tuple[str, Interval | None]]:
    state = facts.state
    moves: list[tuple[str, Move | None]] = [("chosen, nats", state.chosen)]
    if not facts.sft:
        moves.append(("margin, nats", state.margin))
    moves.append((f"{GREEDY}, nats", state.greedy))
    return [(name, None if move is None else move.nats) for name, move in moves]


def _remedy(item: Advice) -> str:
    return f"<div class='remedy'><h3>What to do</h3>{_advised(item)}</div>"


def _advised(item: Advice) -> str:
    """One remedy with its evidence, its limits and its command."""
    source = "this run's own numbers" if item.source is None else item.source
    but = "" if item.limits is None else f" But: {item.limits}"
    command = "" if item.command is None else f"<code>{escaped(item.command)}</code>"
    return (
        f"<p><strong>{escaped(item.do)}</strong> {escaped(item.because)}</p>{command}"
        f"<p class='muted'>Evidence: {escaped(source)}.{escaped(but)}</p>"
    )


def _further(items: Sequence[Advice]) -> str:
    if not items:
        return ""
    return details("Other remedies, and their evidence", "".join(map(_advised, items)))


def _reached(diagnosis: Diagnosis, anchor: str) -> str:
    """Rule, values, thresholds, and everything that was looked for."""
    state = diagnosis.state
    parts = [] if state is None else [_rule(state)]
    rows = [
        [
            item.severity,
            Markup(escaped(item.says), running=True),
            link(f"{anchor}{item.at}", item.at),
        ]
        for item in diagnosis.findings
    ]
    parts.append(table(("", "what was looked for", "shown in"), rows))
    return details("How this verdict was reached", "".join(parts))


def _sure(state: StateReport) -> str:
    if state.sure:
        return "yes"
    known = state.chosen is not None and state.chosen.known
    return "no" if known else "no: no interval is known"


def _rule(state: StateReport) -> str:
    moves = {
        "chosen": state.chosen,
        GREEDY: state.greedy,
        f"{GREEDY} − chosen": state.sq,
        "former favourites off the labels": state.off_target,
    }
    values = {
        f"{name}, nats per token (99 %)": number(move.surely)
        for name, move in moves.items()
        if move is not None
    }
    others = "; ".join(
        f"{name}: {rule}" for name, rule in _RULES.items() if name != state.state
    )
    values |= {
        "threshold δ": f"{DELTA} nats per token",
        "means over": f"the last {100 * LAST:.0f} % of the observations, at least one",
        "rule that holds": f"{state.state}: {_RULES[state.state]}",
        "other rules": others,
        "sure": _sure(state),
    }
    if state.onset_step is not None:
        values["over δ three observations in a row, first"] = f"{state.onset_step}"
    if state.first_sure_step is not None:
        values["whole interval over δ, first"] = f"{state.first_sure_step}"
    if state.labels:
        values["left out, labels and not answers"] = ", ".join(state.labels)
    return plain_table(list(values.items()))
