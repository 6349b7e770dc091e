"""What an optimizer's update is made of: d = -scale gradient + history + decay."""

import copy
import hashlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from models import tiny_model
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from learndyn.errors import BadInput
from learndyn.forces.direction import norm
from learndyn.forces.optimizers import _adamw, numbers
from learndyn.forces.step import StepRecording, capture_step, check_moved


LR64 = torch.tensor(0.03, dtype=torch.float64)

DECAY = {"weight_decay": 0.3}
MOMENTUM = {"momentum": 0.9, **DECAY}
MAXIMIZE = {"maximize": True, **DECAY}
NESTEROV = {"momentum": 0.8, "nesterov": True}
CENTERED = {"centered": True, "momentum": 0.9, **DECAY}
CASES = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd-decay": (SGD, {"lr": 0.1, **DECAY}),
    "sgd-momentum": (SGD, {"lr": 0.1, **MOMENTUM}),
    "sgd-dampening": (SGD, {"lr": 0.1, **MOMENTUM, "dampening": 0.4}),
    "sgd-nesterov": (SGD, {"lr": 0.1, **NESTEROV, **DECAY}),
    "sgd-nesterov-foreach": (SGD, {"lr": 0.1, **NESTEROV, "foreach": True}),
    "sgd-maximize": (SGD, {"lr": 0.1, **MOMENTUM, "maximize": True}),
    "sgd-fused": (SGD, {"lr": 0.1, **MOMENTUM, "dampening": 0.2, "fused": True}),
    "sgd-tensor-lr": (SGD, {"lr": LR64, **MOMENTUM}),
    "adam": (Adam, {"lr": 0.03}),
    "adam-coupled": (Adam, {"lr": 0.03, **DECAY}),
    "adam-decoupled": (Adam, {"lr": 0.03, **DECAY, "decoupled_weight_decay": True}),
    "adam-amsgrad": (Adam, {"lr": 0.03, "amsgrad": True, "betas": (0.8, 0.6)}),
    "adam-maximize": (Adam, {"lr": 0.03, **MAXIMIZE}),
    "adam-foreach": (Adam, {"lr": 0.03, **DECAY, "foreach": True}),
    "adam-fused": (Adam, {"lr": 0.03, **DECAY, "fused": True}),
    "adam-tensor-lr": (Adam, {"lr": LR64, **DECAY}),
    "adamw": (AdamW, {"lr": 0.03, **DECAY, "eps": 1e-3}),
    "adamw-amsgrad-fused": (
        AdamW,
        {"lr": 0.03, **DECAY, "amsgrad": True, "fused": True},
    ),
    "adamw-maximize-foreach": (AdamW, {"lr": 0.03, **MAXIMIZE, "foreach": True}),
    "rmsprop": (RMSprop, {"lr": 0.01}),
    "rmsprop-decay": (RMSprop, {"lr": 0.01, **DECAY, "alpha": 0.7}),
    "rmsprop-centered": (RMSprop, {"lr": 0.01, "centered": True, "eps": 1e-2}),
    "rmsprop-momentum": (RMSprop, {"lr": 0.01, **CENTERED}),
    "rmsprop-maximize": (RMSprop, {"lr": 0.01, "momentum": 0.9, **MAXIMIZE}),
    "rmsprop-foreach": (RMSprop, {"lr": 0.01, **CENTERED, "foreach": True}),
    "rmsprop-tensor-lr": (RMSprop, {"lr": LR64}),
    "adagrad": (Adagrad, {"lr": 0.1, "lr_decay": 0.1, **DECAY}),
    "adagrad-maximize": (Adagrad, {"lr": 0.1, **MAXIMIZE}),
    "adagrad-initial": (Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.2}),
    "adagrad-foreach": (Adagrad, {"lr": 0.1, "lr_decay": 0.1, "foreach": True}),
    "adagrad-fused": (Adagrad, {"lr": 0.1, "lr_decay": 0.1, **DECAY, "fused": True}),
}
"""Differentiable steps need parameters that are no leaves, capturable ones a GPU."""

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def small_net(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def backward(model: Any, seed: int) -> None:
    """New gradients from new data."""
    first = next(model.parameters())
    made = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(5, n, generator=made).to(first.dtype) for n in (3, 2))
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def last_step(optimizer, model: Any) -> Any:
    """The step made now; its `scale` may be None, so the type is left open."""
    with capture_step(optimizer, model) as captured:
        optimizer.step()
    return captured.step


