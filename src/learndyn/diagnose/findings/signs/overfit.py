"""Does the run memorise its training data?

What training does to the prompts that it trains on is set against what it does to
others, in two units:

    margin    log pi(chosen) - log pi(rejected) since the start, nats per response: what
              a preference loss learns. The trainer logs it of the rows it trains on,
              rewards/margins / beta, so that prompts of these need not be watched.
    chosen    log pi(chosen) since the start, nats per token, since the answers of two
              groups differ in length: what SFT learns.

All is the mean over the last 20 % of the observations, and of the logged rows. The
groups are other prompts, so each is drawn by itself.
"""

from collections.abc import Sequence
from typing import Any

from learndyn.diagnose.advice import again
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import Advice, Finding, Severity, limits_of
from learndyn.diagnose.groups import Generalisation, Side
from learndyn.diagnose.numbers import capital, figures, number
from learndyn.diagnose.state import DELTA


_FEW = 0.25
"""Where the margin of held-out prompts grew by less than so much of the trained pairs',
these were memorised. In healthy runs of small models it was 0.9 and more; 64 pairs for
10 epochs gave less than 0."""

_LARGE = 2.0
"""Smallest margin on trained pairs that is judged, nats per response: a reward of 0.2
at beta 0.1."""

_GAP = 0.5
"""Nats per token that trained answers gain beyond held-out ones where SFT overfits:
each token gained 65 % more probability. In healthy runs of small models it was 0.01;
16 rows for 30 epochs gave 0.8."""


