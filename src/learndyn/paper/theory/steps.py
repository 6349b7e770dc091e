r"""One step, looked at closely: the order of its error, and DPO's two kernels.

    d log pi(. | o)  =  -eta A(o) K(o, u) G(u)  +  O(eta^2)

(Ren & Sutherland 2025, Prop. 1, Eq. 5 and 7.) On a tiny GPT-2 in float64 A, K and G are
written out; on a run's own model the product is a derivative along the loss's gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.forces.akg import akg_exact
from learndyn.forces.batch import Batch
from learndyn.forces.direction import Direction, moved, scaled
from learndyn.forces.kernel.norm import at_two_points
from learndyn.forces.losses import loss_named
from learndyn.forces.predict import Predictor, token_noise
from learndyn.forces.split import decompose, sign_gradients
from learndyn.paper.theory.result import Kernels, Order
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes
from learndyn.record.trajectory import Trajectory


_FIRST = {"tiny": 0.3, "trained": 1.0}
"""Nats that the most moved token changes by at the largest step. A trained model gets
longer steps: in float32 the short ones are lost in rounding."""

_TINY_STEPS = np.logspace(0, -4, 9)
_TRAINED_STEPS = np.logspace(0, -3, 10)

_CLEAR = 6.0
"""An error is clear of rounding if it is so many times as large."""

_MARGIN = 0.02
"""Nats of margin that the update of `two_kernels` adds to the probes. At ten times as
many the second order was 6 % of the change on one seed of the embedded world and 54 %
on another."""

_VOCABULARY = 24


@dataclass(frozen=True)
class Setting:
    """The probed responses of a run, by prompt and kind."""

    probes: TokenizedProbes
    """Of training prompts only."""
    prompts: tuple[str, ...]
    """Those that have a chosen and a rejected response, in the probes' order."""

    @classmethod
    def of(cls, run: Trajectory) -> "Setting":
        """What a run probed.

        Raises:
            BadInput: if fewer than two prompts have a chosen and a rejected response.
        """
        known = run.run.info.tokenizer_sha256 or ""
        probes = TokenizedProbes.from_table(run.probes, known)
        own = [i for i, probe in enumerate(probes.probes) if probe.split == "train"]
        probes = probes.select(own) if own else probes
        kinds: dict[str, set[str]] = {}
        for probe in probes.probes:
            kinds.setdefault(probe.prompt_id, set()).add(probe.kind)
        prompts = tuple(p for p, has in kinds.items() if {"chosen", "rejected"} <= has)
        if len(prompts) < 2:
            raise BadInput(
                f"{run.run.path} probes {len(prompts)} prompts with a chosen and a "
                "rejected response: the theory is measured on two or more."
            )
        return cls(probes, prompts)

    def of_prompts(self, prompts: Sequence[str]) -> TokenizedProbes:
        """All probes of these prompts."""
        ids = set(prompts)
        listed = enumerate(self.probes.probes)
        return self.probes.select([i for i, p in listed if p.prompt_id in ids])

    def answers(self, kind: str, prompts: Sequence[str]) -> list[TokenizedPair]:
        """The response of one kind to each of these prompts."""
        listed = zip(self.probes.probes, self.probes.pairs, strict=True)
        by_prompt = {
            probe.prompt_id: pair for probe, pair in listed if probe.kind == kind
        }
        return [by_prompt[prompt] for prompt in prompts]