def steps(make, options, count=5, dtype=torch.float64):
    """The first steps of an optimizer, and the model and optimizer after them."""
    model = small_net(dtype)
    optimizer = make(model.parameters(), **options)
    found = []
    for seed in range(count):
        backward(model, seed)
        found.append(last_step(optimizer, model))
    return found, model, optimizer


def total(parts: dict, name: str) -> Any:
    return sum(part[name] for part in parts.values() if name in part)


def apart(a: dict, b: dict) -> float:
    """||a - b|| / ||b||, absent names being zero."""
    zero = torch.zeros((), dtype=torch.float64)
    names = {*a, *b}
    difference = [a.get(n, zero) - b.get(n, zero) for n in names]
    size = norm(b.values())
    return norm(difference) / size if size else norm(difference)


def digest(model: Any, optimizer: Any) -> str:
    """Hash of every bit of parameters, gradients and optimizer state, and its keys."""
    kept = hashlib.sha256(repr(optimizer.state_dict()["param_groups"]).encode())
    for p in model.parameters():
        state = optimizer.state.get(p)
        kept.update(repr(None if state is None else sorted(state)).encode())
        for x in (p, p.grad, *(state or {}).values()):
            if isinstance(x, torch.Tensor):
                kept.update(x.detach().reshape(-1).view(torch.uint8).numpy().data)
    return kept.hexdigest()


@each_case
def test_the_parts_sum_to_the_measured_displacement(case):
    for step in steps(*case)[0]:
        assert step.why == ""
        assert step.unexplained < 1e-12
        parts = step.parts()
        assert set(parts) == {"gradient", "history", "decay", "rounding"}
        whole = {name: total(parts, name) for name in step.direction}
        assert apart(whole, step.direction) < 1e-15
        assert norm(parts["rounding"].values()) < 1e-12 * norm(step.direction.values())


def unrolled(make, o: dict, gradients: list, thetas: list) -> dict[str, Any]:
    """Scale, history and decay of one parameter's last step, from all steps so far.

    Nothing is read from the optimizer: its state is the sum over earlier gradients.
    """
    lr, w = float(o["lr"]), o.get("weight_decay", 0.0)
    apart_decay = make is AdamW or o.get("decoupled_weight_decay", False)
    inside = 0.0 if apart_decay else w
    sign = -1.0 if o.get("maximize") else 1.0
    full = [sign * g + inside * p for g, p in zip(gradients, thetas, strict=True)]
    past, t, theta = full[:-1], len(full), thetas[-1]
    zero = torch.zeros_like(theta)
    if make is SGD:
        mu, nesterov = o.get("momentum", 0.0), o.get("nesterov", False)
        damp = [1.0] + [1 - o.get("dampening", 0.0)] * (t - 1) if mu else [1.0] * t
        memory = sum(
            (mu ** (t - 2 - i) * damp[i] * x for i, x in enumerate(past)), zero
        )
        if nesterov:
            rate = lr * (1 + mu * damp[-1]) * torch.ones_like(theta)
            history = -lr * mu * mu * memory
        else:
            rate = lr * damp[-1] * torch.ones_like(theta)
            history = -lr * mu * memory
    elif make in (Adam, AdamW):
        b1, b2 = o.get("betas", (0.9, 0.999))
        seconds: list[Any] = [
            sum((1 - b2) * b2 ** (k - i) * full[i] ** 2 for i in range(k + 1))
            for k in range(t)
        ]
        v = torch.stack(seconds).amax(0) if o.get("amsgrad") else seconds[-1]
        bottom = (v / (1 - b2**t)).sqrt() + o.get("eps", 1e-8)
        rate = lr * (1 - b1) / (1 - b1**t) / bottom
        memory = sum((b1 ** (t - 1 - i) * x for i, x in enumerate(past)), zero)
        history = -rate * memory
    elif make is RMSprop:
        a, mu = o.get("alpha", 0.99), o.get("momentum", 0.0)

        def bottom(k: int) -> Any:
            part = [(1 - a) * a ** (k - i) for i in range(k + 1)]
            square: Any = sum(c * x**2 for c, x in zip(part, full, strict=False))
            mean: Any = sum(c * x for c, x in zip(part, full, strict=False))
            if o.get("centered"):
                square = square - mean**2
            return square.sqrt() + o.get("eps", 1e-8)

        rate = lr / bottom(t - 1)
        history = -lr * sum(
            (mu ** (t - 1 - i) * x / bottom(i) for i, x in enumerate(past)), zero
        )
    else:
        squares: Any = sum(x**2 for x in full) + o.get("initial_accumulator_value", 0.0)
        rate = lr / (1 + (t - 1) * o.get("lr_decay", 0.0))
        rate, history = rate / (squares.sqrt() + o.get("eps", 1e-10)), zero
    decay = -lr * w * theta if apart_decay else -rate * w * theta
    return {"scale": sign * rate, "history": history, "decay": decay}


