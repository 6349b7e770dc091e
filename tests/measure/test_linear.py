"""Linear layers by the faster library: the same numbers, and only where it applies."""

import numpy as np
import pytest
import torch
from models import tiny_model
from tiers import few_probes
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from learndyn.measure import linear, route, tiles
from learndyn.measure.score import Scorer


pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture
def used(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the rows that go to oneDNN, which is said to be faster."""
    shapes, real = [], linear.product

    def watched(rows, weight, bias):
        shapes.append(tuple(rows.shape))
        return real(rows, weight, bias)

    for module in (linear, route):
        monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    for module in (linear, tiles):
        monkeypatch.setattr(module, "product", watched)
    return shapes


@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_as_near_to_float64_as_torchs_own(biased):
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(3, 70, 96), torch.randn(50, 96), torch.randn(50)
    exact = functional.linear(rows.double(), weight.double(), bias.double() * biased)
    bias = bias if biased else None
    size = float(exact.abs().max())
    own = (functional.linear(rows, weight, bias) - exact).abs().max() / size
    other = (linear.product(rows, weight, bias) - exact).abs().max() / size
    assert float(own) < 1e-6
    assert float(other) < 1e-6


def test_layers_of_plain_float32_go_there_and_no_others(used):
    layer, rows = torch.nn.Linear(8, 4), torch.randn(5, 8)
    with torch.no_grad(), linear.fast_linear():
        layer(rows)
        assert used == [(5, 8)]
        layer.double()(rows.double())
        layer.bfloat16()(rows.bfloat16())
        assert used == [(5, 8)]
    with torch.no_grad():
        layer.float()(rows)  # outside the block
    assert used == [(5, 8)]


def test_nothing_is_left_behind_also_after_an_error(used):
    with pytest.raises(RuntimeError, match="stop"), linear.fast_linear():
        raise RuntimeError("stop")
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_observations_are_the_same_by_either_library(family, used, monkeypatch):
    model, tokenized = tiny_model(family), few_probes()
    scorer = Scorer.attach(model, tokenized.pairs)
    fast = scorer.observe()
    assert used
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: False)
    used.clear()
    usual = scorer.observe()
    assert not used
    np.testing.assert_allclose(fast.token_logp, usual.token_logp, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(fast.token_argmax_id, usual.token_argmax_id)


def test_lower_precision_stays_in_lower_precision(used):
    # Within autocast a float32 layer is one of bfloat16: the faster float32 is slower.
    scorer = Scorer.attach(
        tiny_model("llama"), few_probes().pairs, precision="bfloat16"
    )
    used.clear()
    scorer.observe()
    assert used == []


def test_many_rows_come_in_few_shapes(used):
    with linear.fast_linear():
        check_shapes()


def check_shapes():
    for count in (1, linear.MANY - 1):
        assert len(linear.in_few_shapes(torch.ones(count, 3))) == count
    sizes = range(linear.MANY, 4 * linear.MANY, 7)
    padded = [linear.in_few_shapes(torch.ones(count, 3)) for count in sizes]
    assert {len(rows) % linear.STEP for rows in padded} == {0}
    for count, rows in zip(sizes, padded, strict=True):
        assert float(rows[:count].min()) == 1
        assert float(rows[count:].abs().sum()) == 0


def test_a_build_without_the_operator_keeps_torchs_own(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "product", missing)
    linear.onednn_is_faster.cache_clear()
    assert not linear.onednn_is_faster()
    linear.onednn_is_faster.cache_clear()


def test_a_library_that_is_too_rough_is_left_for_the_other(used, monkeypatch):
    real = linear.product

    def rough(rows, weight, bias):
        return real(rows, weight, bias) * (1 + 1e-3)

    for module in (linear, tiles):
        monkeypatch.setattr(module, "product", rough)
    model, tokenized = tiny_model("llama"), few_probes()
    scorer = Scorer.attach(model, tokenized.pairs)
    assert (scorer.route.name, scorer.route.head) == ("tree", "tiles")
    assert scorer.route.error < 2e-6  # and no warning, which would be an error here
