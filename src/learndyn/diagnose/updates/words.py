"""What one update did and why, in plain sentences that carry their numbers.

Forces are a calculation along the update itself, so these sentences may say what made
the change, as long as predicted and actual agree. Where they do not, the first sentence
says so, and nothing is explained.
"""

import math

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import nats
from learndyn.diagnose.updates.update import (
    NOISE_FACTOR,
    TRUST,
    Explanation,
    KindForces,
    TopToken,
    on_one_line,
)


_MAIN_KINDS = ("chosen", "rejected")
"""Kinds with a sentence of their own."""

_LOUD = 0.2
"""Share of the change from which on a part beside pull and push is named."""

_CLOSE = 0.1
"""Relative error up to which predicted and actual agree without a qualification."""

_MISSING = 0.05
"""Share of the prediction that the parts may miss without a word."""

_FEW_PROMPTS = 10

_STABLE = 0.9
"""Rank correlation and self-cosine of the kernel from which on it is called stable."""

_ACTIONS = {
    "pull": "pulling up the training tokens that the loss raises",
    "push": "pushing down the training tokens that the loss lowers",
    "other": "the gradient that does not come through log-probabilities",
    "history": "the optimizer's memory of earlier batches",
    "decay": "weight decay",
    "rounding": "the rounding of the weights' own dtype",
    "gradient": "this batch's gradient",
}
"""What each part of an update is, for a reader who has not read the paper."""

_MANY = 10.0
"""Shares above it are not written in figures."""


def force_sentences(explanation: Explanation, *, text: bool = True) -> list[str]:
    """Sentences about one update, the trust in them first; no training text if `text`
    is false."""
    scale = explanation.scale
    meaning = f" All in {scale.unit}, {scale.words}." if scale.words else ""
    main = [
        k for k in map(explanation.of, _MAIN_KINDS) if k is not None
    ] or explanation.kinds[:2]
    if not main:
        return [
            f"Update {explanation.step} cannot be explained: none of its "
            f"{explanation.lost} probes has finite values."
        ]
    sentences = [_moved(explanation, main[0], f"The update to step {explanation.step}")]
    sentences += [_moved(explanation, kind, "The same update") for kind in main[1:]]
    sentences[0] = f"{sentences[0]}{meaning}"
    sentences.insert(1 if explanation.fit.trusted else 0, _trust(explanation))
    sentences[1:1] = _made_up(explanation)
    if explanation.fit.trusted:
        sentences += _shares(explanation) + _cancels(explanation) + _layers(explanation)
        sentences += _tokens(explanation, text)
    return sentences + _kernel_sentences(explanation) + _cautions(explanation)


def parts_title(explanation: Explanation) -> str:
    """One line: the title of the picture of parts."""
    update = f"Update {explanation.step}"
    if not explanation.fit.trusted:
        return f"{update}: do not trust these parts; {_why_not(explanation)}"
    rose = sum(_best(kind).above_zero for kind in explanation.kinds)
    fell = sum(_best(kind).below_zero for kind in explanation.kinds)
    line = f"{update} raised {rose} of {len(explanation.kinds)} kinds, lowered {fell}"
    if {"pull", "push"} <= set(explanation.parts) and explanation.cancellation >= 3:
        return f"{line}; its forces nearly cancel"
    if len(explanation.parts) > 1:
        first = max(explanation.parts, key=lambda part: _rank(explanation.shares[part]))
        return f"{line}; {first} made most of it"
    return line


def layers_title(explanation: Explanation) -> str:
    """One line: the title of the picture of layers."""
    first = _first_layer(explanation)
    update = f"Update {explanation.step}"
    if not explanation.fit.trusted:
        return f"{update}, by layer: do not trust it; {_why_not(explanation)}"
    if first is None:
        return f"{update}, by layer"
    share = _percent(explanation.layers[first])
    return f"{update}: most came through {first}, {share} of the change"


