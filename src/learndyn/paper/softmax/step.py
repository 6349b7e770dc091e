r"""One step of logistic regression with a softmax, in closed form.

Logits z = W x, log-probabilities log pi. A gradient step on one example (x, y) that
pushes y down moves the logits by

    z'  =  z + s (pi - e_y)              s = learning rate * |x|^2

    pi'_i / pi_i  =  exp(s (pi_i - 1[i = y])) / Z
    Z  =  sum_j pi_j exp(s (pi_j - 1[j = y]))

(Ren & Sutherland 2025, Appendix E: this ratio is their alpha_i). `strength` is s. s > 0
is the paper's negative gradient; s < 0 pulls y up and is ordinary training on y. For
s > 0, and exactly:

    y falls, and y* = argmax over i != y of pi_i rises, whatever s;
    the ratio grows with pi_i among i != y: the rich get richer;
    i != y rises if and only if pi_i > tau = ln(Z) / s;  s -> 0: tau = |pi|^2 - pi_y.

s < 0 is the mirror: y rises, and among the others the ratio falls with pi_i. Everything
is computed in log space; a change of 1e-200 keeps its sign and its digits.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from learndyn.errors import BadInput


Labels = int | Int[np.ndarray, "*batch"]
"""Which label is pushed, in each distribution of a batch."""
Strength = float | Float[np.ndarray, "*batch"]
"""s; above 0 it pushes the label down."""

_LARGEST = 300.0
"""Strength up to which exp(2 s) is a float64."""


def log_softmax(
    logits: Float[np.ndarray, "*batch label"],
) -> Float[np.ndarray, "*batch label"]:
    """Log-probabilities, in nats, over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _residual(
    logp: Float[np.ndarray, "*batch label"], y: Labels
) -> Float[np.ndarray, "*batch label"]:
    """G = pi - e_y. Entry y is minus the sum of all others: no digit is cancelled."""
    out, at = np.exp(logp), _index(logp, y)
    np.put_along_axis(out, at, 0.0, axis=-1)
    np.put_along_axis(out, at, -out.sum(axis=-1, keepdims=True), axis=-1)
    return out


def log_ratio(
    logp: Float[np.ndarray, "*batch label"], y: Labels, strength: Strength
) -> Float[np.ndarray, "*batch label"]:
    """log(pi'_i / pi_i) of one step, in nats.

    Two labels have all their digits, whatever the size of their change: y, and the one
    that gains most. For these the sum below has terms of one sign only.

    Raises:
        BadInput: if a strength is beyond `_LARGEST` or not finite, or `y` is no label.
    """
    push = _strength(strength)[..., None] * _residual(logp, y)
    top = push.max(axis=-1, keepdims=True)
    out = push - top - _log_mean(logp, push - top)
    at = _index(logp, y)
    own = np.take_along_axis(push, at, axis=-1)
    np.put_along_axis(out, at, -_log_mean(logp, push - own), axis=-1)
    return out


def _threshold(
    logp: Float[np.ndarray, "*batch label"], y: Labels, strength: Strength
) -> Float[np.ndarray, "*batch"]:
    """tau = ln(Z) / s, a probability: pushed down, i != y rises iff pi_i > tau.

    Pulled up, i != y rises iff pi_i < tau, and tau is often below 0. At s = 0 it is the
    limit |pi|^2 - pi_y.
    """
    s = _strength(strength)[..., None]
    g = _residual(logp, y)
    top = (s * g).max(axis=-1, keepdims=True)
    safe = np.where(s == 0, 1.0, s)
    tau = (top + _log_mean(logp, s * g - top)) / safe
    return np.where(s == 0, (np.exp(logp) * g).sum(-1, keepdims=True), tau)[..., 0]


def _first_order(
    logp: Float[np.ndarray, "*batch label"], y: Labels
) -> Float[np.ndarray, "*batch label"]:
    """d log pi_i / ds at s = 0:  pi_i - 1[i = y] - (|pi|^2 - pi_y)."""
    g = _residual(logp, y)
    return g - (np.exp(logp) * g).sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class SoftmaxStep:
    """What one step on y did to one distribution."""

    before: Float[np.ndarray, " label"]
    """log pi, in nats."""
    y: int
    strength: float
    log_ratio: Float[np.ndarray, " label"]
    """log(pi' / pi), in nats."""
    threshold: float
    """tau, a probability."""

    @property
    def after(self) -> Float[np.ndarray, " label"]:
        """log pi', in nats."""
        return self.before + self.log_ratio

    @property
    def favourite(self) -> int:
        """y*: the likeliest label before the step, y aside."""
        return favourite(self.before, self.y)

    @property
    def rises(self) -> Bool[np.ndarray, " label"]:
        """Labels that gain probability."""
        return self.log_ratio > 0

    @property
    def gains(self) -> Float[np.ndarray, " label"]:
        """pi' - pi; they sum to 0."""
        return np.exp(self.before) * np.expm1(self.log_ratio)

    @property
    def to_favourite(self) -> float:
        """What y* gained for every unit of probability that y lost.

        Above 1 the other labels paid for it too.
        """
        return float(self.gains[self.favourite] / -self.gains[self.y])

    @property
    def rest(self) -> float:
        """Change of the log-probability, in nats, of all but y and y*, taken together.

        NaN where there is no other label.
        """
        keep = np.ones(len(self.before), bool)
        keep[[self.y, self.favourite]] = False
        return _log_sum(self.after[keep]) - _log_sum(self.before[keep])


