"""From one observation to the next: what each group of parameters made of it."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from forces_setting import (
    PROBES,
    SMALLER,
    Training,
    loss_gradient,
    model_of,
    reference_of,
    relative,
    values_of,
)

from learndyn.errors import BadInput
from learndyn.forces.direction import parameters_of, placed, scaled
from learndyn.forces.losses import loss_named
from learndyn.forces.predict import Predictor
from learndyn.forces.split import path_attribution


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters_of(model).items()}


@cache
def interval(lr: float = 5e-4) -> tuple[Predictor, dict[str, Any], dict[str, Any]]:
    """Ten AdamW updates of DPO in float64, and the weights at both ends.

    The model is left between the ends, where no end is.
    """
    model = model_of("gpt2", "plain", torch.float64, **SMALLER)
    predictor = Predictor.attach(model, PROBES, method="forward-mode")
    training = Training.of(model, "adamw", lr)
    reference, before, middle = reference_of(model), weights_of(model), {}
    for update in range(10):
        gradient = loss_gradient(model, loss_named("dpo"), reference)
        for name, parameter in parameters_of(model).items():
            parameter.grad = gradient[name]
        training.step()
        if update == 4:
            middle = weights_of(model)
    after = weights_of(model)
    model.load_state_dict({**model.state_dict(), **middle})
    model.zero_grad()
    return predictor, before, after


def test_what_the_integral_leaves_out_falls_with_its_points():
    found = [path_attribution(*interval(), points=n) for n in (1, 2, 4)]
    missed = [path.residual for path in found]
    # 3.0e-2, 9.0e-4 and 1.2e-6 when written
    assert missed[0] > 10 * missed[1] > 1000 * missed[2]
    assert missed[0] < 0.1
    assert missed[2] < 1e-5
    assert [path.points for path in found] == [1, 2, 4]


def test_the_groups_sum_to_the_actual_change():
    predictor, before, after = interval()
    found = path_attribution(predictor, before, after, points=4)
    ends = []
    for weights in (before, after):
        with placed(predictor.model, weights):
            ends.append(values_of(predictor.model, PROBES))
    np.testing.assert_allclose(found.actual, ends[1] - ends[0], rtol=0, atol=1e-12)
    assert list(found.parts) == ["embedding", "layer 0", "layer 1", "norm", "head"]
    assert relative(found.total, found.actual) == pytest.approx(found.residual)
    assert relative(found.total, found.actual) < 1e-5
    for part in found.parts.values():
        assert np.abs(part).max() > 1e-3 * np.abs(found.actual).max()


def test_one_pass_at_the_start_is_far_worse_than_a_path():
    predictor, before, after = interval()
    whole = {name: after[name] - before[name] for name in before}
    with placed(predictor.model, before):
        start = predictor.along(whole).token
    found = path_attribution(predictor, before, after)
    assert relative(start, found.actual) > 10 * found.residual


def test_a_path_does_not_depend_on_the_direction_it_is_walked():
    predictor, before, after = interval()
    there = path_attribution(predictor, before, after)
    back = path_attribution(predictor, after, before)
    for name, part in there.parts.items():
        np.testing.assert_allclose(back.parts[name], -part, rtol=0, atol=1e-12)


def test_other_groups_are_followed_along_the_same_path():
    predictor, before, after = interval()
    whole = {name: after[name] - before[name] for name in before}
    thirds = {"a": scaled(whole, 1 / 3), "b": scaled(whole, 2 / 3), "none": {}}
    found = path_attribution(predictor, before, after, groups=thirds)
    usual = path_attribution(predictor, before, after)
    assert list(found.parts) == ["a", "b"]
    assert relative(found.parts["b"], 2 * found.parts["a"]) < 1e-12
    assert relative(found.total, usual.total) < 1e-12


def test_groups_that_did_not_move_have_no_part():
    predictor, before, after = interval()
    head = "lm_head.weight"
    there = {**before, head: after[head]}
    assert list(path_attribution(predictor, before, there).parts) == ["head"]


def test_the_models_own_weights_are_bit_identical_afterwards():
    predictor, before, after = interval()
    kept = weights_of(predictor.model)
    path_attribution(predictor, before, after)
    for name, parameter in predictor.model.named_parameters():
        assert torch.equal(parameter, kept[name])


@pytest.mark.parametrize("call", [1, 2, 7])
def test_the_models_own_weights_are_bit_identical_after_an_error(monkeypatch, call):
    predictor, before, after = interval()
    kept, real, calls = weights_of(predictor.model), Predictor.along, []

    def failing(self, direction):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("stop")
        return real(self, direction)

    monkeypatch.setattr(Predictor, "along", failing)
    with pytest.raises(RuntimeError, match="stop"):
        path_attribution(predictor, before, after)
    for name, parameter in predictor.model.named_parameters():
        assert torch.equal(parameter, kept[name])


def test_a_path_in_float32_is_complete_up_to_its_noise():
    model = model_of("llama", "lora")
    predictor = Predictor.attach(model, PROBES, method="forward-mode")
    training = Training.of(model, "adamw", lr=2e-3)
    before = weights_of(model)
    assert all("lora_" in name for name in before)
    training.step()
    found = path_attribution(predictor, before, weights_of(model))
    assert found.residual < 1e-3
    assert list(found.parts) == ["layer 0", "layer 1"]


def test_two_ends_that_are_no_interval_are_refused():
    predictor, before, after = interval()
    with pytest.raises(BadInput, match="the two ends are the same point"):
        path_attribution(predictor, before, before)
    with pytest.raises(BadInput, match=r"one point or more \(there are 0\)"):
        path_attribution(predictor, before, after, points=0)
    fewer = dict(list(after.items())[1:])
    told = rf"there are {len(before)} and {len(fewer)}, {len(fewer)} shared"
    with pytest.raises(BadInput, match=told):
        path_attribution(predictor, before, fewer)
