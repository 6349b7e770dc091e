"""Every split of an update sums to the whole, and each part is what it says."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from forces_setting import (
    ADVANTAGE,
    ALL_LOSSES,
    CHOSEN,
    FAMILIES,
    OPTIMIZERS,
    PROBES,
    REJECTED,
    RESPONSES,
    SMALLER,
    VARIANTS,
    Training,
    batch_of,
    loss_gradient,
    model_of,
    plain_logits,
    reference_of,
    relative,
)

from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import (
    norm,
    parameters_of,
    placed,
    plus,
    scaled,
)
from learndyn.forces.explain import Gradients, _directions_of
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.losses import loss_named
from learndyn.forces.predict import Predictor
from learndyn.forces.split import (
    _example_gradients,
    _label_gradients,
    decompose,
    group_changes,
    group_directions,
    influence,
    sign_gradients,
)


@cache
def setting() -> Predictor:
    model = model_of("gpt2", "plain", torch.float64, **SMALLER)
    return Predictor.attach(model, PROBES, method="forward-mode")


def descend(gradient):
    """SGD's displacement."""
    return scaled(gradient, -0.01)


def change(direction) -> np.ndarray:
    return setting().along(direction).token


def total(parts) -> np.ndarray:
    """What the parts of a gradient do together, each followed on its own."""
    moving = [part for part in parts.values() if norm(part.values()) > 0]
    return np.sum([change(descend(part)) for part in moving], axis=0)


SPLITS = {
    "sign": sign_gradients,
    "example": _example_gradients,
    "label": _label_gradients,
}


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_split_of_the_gradient_sums_to_the_whole_for_every_loss(split, name):
    loss = ALL_LOSSES[name]
    parts = SPLITS[split](setting().logps, batch_of(setting(), loss))
    whole = change(descend(loss_gradient(setting().model, loss)))
    assert relative(total(parts), whole) < 1e-10


