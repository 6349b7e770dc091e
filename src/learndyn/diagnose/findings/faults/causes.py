"""Causes of a run in which nothing moves, each with what shows it.

Each cause has a function that takes the case and gives a `Cause` where it holds, the
words for it where it is excluded, or None where the run does not say.
"""

from collections.abc import Callable

import numpy as np

from learndyn.diagnose.advice import again
from learndyn.diagnose.findings.faults.log import LN2, short
from learndyn.diagnose.findings.faults.rates import far_below, in_words
from learndyn.diagnose.findings.faults.stillness import Cause, Stillness
from learndyn.diagnose.findings.faults.truncated import cut_share
from learndyn.diagnose.findings.finding import Advice
from learndyn.diagnose.numbers import counted


_EXACT = 1e-3
"""Nats per response: a change above this is no rounding of a float32 score."""

_WEIGHT = 0.02
"""Size of a typical weight: the usual initialisation."""

_BITS = {"bfloat16": 8, "float16": 11}
"""Significant bits of the half precisions."""

_Verdict = Cause | str | None


def causes(case: Stillness) -> tuple[Cause | None, list[str]]:
    """The first cause that holds, or None and what was excluded, in words."""
    excluded = []
    for look in _ORDER:
        result = look(case)
        if isinstance(result, Cause):
            return result, []
        if isinstance(result, str):
            excluded.append(result)
    return None, excluded


def _no_spread(case: Stillness) -> _Verdict:
    if case.info.family != "online":
        return None
    shares = case.series("frac_reward_zero_std")
    spread = case.series("reward_std")
    if not (len(shares) or len(spread)):
        return None
    if len(shares) >= 2:
        share = float(shares.values.mean())
        if share < 1 and not (share > 0.9 and case.still):
            return "rewards without spread"
        how = f"frac_reward_zero_std has a mean of {short(share)}"
    elif spread.all_zero:
        how = "reward_std is 0"
    else:
        return "rewards without spread"
    rewards = case.series("reward")
    value = f", reward is {short(rewards.values[-1])}" if len(rewards) else ""
    rows = len(shares) or len(spread)
    return Cause(
        "no_reward_spread",
        "All answers of a group get the same reward, so every advantage is 0 and "
        "nothing is learned.",
        f"In {rows} logged rows {how}{value}; the loss compares answers of one group "
        "with each other.",
        Advice(
            "Print the reward of a few sampled answers. Make it graded, sample more "
            "answers per prompt (num_generations) or at a higher temperature, and "
            "leave out prompts that are always or never solved.",
            f"The log's {how}: a group without spread has no gradient.",
        ),
    )


def _beta_zero(case: Stillness) -> _Verdict:
    info = case.info
    if info.family not in ("preference", "unpaired") or info.beta is None:
        return None
    smooth = info.trainer.get("label_smoothing")
    if smooth == 0.5 and info.family == "preference":
        return Cause(
            "label_smoothing",
            "label_smoothing is 0.5, so each pair counts as much reversed as it "
            "stands: nothing is learned.",
            "At 0.5 the two halves of the loss cancel: it stays at 0.693.",
            Advice("Set label_smoothing to 0, or well below 0.5.", "It is 0.5."),
        )
    if info.beta != 0 or not info.has_reference or not case.still:
        return "beta 0"
    return Cause(
        "beta_zero",
        "beta is 0, so the loss does not depend on the model and stays at "
        f"{short(_first_loss(case))}.",
        f"run.json has beta 0; the log has {case.loss} and a gradient norm of at most "
        f"{short(case.norms.largest)}.",
        Advice(
            "Set beta above 0; 0.1 is TRL's default.",
            "Loss and gradient are multiplied by beta inside the sigmoid.",
            command=again(case.facts, "beta", "--beta", "0.1"),
        ),
    )


def _rate_zero(case: Stillness) -> _Verdict:
    rates = case.rates
    given = case.info.trainer.get("learning_rate")
    if given != 0 and not rates.all_zero:
        return "a learning rate of 0" if len(rates) or given is not None else None
    rows = f"in all {len(rates)} logged rows" if len(rates) else "in run.json"
    norm = case.norms.largest
    beside = f", while the gradient norm is up to {short(norm)}" if norm else ""
    return Cause(
        "rate_zero",
        "The learning rate is 0, so no update changes a weight.",
        f"The logged learning rate is 0 throughout ({rows}){beside}.",
        Advice(
            "Set learning_rate above 0, and check that the scheduler does not end "
            "before training begins.",
            "An update of size 0 changes nothing." + in_words(case.info),
        ),
    )


