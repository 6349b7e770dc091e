"""Are the steps too large? Loss and gradient norm, the rate, and what answers lost."""

import numpy as np

from learndyn.diagnose.advice import smaller_steps
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.log import Series, logged, short
from learndyn.diagnose.findings.faults.rates import above, far_above, in_words
from learndyn.diagnose.findings.faults.trouble import MUCH, Trouble
from learndyn.diagnose.findings.finding import SIGN, Advice, Finding, Place, limits_of


class StepsTooLarge(Finding):
    """The loss jumps at once, rises or is not a number; or every watched answer loses
    much at once, or at a rate far above the usual."""

    name = "steps_too_large"
    section = "training"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None without a training log, and where only the rate is large."""
        log, evidence = facts.trajectory.train_log, facts.evidence
        trouble = Trouble.of(facts)
        rate = _rate(facts, trouble)
        numbers = {
            "greedy": limits_of(evidence.greedy),
            "chosen": limits_of(evidence.chosen),
            "loss_jumps": trouble.loss + (trouble.early is not None),
            "grad_norm_jumps": trouble.grad_norm,
            "not_finite": trouble.lost,
            "learning_rate": rate,
            "clipped": _clipped(facts),
        }
        if (jump := trouble.early) is not None:
            numbers["jump"] = [jump.step, jump.before, jump.after]
        if trouble.rose is not None:
            numbers["rose"] = list(trouble.rose)
        if trouble.damage is not None:
            numbers["chosen_per_token"] = trouble.damage.per_token
        if _broken(trouble) or _damaged(facts, trouble, rate):
            return cls("problem", _says(facts, trouble), numbers)
        if trouble.loss or trouble.grad_norm:
            parts = _of_the_log(trouble)
            says = f"The training log shows trouble ({parts}): the steps may be too "
            return cls("watch", f"{says}large.", numbers)
        if not log:
            return None
        rows = len(Series.of(log, "loss"))
        says = f"Loss and gradient norm do not jump in {rows} logged rows."
        return cls("fine", says, numbers)

    def headline(self, facts: Facts) -> str | None:
        """What shows it, with the rate."""
        if self.severity != "problem":
            return None
        trouble = Trouble.of(facts)
        rate = _rate(facts, trouble)
        blame, at = "The steps are too large", ""
        if rate is not None:
            at = f" (learning rate {short(rate)})"
            if far_above(facts.trajectory.run.info, rate):
                blame, at = f"The learning rate of {short(rate)} is far too large", ""
        if (jump := trouble.early) is not None:
            return (
                f"{blame}: the loss jumped from {short(jump.before)} to "
                f"{short(jump.after)} at {facts.unit} {jump.step}{at}."
            )
        if trouble.rose is not None:
            start, end = trouble.rose
            return (
                f"{blame}: the loss rose from {short(start)} to {short(end)} instead "
                f"of falling{at}."
            )
        if trouble.lost:
            return (
                f"Training broke: loss or gradient norm is not a number from "
                f"{facts.unit} {trouble.lost_at} on{at}."
            )
        if (damage := trouble.damage) is None:
            return f"{blame}: loss or gradient norm jump, and probability leaks{at}."
        return (
            f"{blame}: chosen lost {short(-damage.per_token)} nats per token and other "
            f"answers fell too{at}."
        )

    @property
    def place(self) -> Place | None:
        """Among the faults, or with the signs where only the log is uneasy."""
        return SIGN if self.severity == "watch" else super().place

    def advice(self, facts: Facts) -> list[Advice]:
        """A tenth of the rate."""
        return [smaller_steps(facts)] if self.severity == "problem" else []


def _broken(trouble: Trouble) -> bool:
    """Whether the log alone proves it."""
    return bool(trouble.early or trouble.rose or trouble.lost)


def _damaged(facts: Facts, trouble: Trouble, rate: float | None) -> bool:
    """Whether answers lost much and something says that the steps did it."""
    state, damage = facts.state, trouble.damage
    jumps = trouble.loss + trouble.grad_norm > 0
    if state.reason is None and state.state == "COLLAPSE" and state.sure and jumps:
        return True
    if damage is None:
        return False
    # with steps that fit, DPO's chosen hardly moves in the first pass
    info, first = facts.trajectory.run.info, -damage.first
    large = rate is not None and above(info, rate)
    far = rate is not None and far_above(info, rate)
    return far or jumps or first >= MUCH or (large and 2 * first >= -damage.per_token)


def _says(facts: Facts, trouble: Trouble) -> str:
    info = facts.trajectory.run.info
    text = ""
    if (jump := trouble.early) is not None:
        norms = Series.of(facts.trajectory.train_log, "grad_norm")
        small, large = norms.at(jump.step - 1), norms.at(jump.step)
        beside = ""
        if small is not None and large is not None:
            beside = f" (grad_norm {short(small)} to {short(large)})"
        text = (
            f"The loss went from {short(jump.before)} to {short(jump.after)} at "
            f"{facts.unit} {jump.step}{beside}; steps that fit lower it or leave it."
        )
    elif trouble.rose is not None:
        start, end = trouble.rose
        text = (
            f"The loss began at {short(start)} and has a median of {short(end)} over "
            "the last half of the log; training that fits lowers it."
        )
    elif parts := _of_the_log(trouble):
        text = f"The training log shows trouble ({parts})."
    if (damage := trouble.damage) is not None:
        evidence = facts.evidence
        text += (
            f" {evidence.falling} of {len(evidence.kinds)} watched kinds fell, chosen "
            f"by {short(-damage.per_token)} nats per token, {short(-damage.first)} of "
            f"it by {facts.unit} {damage.step}"
        )
        if evidence.off_target is not None:
            lost = short(-evidence.off_target.mean)
            text += f"; other tokens that the first model favoured lost {lost}"
        text += "."
    text += in_words(info)
    limit = info.trainer.get("max_grad_norm")
    if _clipped(facts) == 1.0 and trouble.early is None:
        text += f" The gradient was clipped to {limit:g} at every logged update."
    return text.strip()


def _rate(facts: Facts, trouble: Trouble) -> float | None:
    """The logged rate at the jump, or the largest, or the trainer's."""
    rates = Series.of(facts.trajectory.train_log, "learning_rate")
    at = None if trouble.early is None else rates.at(trouble.early.step)
    if at:
        return at
    return rates.largest or facts.trajectory.run.info.learning_rate


def _clipped(facts: Facts) -> float | None:
    """Share of the logged updates whose gradient was clipped; None if not known."""
    limit = facts.trajectory.run.info.trainer.get("max_grad_norm")
    norms = logged(facts.trajectory.train_log, "grad_norm")
    if not isinstance(limit, int | float) or limit <= 0 or not norms:
        return None
    return float(np.mean(np.array(norms) > limit))


def _of_the_log(trouble: Trouble) -> str:
    """Later jumps and lost values, as a list in words."""
    counts = {"loss": trouble.loss, "grad_norm": trouble.grad_norm}
    parts = [
        f"{key} jumps {'once' if count == 1 else f'{count} times'}"
        for key, count in counts.items()
        if count
    ]
    if trouble.lost:
        many = trouble.lost > 1
        parts.append(
            f"{trouble.lost} logged value{'s are' if many else ' is'} not finite"
        )
    return ", ".join(parts)
