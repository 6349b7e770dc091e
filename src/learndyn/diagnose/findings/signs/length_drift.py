"""Does a preference loss teach length: is chosen much longer than rejected?

DPO compares log pi of whole answers, sums over their tokens. A chosen answer that is
twice as long has twice as many tokens to raise, so what all chosen answers share and
all rejected ones lack, their length, is learned first (length bias). Losses that divide
by the number of tokens, or leave out what is beyond the shorter answer, do not.
"""

from dataclasses import dataclass
from typing import Any

from learndyn.diagnose.advice import again
from learndyn.diagnose.endings import EOS_MOVES, Ending
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding, limits_of
from learndyn.diagnose.groups import trained_pairs
from learndyn.diagnose.intervals import (
    Interval,
    paired_bootstrap,
    pooled_bootstrap,
    rate_difference,
)
from learndyn.diagnose.numbers import capital, figures, number
from learndyn.diagnose.state import DELTA
from learndyn.record.method import as_losses
from learndyn.record.run_info import RunInfo


_LONG = 1.5
"""Chosen is called longer from so many times as many tokens on."""

_MUCH = 2.0
"""And from so many on a loss of sums is said to teach length."""

_PER_TOKEN = ("simpo", "orpo", "ipo")
"""Methods whose loss divides by the number of tokens, in TRL."""