def _why_not(explanation: Explanation) -> str:
    if not math.isfinite(explanation.fit.relative_error):
        return "the prediction was not checked against the change"
    if explanation.fit.noisy:
        return "the change is mostly rounding"
    return "the prediction misses the change"


def _made_up(explanation: Explanation) -> list[str]:
    """What a hypothetical update was, in the words of who made it up."""
    description = explanation.info.get("hypothetical")
    return [description] if isinstance(description, str) else []


def _kernel_sentences(explanation: Explanation) -> list[str]:
    """Whether the paper's assumption of a stable kernel holds so far, if it was
    measured: info["kernel"] has rank_correlation, self_cosine and since."""
    kernel = explanation.info.get("kernel")
    if not isinstance(kernel, dict):
        return []
    rank, cosine = (_real(kernel.get(k)) for k in ("rank_correlation", "self_cosine"))
    if not (math.isfinite(rank) and math.isfinite(cosine)):
        return []
    stable = min(rank, cosine) >= _STABLE
    verdict = "holds here so far" if stable else "does not hold here any more"
    return [
        "The paper takes the kernel, how strongly one answer's update moves another, "
        f"to be relatively stable: that {verdict}. Since update {kernel.get('since')} "
        f"the ranking of pairs has a correlation of {nats(rank, 2)} and each answer's "
        f"gradient a cosine with its old self of {nats(cosine, 2)} (1: unchanged)."
    ]


def _moved(explanation: Explanation, kind: KindForces, update: str) -> str:
    scale, best = explanation.scale, _best(kind)
    moved = f"did not clearly move {kind.kind}:"
    if best.excludes_zero:
        moved = f"{'raised' if best.above_zero else 'lowered'} {kind.kind} by"
    text = (
        f"{update} {moved} {scale.value(best.mean)} {scale.unit} {scale.limits(best)}"
    )
    if best is kind.predicted:
        text += ", as predicted; it was not measured"
    if not explanation.fit.trusted or len(kind.parts) < 2:
        return text + "."
    parts = {name: part.mean for name, part in kind.parts.items()}
    first, *rest = sorted(parts, key=lambda name: -abs(parts[name]))
    lead = parts[first]
    way = "raised" if lead > 0 else "lowered"
    clauses = [
        f"{_action(explanation, name)} added {scale.value(parts[name])}"
        if parts[name] * lead >= 0
        else f"{_action(explanation, name)} took {scale.value(parts[name])} of it back"
        for name in rest
        if abs(parts[name]) >= 0.05 * abs(lead)
    ]
    alone = f"{_capital(_action(explanation, first))} alone would have"
    by = f"{alone} {way} it by {scale.value(lead)}"
    return f"{text}. {by}{'; ' if clauses else ''}{', '.join(clauses)}."


def _trust(explanation: Explanation) -> str:
    fit = explanation.fit
    error = f"relative error {_percent(fit.relative_error)}"
    if not math.isfinite(fit.relative_error):
        return (
            "Predicted was not checked against actual, since nothing was measured or "
            "nothing moved: do not trust the parts."
        )
    if fit.noisy and not fit.trusted:
        return (
            f"Only {_percent(fit.above_noise)} of {fit.probes} probes moved by more "
            f"than {NOISE_FACTOR:g} times the rounding of their log-probabilities: the "
            f"actual change is mostly noise ({error}), so it can neither confirm nor "
            "refute the prediction. Measure in float32, or over a larger step."
        )
    if not fit.trusted:
        return (
            f"Predicted and actual do not agree ({error}; above {_percent(TRUST)} the "
            "parts explain nothing): the update is too large for a first-order "
            "account, or it was not the update that was recorded."
        )
    figures = f"({error}, slope {fit.slope:.2f}, r² {fit.r2:.2f}, {fit.probes} probes)"
    if fit.relative_error > _CLOSE:
        return (
            f"Predicted and actual agree roughly {figures}: the parts are right in "
            "sign and size, not in detail, since the update is large for a first-order "
            "account."
        )
    return f"Predicted and actual agree {figures}, so the parts can be trusted."


