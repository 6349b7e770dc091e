"""Tiles against rows of logits in float64, on vocabularies that do not suit them."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learndyn.measure import tiles as tiles_module
from learndyn.measure.statistics import RowStatistics, row_statistics
from learndyn.measure.tiles import Tiles


COLUMNS = [field.name for field in fields(RowStatistics) if field.name != "argmax_id"]


def same(z: Tensor) -> Tensor:
    return z


def random_case(
    vocabulary: int, dtype: torch.dtype, bias: bool = True, rows: int = 33, d: int = 24
):
    """A projection with logits of about N(0, 9), states, and two or so labels a row."""
    torch.manual_seed(vocabulary)
    linear = nn.Linear(d, vocabulary, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.normal_(0, 3 / d**0.5)
        if bias:
            linear.bias.normal_()
    hidden = torch.randn(rows, d, dtype=dtype)
    source = torch.randint(0, rows, (2 * rows,))
    labels = torch.randint(0, vocabulary, (2 * rows,))
    return linear, hidden, source, labels


def of_logits(
    logits: Tensor, bias: Tensor | None = None
) -> Callable[..., RowStatistics]:
    """Tiles that see exactly these logits: the states are unit vectors."""
    tiles = Tiles(logits.T.contiguous(), bias, same)
    return lambda source, labels, starts=None: tiles(
        torch.eye(len(logits), dtype=logits.dtype), source, labels, starts
    )


def assert_equal(got: RowStatistics, expected: RowStatistics, atol: float) -> None:
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=0, atol=atol, msg=name
        )
    assert torch.equal(got.argmax_id, expected.argmax_id)


@pytest.fixture(params=[64, 1024], ids=["many tiles", "one tile"])
def tile(request, monkeypatch):
    monkeypatch.setattr(tiles_module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("vocabulary", [50, 64, 320, 333])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 5e-6), (torch.float64, 1e-11)]
)
@pytest.mark.parametrize("rows", [1024, 7])
def test_tiles_equal_rows_of_logits(
    vocabulary, bias, dtype, atol, rows, tile, monkeypatch
):
    monkeypatch.setattr(tiles_module, "ROWS", rows)
    linear, hidden, source, labels = random_case(vocabulary, dtype, bias)
    starts = labels.flip(0)
    with torch.no_grad():
        logits = linear.double()(hidden.double())[source]
        linear.to(dtype)
        got = Tiles.of(linear, same)(hidden, source, labels, starts)
    assert_equal(got, row_statistics(logits, labels, starts), atol)
    assert all(getattr(got, name).dtype == torch.float64 for name in COLUMNS)


@pytest.mark.parametrize(
    "after",
    [lambda z: z * 0.0625, lambda z: torch.tanh(z / 5) * 5, lambda z: z * -1.0],
    ids=["scale", "softcap", "negative scale"],
)
def test_what_follows_the_projection_is_applied(after, tile):
    linear, hidden, source, labels = random_case(333, torch.float32)
    with torch.no_grad():
        logits = after(linear.double()(hidden.double()))[source]
        got = Tiles.of(linear.float(), after)(hidden, source, labels, None)
    assert_equal(got, row_statistics(logits, labels), 5e-6)


def test_bfloat16_logits_are_folded_in_float32(tile):
    torch.manual_seed(0)
    logits = (3 * torch.randn(9, 333)).to(torch.bfloat16)
    labels = torch.randint(0, 333, (9,))
    got = of_logits(logits)(torch.arange(9), labels)
    assert_equal(got, row_statistics(logits.double(), labels), 2e-6)


def test_a_projection_in_lower_precision_is_asked_for_by_its_dtype(tile):
    linear, hidden, source, labels = random_case(333, torch.float32)
    exact = Tiles.of(linear, same)(hidden, source, labels, None)
    low = Tiles.of(linear, same, torch.bfloat16)
    assert low.weight.dtype == torch.bfloat16
    off = (low(hidden, source, labels, None).logp - exact.logp).abs().max()
    assert 1e-4 < off < 0.2
    assert linear.weight.dtype == torch.float32


def test_only_a_plain_linear_layer_is_read_in_tiles():
    class Mine(nn.Linear):
        pass

    hooked = nn.Linear(4, 8)
    hooked.register_forward_hook(lambda *_: None)
    assert Tiles.of(Mine(4, 8), same) is None
    assert Tiles.of(hooked, same) is None
    assert Tiles.of(nn.Linear(4, 8), same) is not None


@pytest.mark.parametrize("apart", [1, 63, 64, 200])
def test_exact_ties_at_the_top_share_the_mass(apart, tile):
    # within a tile, across its edge, and tiles apart
    torch.manual_seed(0)
    logits = torch.randn(3, 320, dtype=torch.float32)
    first, second = 40, 40 + apart
    logits[:, [first, second]] = logits.amax(-1, keepdim=True) + 1
    labels = torch.tensor([first, second, 7])
    got = of_logits(logits)(torch.arange(3), labels)
    assert_equal(got, row_statistics(logits.double(), labels), 2e-6)
    assert got.argmax_id.tolist() == [first] * 3
    assert (got.logp[:2] == got.argmax_logp[:2]).all()


def test_equal_logits_everywhere_are_a_uniform_distribution(tile):
    got = of_logits(torch.full((1, 333), 2.5))(torch.tensor([0]), torch.tensor([332]))
    log_v = np.log(333)
    assert float(got.logp) == pytest.approx(-log_v, abs=1e-6)
    assert float(got.entropy) == pytest.approx(log_v, abs=1e-6)
    assert float(got.p_norm2) == pytest.approx(1 / 333, rel=1e-6)
    assert float(got.rest_logp) == pytest.approx(np.log(332 / 333), rel=1e-6)


@pytest.mark.parametrize(
    "hidden_ids",
    [[5], [0, 332], range(64, 128), range(128), range(60, 333)],
    ids=["one", "both ends", "a tile", "the first tiles", "most"],
)
def test_a_masked_vocabulary_has_no_mass(hidden_ids, tile):
    # Logits of -inf, as models with a padded vocabulary may have through their bias.
    torch.manual_seed(0)
    logits, bias = torch.randn(4, 333), torch.zeros(333)
    bias[list(hidden_ids)] = -torch.inf
    known = torch.isfinite(bias).nonzero().squeeze(-1)
    chosen = torch.tensor([0, 1, 2, len(known) - 1])
    got = of_logits(logits, bias)(torch.arange(4), known[chosen])
    expected = row_statistics(logits.double()[:, known], chosen)
    for name in COLUMNS:
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), rtol=0, atol=2e-6
        )
    assert torch.equal(got.argmax_id, known[expected.argmax_id])


def test_a_vocabulary_of_one_is_certain(tile):
    logits, bias = torch.randn(1, 333), torch.full((333,), -torch.inf)
    bias[200] = 0
    got = of_logits(logits, bias)(torch.tensor([0]), torch.tensor([200]))
    assert float(got.logp) == float(got.argmax_logp) == 0
    assert float(got.entropy) == float(got.energy) == float(got.p_gap) == 0
    assert float(got.p_norm2) == 1
    assert float(got.rest_logp) == -torch.inf


@pytest.mark.parametrize("left", [1e-6, 1e-12, 1e-25, 1e-28, 1e-32, 1e-50, 1e-130])
@pytest.mark.parametrize("at", [0, 70, 332])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tail_keeps_its_digits(left, at, dtype, tile):
    # p_max = 1 - left, the rest spread over N(0, 1) logits in all tiles. Closed form:
    # log(1 - p_max) = log S - top - log(1 + S e^-top), S the others' sum.
    torch.manual_seed(0)
    logits = torch.randn(1, 333, dtype=dtype)
    others = logits.double()[0, torch.arange(333) != at].logsumexp(0)
    logits[0, at] = others + np.log1p(-left) - np.log(left)
    gap = float(others - logits.double()[0, at])
    got = of_logits(logits)(torch.tensor([0, 0]), torch.tensor([at, (at + 1) % 333]))
    expected = gap - np.log1p(np.exp(gap))
    assert expected == pytest.approx(np.log(left), rel=1e-5)
    assert got.rest_logp.tolist() == pytest.approx([expected] * 2, rel=1e-5)
    # Relative to 300 nats 1e-5 would leave `left` no digit: compare that itself.
    assert float(got.rest_logp[0] - expected) == pytest.approx(0, abs=1e-5)
    assert float(got.argmax_logp[0]) == pytest.approx(-np.exp(gap), rel=1e-5)
    assert got.argmax_id.tolist() == [at, at]
    assert float(got.energy[0]) == pytest.approx(np.exp(gap), rel=1e-5)


@pytest.mark.parametrize("gap", [20.0, 40.0, 90.0, 300.0])
def test_one_sure_token_among_equals(gap, tile):
    logits = torch.zeros(1, 1000)
    logits[0, 7] = gap
    got = of_logits(logits)(torch.tensor([0]), torch.tensor([7]))
    expected = np.log(999) - gap - np.log1p(999 * np.exp(-gap))
    assert float(got.rest_logp) == pytest.approx(expected, rel=1e-7)
    assert float(got.logp) == pytest.approx(-999 * np.exp(-gap), rel=1e-5)


@pytest.mark.parametrize("vocabulary", [50, 333])
def test_the_argmax_as_a_label_gets_its_very_log_probability(vocabulary, tile):
    linear, hidden, source, labels = random_case(vocabulary, torch.float32, rows=200)
    with torch.no_grad():
        tops = linear(hidden).argmax(-1)[source]
        tiles = Tiles.of(linear, same)
        sure = tiles(hidden, source, tops, labels)
        any_label = tiles(hidden, source, labels, tops)
    assert torch.equal(sure.logp, sure.argmax_logp)
    assert torch.equal(any_label.start_logp, any_label.argmax_logp)
    assert torch.equal(sure.start_logp, any_label.logp)
    assert (any_label.logp <= any_label.argmax_logp).all()


def test_labels_come_back_in_the_order_given(tile, monkeypatch):
    monkeypatch.setattr(tiles_module, "ROWS", 5)
    linear, hidden, source, labels = random_case(333, torch.float64)
    tiles, order = Tiles.of(linear, same), torch.randperm(len(labels))
    straight = tiles(hidden, source, labels, labels.flip(0))
    mixed = tiles(hidden, source[order], labels[order], labels.flip(0)[order])
    assert_equal(mixed, straight.take(order), 1e-12)


def test_states_and_weights_are_left_as_they_were(tile):
    linear, hidden, source, labels = random_case(333, torch.float32)
    before = hidden.clone(), linear.weight.clone(), linear.bias.clone()
    Tiles.of(linear, same)(hidden, source, labels, None)
    for tensor, old in zip((hidden, linear.weight, linear.bias), before, strict=True):
        assert torch.equal(tensor, old)