@each_case
def test_each_part_is_the_formula_unrolled_over_all_gradients_so_far(case):
    make, options = case
    found = steps(make, options)[0]
    for t in range(1, len(found) + 1):
        step = found[t - 1]
        expected = {
            name: unrolled(
                make,
                options,
                [s.gradient[name] for s in found[:t]],
                [s.before[name] for s in found[:t]],
            )
            for name in step.direction
        }
        for part in ("scale", "history", "decay"):
            reference = {name: parts[part] for name, parts in expected.items()}
            assert apart(getattr(step, part), reference) < 1e-9, part


@given(
    lr=st.floats(1e-3, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
    maximize=st.booleans(),
    warm=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_another_gradient_moves_sgd_by_the_scale_of_the_difference(
    lr, momentum, dampening, nesterov, weight_decay, maximize, warm
):
    nesterov = nesterov and momentum > 0 and dampening == 0
    options = {"lr": lr, "momentum": momentum, "dampening": dampening}
    options |= {"nesterov": nesterov, "weight_decay": weight_decay}
    _, model, optimizer = steps(SGD, {**options, "maximize": maximize}, warm)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    for net in (model, twin):
        backward(net, 9)
    change = {n: torch.randn_like(p) for n, p in twin.named_parameters()}
    for name, p in twin.named_parameters():
        p.grad += change[name]
    one, two = last_step(optimizer, model), last_step(twin_optimizer, twin)
    moved = {n: d - one.direction[n] for n, d in two.direction.items()}
    assert apart(one.preconditioned(change), moved) < 1e-12


@each_case
def test_capturing_changes_no_bit(case):
    make, options = case
    plain = small_net()
    optimizer = make(plain.parameters(), **options)
    for seed in range(5):
        backward(plain, seed)
        optimizer.step()
    _, seen, seen_optimizer = steps(make, options)
    assert digest(seen, seen_optimizer) == digest(plain, optimizer)
    assert not seen_optimizer._optimizer_step_pre_hooks
    assert not seen_optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_an_error_in_the_block_passes_through_and_leaves_nothing(before):
    _, plain, optimizer = steps(Adam, {"lr": 0.03}, 2)
    _, seen, seen_optimizer = steps(Adam, {"lr": 0.03}, 2)
    backward(plain, 7)
    backward(seen, 7)
    if not before:
        optimizer.step()

    def fail():
        with capture_step(seen_optimizer, seen) as captured:
            if not before:
                seen_optimizer.step()
            try:
                raise RuntimeError("stop")
            finally:
                outside.append(captured)

    outside: list[StepRecording] = []
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert digest(seen, seen_optimizer) == digest(plain, optimizer)
    assert not seen_optimizer._optimizer_step_pre_hooks
    with pytest.raises(BadInput, match="not measured yet"):
        _ = outside[0].step


def test_the_gradient_is_what_the_optimizer_was_given():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1, **NESTEROV, foreach=True)
    backward(model, 0)
    recording = StepRecording.begin(optimizer, model)
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)  # after begin, before the step
    given = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step()
    # foreach and Nesterov: torch itself writes into the gradients
    assert any(not p.grad.equal(given[n]) for n, p in model.named_parameters())
    optimizer.zero_grad()
    step = recording.finish()
    assert apart(step.gradient, given) == 0
    assert norm(step.gradient.values()) == pytest.approx(0.01, rel=1e-4)
    assert recording.finish() is step
    assert recording.step is step