def step(logits: Float[np.ndarray, " label"], y: int, strength: float) -> SoftmaxStep:
    """One step on label y; log-probabilities may be given for logits."""
    logp = log_softmax(logits)
    return SoftmaxStep(
        logp,
        y,
        strength,
        log_ratio(logp, y, strength),
        float(_threshold(logp, y, strength)),
    )


def favourite(logp: Float[np.ndarray, " label"], y: int) -> int:
    """y*: the likeliest label that is not y; of equals, the first."""
    others = logp.copy()
    others[y] = -np.inf
    return int(others.argmax())


OptimizerName = Literal["sgd", "momentum", "rmsprop", "adam"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "momentum", "rmsprop", "adam")
_MOMENTUM, _ALPHA, _BETAS, _EPSILON = 0.9, 0.99, (0.9, 0.999), 1e-8
"""PyTorch's defaults; momentum has none there."""


def simulate(
    weights: Float[np.ndarray, "label feature"],
    x: Float[np.ndarray, " feature"],
    y: int,
    *,
    lr: float,
    steps: int,
    optimizer: OptimizerName = "sgd",
    down: bool = True,
) -> Float[np.ndarray, "step label"]:
    """log pi, in nats, before and after each of `steps` updates of W on one example.

    Row 0 is before the first. With `down` every update pushes y down, else it pulls y
    up. One SGD update is `step` at strength lr |x|^2.
    """
    w, first, second = weights.copy(), np.zeros_like(weights), np.zeros_like(weights)
    out = [log_softmax(w @ x)]
    for at in range(1, steps + 1):
        gradient = (-1.0 if down else 1.0) * np.outer(_residual(out[-1], y), x)
        if optimizer == "momentum":
            first = _MOMENTUM * first + gradient
            move = first
        elif optimizer == "rmsprop":
            second = _ALPHA * second + (1 - _ALPHA) * gradient**2
            move = gradient / (np.sqrt(second) + _EPSILON)
        elif optimizer == "adam":
            first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
            second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
            scale = np.sqrt(second / (1 - _BETAS[1] ** at)) + _EPSILON
            move = first / (1 - _BETAS[0] ** at) / scale
        else:
            move = gradient
        w = w - lr * move
        out.append(log_softmax(w @ x))
    return np.stack(out)


def _strength(strength: Strength) -> Float[np.ndarray, "*batch"]:
    s = np.asarray(strength, float)
    inside = np.abs(s) <= _LARGEST  # NaN is not
    if not inside.all():
        raise BadInput(
            f"strength {s[~inside].flat[0]} is not between -{_LARGEST:g} and "
            f"{_LARGEST:g}. It is the learning rate times |x|^2: take a smaller step."
        )
    return s


def _index(
    logp: Float[np.ndarray, "*batch label"], y: Labels
) -> Int[np.ndarray, "*batch one"]:
    """y as an index along the last axis."""
    labels = np.broadcast_to(np.asarray(y), logp.shape[:-1])
    if labels.size and (labels.min() < 0 or labels.max() >= logp.shape[-1]):
        raise BadInput(
            f"label {labels.min()} to {labels.max()} of {logp.shape[-1]}: labels are "
            f"counted from 0 to {logp.shape[-1] - 1}."
        )
    return labels[..., None]


def _log_mean(
    logp: Float[np.ndarray, "*batch label"], power: Float[np.ndarray, "*batch label"]
) -> Float[np.ndarray, "*batch one"]:
    """log sum_j pi_j exp(power_j), exact also where all powers are tiny."""
    less = (np.exp(logp) * np.expm1(power)).sum(axis=-1, keepdims=True)
    plain = np.logaddexp.reduce(logp + power, axis=-1, keepdims=True)
    # Near -1 the 1 would swallow what is left of the sum.
    return np.where(less < -0.5, plain, np.log1p(np.maximum(less, -0.5)))


def _log_sum(logp: Float[np.ndarray, " label"]) -> float:
    """log of a sum of probabilities; NaN for none."""
    return float(np.logaddexp.reduce(logp)) if len(logp) else float("nan")
