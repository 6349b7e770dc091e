r"""What the paper takes for ||K|| where K itself is too large: LBK and SignDelta.

One real step from theta to theta + d changes all V log-probabilities at each of the M
response positions of a probe o. For a step of SGD on a response u of L tokens

    d log pi(. | o)  =  -eta A(o) K(o, u) G(u)  +  O(eta^2)

so that (Ren & Sutherland 2025, App. C.2, Eq. 23-31)

    LBK  =  ||d log pi||_F^2 / (||A||_F^2 ||G||_F^2)  <=  eta^2 ||K||_2^2
                                                      <=  eta^2 ||K||_F^2
    SignDelta  =  mean over v and m of  d log pi_{v,m}

    ||A||_F^2  =  sum_m  V - 2 + V ||pi_m||^2
    ||G||_F^2  =  sum_l  push_l^2 (1 - 2 pi_{y_l} + ||pi_l||^2)

All norms are of the whole tensors: positions add up. With a mean over positions in
place of ||A||_F^2 the bound would not hold. A and G are taken before the step. (The
paper writes G_o in Eq. 23-26; it is the trained response's.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.forces.direction import Direction, checked
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel.norm import at_two_points
from learndyn.measure.forward import check_fits
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


@dataclass(frozen=True, eq=False)
class Proxies:
    """LBK and SignDelta of one real step, for every probe."""

    lbk: Float[np.ndarray, " probe"]
    """At most eta^2 ||K||_2^2 while the step is small; mostly far below it."""
    sign_delta: Float[np.ndarray, " probe"]
    """Mean change of all V log-probabilities over all positions, nats. Negative where
    the distribution gets peakier: most of the vocabulary falls."""
    change2: Float[np.ndarray, " probe"]
    """||d log pi||_F^2, nats^2."""
    a_norm2: Float[np.ndarray, " probe"]
    """||A||_F^2 before the step."""
    g_norm2: float
    """||G||_F^2 of all trained tokens before the step."""


def proxies(
    model: nn.Module,
    probes: TokenizedProbes,
    direction: Direction,
    train_pairs: Sequence[TokenizedPair],
    push: Float[np.ndarray, " token"],
    **settings: Unpack[ScoreSettings],
) -> Proxies:
    """LBK and SignDelta of the step that moves the model by `direction`.

    The model stands before the step. `direction` is what the optimizer really added to
    each parameter. `train_pairs` are the responses trained on, `push` dL/dlogp of each
    of their tokens, flat. Under another optimizer than SGD the bound is not the
    kernel's: LBK is then a size of the change and no more. `settings` are those of
    `Scorer.attach`. The model is bit-identical afterwards.

    Raises:
        BadInput: if `push` does not fit the responses, or nothing pushes; as
            `direction.checked` and `Scorer.attach`.
    """
    direction = checked(model, direction)
    check_fits(model, train_pairs)
    logps = TokenLogps.of(Scorer.attach(model, probes.pairs, **settings))
    g_norm2 = _g_norm2(logps.on(train_pairs), push)
    total = logps.plan.n_tokens
    change2, mean, a_norm2 = np.zeros(total), np.zeros(total), np.zeros(total)
    for flat, before, after in at_two_points(logps, direction, (0.0, 1.0)):
        # In float64: of the differences of V log-probabilities most are near rounding,
        # and SignDelta is their mean. torch's float32 log_softmax is biased by 4e-6.
        logp = before.double().log_softmax(-1)
        change = after.double().log_softmax(-1) - logp
        change2[flat] = change.square().sum(-1).cpu().numpy()
        mean[flat] = change.mean(-1).cpu().numpy()
        a_norm2[flat] = a_norm_squared(logp).cpu().numpy()
    counts = np.diff(logps.offsets)
    sums = {n: logps.summed(v) for n, v in (("change2", change2), ("a", a_norm2))}
    return Proxies(
        lbk=sums["change2"] / (sums["a"] * g_norm2),
        sign_delta=logps.summed(mean) / counts,
        change2=sums["change2"],
        a_norm2=sums["a"],
        g_norm2=g_norm2,
    )


def a_norm_squared(logp: Float[Tensor, "label vocab"]) -> Float[Tensor, " label"]:
    """||A||_F^2 = V - 2 + V ||pi||^2 of A = I - 1 pi^T, at each position."""
    vocabulary = logp.shape[-1]
    # sum over i, j of ([i = j] - pi_j)^2: V ones, minus 2 sum pi, plus V ||pi||^2
    return vocabulary - 2 + vocabulary * logp.exp().square().sum(-1)


def _g_norm2(logps: TokenLogps, push: Float[np.ndarray, " token"]) -> float:
    """sum_l push_l^2 ||pi_l - e_{y_l}||^2 of all trained tokens."""
    if push.shape != (logps.plan.n_tokens,):
        raise BadInput(
            f"push has {push.shape[0]} entries, the trained responses have "
            f"{logps.plan.n_tokens} tokens together: give one dL/dlogp for each, "
            "response after response."
        )
    total = 0.0
    with logps.measuring():
        for piece in logps.pieces:
            for rows in logps.rows(piece):
                residual = rows.logits.double().softmax(-1)  # pi, and then pi - e_y
                label = rows.labels[:, None]
                residual.scatter_add_(1, label, -residual.new_ones(label.shape))
                each = residual.square().sum(-1).cpu().numpy()
                total += float((push[rows.flat.numpy()] ** 2 * each).sum())
    if not np.isfinite(total) or total == 0:
        raise BadInput(
            f"||G||_F^2 of the trained responses is {total}, and LBK divides by it: "
            "nothing pushes, or the model has diverged. Check push and the weights."
        )
    return total