def _same_answers(case: Stillness) -> _Verdict:
    """Chosen and rejected are one text to the trainer, or both are cut away."""
    margins = case.margins
    if case.info.family != "preference" or len(margins) < 2:
        return None
    chosen, rejected = case.series("logps/chosen"), case.series("logps/rejected")
    if len(chosen) and len(chosen) == len(rejected):
        size = np.maximum(np.abs(chosen.values), 1.0)
        same = bool((np.abs(chosen.values - rejected.values) <= 1e-5 * size).all())
    else:
        one, other = case.series("rewards/chosen"), case.series("rewards/rejected")
        moved = len(one) == len(other) and bool(one.values.any())
        same = moved and bool((one.values == other.values).all())
    if not same or margins.largest > 1e-6:
        return "identical pairs"
    empty = len(chosen) > 0 and not chosen.values.any()
    rows = f"rewards/margins is exactly 0 in all {len(margins)} logged rows"
    push = f" and the gradient norm is at most {short(case.norms.largest)}"
    share = cut_share(case.facts)
    if empty or share >= 0.5:
        limit = case.info.trainer.get("max_length")
        return Cause(
            "nothing_left",
            f"Truncation leaves chosen and rejected the same: prompts fill max_length "
            f"({limit}), so nothing of the answers is compared.",
            f"{rows} ({case.loss}){push if len(case.norms) else ''}; "
            f"{100 * share:.0f} % of the watched answers do not fit.",
            Advice(
                "Raise max_length above prompt and answer together, or drop long "
                "prompts.",
                "An answer that is cut away has no log-probability to push.",
            ),
        )
    logps = ""
    if len(chosen):
        first = short(chosen.values[0])
        logps = f", logps/chosen equals logps/rejected ({first} in the first)"
    return Cause(
        "identical_pairs",
        "Chosen and rejected are the same to the trainer: rewards/margins is exactly "
        f"0, so the loss stays at {short(_first_loss(case))}.",
        f"{rows}{logps}{push if len(case.norms) else ''}, so no update pushes "
        "anything.",
        Advice(
            "Compare the columns chosen and rejected of a few rows as the trainer has "
            "them (trainer.train_dataset[0]); one column was probably mapped twice, or "
            "a template drops the answer.",
            "The trainer's own log-probabilities of the two are equal.",
            limits="The probes' own chosen and rejected may differ: they are read from "
            "another file or by another column.",
        ),
    )


def _first_loss(case: Stillness) -> float:
    values = case.series("loss").values
    return float(values[0]) if len(values) else LN2


def _shared_reference(case: Stillness) -> _Verdict:
    if not case.info.has_reference or case.info.family == "online":
        return None
    rewards = [case.series(f"rewards/{kind}") for kind in ("chosen", "rejected")]
    there = [one for one in rewards if len(one)]
    if not there or case.info.trainer.get("sync_ref_model") is True:
        return None
    if not all(one.all_zero for one in there):
        return "a reference that shares the policy's weights"
    if case.largest <= 10 * _EXACT or case.no_push:
        return None
    return Cause(
        "shared_reference",
        "The reference moves with the policy: rewards are exactly 0 at every update, "
        f"so the loss stays at {short(_first_loss(case))}.",
        f"All {len(there[0])} logged rows have rewards of exactly 0, yet watched "
        f"answers moved by up to {short(case.largest)} nats: policy and reference are "
        "one object, or share their weights.",
        Advice(
            "Give ref_model a copy of its own (load it a second time, or "
            "copy.deepcopy), or pass none: the trainer then makes one.",
            "Rewards are beta (log π − log π_ref), and are 0 only while both are "
            "equal.",
            limits="What was trained so far had no reference to hold it.",
        ),
    )


def _frozen(case: Stillness) -> _Verdict:
    few = case.info.trainable_parameters
    if few == 0 and case.still:
        of = f" of {case.info.parameters:,}" if case.info.parameters else ""
        why = f"run.json counts 0{of} parameters that train."
    elif case.still and case.norms.all_zero:
        why = f"The gradient norm is exactly 0 in all {len(case.norms)} logged rows."
    else:
        return "frozen weights" if len(case.norms) or few else None
    return Cause(
        "frozen",
        "No weight trains: no gradient reaches a parameter.",
        why,
        Advice(
            "Check requires_grad: load an adapter with is_trainable=True, or give the "
            "trainer a peft_config; check that the labels are not all masked "
            "(completion template, assistant masks).",
            why,
        ),
    )


