"""Forward mode through the vocabulary projection and through fast products."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import byte_tokenizer, rough_model
from runs import probes
from torch import nn
from torch.autograd import forward_ad

from learndyn.forces import (
    gradients as reading,
    gradients as tangent_head,
)
from learndyn.forces.gradients import _TangentHead
from learndyn.forces.predict import Predictor
from learndyn.measure import linear
from learndyn.measure.linear import fast_linear, onednn_is_faster
from learndyn.probes.tokenize import tokenize


# torch's first dual tensor calls what torch itself deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

HEADS = {
    "plain": ("llama", {}),
    "biased": ("gptj", {}),
    "tied": ("qwen2", {}),
    "scaled": ("cohere", {}),
    "capped": ("gemma2", {}),
}


def small_tiles(monkeypatch):
    monkeypatch.setattr(tangent_head, "TILE", 96)  # several, the last one not whole
    monkeypatch.setattr(tangent_head, "ROWS", 37)


def somewhere(model):
    chance = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(p.shape, generator=chance).to(p) * 0.01
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", HEADS)
def test_tiles_give_what_whole_rows_of_logits_give(name, monkeypatch):
    family, more = HEADS[name]
    model = rough_model(family, torch.float64, **more)
    predictor = Predictor.attach(model, tokenize(probes(2), byte_tokenizer()).pairs)
    assert predictor.forward_mode is not None
    direction = somewhere(model)
    small_tiles(monkeypatch)
    tiled = predictor.forward_mode.tangents(direction)
    never = SimpleNamespace(of=lambda module, after: None)
    monkeypatch.setattr(reading, "_TangentHead", never)
    whole = predictor.forward_mode.tangents(direction)
    # rotary positions and norms are in float32 inside some models
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-9 * np.abs(whole).max())
    assert np.abs(whole).max() > 1e-3


def test_a_head_that_does_not_move_and_states_that_do_not_are_zeros(monkeypatch):
    small_tiles(monkeypatch)
    head = nn.Linear(8, 200).double()
    states = torch.randn(50, 8, dtype=torch.float64)
    source, labels = torch.arange(50), torch.randint(0, 200, (50,))
    quick = _TangentHead.of(head, lambda z: z)
    assert quick is not None
    with torch.no_grad(), forward_ad.dual_level():
        still = quick(states, source, labels)
        assert still.abs().max() == 0
        change = torch.randn_like(states)
        moving = quick(forward_ad.make_dual(states, change), source, labels)
    step = 1e-6

    def logp(s):
        z = head(states + s * change).log_softmax(-1)
        return z.gather(-1, labels[:, None]).squeeze(-1)

    slope = (logp(step) - logp(-step)) / (2 * step)
    torch.testing.assert_close(moving, slope, rtol=0, atol=1e-8)


def test_what_is_more_than_a_plain_layer_is_not_read_in_tiles():
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(4, 9)
    hooked.register_forward_hook(lambda *_: None)
    assert _TangentHead.of(Own(4, 9), lambda z: z) is None
    assert _TangentHead.of(hooked, lambda z: z) is None
    assert _TangentHead.of(nn.Linear(4, 9), lambda z: z) is not None


MOVING = [(True, True, True), (True, False, False), (False, True, False)]
MOVING += [(False, False, True), (False, True, True), (True, False, True)]


@pytest.mark.parametrize("moves", MOVING, ids=str)
def test_fast_products_carry_the_derivative_of_whatever_moves(moves, monkeypatch):
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    given = [torch.randn(600, 16), torch.randn(24, 16), torch.randn(24)]
    changes = [
        torch.randn_like(t) if m else None for t, m in zip(given, moves, strict=True)
    ]

    def along(layer):
        with torch.no_grad(), forward_ad.dual_level():
            duals = [
                t if c is None else forward_ad.make_dual(t, c)
                for t, c in zip(given, changes, strict=True)
            ]
            return forward_ad.unpack_dual(layer(duals))

    def usual(g):
        return nn.functional.linear(*g)

    expected = along(usual)
    with fast_linear():
        found = along(usual)
        gpt2 = along(lambda g: torch.addmm(g[2], g[0], g[1].T))
    for one in (found, gpt2):
        torch.testing.assert_close(one.primal, expected.primal, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(one.tangent, expected.tangent, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not onednn_is_faster(), reason="oneDNN is not the faster one here")
def test_forward_mode_uses_the_faster_library(monkeypatch):
    model = rough_model("llama")
    predictor = Predictor.attach(model, tokenize(probes(2), byte_tokenizer()).pairs)
    calls, own = [], linear.product
    monkeypatch.setattr(linear, "product", lambda *a: calls.append(1) or own(*a))
    assert predictor.forward_mode is not None
    predictor.forward_mode.tangents(somewhere(model))
    assert calls or not predictor.forward_mode.reader.fast
