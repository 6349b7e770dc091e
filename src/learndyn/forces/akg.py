r"""A, K and G written out: the paper's decomposition, for vocabularies that are small.

One step of size eta on a batch u moves all log-probabilities at token m of probe o by

    d log pi_m  =  -eta  A_m  sum_l  K_ml  G_l                      [V]

    A_m   =  I - 1 pi_m^T                [V, V]    logits -> log-probabilities
    K_ml  =  J_m J_l^T                   [V, V]    empirical NTK, J = dz/dtheta  [V, D]
    G_l   =  dL/dz_l = push_l (e_y - pi) [V]       what the loss asks of token l

(Ren & Sutherland 2025, Prop. 1 and Eq. 5.) Every probe token m sees every training
token l of every response. An oracle: `predict_change` gives the same for any size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import parameters_of
from learndyn.forces.gradients import Rows, TokenLogps
from learndyn.probes.tokenize import TokenizedPair


_MAX_BYTES = 2**30

_AT_ONCE = 64
"""Rows of a Jacobian that one batched backward pass makes."""


@dataclass(frozen=True, eq=False)
class AKG:
    """The factors and their product, for one probe and one batch."""

    A: Float[Tensor, "m vocab vocab"]
    K: Float[Tensor, "m l vocab vocab"]
    G: Float[Tensor, "l vocab"]
    pi: Float[Tensor, "m vocab"]
    dlogp: Float[Tensor, "m vocab"]
    """Change of every log-probability for a step of `lr`, in nats."""
    lr: float


def akg_exact(
    logps: TokenLogps,
    probe: TokenizedPair,
    batch: Batch,
    *,
    lr: float = 1.0,
    max_bytes: int = _MAX_BYTES,
) -> AKG:
    """The decomposition of one SGD step of size `lr`, at the model of `logps`.

    Raises:
        BadInput: if the factors need more than `max_bytes`; it says how many.
    """
    probed, trained = logps.on([probe]), logps.on(batch.pairs)
    parameters = list(parameters_of(logps.model).values())
    _check_size(logps, probed, trained, parameters, max_bytes)
    j_probe, pi, _ = _jacobian(probed, parameters)
    j_train, pi_train, labels = _jacobian(trained, parameters)
    push = torch.from_numpy(batch.push).to(pi)
    spike = torch.nn.functional.one_hot(labels, pi.shape[-1]).to(pi)
    G = push[:, None] * (spike - pi_train)
    A = torch.eye(pi.shape[-1], dtype=pi.dtype, device=pi.device) - pi[:, None, :]
    # All M x L blocks: every probe token sees every training token.
    K = torch.einsum("mvd,lwd->mlvw", j_probe, j_train)
    dlogp = -lr * torch.einsum("mvx,mlxw,lw->mv", A, K, G)
    return AKG(A, K, G, pi, dlogp, lr)


def _check_size(
    logps: TokenLogps,
    probed: TokenLogps,
    trained: TokenLogps,
    parameters: list[torch.nn.Parameter],
    max_bytes: int,
) -> None:
    # Before anything is computed: an allocation that fails midway says no shapes.
    m, n = probed.plan.n_tokens, trained.plan.n_tokens
    vocabulary = logps.vocabulary
    size = sum(p.numel() for p in parameters)
    item = max(p.element_size() for p in parameters)
    kernel = m * n * vocabulary**2 * item
    jacobians = (m + n) * vocabulary * size * item
    if kernel + jacobians > max_bytes:
        raise BadInput(
            f"A, K and G of a probe of {m} tokens and {n} training tokens need "
            f"{kernel + jacobians:,} bytes: K [{m}, {n}, {vocabulary}, {vocabulary}] "
            f"{kernel:,} and the Jacobians [{m} + {n}, {vocabulary}, {size:,}] "
            f"{jacobians:,}; max_bytes is {max_bytes:,}. Take fewer tokens or a "
            "smaller model, or use predict_change, which needs none of them."
        )


def _jacobian(
    logps: TokenLogps, parameters: list[torch.nn.Parameter]
) -> tuple[Tensor, Tensor, Tensor]:
    """dz/dtheta [token, V, D], pi [token, V] and labels, in the flat order."""
    parts: list[tuple[np.ndarray, Tensor, Tensor, Tensor]] = []
    # Batched backward passes run under vmap, for which fused attention has no rule.
    with logps.measuring(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for piece in logps.pieces:
            for rows in logps.rows(piece):
                parts.append(_of_rows(rows, parameters))
    order = torch.from_numpy(np.argsort(np.concatenate([part[0] for part in parts])))
    return (
        torch.cat([part[1] for part in parts])[order],
        torch.cat([part[2] for part in parts])[order],
        torch.cat([part[3] for part in parts])[order],
    )


def _of_rows(
    rows: Rows, parameters: list[torch.nn.Parameter]
) -> tuple[np.ndarray, Tensor, Tensor, Tensor]:
    tokens, vocabulary = rows.logits.shape
    # One backward pass per logit: the rows of an identity pick them, AT_ONCE at a time.
    flat = rows.logits.flatten()
    units = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    lines = []
    for chosen in units.split(_AT_ONCE):
        parts = torch.autograd.grad(
            flat,
            parameters,
            grad_outputs=chosen,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        lines.append(
            torch.cat(
                [
                    flat.new_zeros(len(chosen), p.numel())
                    if part is None  # no logit here depends on it
                    else part.flatten(1)
                    for p, part in zip(parameters, parts, strict=True)
                ],
                dim=1,
            )
        )
    jacobian = torch.cat(lines).view(tokens, vocabulary, -1)
    pi = rows.logits.detach().softmax(-1)
    return rows.flat.numpy(), jacobian, pi, rows.labels