def test_options_are_those_of_the_step_not_of_the_scheduler_after_it():
    model = small_net()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.0},
        {"params": model[2].parameters(), "lr": 0.01, "weight_decay": 0.5},
    ]
    optimizer = AdamW(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    backward(model, 0)
    recording = StepRecording.begin(optimizer, model)
    optimizer.step()
    schedule.step()
    step = recording.finish()
    assert step.unexplained < 1e-12
    assert step.lr == {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.01, "2.bias": 0.01}
    assert set(step.decay) == {"2.weight", "2.bias"}
    expected = -0.01 * 0.5 * step.before["2.weight"]
    torch.testing.assert_close(step.decay["2.weight"], expected)


def test_parameters_without_a_gradient_are_zero_everywhere():
    model = small_net()
    optimizer = AdamW(model.parameters(), lr=0.1)
    backward(model, 0)
    model[2].bias.grad = None
    step = last_step(optimizer, model)
    for part in (step.gradient, step.scale, step.history, step.decay):
        assert "2.bias" not in part
    assert not step.direction["2.bias"].any()
    zero = torch.zeros_like(model[2].bias)
    assert step.preconditioned({"2.bias": zero}) == {}
    with pytest.raises(
        BadInput, match=r"over 1 parameters, which had no gradient[^2]*2\.bias"
    ):
        step.preconditioned({"2.bias": zero + 1})
    with pytest.raises(BadInput, match="1 of 1 names are not among the 4 parameters"):
        step.preconditioned({"3.bias": zero})


def test_a_parameter_that_gets_its_first_gradient_late_has_no_history_yet():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    for seed in range(2):
        backward(model, seed)
        model[0].bias.grad = None
        optimizer.step()
    backward(model, 2)
    step = last_step(optimizer, model)
    assert step.unexplained < 1e-12
    assert "0.bias" not in step.history
    assert "0.weight" in step.history
    assert float(step.scale["0.bias"][0]) == pytest.approx(0.1)
    assert float(step.scale["0.weight"][0, 0]) == pytest.approx(0.05)


def test_frozen_parameters_are_left_out_and_one_with_a_left_over_gradient_is_not():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    model[0].requires_grad_(False)
    backward(model, 0)
    model[0].bias.grad = torch.ones_like(model[0].bias)  # SGD will apply it
    step = last_step(optimizer, model)
    assert set(step.direction) == {"0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(
        step.direction["0.bias"], torch.full_like(model[0].bias, -0.1)
    )


@pytest.mark.parametrize("make", [SGD, AdamW, RMSprop])
def test_a_language_model_with_tied_embeddings_counts_them_once(make):
    model = tiny_model("gpt2", torch.float64)
    assert model.lm_head.weight is model.transformer.wte.weight
    optimizer, found = make(model.parameters(), lr=1e-3), []
    ids = torch.arange(1, 25)[None]
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append(last_step(optimizer, model))
    step = found[-1]
    assert "transformer.wte.weight" in step.direction
    assert "lm_head.weight" not in step.direction
    assert len(step.direction) == len(list(model.parameters()))
    assert (
        step.unexplained < 1e-11
    )  # SGD's d is small beside theta, whose rounding it is


def test_accelerates_wrapper_is_looked_through():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = small_net()
    wrapped_model, wrapped = accelerator.prepare(model, AdamW(model.parameters()))
    backward(wrapped_model, 0)
    step = last_step(wrapped, wrapped_model)
    assert step.rule == "AdamW"
    assert step.unexplained < 1e-12


def test_a_fused_step_under_a_gradient_scaler_is_given_the_unscaled_gradient():
    model = small_net(torch.float32)
    optimizer = AdamW(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    backward(model, 0)
    given = {n: p.grad.clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad *= 1024
    scaler.scale(torch.ones(()))  # a scaler makes its scale when it first scales
    with capture_step(optimizer, model) as captured:
        scaler.step(optimizer)
    step = captured.step
    assert apart(step.gradient, given) < 1e-6
    assert step.unexplained < 1e-3


@each_case
def test_in_float32_rounding_explains_the_rest(case):
    options = {k: float(v) if k == "lr" else v for k, v in case[1].items()}
    for step in steps(case[0], options, dtype=torch.float32)[0]:
        assert step.direction["0.weight"].dtype == torch.float32
        assert 0 < step.unexplained < 1e-4


def test_in_bfloat16_rounding_is_large_and_said_to_be():
    found = steps(AdamW, {"lr": 1e-3}, dtype=torch.bfloat16)[0]
    for step in found:
        assert step.before["0.weight"].dtype == torch.bfloat16
        assert step.direction["0.weight"].dtype == torch.float32
        assert step.scale["0.weight"].dtype == torch.float32
        assert step.unexplained > 0.05
        parts = step.parts()
        whole = {name: total(parts, name) for name in step.direction}
        assert apart(whole, step.direction) < 1e-6
    stuck = steps(AdamW, {"lr": 1e-6}, 1, dtype=torch.bfloat16)[0][0]
    assert stuck.unexplained == math.inf
    with pytest.raises(BadInput, match="moved none of 4 parameters"):
        check_moved(stuck)


def test_an_update_that_moves_nothing_is_a_step_and_is_refused_by_name():
    step = steps(AdamW, {"lr": 0.0}, 1)[0][0]
    assert step.unexplained == 0
    expected = rf"lr 0 to 0, gradient norm {norm(step.gradient.values()):g}"
    with pytest.raises(BadInput, match=expected):
        check_moved(step)
    check_moved(steps(AdamW, {"lr": 0.1}, 1)[0][0])


class Lookalike(Adam):
    def step(self, closure=None):
        super().step(closure)
        super().step(closure)


def adafactor(parameters):
    from transformers.optimization import Adafactor

    return Adafactor(parameters)  # finds its own lr, so that the group's is None


@pytest.mark.parametrize("make", [adafactor, Lookalike, torch.optim.NAdam])
def test_of_an_unknown_optimizer_the_displacement_is_exact_and_the_rest_unsaid(make):
    model = small_net()
    optimizer = make(model.parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    backward(model, 0)
    step = last_step(optimizer, model)
    for name, p in model.named_parameters():
        assert torch.equal(step.direction[name], p.detach() - before[name])
    assert step.scale is None
    assert step.unexplained == 1
    assert math.isnan(step.lr["0.weight"]) == (make is adafactor)
    check_moved(step)
    for ask in (step.parts, lambda: step.preconditioned(step.gradient)):
        with pytest.raises(BadInput, match=f"{step.rule} cannot be .*: it is another"):
            ask()


def test_sparse_gradients_have_no_known_rule():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = SGD(model.parameters(), lr=0.1)
    model(torch.tensor([1, 3])).sum().backward()
    step = last_step(optimizer, model)
    assert "sparse" in step.why
    assert not step.gradient["weight"].is_sparse
    expected = -0.1 * step.gradient["weight"]
    torch.testing.assert_close(step.direction["weight"], expected)


def test_parameters_that_the_model_does_not_have_are_refused_with_counts():
    model, other = small_net(), small_net()
    optimizer = SGD([*model.parameters(), *other[0].parameters()], lr=0.1)
    with pytest.raises(BadInput, match="2 of the 6 trainable parameters of SGD"):
        StepRecording.begin(optimizer, model)
    assert not optimizer._optimizer_step_pre_hooks
    frozen = small_net().requires_grad_(False)
    with pytest.raises(BadInput, match="none of the parameters of SGD trains"):
        StepRecording.begin(SGD(frozen.parameters(), lr=0.1), frozen)
    with pytest.raises(BadInput, match=r"Linear is not a torch\.optim\.Optimizer"):
        StepRecording.begin(nn.Linear(1, 1), model)


@pytest.mark.parametrize("count", [0, 2])
def test_a_recording_is_of_exactly_one_step(count):
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    recording = StepRecording.begin(optimizer, model)
    for _ in range(count):
        optimizer.step()
    with pytest.raises(BadInput, match=rf"SGD\.step\(\) was called {count} times"):
        recording.finish()
    assert not optimizer._optimizer_step_pre_hooks


def test_a_step_that_computes_its_own_gradient_is_refused():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    recording = StepRecording.begin(optimizer, model)
    optimizer.step(lambda: backward(model, 0))
    with pytest.raises(BadInput, match="was given a closure"):
        recording.finish()


def test_a_gradient_or_displacement_that_is_not_finite_names_its_parameters():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    backward(model, 0)
    model[2].weight.grad[0, 0] = torch.nan
    recording = StepRecording.begin(optimizer, model)
    optimizer.step()
    with pytest.raises(
        BadInput, match=r"1 of 4 gradients are not finite:\n  2\.weight"
    ):
        recording.finish()
    model = small_net()
    optimizer = SGD(model.parameters(), lr=1e300)
    backward(model, 0)
    for p in model.parameters():
        p.grad *= 1e30
    recording = StepRecording.begin(optimizer, model)
    optimizer.step()
    with pytest.raises(BadInput, match="of 4 displacements are not finite"):
        recording.finish()


def test_a_step_holds_copies_that_later_steps_do_not_touch():
    found, model, optimizer = steps(Adam, {"lr": 0.1}, 2)
    step = found[-1]
    kept = copy.deepcopy(step)
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
    for part in ("before", "direction", "gradient", "scale", "history"):
        assert apart(getattr(step, part), getattr(kept, part)) == 0


def test_adamw_decays_apart_also_where_torch_has_no_option_for_it():
    found, model, optimizer = steps(AdamW, {"lr": 0.03, **DECAY}, 1)
    options = numbers(optimizer.param_groups[0])
    del options["decoupled_weight_decay"]  # older versions of torch
    name, p = next(iter(model.named_parameters()))
    theta, gradient = found[0].before[name], found[0].gradient[name]
    parts = _adamw({}, optimizer.state[p], options, theta, gradient)
    torch.testing.assert_close(parts.decay, found[0].decay[name])
