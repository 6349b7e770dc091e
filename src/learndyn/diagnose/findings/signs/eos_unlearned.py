"""Does the model unlearn to stop while it learns the answers?

Where training sees the end of its answers, the end-of-text token is one of their tokens
and gains with them: it is among the first things that a model learns. It falls, or
stays unlikely, where the loss never sees it: padding is masked from the loss and the
pad token is the end-of-text token, or the data or the chat template have none. Such a
model answers well and does not stop.

A loss that pushes answers down moves the token in both directions, so there it is worth
watching and no fault by itself.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from learndyn.diagnose.endings import EOS_MOVES, Ending
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.groups import trained_probes
from learndyn.diagnose.numbers import capital, figures, number
from learndyn.diagnose.state import DELTA


_LEARNED = 0.1
"""Nats per token that the other tokens gain where end-of-text should have gained too,
if it was unlikely."""

_UNLIKELY = math.log(0.5)
"""Mean log-probability of end-of-text below which the model mostly does not stop."""

_Manner = Literal["falls", "stays"]

_VERBS: Mapping[_Manner, str] = {"falls": "unlearns", "stays": "does not learn"}


class EosUnlearned(Finding):
    """End-of-text falls, or stays unlikely, while the tokens before it gain."""

    name = "eos_unlearned"
    mend = Advice(
        "Let the loss see end-of-text: give the tokenizer a pad token of its own "
        '(tokenizer.pad_token = "<pad>", a token that is not end-of-text), end every '
        "answer of the data in tokenizer.eos_token, and look whether the labels of a "
        "batch end in its id and not in -100.",
        "The other tokens of the same answers were learned, this one was not.",
    )

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without chosen, two prompts of it, or values per token."""
        run, endings = facts.trajectory, facts.endings
        rows = np.flatnonzero(
            trained_probes(run, facts.split)[0] & (run.kind_of == "chosen")
        )
        if endings is None or not len(rows):
            return None
        ends = endings.ends[rows]
        numbers = {"answers": len(rows), "with_end_of_text": int(ends.sum())}
        if 2 * ends.sum() < len(rows):
            return cls("watch", _without_end(len(rows), int(ends.sum())), numbers)
        ending = endings.at(rows[ends])
        if ending is None:
            return None
        numbers |= {
            "end_of_text": limits_of(ending.eos),
            "others": limits_of(ending.others),
            "start": ending.start,
            "end": ending.end,
        }
        manner = _manner(ending, facts)
        if manner is None:
            return cls("fine", capital(f"{_in_words(ending)}."), numbers)
        family = facts.trajectory.run.info.family
        severity = "problem" if family in ("sft", "unknown") else "watch"
        says = f"The model {_VERBS[manner]} to stop: {_in_words(ending)}."
        return cls(severity, says, numbers | {"manner": manner})

    def headline(self, facts: Facts) -> str | None:
        """That the model unlearns to stop, or does not learn it."""
        if self.severity != "problem":
            return None
        before, after = (_percent(self.numbers[name]) for name in ("start", "end"))
        return (
            f"The model {_VERBS[self.numbers['manner']]} to stop: end-of-text after "
            f"chosen went from {before} to {after}."
        )

    def bug(self, facts: Facts) -> str:
        """Where the end is lost."""
        return (
            "This is probably a fault: end-of-text (EOS) is masked from the loss, as "
            "where the pad token is the EOS token, or the training data have none."
        )


def _manner(ending: Ending, facts: Facts) -> _Manner | None:
    eos, others = ending.eos, ending.others
    if others.mean < DELTA or not others.above_zero:
        return None
    if eos.below_zero and eos.mean <= -EOS_MOVES:
        return "falls"
    if not facts.sft or others.mean < _LEARNED or ending.end > _UNLIKELY:
        return None
    return "stays" if eos.mean < EOS_MOVES and eos.high < others.low else None


def _in_words(ending: Ending) -> str:
    eos = f"changed by {number(ending.eos)} nats"
    if max(abs(ending.eos.low), abs(ending.eos.high)) < DELTA:
        eos = f"stayed within {DELTA:g} nats"
    before, after = (_percent(value) for value in (ending.start, ending.end))
    return (
        f"at the end of chosen the end-of-text token (EOS) {eos} (probability {before} "
        f"at the start, {after} now), the other tokens of the same answers changed by "
        f"{number(ending.others)} nats per token"
    )


def _percent(logp: float) -> str:
    return f"{figures(100 * math.exp(logp))}\N{NO-BREAK SPACE}%"


def _without_end(answers: int, ends: int) -> str:
    return (
        f"Whether the model unlearns to stop cannot be told: {answers - ends} of "
        f"{answers} watched chosen answers do not end in the end-of-text token. If the "
        "training data are written like them, the model does not learn to stop."
    )