def test_the_sign_of_push_tells_pull_from_push():
    batch = batch_of(setting(), ALL_LOSSES["unlikelihood"])
    assert (batch.push[: len(batch.push) // 3] < 0).all()
    parts = sign_gradients(setting().logps, batch)
    for name, keep in (("pull", batch.push < 0), ("push", batch.push > 0)):
        assert keep.any()
        alone = setting().logps.on(RESPONSES).pullback(np.where(keep, batch.push, 0.0))
        for key, part in alone.items():
            torch.testing.assert_close(parts[name][key], part, rtol=0, atol=1e-13)
    # each part does to the training responses what its name says
    own = setting().on_pairs(RESPONSES)
    moved = {k: own.along(descend(g)).token for k, g in parts.items()}
    pulled, pushed = batch.push < 0, batch.push > 0
    assert batch.push[pulled] @ moved["pull"][pulled] < 0
    assert batch.push[pushed] @ moved["push"][pushed] < 0


def test_an_examples_part_is_the_gradient_of_that_response_alone():
    batch = batch_of(setting(), ALL_LOSSES["dpo"])
    parts = _example_gradients(setting().logps, batch)
    assert list(parts) == [str(i) for i in range(len(RESPONSES))]
    for i in (0, len(CHOSEN), len(RESPONSES) - 1):
        keep = np.where(batch.example == i, batch.push, 0.0)
        alone = setting().logps.on(RESPONSES).pullback(keep)
        for key, part in alone.items():
            torch.testing.assert_close(parts[str(i)][key], part, rtol=0, atol=1e-13)


def test_the_spike_is_the_gradient_of_the_training_tokens_own_logits():
    batch = batch_of(setting(), ALL_LOSSES["sft"])
    parts = _label_gradients(setting().logps, batch)
    held = parameters_of(setting().model)
    own = torch.cat(
        [
            plain_logits(setting().model, pair)[
                range(len(pair.response_ids)), pair.response_ids
            ]
            for pair in RESPONSES
        ]
    )
    wanted = torch.autograd.grad(
        (torch.from_numpy(batch.push) * own).sum(), list(held.values())
    )
    for name, part in zip(held, wanted, strict=True):
        torch.testing.assert_close(parts["spike"][name], part, rtol=0, atol=1e-13)


def test_spike_and_distribution_cancel_for_the_most_part():
    batch = batch_of(setting(), ALL_LOSSES["sft"])
    parts = _label_gradients(setting().logps, batch)
    spike, spread = (np.abs(change(descend(p))).sum() for p in parts.values())
    assert np.abs(total(parts)).sum() < spike + spread


# --- single training tokens ---


def some_rows() -> np.ndarray:
    """One probe, a mean over two, and single tokens of two prompts with weights."""
    bounds = setting().logps.offsets
    rows = np.zeros((3, bounds[-1]))
    rows[0, bounds[2] : bounds[3]] = 1
    rows[1, bounds[0] : bounds[1]] = 0.5
    rows[1, bounds[4] : bounds[5]] = 0.5
    rows[2, [1, bounds[5]]] = 2.0, -3.0
    return rows


@pytest.mark.parametrize("name", ["dpo", "unlikelihood", "grpo", "sppo"])
def test_influences_sum_to_what_the_whole_update_does(name):
    loss, rows = ALL_LOSSES[name], some_rows()
    found = influence(setting(), batch_of(setting(), loss), descend, rows)
    whole = change(descend(loss_gradient(setting().model, loss)))
    assert relative(found.sum(1), rows @ whole) < 1e-10


def test_an_influence_is_what_that_token_alone_does():
    batch, rows = batch_of(setting(), ALL_LOSSES["dpo"]), some_rows()
    found = influence(setting(), batch, descend, rows)
    own = setting().logps.on(RESPONSES)
    for token in (0, 5, 9, len(batch.push) - 1):
        alone = np.where(np.arange(len(batch.push)) == token, batch.push, 0.0)
        brute = rows @ change(descend(own.pullback(alone)))
        np.testing.assert_allclose(found[:, token], brute, rtol=1e-9, atol=1e-15)


def test_a_row_without_probes_has_no_influence():
    rows = some_rows()
    rows[1] = 0
    batch = batch_of(setting(), ALL_LOSSES["dpo"])
    found = influence(setting(), batch, descend, rows)
    assert not found[1].any()
    assert found[0].any()
    assert found[2].any()


# --- parts of the model ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_the_model_are_disjoint_and_sum_to_the_whole(family, variant):
    model = model_of(family, variant, torch.float64)
    predictor = Predictor.attach(model, PROBES, method="forward-mode")
    direction = descend(loss_gradient(model, ALL_LOSSES["dpo"]))
    groups = group_directions(model, direction)
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(direction)
    ends = {
        "plain": ["embedding", "layer 0", "layer 1", "norm", "head"],
        "tied": ["embedding", "layer 0", "layer 1", "norm"],
        "lora": ["layer 0", "layer 1"],
    }
    assert list(groups) == ends[variant]
    found = decompose(predictor, groups)
    # Llama and Qwen2 round in float32 within
    assert found.residual < (1e-10 if family in ("gpt2", "gpt_neox") else 1e-6)
    whole = predictor.along(direction).token
    parts = np.sum([part.token for part in found.parts.values()], axis=0)
    assert relative(found.whole.token, whole) < 1e-10
    assert relative(parts, whole) < (1e-10 if "gpt" in family else 1e-6)


def test_parts_of_the_model_hold_the_parameters_their_names_say():
    model = model_of("gpt2")
    groups = group_directions(model, dict(model.named_parameters()))
    assert set(groups["embedding"]) == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
    }
    assert set(groups["head"]) == {"lm_head.weight"}
    assert set(groups["norm"]) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert all(".h.1." in name for name in groups["layer 1"])
    assert len(groups["layer 1"]) == 12


def test_layers_stand_in_the_order_of_their_numbers():
    model = model_of("gpt2", n_layer=11, n_embd=8)
    groups = group_directions(model, dict(model.named_parameters()))
    layers = [name for name in groups if name.startswith("layer")]
    assert layers == [f"layer {i}" for i in range(11)]


# --- an optimizer's update ---


@cache
def trained(optimizer: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The third update of an optimizer: its step, raw gradient, and where it began."""
    model = model_of("gpt2", "plain", dtype, **SMALLER)
    predictor = Predictor.attach(model, PROBES, method="forward-mode")
    training = Training.of(model, optimizer, lr=1e-3)
    start = {n: p.detach().clone() for n, p in parameters_of(model).items()}
    # the last loss was DPO against the model as it was made: the same push again
    fresh = model_of("gpt2", "plain", dtype, **SMALLER)
    batch = Batch.of(
        predictor.logps,
        CHOSEN,
        REJECTED,
        ALL_LOSSES["dpo"],
        reference=reference_of(fresh),
        advantage=ADVANTAGE,
    )
    with placed(model, start):
        step = training.step()
    return {
        "predictor": predictor,
        "step": step,
        "batch": batch,
        "raw": training.raw,
        "clip": training.clip,
    }


def signs_of(found) -> Gradients:
    parts = sign_gradients(found["predictor"].logps, found["batch"])
    return Gradients(parts["pull"], parts["push"], found["batch"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizers_parts_sum_to_its_update(optimizer):
    found = trained(optimizer)
    parts = decompose(found["predictor"], found["step"].parts())
    assert parts.residual < 1e-10
    whole = found["predictor"].along(found["step"].direction).token
    assert relative(parts.whole.token, whole) < 1e-10
    wanted = {"adamw": {"gradient", "history", "decay"}}
    remembers = {"gradient", "history"} if "momentum" in optimizer else {"gradient"}
    assert wanted.get(optimizer, remembers) <= set(parts.parts)
    for name in wanted.get(optimizer, remembers):
        assert np.abs(parts.parts[name].token).max() > 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pull_push_history_and_decay_sum_to_a_clipped_update(optimizer):
    found = trained(optimizer)
    assert found["clip"] < 0.9
    directions, clip, notes = _directions_of(found["step"], signs_of(found))
    assert clip == pytest.approx(found["clip"], rel=1e-10)
    assert {"pull", "push"} <= set(directions)
    assert "other" not in directions
    assert notes == []
    parts = decompose(found["predictor"], directions)
    assert parts.residual < 1e-10
    whole = found["predictor"].along(found["step"].direction).token
    assert relative(parts.whole.token, whole) < 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_influences_through_an_optimizer_sum_to_pull_and_push(optimizer):
    found = trained(optimizer)
    predictor, step = found["predictor"], found["step"]
    directions, clip, _ = _directions_of(step, signs_of(found))
    batch = replace(found["batch"], push=found["batch"].push * clip)
    rows = some_rows()
    tokens = influence(predictor, batch, step.preconditioned, rows)
    for name, keep in (("pull", batch.push < 0), ("push", batch.push > 0)):
        part = predictor.along(directions[name]).token
        assert relative(tokens[:, keep].sum(1), rows @ part) < 1e-10
    # one token alone, through the same optimizer
    alone = np.where(np.arange(len(batch.push)) == 6, batch.push, 0.0)
    gradient = predictor.logps.on(RESPONSES).pullback(alone)
    brute = rows @ predictor.along(step.preconditioned(gradient)).token
    np.testing.assert_allclose(tokens[:, 6], brute, rtol=1e-9, atol=1e-15)


def test_gradient_that_came_another_way_is_called_other():
    found = trained("adamw")
    gradients = signs_of(found)
    half = Gradients(gradients.pull, scaled(gradients.push, 0.5), found["batch"])
    directions, _, notes = _directions_of(found["step"], half)
    assert "other" in directions
    assert "did not come through log-probabilities" in notes[0]
    assert decompose(found["predictor"], directions).residual < 1e-10


def test_parts_that_move_nothing_are_left_out_and_nothing_at_all_is_refused():
    direction = descend(loss_gradient(setting().model, ALL_LOSSES["dpo"]))
    still = scaled(direction, 0.0)
    found = decompose(setting(), {"some": direction, "none": still})
    assert list(found.parts) == ["some"]
    assert found.residual < 1e-15
    with pytest.raises(BadInput, match="direction is zero"):
        decompose(setting(), {"none": still})
    # a whole of which half is missing has that much of a residual
    whole = setting().along(plus(direction, direction))
    part = setting().along(direction)
    assert replace(found, parts={"some": part}, whole=whole).residual == pytest.approx(
        0.5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_group_changes_are_those_of_one_pass_along_each_group(family):
    model = model_of(family, "tied", torch.float64)
    predictor = Predictor.attach(model, PROBES)
    chance = torch.Generator().manual_seed(3)
    direction = {
        name: torch.randn(p.shape, generator=chance, dtype=p.dtype) * 1e-3
        for name, p in parameters_of(model).items()
    }
    groups = group_directions(model, direction)
    found = group_changes(predictor.logps, groups)
    assert list(found) == list(groups)
    bound = 1e-10 if family in ("gpt2", "gpt_neox") else 1e-6  # float32 inside
    for name, group in groups.items():
        expected = predictor.along(group).logp
        np.testing.assert_allclose(
            found[name], expected, rtol=0, atol=bound * np.abs(expected).max()
        )


def test_an_optimizer_of_some_layers_invents_no_other_gradient():
    from learndyn.forces.step import capture_step

    model = model_of("gpt2", "plain", torch.float64, **SMALLER)
    predictor = Predictor.attach(model, PROBES)
    batch = batch_of(predictor, loss_named("dpo"))
    signs = sign_gradients(predictor.logps, batch)
    some = [p for n, p in model.named_parameters() if ".h.0." in n]
    for name, parameter in model.named_parameters():
        parameter.grad = signs["pull"][name] + signs["push"][name]
    optimizer = torch.optim.SGD(some, lr=1e-3)
    with capture_step(optimizer, model) as captured:
        optimizer.step()
    parts, clip, notes = _directions_of(
        captured.step, Gradients(signs["pull"], signs["push"], batch)
    )
    assert clip == pytest.approx(1.0, rel=1e-12)
    assert "other" not in parts
    assert notes == []


def test_a_row_of_influence_costs_two_passes_whatever_the_batch(monkeypatch):
    predictor = setting()
    passes = []
    for name in ("pullback", "tangents"):
        own = getattr(TokenLogps, name)
        monkeypatch.setattr(
            TokenLogps,
            name,
            lambda self, given, own=own, name=name: (
                passes.append(name) or own(self, given)
            ),
        )
    rows = np.zeros((3, predictor.logps.plan.n_tokens))
    for i in range(3):
        rows[i, slice(*predictor.logps.offsets[i : i + 2])] = 1.0
    batch = batch_of(predictor, loss_named("dpo"))
    influence(predictor, batch, lambda g: scaled(g, -1e-3), rows)
    assert passes == ["pullback", "tangents"] * 3
