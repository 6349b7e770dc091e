"""The size of K, by random vectors, against K from explicit Jacobians."""

import numpy as np
import pytest
import torch
from models import rough_model, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from learndyn.errors import BadInput
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel import norm as module
from learndyn.forces.kernel.norm import at_two_points, kernel_norm
from learndyn.measure.load import weights_hash
from learndyn.measure.score import Scorer
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes


VOCABULARY = 40
SMALL = {
    "gpt2": {"n_embd": 16, "n_layer": 1},  # its embeddings are tied
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": False},
}


def random_pairs(count, seed, longest=6):
    chance = np.random.default_rng(seed)

    def ids(length):
        return tuple(chance.integers(1, VOCABULARY, length).tolist())

    return tuple(
        TokenizedPair(ids(4), ids(int(chance.integers(2, longest))), False, False)
        for _ in range(count)
    )


def as_probes(pairs):
    rows = [
        {"prompt_id": f"p{i}", "kind": "chosen", "prompt": f"ask {i}", "response": "x"}
        for i in range(len(pairs))
    ]
    return TokenizedProbes(ProbeSet.from_rows(rows), tuple(pairs), "0" * 64)


def small_model(family="gpt2", **more):
    more = {**SMALL[family], **more}
    return tiny_model(family, torch.float64, vocab_size=VOCABULARY, **more)


def jacobian(model, pair):
    """dz / dtheta of all logits at the response positions: (M V, D)."""
    ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1].flatten()
    parts = torch.autograd.grad(
        logits,
        list(model.parameters()),
        torch.eye(len(logits), dtype=logits.dtype),
        is_grads_batched=True,
        allow_unused=True,
    )
    return torch.cat([p.reshape(len(logits), -1) for p in parts if p is not None], 1)


def exact_norms(model, probes, trained):
    observed, seen = ([jacobian(model, p) for p in ps] for ps in (probes, trained))
    return np.array([[float((o @ u.T).norm()) for u in seen] for o in observed])


def test_the_squared_norm_is_unbiased():
    model = small_model("llama")  # GPT-2's mean is that of 320 vectors, below
    probes, trained = random_pairs(4, 0), random_pairs(3, 1)
    exact = exact_norms(model, probes, trained)
    found = kernel_norm(model, as_probes(probes), trained, vectors=100)
    assert found.method == "forward-mode"
    assert found.norm.shape == found.stderr.shape == (4, 3)
    z = (found.norm**2 - exact**2) / (2 * found.norm * found.stderr)
    # one column shares its vectors: three independent numbers, not twelve
    assert np.abs(z.mean(0)).max() < 3.3
    assert np.abs(z).max() < 4
    assert np.all(np.abs(found.norm / exact - 1) < 0.2)


def test_eight_vectors_have_the_error_that_they_state():
    model = small_model()
    probes, trained = random_pairs(3, 0), random_pairs(1, 1)
    exact = exact_norms(model, probes, trained)
    # each column has vectors of its own: ten tries for one preparation
    found = [
        kernel_norm(
            model, as_probes(probes), trained * 10, seed=seed, method="forward-mode"
        )
        for seed in range(4)
    ]
    norm = np.concatenate([one.norm.T for one in found])[..., None]
    stderr = np.concatenate([one.stderr.T for one in found])[..., None]
    assert norm.shape == (40, 3, 1)
    covered = (np.abs(norm - exact) < 2 * stderr).mean()
    assert 0.7 < covered < 0.99  # 0.88 of 200 tries; normal errors would have 0.95
    squares = norm**2
    error = squares.std(0, ddof=1) / np.sqrt(len(squares))
    assert np.abs((squares.mean(0) - exact**2) / error).max() < 3.5
    said, true = np.sqrt((stderr**2).mean(0)), norm.std(0, ddof=1)
    assert np.all(np.abs(np.log(said / true)) < np.log(1.6))


