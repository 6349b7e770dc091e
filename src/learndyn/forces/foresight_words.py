"""What foresight says of preference pairs: sentences that carry their numbers."""

from typing import TYPE_CHECKING

import numpy as np

from learndyn.diagnose.numbers import figures, nats


if TYPE_CHECKING:
    from learndyn.forces.foresight import Foresight


LISTED = 5
"""Pairs that the text names."""

FEW_PAIRS = 20
"""Below this a rank says little; the text says so."""


def median(values: np.ndarray) -> float:
    """Median of the numbers that there are; NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def said(found: "Foresight") -> list[str]:
    """What the numbers say, each in a plain sentence."""
    columns = found.columns
    per_token = columns["rejected_logp"] / columns["rejected_tokens"]
    off, winners, rate = (
        median(columns[name]) for name in ("off_target", "winners", "favourite_rate")
    )
    score = columns["ln_ches"]
    lines = [
        f"Rejected has a log-probability of {nats(median(per_token), 2)} nats per "
        f"token, and at {off:.0%} of its tokens the model prefers another one "
        "(medians over pairs, here and below).",
    ]
    if np.isfinite(winners):
        lines.append(
            "There a push down takes probability from the token and gives it to the "
            f"favourite and to whatever else is above tau: to {winners:g} of "
            f"{found.vocabulary} tokens. Softmax theory has the favourite gain "
            f"{nats(rate, 2)} nats per unit of push; its direction is more reliable "
            "than its size."
        )
    lines.append(
        "LN-CHES, how alike both answers are to the model, goes from "
        f"{figures(score.min())} to {figures(score.max())}, around "
        f"{figures(median(score))}. It has no calibrated zero: it ranks pairs of one "
        "model."
    )
    if found.left_out:
        lines.append(f"{found.left_out} rows lack chosen or rejected: left out.")
    if found.truncated:
        lines.append(
            f"{found.truncated} of {len(found)} pairs are longer than the limit and "
            "were cut: a cut answer has no EOS."
        )
    if len(found) < FEW_PAIRS:
        pairs = "1 pair" if len(found) == 1 else f"{len(found)} pairs"
        lines.append(f"Only {pairs}: a rank among so few says little.")
    return lines


def ranked(found: "Foresight") -> list[str]:
    """The pairs to look at first, and what may be done about them."""
    first: list[int] = found.worst[:LISTED].tolist()
    wide = max(6, *(len(found.row_ids[i]) for i in first))
    lines = [
        "To look at first, or to leave out: the pairs of the highest LN-CHES.",
        f"{'row':{wide}} {'LN-CHES':>10} {'CHES':>12} {'off-target':>10} "
        f"{'winners':>8} {'nats/token':>10}",
    ]
    for i in first:
        at = {name: float(values[i]) for name, values in found.columns.items()}
        lines.append(
            f"{found.row_ids[i]:{wide}} {figures(at['ln_ches'], 4):>10} "
            f"{figures(at['ches'], 5):>12} {at['off_target']:10.0%} "
            f"{at['winners']:8g} "
            f"{nats(at['rejected_logp'] / at['rejected_tokens'], 2):>10}"
        )
    return [
        *lines,
        "To leave such pairs out is the remedy of Razin et al. (arXiv 2410.08847), who "
        "on refusal data trained on the 5 % of pairs with the lowest LN-CHES. That is "
        "literature. In learndyn's embedded world LN-CHES ranked pairs by the later "
        "drop of chosen, but weakly (rank correlation 0.1 to 0.2), the tau test did "
        "not, and chosen's own log-probability did better than both (0.7): "
        "docs/foresight.md.",
    ]
