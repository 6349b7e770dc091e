"""First-order predictions are wrong by the square of the step, and by nothing else.

The error of a right prediction falls by 100 where the step falls by 10. One that is off
by a constant share, such as a wrong sign or a lost factor, falls by 10 only.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from forces_setting import (
    ALL_LOSSES,
    FAMILIES,
    OPTIMIZERS,
    PROBES,
    RESPONSES,
    SMALLER,
    VARIANTS,
    Training,
    batch_of,
    loss_gradient,
    model_of,
    plain_logits,
    values_of,
)
from torch.autograd import forward_ad

from learndyn.forces.direction import (
    Direction,
    parameters_of,
    placed,
    plus,
    scaled,
)
from learndyn.forces.gradients import Rows
from learndyn.forces.predict import Predictor, change_noise
from learndyn.forces.split import sign_gradients
from learndyn.forces.step import capture_step


FIRST = 0.3
"""Nats that the most moved token changes by at the largest step: there the next order
is a few percent of the error. Every loss gets the learning rate that does this."""

STEPS = np.logspace(0, -3, 7)


def order(steps: np.ndarray, errors: list[float]) -> float:
    """The power of the step that the error goes with."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def is_second(power: float) -> bool:
    return abs(power - 2) <= 0.1


@cache
def exact_gpt2() -> Predictor:
    """In float64; its forward derivative is exact to rounding."""
    model = model_of("gpt2", "plain", torch.float64, **SMALLER)
    return Predictor.attach(model, PROBES, method="forward-mode")


Predict = Callable[[Direction], np.ndarray]


def errors_of_sgd(gradient: Direction, predict: Predict) -> list[float]:
    """||actual - predicted|| over all tokens, for real SGD steps of falling size.

    `predict` gets the real displacement. Actual changes are those of the plain forward.
    """
    model = exact_gpt2().model
    before = values_of(model, PROBES)
    steepest = np.abs(exact_gpt2().along(gradient).token).max()
    errors = []
    for step in STEPS:
        for name, parameter in parameters_of(model).items():
            parameter.grad = gradient[name].clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=step * FIRST / steepest)
        with capture_step(optimizer, model) as captured:
            optimizer.step()
        actual = values_of(model, PROBES) - before
        with torch.no_grad():
            for name, parameter in parameters_of(model).items():
                parameter.copy_(captured.step.before[name])
                parameter.grad = None
        predicted = predict(captured.step.direction)
        errors.append(float(np.linalg.norm(actual - predicted)))
    return errors


def right(direction: Direction) -> np.ndarray:
    return exact_gpt2().along(direction).token


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_error_is_of_second_order_for_every_loss(name):
    gradient = loss_gradient(exact_gpt2().model, ALL_LOSSES[name])
    errors = errors_of_sgd(gradient, right)
    assert is_second(order(STEPS, errors))
    assert errors[-1] < 1e-5 * errors[0]


def instead(gradient: Direction, wrong: Direction) -> Predict:
    """Predicts along another gradient, at the same learning rate."""

    def predict(direction: Direction) -> np.ndarray:
        name = max(gradient, key=lambda n: float(gradient[n].norm()))
        at = int(gradient[name].abs().argmax())
        lr = -float(direction[name].flatten()[at] / gradient[name].flatten()[at])
        return exact_gpt2().along(scaled(wrong, -lr)).token

    return predict