def test_a_finite_difference_finds_what_forward_mode_finds():
    model = small_model()
    probes, trained = as_probes(random_pairs(4, 0)), random_pairs(2, 1)
    before = weights_hash(model)
    one = kernel_norm(model, probes, trained, method="forward-mode")
    other = kernel_norm(model, probes, trained, method="finite difference")
    assert other.method == "finite difference"
    np.testing.assert_allclose(other.norm, one.norm, rtol=1e-5)
    np.testing.assert_allclose(other.stderr, one.stderr, rtol=1e-4)
    assert weights_hash(model) == before


def test_float32_finds_what_float64_finds():
    probes, trained = as_probes(random_pairs(4, 0)), random_pairs(2, 1)
    model = small_model()
    true = kernel_norm(model, probes, trained)
    for method, rtol in (("forward-mode", 1e-5), ("finite difference", 1e-3)):
        found = kernel_norm(model.float(), probes, trained, method=method)
        np.testing.assert_allclose(found.norm, true.norm, rtol=rtol)


def test_neither_layout_nor_order_of_the_probes_changes_the_norm():
    model, trained = small_model(), random_pairs(2, 1)
    pairs = random_pairs(5, 0)
    pairs = (*pairs, TokenizedPair(pairs[0].prompt_ids, (7, 3), False, False))
    true = kernel_norm(model, as_probes(pairs), trained)
    order = [3, 5, 0, 4, 1, 2]
    again = kernel_norm(model, as_probes([pairs[i] for i in order]), trained)
    np.testing.assert_allclose(again.norm, true.norm[order], rtol=1e-9)
    for settings in ({"tier": "padded", "batch_size": 2}, {"tier": "alone"}):
        other = kernel_norm(model, as_probes(pairs), trained, **settings)
        np.testing.assert_allclose(other.norm, true.norm, rtol=1e-9)
        np.testing.assert_allclose(other.stderr, true.stderr, rtol=1e-9)


def test_squares_of_chosen_parameters_are_those_of_their_part_of_k():
    model = small_model("llama")
    probes, trained = random_pairs(3, 0), random_pairs(1, 1)
    parts = []
    for pattern in ("lm_head", "embed_tokens|layers|norm"):
        model.requires_grad_(True)
        part = kernel_norm(model, as_probes(probes), trained, parameters=pattern)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(("lm_head" in name) == (pattern == "lm_head"))
        same = kernel_norm(model, as_probes(probes), trained)
        np.testing.assert_allclose(part.norm, same.norm, rtol=1e-12)
        parts.append(part.norm)
    assert np.all(np.abs(parts[0] / parts[1] - 1) > 0.05)


def test_logits_at_two_points_come_in_groups_that_make_the_whole(monkeypatch):
    model, pairs = rough_model("qwen2"), random_pairs(5, 0)
    reader = TokenLogps.of(Scorer.attach(model, pairs))
    name, weight = next(iter(model.named_parameters()))
    direction = {name: torch.ones_like(weight)}
    whole = list(at_two_points(reader, direction, (0.0, 0.1)))
    assert len(whole) == 1
    monkeypatch.setattr(module, "_LOGIT_BYTES", 320 * 4 * 6)
    found = list(at_two_points(reader, direction, (0.0, 0.1)))
    assert len(found) > 1
    flat, low, high = whole[0]
    assert np.array_equal(np.concatenate([f for f, _, _ in found]), flat)
    assert np.array_equal(flat, np.arange(len(flat)))
    torch.testing.assert_close(torch.cat([f for _, f, _ in found]), low)
    torch.testing.assert_close(torch.cat([f for _, _, f in found]), high)
    assert not torch.allclose(low, high)


def test_what_has_no_norm_is_refused():
    model = small_model()
    probes, trained = as_probes(random_pairs(3, 0)), random_pairs(2, 1)
    with pytest.raises(BadInput, match="vectors is 1"):
        kernel_norm(model, probes, trained, vectors=1)
    with pytest.raises(BadInput, match="empty"):
        kernel_norm(model, probes, [])
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
    with pytest.raises(BadInput, match=r"training response 0 .* norm 0\.0"):
        kernel_norm(model, probes, trained, parameters=r"h\.0")
