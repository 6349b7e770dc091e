"""The diagnosis of a run: its state, what was found, the verdict, and what to do."""

import textwrap
from dataclasses import dataclass, field
from typing import Any

from learndyn.diagnose.advice import advice, shown
from learndyn.diagnose.changes import kind_table
from learndyn.diagnose.compare_words import compare_in_words
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import PAGE, Advice, Finding
from learndyn.diagnose.findings.state import StateReport
from learndyn.diagnose.words import nothing_to_judge, sentences_of
from learndyn.record.files import to_plain
from learndyn.record.trajectory import Trajectory


COLUMNS = 88


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
    said: list[str] = field(default_factory=list)
    """The verdict, at most ten sentences."""
    compared: list[str] = field(default_factory=list)
    """Sentences about the difference to a baseline."""

    @property
    def state(self) -> StateReport | None:
        """The state with its numbers; None where there is none to judge."""
        judged = self.facts is not None and self.facts.state.reason is None
        return self.facts.state if judged and self.facts else None

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
                "verdict": verdict(self),
            }
        )

    def to_text(self) -> str:
        """For a terminal, 88 columns wide."""
        lines = [_wrapped(sentence) for sentence in verdict(self)]
        if self.compared:
            lines += ["", "Against the baseline"]
            lines += [_wrapped(sentence, "  ") for sentence in self.compared]
        lines += ["", f"What was looked for (pages: {PAGE}#section)"]
        for item in self.findings:
            mark = f"  {item.severity:<8} #{item.at:<9}"
            lines.append(_wrapped(item.says, mark, " " * len(mark)))
        if self.advice:
            lines += ["", "What may be done"]
        for number, item in enumerate(self.advice, start=1):
            lines += _advised(number, item)
        return "\n".join(lines)


def diagnose(
    trajectory: Trajectory,
    baseline: Trajectory | None = None,
    split: str | None = None,
) -> Diagnosis:
    """Say what happened in a run, whether it is a bug, and what may be done.

    Works on unfinished runs, on those with one observation, and on imported ones
    without token columns. With `baseline`, also what differs from that run, over the
    probes of `split` like all else.

    Raises:
        BadInput: if `baseline` watched other answers, or no probe is of `split`.
    """
    run = shown(trajectory.run.path)
    kinds = {
        row.kind: {"first": row.first, "peak": row.peak, "last": row.last}
        for row in kind_table(trajectory, split)
    }
    alone = nothing_to_judge(trajectory, split)
    if alone is not None:
        return Diagnosis(run, None, kinds, [alone], [], [alone.says])
    facts = Facts.of(trajectory, split)
    compared = []
    if baseline is not None:
        compared = compare_in_words(baseline, trajectory, split=split)
    findings = list(facts.findings)
    if compared:
        says = " ".join(compared)
        findings.append(Finding("baseline", "fine", says, at="verdict"))
    said = sentences_of(facts)
    return Diagnosis(run, facts, kinds, findings, advice(facts), said, compared)


def verdict(diagnosis: Diagnosis) -> list[str]:
    """At most ten plain sentences: the answer first, then the numbers that carry it."""
    return diagnosis.said


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _advised(number: int, item: Advice) -> list[str]:
    """One remedy: what, why, the evidence and its limits."""
    indent = "     "
    lines = [_wrapped(item.do, f"  {number}. ", indent), _wrapped(item.because, indent)]
    source = "this run's own numbers" if item.source is None else item.source
    lines.append(_wrapped(f"Evidence: {source}.", indent))
    if item.limits is not None:
        lines.append(_wrapped(f"But: {item.limits}", indent))
    if item.command is not None:  # never wrapped: it is to be copied
        lines.append(f"{indent}$ {item.command}")
    return lines
