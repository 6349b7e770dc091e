r"""The kernel while a model learns, and what the paper takes for its size.

    ||K_t(o, u)||_F^2         =  E || J_t(o) J_t(u)^T r ||^2
    ||K_t - K_t'||_F^2        =  E || J_t(o) J_t(u)^T r  -  J_t'(o) J_t'(u)^T r ||^2

for random signs r, the same at every checkpoint, so that a change is not lost in the
noise of the estimate (Ren & Sutherland 2025, Appendix C.1; Hutchinson 1990). Weights
between a run's start and its end are not recorded: a short run over the probed prompts
themselves, as the paper's Figure 8 has it, is made anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from learndyn.diagnose.intervals import spearman
from learndyn.forces.akg import akg_exact
from learndyn.forces.batch import Batch
from learndyn.forces.direction import parameters_of, placed, scaled
from learndyn.forces.gradients import Rows
from learndyn.forces.kernel.lbk import a_norm_squared, proxies
from learndyn.forces.kernel.norm import random_pullback
from learndyn.forces.kernel.sketch import ProbeGradients
from learndyn.forces.losses import loss_named
from learndyn.forces.predict import Predictor
from learndyn.measure.score import Scorer
from learndyn.paper.theory.result import Bounds, KernelPath
from learndyn.paper.theory.steps import Setting, tiny_model, tiny_pairs
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


_VECTORS = 4
"""Random vectors for each trained response."""

_SKETCH = 64
"""Numbers that are kept of each position's V, to compare checkpoints."""

UPDATES = (10, 20, 40)
"""Updates of the short runs at which the kernel is looked at."""

_BATCH = 8

_STEP = 0.1
"""Nats that the most moved probe changes by in the step whose LBK is taken: at a
hundredth of it, float32's rounding of V numbers a token hid the smallest LBK."""

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _CheckpointKernel:
    """The kernel at one checkpoint."""

    norms: Float[np.ndarray, "response probe"]
    sketches: Float[np.ndarray, "row number"]
    """J(o) J(u)^T r of all o, u and r, each position's V numbers projected to
    `_SKETCH` that keep lengths on average."""


def _look(
    predictor: Predictor, trained: Sequence[TokenizedPair], *, seed: int
) -> _CheckpointKernel:
    """||K(o, u)||_F of all probes o of `predictor` and trained responses u."""
    gradients = ProbeGradients.of(predictor.logps.on(trained))
    chance = torch.Generator().manual_seed(seed)
    width = predictor.logps.vocabulary
    random = torch.randn(width, _SKETCH, generator=chance) / _SKETCH**0.5
    total = predictor.logps.plan.n_tokens
    norms = np.zeros((len(trained), len(predictor.logps.plan.pairs)))
    sketches = []
    for u in range(len(trained)):
        for _ in range(_VECTORS):
            direction = random_pullback(gradients, u, chance)
            square, sketch = np.zeros(total), np.zeros((total, _SKETCH), np.float32)

            def read(
                rows: Rows,
                square: np.ndarray = square,
                sketch: np.ndarray = sketch,
            ) -> None:
                change = forward_ad.unpack_dual(rows.logits).tangent
                if change is not None:
                    where = rows.flat.numpy()
                    square[where] = change.double().square().sum(-1).cpu().numpy()
                    sketch[where] = (change.float().cpu() @ random).numpy()

            assert predictor.forward_mode is not None
            predictor.forward_mode.along(direction, read)
            norms[u] += predictor.logps.summed(square) / _VECTORS
            sketches.append(sketch)
    return _CheckpointKernel(np.sqrt(norms), np.concatenate(sketches))


def kernel_path(
    predictor: Predictor,
    probes: TokenizedProbes,
    trained: Sequence[TokenizedPair],
    checkpoints: Mapping[str, tuple[str, Weights]],
    *,
    seed: int,
) -> KernelPath:
    """Look at each checkpoint, given as (stage, weights) by name, and compare all."""
    looks = []
    for _, weights in checkpoints.values():
        with placed(predictor.model, weights):
            looks.append(_look(predictor, trained, seed=seed))
    count = len(looks)
    ranks, drift = np.ones((count, count)), np.zeros((count, count))
    for i, one in enumerate(looks):
        for j, other in enumerate(looks[:i]):
            each = [spearman(a, b) for a, b in zip(one.norms, other.norms, strict=True)]
            ranks[i, j] = ranks[j, i] = float(np.mean(each))
            moved = np.linalg.norm(one.sketches - other.sketches)
            size = np.linalg.norm(one.sketches) * np.linalg.norm(other.sketches)
            drift[i, j] = drift[j, i] = float(moved / np.sqrt(size))
    return KernelPath(
        checkpoints=list(checkpoints),
        stages=[stage for stage, _ in checkpoints.values()],
        kinds=[probe.kind for probe in probes.probes],
        norms=[one.norms.tolist() for one in looks],
        ranks=ranks.tolist(),
        drift=drift.tolist(),
    )


