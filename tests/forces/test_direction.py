"""Directions in parameter space: what fits a model, and moving it there and back."""

import pytest
import torch
from forces_setting import model_of

from learndyn.errors import BadInput
from learndyn.forces.direction import (
    checked,
    moved,
    norm,
    parameters_of,
    placed,
    plus,
    scaled,
)


HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def noise_of(model, seed=0):
    """A direction as large as the weights."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=draw).to(p.dtype)
        for name, p in parameters_of(model).items()
    }


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_bits(model, kept):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name]), name


def test_parameters_that_may_move_are_named_once_and_without_frozen_ones():
    model = model_of("gpt2", "tied")
    assert EMBEDDING in parameters_of(model)
    assert HEAD not in parameters_of(model)
    model.transformer.wpe.weight.requires_grad_(False)
    assert "transformer.wpe.weight" not in parameters_of(model)
    adapters = parameters_of(model_of("gpt2", "lora"))
    assert adapters
    assert all("lora_" in name for name in adapters)


def test_both_names_of_a_tied_weight_are_understood():
    model = model_of("gpt2", "tied")
    part = torch.ones_like(model.lm_head.weight)
    assert list(checked(model, {HEAD: part})) == [EMBEDDING]
    assert list(checked(model, {EMBEDDING: part})) == [EMBEDDING]
    with pytest.raises(BadInput, match=rf"{HEAD}: the same weight as {EMBEDDING},"):
        checked(model, {EMBEDDING: part, HEAD: part})
    with pytest.raises(BadInput, match=rf"{EMBEDDING}: the same weight as {HEAD},"):
        checked(model, {HEAD: part, EMBEDDING: part})


def test_a_direction_that_does_not_fit_is_refused_with_the_names_and_numbers():
    model = model_of()
    good = torch.ones_like(model.lm_head.weight)
    with pytest.raises(BadInput, match=r"direction is empty: .* transformer\.wte"):
        checked(model, {})
    with pytest.raises(BadInput, match=r"(?s)1 of 2 names .* head\.weight\n.*wte"):
        checked(model, {"head.weight": good, HEAD: good})
    with pytest.raises(BadInput, match=rf"{HEAD}: \(32, 31\), not \(31, 32\)"):
        checked(model, {HEAD: good.T})
    broken = good.clone()
    broken[3, :2] = torch.nan
    broken[4, 0] = torch.inf
    with pytest.raises(BadInput, match=rf"{HEAD}: 3 of 992 numbers are not finite"):
        checked(model, {HEAD: broken})
    with pytest.raises(BadInput, match=r"direction is zero: .* warm-up"):
        checked(model, {HEAD: torch.zeros_like(good), EMBEDDING: 0 * good})


def test_all_faults_of_a_direction_are_told_at_once():
    model = model_of()
    wide, lost = torch.ones(31, 33), torch.full((31, 32), torch.nan)
    with pytest.raises(BadInput, match=r"(?s)\(31, 33\).*992 of 992"):
        checked(model, {HEAD: wide, EMBEDDING: lost})


def test_a_checked_direction_has_no_graph():
    model = model_of()
    part = torch.ones_like(model.lm_head.weight, requires_grad=True)
    assert not checked(model, {HEAD: 2 * part})[HEAD].requires_grad


EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["plain", "tied", "lora"])
def test_a_moved_model_is_bit_identical_afterwards(variant, dtype):
    model = model_of("gpt2", variant, dtype)
    kept, direction = weights(model), noise_of(model)
    objects = [id(p) for p in model.parameters()]
    with moved(model, direction, 0.3):
        for name, part in direction.items():
            wanted = kept[name].float() + 0.3 * part.float()
            now = dict(model.named_parameters())[name]
            # float32 may be rounded once or twice, by the last bit
            slack = {"rtol": 2e-7, "atol": 1e-7} if dtype == torch.float32 else EXACT
            torch.testing.assert_close(now, wanted.to(dtype), **slack)
    assert_same_bits(model, kept)
    assert objects == [id(p) for p in model.parameters()]
    # where p + d - d is not p, so that a copy is what puts it back
    back = {n: kept[n] + 0.3 * d - 0.3 * d for n, d in direction.items()}
    assert any(not torch.equal(back[n], kept[n]) for n in direction)


def test_a_moved_model_is_bit_identical_after_an_error():
    model = model_of()
    kept = weights(model)
    with pytest.raises(RuntimeError, match="stop"), moved(model, noise_of(model)):
        raise RuntimeError("stop")
    assert_same_bits(model, kept)
    with pytest.raises(RuntimeError, match="stop"), placed(model, noise_of(model)):
        raise RuntimeError("stop")
    assert_same_bits(model, kept)


def test_a_placed_model_stands_there_and_then_where_it_stood():
    model = model_of()
    kept, there = weights(model), noise_of(model)
    with placed(model, there):
        assert_same_bits(model, there)
    assert_same_bits(model, kept)


def test_a_move_too_small_for_bfloat16_is_not_rounded_before_it_is_added():
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    direction = {"weight": torch.full((1, 1), 5 * 2.0**-10)}  # float32, as a step's is
    with torch.no_grad():
        model.weight.fill_(1.0)
    with moved(model, direction, 0.9):
        # 1 + 4.5 / 1024 is nearer to 1 + 8 / 1024 than to 1
        assert model.weight.item() == 1 + 2.0**-7


def test_directions_add_and_scale_by_name():
    a = {"x": torch.tensor([3.0]), "y": torch.tensor([1.0])}
    b = {"y": torch.tensor([3.0])}
    total = plus(a, scaled(b, -2.0))
    assert total["x"].item() == 3
    assert total["y"].item() == -5
    assert a["y"].item() == 1  # what was added is left as it is
    assert norm(plus(a, b).values()) == 5
    assert norm([]) == 0
    assert plus() == {}


def test_a_norm_is_summed_in_float64():
    # in float32 the sum of squares stops growing at 2^24
    assert norm([torch.ones(2**24 + 2**12)]) ** 2 == pytest.approx(2**24 + 2**12)
    assert norm([torch.full((4,), 1e30)]) == pytest.approx(2e30)