class LengthDrift(Finding):
    """Chosen is much longer than rejected, under a loss that adds up tokens."""

    name = "length_drift"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None of other methods, without pairs, or where the run knows no tokens."""
        lengths = _lengths(facts)
        if facts.trajectory.run.info.family != "preference" or lengths is None:
            return None
        numbers = {
            "times": limits_of(lengths.times),
            "chosen_tokens": lengths.chosen,
            "rejected_tokens": lengths.rejected,
            "margin": limits_of(lengths.margin),
            "margin_per_token": limits_of(lengths.per_token),
            "end_of_text_chosen": limits_of(_eos(lengths.ends[0])),
            "end_of_text_rejected": limits_of(_eos(lengths.ends[1])),
        }
        times, words = lengths.times, capital(_in_words(lengths))
        longer, shorter = times.mean >= _LONG, times.mean <= 1 / _LONG
        if not (longer or shorter):
            return cls("fine", f"{words}.", numbers)
        if _divides(facts.trajectory.run.info):
            says = f"{words}; the loss counts per token, so length is not rewarded."
            return cls("fine", says, numbers)
        if not lengths.drifts:
            says = f"{words}; the answers do not drift that way.{_ends(lengths)}"
            return cls("fine", says, numbers)
        towards = "long" if longer else "short"
        much = times.low >= _MUCH or times.high <= 1 / _MUCH
        says = (
            f"The loss pushes towards {towards} answers (length bias): "
            f"{_in_words(lengths)}.{_signs(lengths)}{_ends(lengths)}"
        )
        return cls("problem" if much else "watch", says, numbers)

    def headline(self, facts: Facts) -> str | None:
        """How many times as long the longer answer is."""
        if self.severity != "problem":
            return None
        times = self.numbers["times"][0]
        towards = "long" if times > 1 else "short"
        return (
            f"The loss pushes towards {towards} answers (length bias): chosen is "
            f"{figures(times)} times as long as rejected."
        )

    def bug(self, facts: Facts) -> str:
        """It is in the data, and in a loss of sums."""
        return (
            "This is no bug in the code: the loss adds up the tokens of an answer, and "
            "length is what tells chosen from rejected in these data."
        )

    def advice(self, facts: Facts) -> list[Advice]:
        """Losses that count less of the length, as far as the trainer has them."""
        return [*_settings(facts), _BALANCE] if self.severity == "problem" else []


_BALANCE = Advice(
    "Balance the lengths: leave out pairs of which one answer is more than twice as "
    "long as the other.",
    "What all chosen answers share and no rejected one has is learned first.",
)


@dataclass(frozen=True)
class _Lengths:
    """Lengths of pairs, and what moved by length; of trained pairs where known."""

    times: Interval
    """Tokens of chosen / tokens of rejected."""
    chosen: float
    """Mean number of tokens."""
    rejected: float
    raised: Interval
    """Change of chosen, nats per response."""
    margin: Interval
    """Change of log pi(chosen) - log pi(rejected), nats per response."""
    per_token: Interval
    """The same of nats per token each."""
    ends: tuple[Ending | None, Ending | None]
    """What end-of-text did at the end of chosen and of rejected."""
    where: str
    """Which pairs these are, for a sentence."""

    @property
    def drifts(self) -> bool:
        """Whether the longer answers rise or the end of chosen comes later; where
        chosen is the shorter one, whether the end comes earlier."""
        eos = _eos(self.ends[0])
        if self.times.mean < 1:
            return eos is not None and eos.above_zero and eos.mean >= EOS_MOVES
        later = eos is not None and eos.below_zero and eos.mean <= -EOS_MOVES
        return later or (
            self.raised.above_zero and self.raised.mean >= DELTA * self.chosen
        )


def _lengths(facts: Facts) -> _Lengths | None:
    pairs = trained_pairs(facts.trajectory, facts.split)
    run = facts.trajectory
    if pairs is None or not run.n_tokens[pairs.chosen].sum():
        return None
    counts = [
        run.n_tokens[rows].astype(float) for rows in (pairs.chosen, pairs.rejected)
    ]
    logp = run.columns["logp"]
    one, other = (
        logp[-1, rows] - logp[0, rows] for rows in (pairs.chosen, pairs.rejected)
    )
    ends = facts.endings
    return _Lengths(
        pooled_bootstrap(*counts).at(),
        float(counts[0].mean()),
        float(counts[1].mean()),
        paired_bootstrap(one).at(),
        paired_bootstrap(one - other).at(),
        rate_difference((one, counts[0]), (other, counts[1])),
        (None, None)
        if ends is None
        else (ends.at(pairs.chosen), ends.at(pairs.rejected)),
        pairs.where,
    )


def _in_words(lengths: _Lengths) -> str:
    times, low, high = (
        figures(v) for v in (lengths.times.mean, lengths.times.low, lengths.times.high)
    )
    return (
        f"chosen is {times} [{low}, {high}] times as long as rejected "
        f"({lengths.chosen:.0f} and {lengths.rejected:.0f} tokens, {lengths.where})"
    )


def _signs(lengths: _Lengths) -> str:
    """Where the margin says one thing per response and another per token."""
    whole, each = lengths.margin, lengths.per_token
    apart = (whole.above_zero and each.below_zero) or (
        whole.below_zero and each.above_zero
    )
    if not apart:
        return ""
    return (
        f" Per response the margin changed by {number(whole)} nats, but per token by "
        f"{number(each)}: its sign is a matter of length."
    )


def _ends(lengths: _Lengths) -> str:
    kinds = zip(("chosen", "rejected"), lengths.ends, strict=True)
    texts = [f"of {kind} {_moved(end.eos)}" for kind, end in kinds if end is not None]
    if not texts:
        return ""
    return f" The end-of-text token (EOS) at the end {', at the end '.join(texts)}."


def _moved(eos: Interval) -> str:
    if max(abs(eos.low), abs(eos.high)) < DELTA:
        return f"stayed within {DELTA:g} nats"
    return f"changed by {number(eos)} nats"


def _eos(end: Ending | None) -> Interval | None:
    return None if end is None else end.eos


def _divides(info: RunInfo) -> bool:
    """Whether the loss divides by the length, or leaves out what is beyond the shorter
    answer."""
    losses, alpha = (
        as_losses(info.trainer.get("loss_type")),
        info.trainer.get("ld_alpha"),
    )
    cuts = isinstance(alpha, int | float) and alpha < 1
    return info.method in _PER_TOKEN or losses == ("sigmoid_norm",) or cuts


def _settings(facts: Facts) -> list[Advice]:
    """LD-DPO, where the trainer has its setting."""
    info: Any = facts.trajectory.run.info
    if info.method != "dpo" or "ld_alpha" not in info.trainer:
        return []
    return [
        Advice(
            "Let the tokens beyond the shorter answer count less (LD-DPO): "
            "DPOConfig(ld_alpha=0.5).",
            "With it answers were 10 to 40 % shorter than with DPO.",
            "cited",
            "Liu et al. 2024, LD-DPO, arXiv 2409.06411",
            "Their authors' own numbers; 0.5 lies in the middle of the range.",
            again(facts, "ld-dpo", "--ld_alpha", "0.5"),
        )
    ]
