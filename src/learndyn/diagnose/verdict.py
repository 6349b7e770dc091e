"""The diagnosis of a run: its state, its findings, the verdict, and what to do.

The verdict is what happened in at most ten plain sentences that carry their numbers:
the answer first, then what moved, then what to watch. The command line, the report and
the demo take their sentences from here.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from learndyn.diagnose.advice import shown
from learndyn.diagnose.catalogue import FINDINGS
from learndyn.diagnose.changes import kind_table
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import (
    ANSWER,
    BUG,
    CHOSEN,
    GREEDY,
    KINDS,
    MOVED,
    PAGE,
    Advice,
    Finding,
    Place,
    limits_of,
)
from learndyn.diagnose.findings.state import RunState
from learndyn.diagnose.headline import (
    answer,
    how_many,
    in_units,
    is_it_a_bug,
    where_it_went,
)
from learndyn.diagnose.state import Move, StateReport
from learndyn.probes.notebook import sentences_html
from learndyn.record.files import to_plain
from learndyn.record.trajectory import AnyRun, Trajectory


_MOST = 10
"""Sentences of a verdict; what matters least is left out."""

_COLUMNS = 88

_MOVES = ("chosen", "rejected", "margin", "greedy", "sq")
"""Moves of the state that `--json` has."""

_SEVERITIES = {"problem": 0, "watch": 1, "fine": 2}


@dataclass(frozen=True)
class Diagnosis:
    """What happened in one run."""

    run: str
    facts: Facts | None
    """None where nothing can be judged: one observation, or a model that diverged."""
    kinds: dict[str, dict[str, float]]
    """First, peak and last mean of every kind, nats per response."""
    findings: list[Finding]
    advice: list[Advice]
    sentences: list[str] = field(default_factory=list)
    """The verdict, at most ten: the answer first, then the numbers that carry it."""
    compared: list[str] = field(default_factory=list)
    """Sentences about the difference to a baseline."""

    @property
    def state(self) -> StateReport | None:
        """The state with its numbers; None where there is none to judge."""
        judged = self.facts is not None and self.facts.state.reason is None
        return self.facts.state if judged and self.facts else None

    def __repr__(self) -> str:
        return f"Diagnosis({self.run!r}: {' '.join(self.sentences[:1])})"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        shown = sentences_html(self.run, self.sentences)
        if self.advice:
            shown += sentences_html("What to do", [a.do for a in self.advice])
        return shown

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; what is not known is null."""
        state, facts = self.state, self.facts
        peak = None if facts is None else facts.peak
        sx = facts.sx.end if facts is not None and facts.sx is not None else None
        return to_plain(
            {
                "run": self.run,
                "state": None if state is None else state.state,
                "sure": None if state is None else state.sure,
                **{name: self._limits(name) for name in _MOVES},
                "sx": None if sx is None else sx.mean,
                "sx_interval": None if sx is None else [sx.low, sx.high],
                "onset_step": None if state is None else state.onset_step,
                "chosen_peak_step": None if peak is None else peak.step,
                "kinds": self.kinds,
                "findings": [finding.to_dict() for finding in self.findings],
                "advice": [item.to_dict() for item in self.advice],
                "verdict": self.sentences,
            }
        )

    def _limits(self, name: str) -> list[float] | None:
        """One of the state's moves, nats per response."""
        move: Move | None = getattr(self.state, name, None)
        return None if move is None else limits_of(move.nats)

    def to_text(self) -> str:
        """For a terminal, 88 columns wide."""
        lines = [_wrapped(sentence) for sentence in self.sentences]
        if self.compared:
            lines += ["", "Against the baseline"]
            lines += [_wrapped(sentence, "  ") for sentence in self.compared]
        if self.advice:
            lines += ["", "What to do"]
        elif self.state is not None and self.state.state in ("FIT", "SQUEEZE"):
            lines += ["", "What to do", "  Nothing: go on, and look at the answers."]
        for index, item in enumerate(self.advice, start=1):
            lines += _advised(index, item)
        lines += ["", f"What was looked for (pages: {PAGE}#section)"]
        for item in sorted(self.findings, key=lambda item: _SEVERITIES[item.severity]):
            mark = f"  {item.severity:<8} #{item.at:<9}"
            lines.append(_wrapped(item.says, mark, " " * len(mark)))
        return "\n".join(lines)