def gradient_by_logits(
    asked: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The DPO gradient with something else for (e_y - pi) at each token."""
    predictor = exact_gpt2()
    push = torch.from_numpy(batch_of(predictor, ALL_LOSSES["dpo"]).push)
    parameters = parameters_of(predictor.model)
    first, total = 0, torch.zeros((), dtype=torch.float64)
    for pair in RESPONSES:
        logits = plain_logits(predictor.model, pair)
        spike = torch.zeros_like(logits)
        spike[range(len(logits)), pair.response_ids] = 1
        own = push[first : first + len(logits), None]
        total = total + (own * asked(spike, logits).detach() * logits).sum()
        first += len(logits)
    found = torch.autograd.grad(total, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def change_of_logits(direction: Direction) -> np.ndarray:
    """dz_y, with A left out."""
    reader = exact_gpt2().forward_mode
    assert reader is not None
    found = np.zeros(reader.plan.n_tokens)

    def read(rows: Rows) -> None:
        change = forward_ad.unpack_dual(rows.logits).tangent
        assert change is not None
        own = change.gather(-1, rows.labels[:, None])[:, 0]
        found[rows.flat.numpy()] = own.numpy()

    reader.along(direction, read)
    return found


def wrong_sign(gradient: Direction) -> Predict:
    """Takes the lowered tokens to be raised."""
    predictor = exact_gpt2()
    parts = sign_gradients(predictor.logps, batch_of(predictor, ALL_LOSSES["dpo"]))
    return instead(gradient, plus(parts["pull"], scaled(parts["push"], -1.0)))


PLANTED: dict[str, Callable[[Direction], Predict]] = {
    "a sign": wrong_sign,
    "A": lambda _: change_of_logits,
    "softmax": lambda gradient: instead(
        gradient, gradient_by_logits(lambda spike, z: spike - z.sigmoid())
    ),
    "a factor": lambda gradient: instead(gradient, scaled(gradient, 2.0)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_prediction_that_gets_this_wrong_is_of_first_order(planted):
    gradient = loss_gradient(exact_gpt2().model, ALL_LOSSES["dpo"])
    errors = errors_of_sgd(gradient, PLANTED[planted](gradient))
    power = order(STEPS, errors)
    assert not is_second(power)
    assert 0.9 < power < 1.2


def test_the_wrong_predictions_are_built_of_right_pieces():
    gradient = loss_gradient(exact_gpt2().model, ALL_LOSSES["dpo"])
    same = gradient_by_logits(lambda spike, z: spike - z.softmax(-1))
    for name, part in gradient.items():
        torch.testing.assert_close(same[name], part, rtol=0, atol=1e-13)
    assert is_second(order(STEPS, errors_of_sgd(gradient, instead(gradient, same))))


SINGLE_STEPS = np.array([1, 10**-0.5, 0.1, 1e-4, 1e-5])
"""In float32 the first three are seen clearly, the last two are lost in rounding."""


@cache
def single(family: str, variant: str) -> tuple[Predictor, dict[str, Any]]:
    """A float32 model, and its weights before any update."""
    model = model_of(family, variant)
    predictor = Predictor.attach(model, PROBES, method="forward-mode")
    weights = {n: p.detach().clone() for n, p in parameters_of(model).items()}
    return predictor, weights


REAL = [
    (family, variant, optimizer)
    for family in FAMILIES
    for variant in VARIANTS
    for optimizer in OPTIMIZERS
    if family == "gpt2" or optimizer == "adamw"
]
"""Every optimizer on every variant of a model, and every family by one optimizer: what
an optimizer does to a tensor does not depend on the model that the tensor is of."""


@pytest.mark.parametrize(("family", "variant", "optimizer"), REAL)
def test_real_optimizers_are_predicted_down_to_the_rounding_of_float32(
    family, variant, optimizer
):
    predictor, weights = single(family, variant)
    model = predictor.model
    with placed(model, weights):
        clip = optimizer != "rmsprop"
        training = Training.of(model, optimizer, lr=1e-4, clip=clip)
        kept = copy.deepcopy(training.optimizer.state_dict())
        start = {n: p.detach().clone() for n, p in parameters_of(model).items()}
        before = predictor.scorer.rows().logp.numpy()
        noise = float(np.linalg.norm(change_noise(predictor.scorer)))

        def update(lr: float) -> tuple[np.ndarray, np.ndarray]:
            """Predicted and actual change of each probe."""
            training.optimizer.load_state_dict(copy.deepcopy(kept))
            for group in training.optimizer.param_groups:
                group["lr"] = lr
            with placed(model, start):
                step = training.step()
                actual = predictor.scorer.rows().logp.numpy() - before
            with placed(model, start):
                change = predictor.along(step.direction)
            return change.logp, predictor.logps.summed(actual)

        lr = 1e-4 * FIRST / np.abs(update(1e-4)[0]).max()
        errors = [
            float(np.linalg.norm(np.subtract(*update(lr * step))))
            for step in SINGLE_STEPS
        ]
    clear = [i for i, error in enumerate(errors) if error > 10 * noise]
    assert len(clear) >= 3
    assert is_second(order(SINGLE_STEPS[clear], [errors[i] for i in clear]))
    assert max(errors[-2:]) < 3 * noise