def _rounded_away(case: Stillness) -> _Verdict:
    bits = _BITS.get(case.info.dtype.removeprefix("torch."))
    rate = case.rates.largest or case.info.learning_rate
    if bits is None or case.info.trains_adapter or not rate:
        return "bfloat16 weights" if bits is None else None
    if not case.still or rate >= _WEIGHT * 2.0**-bits:
        return "updates that round away"
    lost = rate * 2.0 ** (bits + 1)
    dtype = case.info.dtype.removeprefix("torch.")
    return Cause(
        "rounded_away",
        f"The weights are in {dtype} and the steps of {short(rate)} round away: most "
        "updates change nothing.",
        f"{dtype} keeps {bits} significant bits, so a step of {short(rate)} is lost on "
        f"every weight above {short(lost)}, and most are near {_WEIGHT}; no kind moved "
        f"by more than {short(case.per_token)} nats per token.",
        Advice(
            "Load the weights in float32 and compute in bfloat16 (bf16=True, "
            "dtype float32), or train an adapter in float32.",
            "Float32 keeps 24 bits: a step of that size changes every weight.",
            limits="A larger learning rate helps too, but rounds each step.",
        ),
    )


def _warming_up(case: Stillness) -> _Verdict:
    rates, target = case.rates, case.info.learning_rate
    if len(rates) < 3 or not target:
        return None
    values = rates.values
    rising = bool((np.diff(values) >= 0).all() and values[-1] > values[0])
    if not (case.still and rising and values[-1] < 0.9 * target):
        return "a warm-up that goes on"
    steps = case.info.trainer.get("warmup_steps")
    planned = f" (warmup_steps {steps})" if isinstance(steps, int) and steps else ""
    at = f"{short(values[-1])} of {short(target)} after {case.updates} updates"
    if case.info.finished:
        return Cause(
            "warm_up_too_long",
            f"The run ended within its warm-up: the learning rate came to {at}.",
            f"The logged learning rate rose to the last row{planned}.",
            Advice(
                "Make the warm-up shorter than the run (warmup_steps).",
                "The logged learning rate was still rising at the end.",
                command=again(case.facts, "no-warm-up", "--warmup_steps", "0"),
            ),
        )
    return Cause(
        "warming_up",
        f"The warm-up goes on: the learning rate is {at}.",
        f"The logged learning rate still rises{planned}.",
        Advice("Train longer: until the warm-up has ended.", "It goes on."),
        fault=False,
    )


def _too_small(case: Stillness) -> _Verdict:
    rate = case.rates.largest or case.info.learning_rate
    if not rate or not case.still:
        return None
    if not far_below(case.info, rate):
        return "a far too small learning rate"
    return Cause(
        "rate_too_small",
        f"The learning rate is far too small: {short(rate)}.",
        f"Adam moves a weight by about the rate in one update, so by "
        f"{short(rate * case.updates)} in {counted(case.updates, 'update')}."
        + in_words(case.info),
        Advice(
            "Raise the learning rate tenfold.",
            f"At {short(rate)} no kind of answer moved by a size that matters.",
            command=again(
                case.facts, "larger-steps", "--learning_rate", f"{10 * rate:.3g}"
            ),
        ),
    )


def _other_model(case: Stillness) -> _Verdict:
    """Gradients and a rate are there, and not one number changed."""
    if case.largest > 0 or not case.norms.largest or not case.rates.largest:
        return None
    return Cause(
        "other_weights",
        "Nothing trains: the trainer has gradients, but the optimizer does not hold "
        "the weights that are watched.",
        f"grad_norm is up to {short(case.norms.largest)} and the learning rate "
        f"{short(case.rates.largest)}, and after {counted(case.updates, 'update')} "
        "every log-probability is what it was.",
        Advice(
            "Make the optimizer after the adapter is added, and give the callback the "
            "model that trains.",
            "Not one watched log-probability changed.",
        ),
    )


_ORDER: tuple[Callable[[Stillness], _Verdict], ...] = (
    *(_no_spread, _beta_zero, _rate_zero, _same_answers, _shared_reference),
    *(_frozen, _rounded_away, _warming_up, _other_model, _too_small),
)
"""The first that holds is the cause: what explains the others comes first."""