def tiny_model(seed: int) -> nn.Module:
    """A random GPT-2 of two layers in float64, in which every weight counts.

    Of the families tried, only GPT-2 computes nothing in float32 of its own accord.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=_VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # building draws from the global state
        model = GPT2LMHeadModel(config).double().eval()
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
            scale = 0.2 if parameter.ndim == 1 else 0.3
            is_norm = ".ln_" in name and name.endswith("weight")
            parameter.copy_(scale * drawn + float(is_norm))
    return model


def tiny_pairs(seed: int) -> tuple[TokenizedPair, ...]:
    """Two prompts with three responses each, of random tokens."""
    draw = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(1, _VOCABULARY, count).tolist())

    prompts = ids(4), ids(3)
    return tuple(
        TokenizedPair(prompt, ids(count), truncated=False, has_eos=False)
        for prompt in prompts
        for count in (3, 2, 4)
    )


def tiny_orders(seed: int) -> list[Order]:
    """A, K and G written out against steps that are made, for SFT and DPO."""
    model, pairs = tiny_model(seed), tiny_pairs(seed)
    predictor = Predictor.attach(model, pairs, method="finite difference")
    reader = predictor.logps
    orders = []
    for loss in ("sft", "dpo"):
        lost = [pairs[1]] if loss == "dpo" else []
        batch = Batch.of(reader, [pairs[0]], lost, loss_named(loss))
        gradient = reader.on(batch.pairs).pullback(batch.push)
        right, wrong = [], []
        for probe in (pairs[0], pairs[2], pairs[4]):
            akg = akg_exact(reader, probe, batch)
            right.append(akg.dlogp)
            wrong.append(-torch.einsum("mlxw,lw->mx", akg.K, akg.G))
        probed = reader.on([pairs[0], pairs[2], pairs[4]])
        predicted, without = torch.cat(right), torch.cat(wrong)
        lr = _FIRST["tiny"] / float(predicted.abs().max())
        sizes: list[tuple[float, float, float]] = []
        for step in lr * _TINY_STEPS:
            actual = torch.zeros_like(predicted)
            for flat, low, high in at_two_points(probed, gradient, (0.0, -step)):
                actual[flat] = high.log_softmax(-1) - low.log_softmax(-1)
            parts = actual - step * predicted, actual, actual - step * without
            sizes.append((_size(parts[0]), _size(parts[1]), _size(parts[2])))
        errors, changes, without_a = (list(x) for x in zip(*sizes, strict=True))
        orders.append(
            _order(loss, "tiny", _TINY_STEPS, errors, changes, without_a, 0.0)
        )
    return orders


def trained_order(loss: str, predictor: Predictor, batch: Batch) -> Order:
    """A derivative along a real batch's gradient against steps that are made."""
    gradient = predictor.logps.on(batch.pairs).pullback(batch.push)
    change = predictor.along(gradient).token
    lr = _FIRST["trained"] / float(np.abs(change).max())
    before = predictor.scorer.rows().logp.numpy()
    noise = token_noise(predictor.scorer) * (2 * len(before)) ** 0.5
    errors, changes = [], []
    for step in lr * _TRAINED_STEPS:
        with moved(predictor.model, gradient, -step):
            actual = predictor.scorer.rows().logp.numpy() - before
        errors.append(float(np.linalg.norm(actual + step * change)))
        changes.append(float(np.linalg.norm(actual)))
    return _order(loss, "trained", _TRAINED_STEPS, errors, changes, [], noise)


def _size(values: Tensor) -> float:
    return float(values.norm())


def _order(
    loss: str,
    model: str,
    steps: Float[np.ndarray, " step"],
    errors: list[float],
    changes: list[float],
    without_a: list[float],
    noise: float,
) -> Order:
    clear = np.array(errors) > _CLEAR * noise
    clear &= np.cumprod(clear).astype(bool)  # up to the first that is not
    slope = float("nan")
    if clear.sum() >= 2:
        slope = _fitted_slope(np.log(steps[clear]), np.log(np.array(errors)[clear]))
    decades = float(np.log10(steps[0] / steps[clear][-1])) if clear.any() else 0.0
    return Order(
        loss,
        model,
        steps.tolist(),
        errors,
        changes,
        without_a,
        noise,
        slope,
        decades,
    )


def _fitted_slope(x: Float[np.ndarray, " _"], y: Float[np.ndarray, " _"]) -> float:
    """Slope of the least-squares line of y on x."""
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def two_kernels(predictor: Predictor, probes: TokenizedProbes, batch: Batch) -> Kernels:
    """Split a step of SGD on DPO by the sign of its push; make it, and compare.

    The step is as long as adds `_MARGIN` nats to the probes' margin, by first order.
    """
    signs = sign_gradients(predictor.logps, batch)
    parts = {sign: scaled(part, -1.0) for sign, part in signs.items()}
    split = decompose(predictor, parts)
    kind_of = np.array([probe.kind for probe in probes.probes])
    kinds = list(dict.fromkeys(kind_of.tolist()))

    def of(kind: str, values: np.ndarray) -> float:
        return float(values[kind_of == kind].mean())

    whole = split.whole.logp
    lr = _MARGIN / (of("chosen", whole) - of("rejected", whole))
    scorer = predictor.scorer
    before = scorer.observe()
    start = before.token_argmax_id
    total = {n: parts["pull"][n] + parts["push"][n] for n in parts["pull"]}
    along = np.repeat(kind_of == "chosen", before.n_tokens)
    count = int((kind_of == "chosen").sum())

    def favourites(direction: Direction, factor: float) -> np.ndarray:
        with moved(predictor.model, direction, factor):
            return scorer.rows(start_ids=start).start_logp.numpy()[along]

    def rate(direction: Direction) -> float:
        small = 0.1 * lr
        up, down = (favourites(direction, sign * small) for sign in (1, -1))
        return float((up - down).sum()) / (2 * small) * lr / count

    with moved(predictor.model, total, lr):
        after = scorer.observe(start_ids=start)
    actual = after.logp - before.logp
    predicted = lr * (split.parts["pull"].logp + split.parts["push"].logp)
    first = before.token_argmax_logp[along].astype(np.float64)
    return Kernels(
        kinds=kinds,
        pull=[lr * of(kind, split.parts["pull"].logp) for kind in kinds],
        push=[lr * of(kind, split.parts["push"].logp) for kind in kinds],
        actual=[of(kind, actual) for kind in kinds],
        relative_error=float(
            np.linalg.norm(actual - predicted) / np.linalg.norm(actual)
        ),
        greedy_pull=rate(parts["pull"]),
        greedy_push=rate(parts["push"]),
        greedy_actual=float((after.token_start_logp[along] - first).sum()) / count,
        margin=_MARGIN,
    )
