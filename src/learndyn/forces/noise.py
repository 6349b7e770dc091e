"""How much of an actual change may be rounding.

One update moves log-probabilities by little; a forward pass in finite precision has
them only so well. The noise is measured: every number of the input embeddings is
changed by one rounding of the model's coarsest weights, up or down, and the probes are
scored again.
"""

import numpy as np
from jaxtyping import Float

from learndyn.measure.score import Scorer
from learndyn.measure.selftest import rounded_embeddings


def change_noise(
    scorer: Scorer, rows: Float[np.ndarray, " token"] | None = None
) -> Float[np.ndarray, " probe"]:
    """One standard deviation of the rounding in a change of each probe's logp, nats.

    A change is a difference of two scorings, hence sqrt(2). Rounding of single tokens
    is taken as independent, so that of a sum grows with the root of its tokens; the
    size is that of the probes' root mean square. Costs one scoring, two without `rows`,
    the log-probabilities of all tokens as they are.
    """
    rows = scorer.rows().logp.numpy() if rows is None else rows
    counts = np.diff(scorer.plan.starts)
    off = np.concatenate([[0.0], np.cumsum(_again(scorer) - rows)])
    sums = np.diff(off[scorer.plan.starts])
    typical = float(np.sqrt(np.mean(sums**2 / counts)))
    return np.sqrt(2 * counts) * typical


def token_noise(scorer: Scorer) -> float:
    """Rounding in the log-probability of a token: root mean square, in nats."""
    off = _again(scorer) - scorer.rows().logp.numpy()
    return float(np.sqrt(np.mean(off**2)))


def _again(scorer: Scorer) -> Float[np.ndarray, " token"]:
    with rounded_embeddings(scorer.model, scorer.reader.autocast):
        return scorer.rows().logp.numpy()
