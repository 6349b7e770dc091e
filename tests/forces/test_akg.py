"""A, K and G written out against autograd and forward mode, and their invariants."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from forces_setting import (
    ALL_LOSSES,
    FAMILIES,
    PROBES,
    SMALLER,
    VOCABULARY,
    batch_of,
    loss_gradient,
    model_of,
    relative,
)

from learndyn.errors import BadInput
from learndyn.forces import akg as exact
from learndyn.forces.akg import AKG, akg_exact
from learndyn.forces.direction import scaled
from learndyn.forces.predict import Predictor
from learndyn.forces.split import sign_gradients


LR = 0.01
ALL = tuple(range(len(PROBES)))


@cache
def setting(family="gpt2") -> Predictor:
    more = SMALLER if family == "gpt2" else {}
    model = model_of(family, "plain", torch.float64, **more)
    return Predictor.attach(model, PROBES, method="forward-mode")


@pytest.fixture(scope="module", autouse=True)
def jacobians_once():
    """The Jacobians of a model do not depend on the loss: work them out once."""
    real, found = exact._jacobian, {}

    def remembered(reader, parameters):
        key = id(reader.model), reader.plan.pairs
        if key not in found:
            found[key] = real(reader, parameters)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_jacobian", remembered)
        yield


def factors(predictor, loss, probe=0) -> AKG:
    return akg_exact(predictor.logps, PROBES[probe], batch_of(predictor, loss), lr=LR)


def by_akg(predictor, loss, probes: tuple[int, ...] = ALL) -> np.ndarray:
    """The product's change at the probes' own tokens, flat."""
    found = []
    for i in probes:
        labels = PROBES[i].response_ids
        dlogp = factors(predictor, loss, i).dlogp
        found.append(dlogp[range(len(labels)), labels])
    return torch.cat(found).numpy()


def by_autograd(predictor, loss, probes: tuple[int, ...] = ALL) -> np.ndarray:
    """Forward mode along -lr times a gradient that knows of no push."""
    gradient = loss_gradient(predictor.model, loss)
    some = predictor.select(list(probes))
    return some.along(scaled(gradient, -LR)).token


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_k_g_is_the_change_along_minus_lr_times_autograds_gradient(name):
    found = by_akg(setting(), ALL_LOSSES[name])
    wanted = by_autograd(setting(), ALL_LOSSES[name])
    assert np.abs(wanted).max() > 1e-3  # there is something to agree about
    assert relative(found, wanted) < 1e-12


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_a_k_g_holds_in_other_families_to_their_own_float32_parts(family):
    # Norms and rotary embeddings of Llama and Qwen2 compute in float32 whatever the
    # dtype: their backward and forward derivatives round differently.
    loss, some = ALL_LOSSES["dpo"], (0, 4)
    found = by_akg(setting(family), loss, some)
    assert relative(found, by_autograd(setting(family), loss, some)) < 1e-6


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_no_change_makes_probability_out_of_nothing(name):
    found = factors(setting(), ALL_LOSSES[name])
    lost = (found.pi * found.dlogp).sum(-1)
    assert lost.abs().max() < 1e-15
    assert found.dlogp.abs().max() > 1e-3


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_what_a_loss_asks_of_the_logits_sums_to_zero_at_each_token(name):
    asked = factors(setting(), ALL_LOSSES[name]).G
    assert asked.abs().max() > 1e-3
    assert asked.sum(-1).abs().max() < 1e-14 * asked.abs().max()


def test_a_takes_a_shift_of_all_logits_to_nothing_and_has_the_norm_of_the_theory():
    found = factors(setting(), ALL_LOSSES["dpo"])
    ones = torch.ones(VOCABULARY, dtype=torch.float64)
    assert (found.A @ ones).abs().max() < 1e-14
    norms = found.A.square().sum((-2, -1))
    theory = VOCABULARY - 2 + VOCABULARY * found.pi.square().sum(-1)
    torch.testing.assert_close(norms, theory, rtol=1e-13, atol=0)


def test_k_of_a_response_with_itself_is_symmetric_and_nowhere_negative():
    predictor = setting()
    batch = batch_of(predictor, ALL_LOSSES["sft"])
    probe = batch.pairs[0]
    tokens = len(probe.response_ids)
    K = akg_exact(predictor.logps, probe, batch).K[:, :tokens]
    square = K.permute(0, 2, 1, 3).reshape(tokens * VOCABULARY, -1)
    torch.testing.assert_close(square, square.T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(square).min() > -1e-9


def test_the_change_is_a_sum_over_all_training_tokens():
    predictor = setting()
    batch = batch_of(predictor, ALL_LOSSES["dpo"])
    whole = akg_exact(predictor.logps, PROBES[0], batch).dlogp
    total = torch.zeros_like(whole)
    for token in range(len(batch.push)):
        push = np.where(np.arange(len(batch.push)) == token, batch.push, 0.0)
        one = replace(batch, push=push)
        total += akg_exact(predictor.logps, PROBES[0], one).dlogp
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-13)


def test_the_push_of_a_batch_gives_autograds_gradient_for_every_loss():
    predictor = setting()
    for loss in ALL_LOSSES.values():
        parts = sign_gradients(predictor.logps, batch_of(predictor, loss))
        wanted = loss_gradient(predictor.model, loss)
        for name, part in wanted.items():
            found = parts["pull"][name] + parts["push"][name]
            size = max(float(w.abs().max()) for w in wanted.values())
            assert (found - part).abs().max() < 1e-13 * size, (loss, name)


def test_too_large_a_decomposition_is_refused_with_its_bytes():
    predictor = setting()
    batch = batch_of(predictor, ALL_LOSSES["dpo"])
    size = sum(p.numel() for p in predictor.model.parameters())
    m, n = len(PROBES[0].response_ids), len(batch.push)
    kernel = 8 * m * n * VOCABULARY**2
    jacobians = 8 * (m + n) * VOCABULARY * size
    with pytest.raises(BadInput, match="need") as caught:
        akg_exact(predictor.logps, PROBES[0], batch, max_bytes=kernel + jacobians - 1)
    for number in (kernel + jacobians, kernel, jacobians, kernel + jacobians - 1):
        assert f"{number:,}" in str(caught.value)
    akg_exact(predictor.logps, PROBES[0], batch, max_bytes=kernel + jacobians)


def test_a_gradient_that_is_not_finite_is_refused():
    predictor = setting()
    batch = batch_of(predictor, ALL_LOSSES["dpo"])
    with pytest.raises(BadInput, match="not finite at 1 of 18 training tokens"):
        replace(batch, push=np.where(np.arange(18) == 3, np.nan, batch.push))
    with pytest.raises(BadInput, match=r"8 responses of 18 .* 8 roles and 17 pushes"):
        replace(batch, push=batch.push[1:])