def diagnose(
    run: AnyRun,
    baseline: AnyRun | None = None,
    split: str | None = None,
) -> Diagnosis:
    """Say what happened in a run, whether it is a bug, and what may be done.

        print(learndyn.diagnose("runs/dpo"))

    Works on unfinished runs, on those with one observation, and on imported ones
    without token columns. With `baseline`, also what differs from that run, over the
    probes of `split` like all else.

    Raises:
        BadInput: if a run cannot be read, `baseline` watched other answers, or no probe
            is of `split`.
    """
    trajectory = Trajectory.of(run)
    name = shown(trajectory.run.path)
    kinds = {
        row.kind: {"first": row.first, "peak": row.peak, "last": row.last}
        for row in kind_table(trajectory, split)
    }
    facts = Facts(
        trajectory, split, None if baseline is None else Trajectory.of(baseline)
    )
    findings: list[Finding] = []
    for kind in FINDINGS:
        finding = kind.detect(facts)
        if finding is not None and finding.alone:
            return Diagnosis(name, None, kinds, [finding], [], [finding.says])
        if finding is not None:
            findings.append(finding)
    return Diagnosis(
        name,
        facts,
        kinds,
        findings,
        _advice(facts, findings),
        _sentences(facts, findings),
        facts.compared,
    )


def what_happened(
    trajectory: Trajectory,
    baseline: Trajectory | None = None,
    split: str | None = None,
) -> list[str]:
    """The verdict on one run; with `baseline`, then its difference to that, both over
    the probes of `split`.
    """
    diagnosis = diagnose(trajectory, baseline, split)
    return [*diagnosis.sentences, *diagnosis.compared]


def _advice(facts: Facts, findings: Sequence[Finding]) -> list[Advice]:
    """Of the first fault that has some: where there is a fault only mending it is
    advised. Else the state's."""
    faults = [finding for finding in findings if finding.severity == "problem"]
    state = [finding for finding in findings if isinstance(finding, RunState)]
    given = (finding.advice(facts) for finding in faults or state)
    return next(filter(None, given), [])


def _sentences(facts: Facts, findings: Sequence[Finding]) -> list[str]:
    """The verdict: at most `_MOST` sentences, each at its place. A problem's headline
    comes before any state's, and only then the state's own answer."""
    ordered = sorted(findings, key=lambda finding: finding.severity != "problem")
    headlines = (finding.headline(facts) for finding in ordered)
    first = next(filter(None, headlines))
    parts: list[tuple[Place, str | None]] = [
        (ANSWER, first),
        (BUG, is_it_a_bug(facts, ordered)),
    ]
    if facts.state.state != "STILL":  # one sentence says it of all
        parts += [
            (KINDS, how_many(facts)),
            (GREEDY, where_it_went(facts)),
            (MOVED, in_units(facts)),
        ]
    if facts.state.reason is None and first != answer(facts):
        parts.append((CHOSEN, answer(facts, faulty=True)))
    parts += [
        (finding.place, finding.sentence(facts, findings))
        for finding in findings
        if finding.place is not None
    ]
    known = [(place, text) for place, text in parts if text]
    known.sort(key=lambda part: part[0].order)
    chosen: set[int] = set()
    room = _MOST
    for i in sorted(range(len(known)), key=lambda i: known[i][0].rank):
        if (size := _sentence_count(known[i][1])) <= room:
            chosen.add(i)
            room -= size
    return [text for i, (_, text) in enumerate(known) if i in chosen]


def _sentence_count(text: str) -> int:
    """How many sentences a text has."""
    return len(re.findall(r"[.!?](?=\s|$)", text))


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _advised(index: int, item: Advice) -> list[str]:
    """One remedy: what, why, the evidence and its limits."""
    indent = "     "
    lines = [_wrapped(item.do, f"  {index}. ", indent), _wrapped(item.because, indent)]
    source = "this run's own numbers" if item.source is None else item.source
    lines.append(_wrapped(f"Evidence: {source}.", indent))
    if item.limits is not None:
        lines.append(_wrapped(f"But: {item.limits}", indent))
    if item.command is not None:  # never wrapped: it is to be copied
        lines.append(f"{indent}$ {item.command}")
    return lines