def _shares(explanation: Explanation) -> list[str]:
    """What parts beside pull and push made of the change, over all probes."""
    return [
        f"{_capital(_action(explanation, name))} "
        f"{'made' if share > 0 else 'took back'} {_percent(abs(share))} of the "
        "predicted change, over all probes."
        for name, share in explanation.shares.items()
        if name not in ("pull", "push") and abs(share) >= _LOUD
    ]


def _cancels(explanation: Explanation) -> list[str]:
    if not explanation.cancellation >= 3:
        return []
    return [
        "The parts work against each other: their sizes add up to "
        f"{explanation.cancellation:.1f} times the change that is left of them, so a "
        "small difference in one can turn its sign."
    ]


def _layers(explanation: Explanation) -> list[str]:
    first = _first_layer(explanation)
    if first is None:
        return []
    return [
        f"Of {len(explanation.layers)} layer groups, {first} made the largest share of "
        f"the change: {_percent(explanation.layers[first])}."
    ]


def _first_layer(explanation: Explanation) -> str | None:
    shares = {name: share for name, share in explanation.layers.items() if share > 0}
    if len(explanation.layers) < 2 or not shares:
        return None
    return max(shares, key=lambda name: shares[name])


def _tokens(explanation: Explanation, text: bool) -> list[str]:
    top = explanation.influence
    if top is None or not top.top:
        return []
    sentences = [
        f"Of {top.tokens} training tokens the {len(top.top)} strongest made "
        f"{_percent(top.share)} of all effects, sizes added up."
    ]
    scale = explanation.scale.finer(token.change for token in top.top)
    for kind in _MAIN_KINDS:
        for token in top.of_kind.get(kind, [])[:1]:
            sentences.append(
                f"The training token that moved {kind} most is {_which(token, text)}: "
                f"{scale.value(token.change)} {scale.unit}."
            )
    return sentences


def _which(token: TopToken, text: bool) -> str:
    name = f"“{on_one_line(token.token)}”, token" if text else "token"
    role = f" ({token.role})" if token.role else ""
    way = "raised" if token.raised else "lowered"
    row = f"answer {token.example + 1} of the batch{role}"
    return f"{name} {token.position + 1} of {row}, which the loss {way}"


def _cautions(explanation: Explanation) -> list[str]:
    sentences = []
    if explanation.gap > _MISSING:
        sentences.append(
            f"The parts miss {_percent(explanation.gap)} of the prediction: they do "
            "not add up to it."
        )
    if explanation.lost:
        sentences.append(
            f"{explanation.lost} probes have values that are not finite: left out."
        )
    if explanation.prompts < _FEW_PROMPTS:
        many = f"{explanation.prompts} prompt{'s' if explanation.prompts > 1 else ''}"
        sentences.append(f"Only {many}: the intervals are too narrow, or missing.")
    notes = explanation.info.get("notes")
    return sentences + [str(n) for n in (notes if isinstance(notes, list) else [])]


def _best(kind: KindForces) -> Interval:
    """The actual change, or the predicted one where nothing was measured."""
    return kind.actual if math.isfinite(kind.actual.mean) else kind.predicted


def _action(explanation: Explanation, name: str) -> str:
    """What a part is, with whose tokens it moves where all are of one role."""
    roles = {} if explanation.influence is None else explanation.influence.roles
    whose = roles.get(name, frozenset()) - {""}
    of_one = f"{next(iter(whose))} answers" if len(whose) == 1 else ""
    if name == "pull" and of_one:
        return f"pulling the {of_one} up"
    if name == "push" and of_one:
        return f"pushing the {of_one} down"
    return _ACTIONS.get(name, f"the part {name}")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _percent(share: float) -> str:
    if share > _MANY:
        return f"more than {100 * _MANY:.0f}\N{NO-BREAK SPACE}%"
    digits = 1 if abs(share) < 0.1 else 0
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _real(value: object) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number else math.nan  # pyright: ignore[reportArgumentType]


def _rank(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