class Overfit(Finding):
    """Training prompts gain what held-out prompts do not."""

    name = "overfit"
    section = "kinds"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where one split is asked for, without chosen, and where neither the
        prompts nor the log say what was trained on."""
        run = Generalisation.of(facts.trajectory) if facts.split is None else None
        if run is None:
            return None
        numbers = _numbers(run)
        looks = [_of_log(run), _of_chosen(run, facts), _alike(run)]
        if facts.trajectory.run.info.family == "preference":
            looks.insert(1, _of_margin(run))
        severity, says = next(filter(None, looks), ("fine", ""))
        return cls(severity, says, numbers) if says else None

    def headline(self, facts: Facts) -> str | None:
        """What is memorised, in how many epochs."""
        return self.says if self.severity == "problem" else None

    def sentence(self, facts: Facts, findings: Sequence[Finding]) -> str:
        """Nothing where it is the headline."""
        return "" if self.is_first(findings) else self.says

    def bug(self, facts: Facts) -> str:
        """Too little data, or the wrong probes."""
        text = "This is no bug in the code, but too much training on too few data"
        if self.numbers["recorded"]:
            return f"{text}: other prompts do not gain from it."
        return f"{text}, if the probes' splits are as they are marked."

    def advice(self, facts: Facts) -> list[Advice]:
        """Fewer epochs or more data, or other probes."""
        if self.severity != "problem":
            return []
        epochs = self.numbers["epochs"]
        command = None
        if epochs is not None and epochs >= 2:
            command = again(facts, "one-epoch", "--num_train_epochs", "1")
        return [
            Advice(
                "Train for fewer epochs (num_train_epochs), or on more data.",
                "What held-out prompts do not gain was learned by heart.",
                limits="How many epochs are best was not measured.",
                command=command,
            )
        ]


_Look = tuple[Severity, str] | None


def _of_log(run: Generalisation) -> _Look:
    """The logged margin on trained rows against all that is watched."""
    side = run.trained or run.everyone
    log, margin = run.log, side.margin
    if log is None or margin is None or log.mean < _LARGE:
        return None
    if margin.nats.high >= log.low or margin.nats.mean >= 0.5 * log.mean:
        return None
    if margin.nats.below_zero:  # as where chosen and rejected are exchanged
        return None
    severity = "problem" if margin.nats.mean < _FEW * log.mean else "watch"
    why = f"the data are memorised{_within(run)}, or these"
    if run.epochs is not None and run.epochs <= 1:
        # each row is logged before its own update: none of it can be memory
        severity, why = "watch", "these"
    whose = "watched prompts" if run.trained is None else run.names[0]
    return severity, (
        f"On the rows that it trains on the log's margin is {number(log)} nats "
        f"(rewards/margins / beta), on {whose} it changed by {number(margin.nats)}: "
        f"{why} are not the prompts that it trains on."
    )


def _of_margin(run: Generalisation) -> _Look:
    """Trained pairs against held-out ones."""
    if run.trained is None or run.held_out is None:
        return None
    one, other = run.trained.margin, run.held_out.margin
    if one is None or other is None or one.nats.mean < _LARGE:
        return None
    gap = run.margin_gap
    if gap is None or not gap.above_zero or other.nats.mean >= _FEW * one.nats.mean:
        return None
    return "problem", (
        f"The pairs are memorised{_within(run)}: the margin changed by "
        f"{number(one.nats)} nats on {run.names[0]}, by {number(other.nats)} on "
        f"{run.names[1]}."
    )


def _of_chosen(run: Generalisation, facts: Facts) -> _Look:
    if run.trained is None or run.held_out is None or run.gap is None:
        return None
    one, other, gap = run.trained.chosen, run.held_out.chosen, run.gap
    if not gap.above_zero or gap.mean < run.smallest:
        return None
    both = _both(run)
    family = facts.trajectory.run.info.family
    if one.up and other.down and family != "online":
        return "problem", (
            f"The answers are memorised{_within(run)}: {both}. What was learned does "
            "not carry over."
        )
    if facts.sft and one.up and gap.mean >= run.smallest * _GAP / DELTA:
        return "problem", (
            f"SFT overfits{_within(run)}: {both}, a difference of {number(gap)}."
        )
    how = "fare better"
    if one.up:
        how = "gain more"
    elif one.down and other.down:
        how = "fall less"
    return "watch", (
        f"{capital(run.names[0])} {how} than {run.names[1]}: {both}, a difference of "
        f"{number(gap)}."
    )


def _alike(run: Generalisation) -> _Look:
    """Nothing sets trained and held-out prompts apart."""
    if run.trained is not None and run.held_out is not None:
        if run.recorded:
            return "fine", f"No sign of overfitting: {_both(run)}."
        return "fine", (
            f"{capital(_both(run))}; the first did not surely gain more. Whether they "
            "were trained on is not recorded."
        )
    margin = run.everyone.margin
    if run.log is None or margin is None:
        return None
    return "fine", (
        f"The margin is {number(run.log)} nats in the log of the rows trained on, and "
        f"changed by {number(margin.nats)} on the watched prompts. Which of these were "
        "held out is not recorded."
    )


def _both(run: Generalisation) -> str:
    assert run.trained is not None  # it is asked for both
    assert run.held_out is not None
    one, other = (side.chosen for side in (run.trained, run.held_out))
    if one.still and other.still:
        return (
            f"chosen stayed within {figures(run.smallest)} {run.unit} on "
            f"{run.names[0]} and on {run.names[1]}"
        )
    return (
        f"chosen changed by {number(one.size)} {run.unit} on {run.names[0]} and by "
        f"{number(other.size)} on {run.names[1]}"
    )


def _within(run: Generalisation) -> str:
    return "" if run.epochs is None else f" in {figures(run.epochs)} epochs"


def _numbers(run: Generalisation) -> dict[str, Any]:
    def of(side: Side | None, name: str) -> list[float] | None:
        move = None if side is None else getattr(side, name)
        if move is None:
            return None
        return limits_of(move.nats if name == "margin" else move.size)

    return {
        "recorded": run.recorded,
        "trained": of(run.trained, "chosen"),
        "held_out": of(run.held_out, "chosen"),
        "difference": limits_of(run.gap),
        "trained_margin": of(run.trained, "margin"),
        "held_out_margin": of(run.held_out, "margin"),
        "logged_margin": limits_of(run.log),
        "epochs": run.epochs,
    }
