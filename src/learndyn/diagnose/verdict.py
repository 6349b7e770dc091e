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
    GREEDY,
    KINDS,
    MOVED,
    OFF_TARGET,
    PAGE,
    Advice,
    Finding,
    Place,
)
from learndyn.diagnose.findings.state import RunState
from learndyn.diagnose.intervals import known
from learndyn.diagnose.numbers import counted, number
from learndyn.diagnose.squeeze import Evidence
from learndyn.diagnose.state import DELTA, StateReport, matters
from learndyn.probes.notebook import sentences_html
from learndyn.record.files import to_plain
from learndyn.record.trajectory import AnyRun, Trajectory


_MOST = 10
"""Sentences of a verdict; what matters least is left out."""

_COLUMNS = 88


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
        return to_plain(
            {
                "run": self.run,
                "state": None if state is None else state.state,
                "sure": None if state is None else state.sure,
                "sx": None if state is None else state.sx.mean,
                "sx_interval": None if state is None else [state.sx.low, state.sx.high],
                "onset_step": None if state is None else state.onset_step,
                "chosen_peak_step": None if peak is None else peak.step,
                "kinds": self.kinds,
                "findings": [finding.to_dict() for finding in self.findings],
                "advice": [item.to_dict() for item in self.advice],
                "verdict": self.sentences,
            }
        )

    def to_text(self) -> str:
        """For a terminal, 88 columns wide."""
        lines = [_wrapped(sentence) for sentence in self.sentences]
        if self.compared:
            lines += ["", "Against the baseline"]
            lines += [_wrapped(sentence, "  ") for sentence in self.compared]
        lines += ["", f"What was looked for (pages: {PAGE}#section)"]
        for item in self.findings:
            mark = f"  {item.severity:<8} #{item.at:<9}"
            lines.append(_wrapped(item.says, mark, " " * len(mark)))
        if self.advice:
            lines += ["", "What to do"]
        for index, item in enumerate(self.advice, start=1):
            lines += _advised(index, item)
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
    """The first fault's, where it has some: only that is worth mending. Else the
    state's."""
    faults = [finding for finding in findings if finding.severity == "problem"]
    state = [finding for finding in findings if isinstance(finding, RunState)]
    given = (finding.advice(facts) for finding in [*faults[:1], *state])
    return next(filter(None, given), [])


def _sentences(facts: Facts, findings: Sequence[Finding]) -> list[str]:
    """The verdict: at most `_MOST` sentences, each at its place."""
    headlines = (finding.headline(facts) for finding in findings)
    parts: list[tuple[Place, str]] = [
        (ANSWER, next(filter(None, headlines))),
        (MOVED, _what_moved(facts)),
        (KINDS, _how_many(facts.evidence)),
    ]
    parts += [(GREEDY, text) for text in _greedy(facts.evidence)]
    if not facts.sft:
        parts += [(OFF_TARGET, text) for text in _off_target(facts.evidence)]
    parts += [
        (finding.place, finding.sentence(facts, findings))
        for finding in findings
        if finding.place is not None
    ]
    parts.sort(key=lambda part: part[0].order)
    chosen: set[int] = set()
    room = _MOST
    for i in sorted(range(len(parts)), key=lambda i: parts[i][0].rank):
        if (size := _sentence_count(parts[i][1])) <= room:
            chosen.add(i)
            room -= size
    return [text for i, (_, text) in enumerate(parts) if i in chosen]


def _sentence_count(text: str) -> int:
    """How many sentences a text has."""
    return len(re.findall(r"[.!?](?=\s|$)", text))


def _what_moved(facts: Facts) -> str:
    trajectory, evidence = facts.trajectory, facts.evidence
    method = "SFT" if facts.sft else trajectory.run.info.method or "training"
    method = method.upper() if len(method) <= 4 else method
    moved = []
    if evidence.chosen is not None:
        moved.append(f"chosen by {number(evidence.chosen)} nats")
    if evidence.rejected is not None:
        moved.append(f"rejected by {number(evidence.rejected)} nats")
    if not moved:
        ran = f"{method} ran for {counted(int(trajectory.steps[-1]), facts.unit)}"
        return f"{ran}; no probe is of kind chosen."
    ran = counted(evidence.step or 0, facts.unit)
    text = f"{method} moved {' and '.join(moved)} in {ran}"
    if evidence.margin is None or facts.sft:
        return text + "."
    return text + f": the margin changed by {number(evidence.margin)} nats."


def _greedy(evidence: Evidence) -> list[str]:
    path = evidence.greedy
    if path is None:
        return []
    verb = "did not clearly move" if known(path) else "changed"
    if path.excludes_zero and not matters(evidence.greedy_relative):
        verb = f"moved by less than {100 * DELTA:.0f} %"
    elif path.above_zero:
        verb = "gained probability"
    elif path.below_zero:
        verb = "lost probability"
    return [
        f"The greedy path, the model's own favourite tokens along chosen, {verb}: "
        f"{number(path)} nats."
    ]


def _how_many(evidence: Evidence) -> str:
    total = len(evidence.kinds)
    unknown = sum(not known(change) for change in evidence.kinds.values())
    unsure = total - evidence.falling - evidence.rising - unknown
    text = f"{evidence.falling} of {total} kinds fell and {evidence.rising} rose"
    text += f"; for {unsure} the interval includes zero" if unsure else ""
    return text + (f"; for {unknown} there is no interval." if unknown else ".")


def _off_target(evidence: Evidence) -> list[str]:
    moved = evidence.off_target
    if moved is None:
        return []
    direction = "did not clearly move" if known(moved) else "changed"
    if moved.excludes_zero:
        direction = "gained" if moved.above_zero else "lost"
    return [
        "Where the first model favoured another token than chosen's, that token "
        f"{direction}: {number(moved, 2)} nats per token over "
        f"{evidence.off_target_tokens} tokens."
    ]


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
