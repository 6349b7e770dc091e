r"""What losses ask of y+ and y-, beside the residuals that the paper prints.

    G  =  dL/dz  =  push (e_y - pi),      push = dL / d log pi(y)

The residuals of Ren & Sutherland 2025 (Appendix B.2) are written here as they are
printed, as push, and compared with autograd through random logits. Three of them are
not the gradient of their loss: `docs/losses.md` has the right ones.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from learndyn.forces.losses import LOSSES, Loss, Responses, loss_named
from learndyn.paper.theory.result import Residuals


_SHOWN = ("sft", "dpo", "cdpo", "ipo", "slic", "simpo", "kto", "sppo")

_MARGINS = np.linspace(-20, 20, 161)
"""Nats; log pi/pi_ref of y+ is half of it, that of y- minus half."""

_TOKENS = 20
"""Of each response, at 2 nats a token under the reference."""

_VOCABULARY = 12
"""Of the random logits."""

_DRAWS = 20

_BETA = 0.1

_Push = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From the log-ratios of y+ and y- (nats) to dL/dlogp of both, per nat."""


def _dpo(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = 1 / (1 + np.exp(-_BETA * (chosen - rejected)))
    return -_BETA * (1 - a), _BETA * (1 - a)


def _ipo(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = chosen - rejected - 0.5 / _BETA
    return -_BETA * (1 - a), _BETA * (1 - a)


def _slic(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    near = (chosen - rejected < 1.0).astype(float)
    up, down = _dpo(chosen, rejected)
    return near * up, near * down


def _sppo(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = 0.5 / _BETA
    return 2 * (chosen - half), -2 * (rejected + half)


def _sft(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return -np.ones_like(chosen), np.zeros_like(rejected)


_PRINTED: dict[str, _Push] = {
    "sft": _sft,
    "dpo": _dpo,
    "ipo": _ipo,
    "slic": _slic,
    "sppo": _sppo,
}
"""Eq. 11, 7 and 15 to 22 of the paper, as printed."""


def residuals(seed: int) -> Residuals:
    """Every shown loss over the margin, and how far the printed residuals are off."""
    chosen, rejected, printed = {}, {}, {}
    for name in _SHOWN:
        chosen[name], rejected[name] = _over_margins(loss_named(name))
        if name in _PRINTED:
            ups, downs = _PRINTED[name](_MARGINS / 2, -_MARGINS / 2)
            printed[name] = {"chosen": ups.tolist(), "rejected": downs.tolist()}
    return Residuals(
        margins=_MARGINS.tolist(),
        chosen=chosen,
        rejected=rejected,
        printed=printed,
        misses={name: _printed_miss(name, seed) for name in _PRINTED},
        sppo_rejected=_step_down(loss_named("sppo"), seed),
    )


def _over_margins(loss: Loss) -> tuple[list[float], list[float]]:
    """dL/dlogp of a token of y+ and of y-, at each of `_MARGINS`.

    A loss that treats all responses alike, such as SFT, is given y+ alone.
    """
    alone = "rejected" not in loss.roles
    pushes = []
    for margin in _MARGINS.tolist():
        ratios = torch.tensor([margin / 2, -margin / 2], dtype=torch.float64)
        start = torch.full((2,), -2.0 * _TOKENS, dtype=torch.float64)
        responses = Responses(
            n_tokens=torch.tensor([_TOKENS, _TOKENS]),
            chosen=torch.tensor([True, False]),
            reference=start,
        )
        logp = responses.spread((start + ratios) / _TOKENS)
        push = loss.push(logp, responses)
        # a mean over two responses has half the push of each
        scale = 2.0 if loss.layout == "responses" else 1.0
        pushes.append((scale * float(push[0]), scale * float(push[-1])))
    ups, downs = (list(side) for side in zip(*pushes, strict=True))
    return ups, [0.0] * len(downs) if alone else downs


def _printed_miss(name: str, seed: int) -> float:
    """Largest difference of the printed residual to autograd's, over random logits, as
    a share of the largest residual."""
    chance = torch.Generator().manual_seed(seed)
    loss, off, size = LOSSES[name](), 0.0, 0.0
    for _ in range(_DRAWS):
        logits, labels = _random(chance)
        responses = _responses(logits, labels, 20.0, chance)
        if name == "sft":
            logits, labels = logits[:_TOKENS], labels[:_TOKENS]
            responses = _only_first(responses)
        logits.requires_grad_()
        logp = _logp(logits, labels)
        (true,) = torch.autograd.grad(loss.value(logp, responses), logits)
        ratios = responses.log_ratios(logp.detach()).numpy()
        pushes = _PRINTED[name](ratios[:1], ratios[-1:])
        push = torch.tensor(np.concatenate(pushes)[: len(ratios)])
        spike = torch.nn.functional.one_hot(labels, _VOCABULARY)
        pi = logits.detach().softmax(-1)
        residual = responses.spread(push)[:, None] * (spike - pi)
        off = max(off, float((residual - true).abs().max()))
        size = max(size, float(true.abs().max()))
    return off / size


def _step_down(loss: Loss, seed: int) -> float:
    """Change of log pi(y-) by a small step from the reference, per nat of y+."""
    logits, labels = _random(torch.Generator().manual_seed(seed))
    responses = _responses(logits, labels, 0.0, torch.Generator())
    logits.requires_grad_()
    logp = _logp(logits, labels)
    (gradient,) = torch.autograd.grad(loss.value(logp, responses), logits)
    after = _logp(logits.detach() - 1e-6 * gradient, labels)
    change = responses.sums(after - logp.detach())
    return float(change[1] / change[0])


def _random(chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits and labels of y+, then y-."""
    shape = (2 * _TOKENS, _VOCABULARY)
    logits = 2 * torch.randn(shape, generator=chance, dtype=torch.float64)
    return logits, torch.randint(_VOCABULARY, (2 * _TOKENS,), generator=chance)


def _logp(
    logits: Float[Tensor, "token vocab"], labels: Tensor
) -> Float[Tensor, " token"]:
    return logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


def _responses(
    logits: Tensor, labels: Tensor, spread: float, chance: torch.Generator
) -> Responses:
    """y+ and y-, their log-ratios up to `spread` nats either way.

    The gap of SLiC is that of the log-probabilities themselves; the margin is the same
    where the reference gives both the same.
    """
    counts = torch.tensor([_TOKENS, _TOKENS])
    own = _logp(logits, labels).view(2, _TOKENS).sum(1)
    if spread:
        start = float(own.mean()) + spread * (torch.rand(1, generator=chance) - 0.5)
        reference = start.double().expand(2).clone()
    else:
        reference = own.clone()
    return Responses(counts, torch.tensor([True, False]), reference=reference)


def _only_first(responses: Responses) -> Responses:
    assert responses.reference is not None
    return Responses(
        responses.n_tokens[:1], responses.chosen[:1], reference=responses.reference[:1]
    )