def short_run(
    predictor: Predictor,
    setting: Setting,
    loss: str,
    trainer: Mapping[str, Any],
    *,
    seed: int,
) -> Iterator[tuple[int, Weights]]:
    """Train on the probed prompts from the weights as they stand; yields copies.

    `trainer` are the settings of the recorded run: its optimizer, learning rate and
    beta are used. The weights stay where training left them.
    """
    model = predictor.model
    options = {} if loss == "sft" else {"beta": float(trainer.get("beta", 0.1))}
    objective = loss_named(loss, **options)
    lr = float(trainer.get("learning_rate", 1e-5))
    optimizer = _optimizer(str(trainer.get("optim", "")), model, lr)
    chosen = setting.answers("chosen", setting.prompts)
    rejected = setting.answers("rejected", setting.prompts) if loss == "dpo" else []
    reference = predictor.logps.on([*chosen, *rejected])
    start = reference.summed(reference.values())
    draw = np.random.default_rng(seed)
    order: list[int] = []
    for update in range(1, UPDATES[-1] + 1):
        while len(order) < _BATCH:
            order += draw.permutation(len(chosen)).tolist()
        rows, order = order[:_BATCH], order[_BATCH:]
        lost = [rejected[i] for i in rows] if rejected else []
        known = [*rows, *(len(chosen) + i for i in rows)] if rejected else rows
        batch = Batch.of(
            predictor.logps,
            [chosen[i] for i in rows],
            lost,
            objective,
            reference=start[known],
        )
        gradient = predictor.logps.on(batch.pairs).pullback(batch.push)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, update / 10)  # as the runs' warm-up, shorter
        for name, parameter in parameters_of(model).items():
            parameter.grad = gradient[name].to(parameter)
        torch.nn.utils.clip_grad_norm_(
            model.parameters(), float(trainer.get("max_grad_norm", 10.0))
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if update in UPDATES:
            yield update, weights_of(model)


def weights_of(model: nn.Module) -> Weights:
    """A copy of every parameter that training may move."""
    return {n: p.detach().clone() for n, p in parameters_of(model).items()}


def _optimizer(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    parameters = list(parameters_of(model).values())
    if "rmsprop" in name:
        return torch.optim.RMSprop(parameters, lr=lr)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)


def _tiny_bounds(seed: int) -> tuple[list[float], list[float], float]:
    """LBK / eta^2 and ||K||_F^2 of every pair of the tiny model, K written out; and how
    far ||A||_F^2 is from its closed form."""
    model, pairs = tiny_model(seed), tiny_pairs(seed)
    scorer = Scorer.attach(model, pairs)
    reader = Predictor.of(scorer, "finite difference").logps
    bounds, kernels, off = [], [], 0.0
    for trained in pairs:
        batch = Batch.of(reader, [trained], [], loss_named("sft"))
        g_norm2 = 0.0
        for probe in pairs:
            akg = akg_exact(reader, probe, batch)
            norms = akg.A.square().sum((-2, -1))
            closed = a_norm_squared(akg.pi.log())
            off = max(off, float(((norms - closed).abs() / closed).max()))
            g_norm2 = float(akg.G.square().sum())
            change2 = float(akg.dlogp.square().sum())  # at lr 1, to first order
            bounds.append(change2 / (float(norms.sum()) * g_norm2))
            kernels.append(float(akg.K.square().sum()))
    return bounds, kernels, off


def kernel_bounds(
    predictor: Predictor,
    probes: TokenizedProbes,
    trained: Sequence[TokenizedPair],
    norms: Float[np.ndarray, "response probe"],
    *,
    seed: int,
) -> Bounds:
    """LBK of a small step of SGD on each trained response, against ||K||_F in `norms`.

    The step is as long as changes the most moved probe by `_STEP` nats.
    """
    lbk, notebook = [], []
    scorer = predictor.scorer
    first = scorer.observe()
    for pair in trained:
        push = -np.ones(len(pair.response_ids))
        gradient = predictor.logps.on([pair]).pullback(push)
        change = predictor.along(gradient).logp
        lr = _STEP / float(np.abs(change).max())
        proxy = proxies(predictor.model, probes, scaled(gradient, -lr), [pair], push)
        lbk.append(proxy.lbk / lr**2)
        a_norm = np.sqrt(proxy.a_norm2 / first.n_tokens)
        notebook.append(np.abs(lr * change) / (np.sqrt(a_norm) * first.p_gap))
    pairs = list(zip(lbk, norms, strict=True))
    exact_lbk, exact_kernel, off = _tiny_bounds(seed)
    return Bounds(
        exact_lbk=exact_lbk,
        exact_kernel=exact_kernel,
        lbk=np.concatenate(lbk).tolist(),
        kernel=(norms**2).ravel().tolist(),
        notebook=np.concatenate(notebook).tolist(),
        kinds=[probe.kind for probe in probes.probes] * len(trained),
        rank_lbk=float(np.mean([spearman(a, b) for a, b in pairs])),
        rank_notebook=float(
            np.mean([spearman(a, b) for a, b in zip(notebook, norms, strict=True)])
        ),
        a_norm=off,
    )
