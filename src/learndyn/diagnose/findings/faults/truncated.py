"""Does training cut the answers, so that it never sees their end?

Probes are scored at a length of their own (max_length of run.json), the trainer cuts at
its settings' max_length. What a trainer does to a row that does not fit:

    truncation_mode keep_start   cuts the answer's end, EOS first; TRL drops a row whose
                                 prompt alone fills max_length
    truncation_mode keep_end     cuts the prompt's beginning
    max_prompt_length            cuts the prompt first (older TRL)
    max_completion_length        cuts the answer, whatever the prompt
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding
from learndyn.diagnose.numbers import counted
from learndyn.record.run_info import RunInfo


_WATCH = 0.05
"""Share of the answers of a kind: a few long ones are cut in most trainings."""

_PROBLEM = 0.25

_LENGTHS = ("max_length", "max_seq_length", "cutoff_len")
"""Names of the limit to prompt and answer together, in TRL now and before, and in
LLaMA-Factory."""


class Truncated(Finding):
    """The trainer's max_length is below what many watched answers need."""

    name = "truncated"
    section = "training"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where the trainer cuts nothing, samples its own answers, or where the
        run has no lengths."""
        cuts = _cuts(facts)
        if cuts is None:
            return None
        numbers = {
            "limit": cuts.limit,
            "cut": int(cuts.lost.astype(bool).sum()),
            "watched": len(cuts.lost),
            "shares": cuts.shares,
            "prompts_full": int(cuts.full.sum()),
        }
        share = max(cuts.shares.values())
        if share < _WATCH:
            says = (
                f"{len(cuts.lost) - numbers['cut']} of {len(cuts.lost)} watched "
                f"answers fit the trainer's {cuts.setting} {cuts.limit}."
            )
            return cls("fine", says, numbers)
        severity = "problem" if share >= _PROBLEM else "watch"
        return cls(severity, _says(facts.trajectory.run.info, cuts), numbers)

    def headline(self, facts: Facts) -> str | None:
        """How many answers do not fit."""
        cuts = _cuts(facts)
        if self.severity != "problem" or cuts is None:
            return None
        return (
            f"Training cuts at {cuts.setting} {cuts.limit}, and {self.numbers['cut']} "
            f"of {len(cuts.lost)} watched answers do not fit."
        )

    def advice(self, facts: Facts) -> list[Advice]:
        """A limit that all of them fit."""
        cuts = _cuts(facts)
        if self.severity != "problem" or cuts is None:
            return []
        do = f"Raise {cuts.setting} to {cuts.needed} or more"
        if cuts.setting in _LENGTHS:
            do += ", or drop the rows that are longer"
        return [
            Advice(
                f"{do}.",
                f"The longest watched row needs {cuts.needed} tokens.",
                limits="Memory grows with the length.",
            )
        ]


@dataclass(frozen=True, eq=False)
class _Cuts:
    """What the trainer cuts from the watched chosen and rejected."""

    setting: str
    limit: int
    needed: int
    """Tokens of the longest."""
    lost: Int[np.ndarray, " answer"]
    """Tokens cut of each answer; all of them where its row is dropped."""
    full: Bool[np.ndarray, " answer"]
    """Whether its prompt alone fills the limit."""
    shares: dict[str, float]
    """Share of the answers of each kind that are cut."""
    dropped: bool
    """Whether rows of full prompts are dropped rather than kept without an answer."""


def cut_share(facts: Facts) -> float:
    """Share of the watched chosen and rejected that the trainer cuts; 0 if unknown."""
    cuts = _cuts(facts)
    return 0.0 if cuts is None else float(cuts.lost.astype(bool).mean())


def _cuts(facts: Facts) -> _Cuts | None:
    run = facts.trajectory
    trainer, probes = run.run.info.trainer, run.probes
    if run.run.info.family == "online" or trainer.get("packing") is True:
        return None
    names = probes.column_names
    if "prompt_ids" not in names or "response_ids" not in names:
        return None
    prompts = np.array([len(ids) for ids in probes["prompt_ids"].to_pylist()])
    answers = np.array([len(ids) for ids in probes["response_ids"].to_pylist()])
    kinds = ("chosen",) if facts.sft else ("chosen", "rejected")
    rows = np.isin(run.kind_of, kinds) & (answers > 0)
    if facts.split is not None or (run.split_of == "train").any():
        rows &= run.split_of == (facts.split or "train")
    if not rows.any():
        return None
    prompts, answers, kind_of = prompts[rows], answers[rows], run.kind_of[rows]
    own = _count(trainer.get("max_completion_length"))
    setting, limit = next(
        ((name, value) for name in _LENGTHS if (value := _count(trainer.get(name)))),
        ("max_completion_length", own),
    )
    if limit is None:
        return None
    if setting == "max_completion_length":
        lost, full = np.maximum(answers - limit, 0), np.zeros(len(answers), dtype=bool)
        needed = int(answers.max())
    else:
        short = _count(trainer.get("max_prompt_length"))
        used = prompts if short is None else np.minimum(prompts, short)
        if trainer.get("truncation_mode") == "keep_end":
            used = np.zeros_like(prompts)
        lost = np.clip(used + answers - limit, 0, answers)
        full, needed = used >= limit, int((used + answers).max())
        if own is not None:
            lost = np.maximum(lost, answers - own)
    dropped = trainer.get("truncation_mode") == "keep_start"
    shares = {
        kind: float((lost[kind_of == kind] > 0).mean())
        for kind in kinds
        if (kind_of == kind).any()
    }
    return _Cuts(setting, limit, needed, lost, full, shares, dropped)


def _says(info: RunInfo, cuts: _Cuts) -> str:
    cut = cuts.lost > 0
    partly = cut & ~cuts.full
    text = ""
    if cuts.full.any():
        fate = "dropped from training" if cuts.dropped else "left without an answer"
        text = (
            f"{cuts.full.sum()} of {len(cut)} have a prompt that alone fills "
            f"{cuts.limit} tokens, so such rows are {fate}"
        )
    if partly.any():
        typical = int(np.median(cuts.lost[partly]))
        text += "; " if text else ""
        text += (
            f"{partly.sum()} lose their end, {counted(typical, 'token')} in the "
            "median, EOS among them, so training never sees how they stop"
        )
    uneven = [f"{100 * share:.0f} % of {kind}" for kind, share in cuts.shares.items()]
    more = f" Cut are {' and '.join(uneven)}." if len(uneven) > 1 else ""
    scored = ""
    if info.max_length is not None and info.max_length > cuts.limit:
        scored = (
            f" The probes are scored at up to {info.max_length} tokens, so the curves "
            "show more than was trained."
        )
    return f"{text[0].upper()}{text[1:]}.{more}{scored}"


def _count(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
