"""Errors planted in every tier and head: each must be seen, told once, and stepped
down from, with the right numbers in the end."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import WINDOW, rough_model, shared_model
from test_tiers import MODELS
from tiers import (
    PAIRS,
    ROUTES,
    assert_right,
    make_pairs,
    replace_attention,
    rewire,
    shared_truth,
    told_of,
    truth_of,
)
from torch.nn.functional import scaled_dot_product_attention

from learndyn.errors import BadInput
from learndyn.measure import (
    route as route_module,
    tree_attention as tree_module,
)
from learndyn.measure.plan import Pack
from learndyn.measure.score import Scorer
from learndyn.measure.tiles import Tiles
from learndyn.measure.tree_attention import _tree_attention


def reattend(monkeypatch, **changes: Callable[[Any], Any]) -> None:
    """Models are given wrong numbers by the layers that call the tree's attention."""

    def wrong(module, query, key, value, mask=None, **asked):
        for name, change in changes.items():
            asked[name] = change(asked.get(name))
        return _tree_attention(module, query, key, value, mask, **asked)

    replace_attention(monkeypatch, wrong)


def no_tree(monkeypatch, model: Any) -> None:
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)


def refuse_masks(inputs: dict[str, Any]) -> None:
    mask = inputs.get("attention_mask")
    if isinstance(mask, dict) or (mask is not None and mask.ndim == 4):
        raise ValueError("no masks of four axes here")


def plant_siblings(monkeypatch, _model):
    def flat(module, query, key, value, mask=None, scaling=None, **_):
        tree_module._PACK.get().calls += 1
        seen = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling
        )
        return seen.transpose(1, 2), None

    replace_attention(monkeypatch, flat)


def plant_scaling(monkeypatch, _model):
    reattend(monkeypatch, scaling=lambda scale: 1.01 * scale)


def plant_no_window(monkeypatch, _model):
    reattend(monkeypatch, sliding_window=lambda _: None)


def plant_wide_window(monkeypatch, _model):
    reattend(monkeypatch, sliding_window=lambda window: window and window + 1)


def plant_no_softcap(monkeypatch, _model):
    reattend(monkeypatch, softcap=lambda _: None)


def plant_no_sinks(monkeypatch, _model):
    reattend(monkeypatch, s_aux=lambda _: None)


def plant_masks_without_window(monkeypatch, model):
    no_tree(monkeypatch, model)
    visible = Pack.visible
    monkeypatch.setattr(Pack, "visible", lambda pack, window=None: visible(pack))


def plant_masks_with_siblings(monkeypatch, _model):
    def visible(pack, window=None):
        return torch.ones(len(pack.ids), len(pack.ids), dtype=torch.bool).tril()

    monkeypatch.setattr(Pack, "visible", visible)


def plant_late_positions(monkeypatch, model):
    def late(inputs):
        refuse_masks(inputs)
        if inputs.get("past_key_values") is not None:
            inputs["position_ids"] = inputs["position_ids"] + 1

    no_tree(monkeypatch, model)
    rewire(monkeypatch, model, late)


def plant_blind_cache(monkeypatch, model):
    def blind(inputs):
        if inputs.get("past_key_values") is not None:
            inputs["attention_mask"][:, 0] = 0

    rewire(monkeypatch, model, blind)


def plant_padding_read_as_text(monkeypatch, model):
    def unmasked(inputs):
        mask = inputs.get("attention_mask")
        if mask is not None and not mask.all():
            inputs["attention_mask"] = torch.ones_like(mask)

    rewire(monkeypatch, model, unmasked)


BACKBONE_ERRORS: list[tuple[Callable[..., None], str, str, str]] = [
    (plant_siblings, "llama", "tree", "masked"),
    (plant_scaling, "gpt2", "tree", "masked"),
    (plant_no_window, "mistral", "tree", "masked"),
    (plant_wide_window, "gemma3_text", "tree", "masked"),
    (plant_no_softcap, "gemma2", "tree", "masked"),
    (plant_no_sinks, "gpt_oss", "tree", "masked"),
    (plant_masks_without_window, "mistral", "masked", "cached"),
    (plant_masks_without_window, "gemma2", "masked", "cached"),
    (plant_masks_with_siblings, "gptj", "masked", "cached"),
    (plant_late_positions, "llama", "cached", "padded"),
    (plant_blind_cache, "bloom", "cached", "padded"),
    (plant_padding_read_as_text, "mamba2", "padded", "alone"),
    (plant_padding_read_as_text, "falcon_h1", "padded", "alone"),
    (plant_padding_read_as_text, "recurrent_gemma", "padded", "alone"),
]
"""Plant, family, the tier that it spoils, the next one that is right."""

each_backbone_error = pytest.mark.parametrize(
    ("plant", "family", "wrong", "right"),
    BACKBONE_ERRORS,
    ids=[f"{plant.__name__[6:]}, {family}" for plant, family, *_ in BACKBONE_ERRORS],
)


@each_backbone_error
def test_a_tier_that_is_wrong_is_stepped_down_from(
    plant, family, wrong, right, monkeypatch
):
    model, truth = shared_model(family), shared_truth(family)
    plant(monkeypatch, model)
    with pytest.warns(UserWarning, match=told_of(family, wrong)) as told:
        scorer = Scorer.attach(model, PAIRS, padding_side="left")
    assert len(told) == 1
    assert scorer.route.name == right
    assert scorer.route.head == "tiles"
    assert "off by" in scorer.route.dropped[wrong]
    assert_right(scorer.observe(), truth)
    again = Scorer.attach(model, PAIRS, padding_side="left")  # is told once
    assert again.route == scorer.route


@each_backbone_error
def test_strict_refuses_a_wrong_tier(plant, family, wrong, right, monkeypatch):
    model = shared_model(family)
    plant(monkeypatch, model)
    strict = functools.partial(
        Scorer.attach, model, PAIRS, exactness="strict", padding_side="left"
    )
    with pytest.raises(BadInput, match=told_of(family, wrong)):
        strict()
    with pytest.raises(BadInput, match=wrong):
        strict(tier=wrong)
    with pytest.raises(BadInput, match="off by"):
        Scorer.attach(model, PAIRS, tier=wrong, padding_side="left")


def test_strict_accepts_what_is_right():
    for family in ("gemma2", "gptj", "bloom", "mamba2"):
        scorer = Scorer.attach(shared_model(family), PAIRS, exactness="strict")
        assert scorer.route.name == ROUTES[family][0]


def test_padding_that_comes_last_need_not_be_masked(monkeypatch):
    model, truth = shared_model("mamba2"), shared_truth("mamba2")
    plant_padding_read_as_text(monkeypatch, model)
    scorer = Scorer.attach(model, PAIRS, padding_side="right")
    assert scorer.route.name == "padded"
    assert_right(scorer.observe(), truth)


@pytest.mark.parametrize("plant", [plant_no_window, plant_masks_without_window])
def test_one_probe_beyond_the_window_gives_a_dropped_window_away(plant, monkeypatch):
    model = shared_model("mistral")
    short = make_pairs((4, 6, 5), (3, 7, 9, 1, 4, 6))
    longest = make_pairs((3,), (WINDOW + 2,))
    pairs = (*short[:7], *longest, *short[7:])
    truth = truth_of(model, pairs)
    plant(monkeypatch, model)
    # Within the window there is nothing to see, and nothing wrong.
    assert_right(Scorer.attach(model, short).observe(), truth_of(model, short))
    with pytest.warns(UserWarning, match="MistralForCausalLM"):
        scorer = Scorer.attach(model, pairs)
    assert_right(scorer.observe(), truth)


def plant_no_bias(monkeypatch, _model):
    change_tiles(monkeypatch, lambda tiles: replace(tiles, bias=None))


def plant_skipped_tile(monkeypatch, _model):
    def skip(tiles):
        bias = torch.zeros(len(tiles.weight))
        bias[64:128] = -torch.inf
        return replace(tiles, bias=bias)

    change_tiles(monkeypatch, skip)


def plant_neighbours_label(monkeypatch, _model):
    read = Tiles.__call__

    def shifted(tiles, hidden, source, labels, start_ids):
        return read(tiles, hidden, source, labels.roll(1), start_ids)

    monkeypatch.setattr(Tiles, "__call__", shifted)


def change_tiles(monkeypatch, change: Callable[[Tiles], Tiles]) -> None:
    real = Tiles.of
    monkeypatch.setattr(Tiles, "of", lambda *given: change(real(*given)))


def plant_no_final_cap(monkeypatch, _model):
    change_head(monkeypatch, after=lambda logits: logits)


def plant_wrong_scale(monkeypatch, _model):
    change_head(monkeypatch, after=lambda logits: logits * 0.063)


def change_head(monkeypatch, **changes: Any) -> None:
    """The head is learnt wrongly, and said to be exact."""
    real = route_module.learn_head
    monkeypatch.setattr(
        route_module, "learn_head", lambda *given: replace(real(*given), **changes)
    )


@pytest.mark.parametrize(
    ("plant", "name", "wrong", "right"),
    [
        (plant_no_bias, "phi", ["tiles"], "rows"),
        (plant_skipped_tile, "gpt_neox", ["tiles"], "rows"),
        (plant_neighbours_label, "qwen2", ["tiles"], "rows"),
        (plant_no_final_cap, "gemma2", ["tiles", "rows"], "logits"),
        (plant_wrong_scale, "cohere", ["tiles", "rows"], "logits"),
    ],
)
def test_a_head_that_is_wrong_is_stepped_down_from(
    plant, name, wrong, right, monkeypatch
):
    model = MODELS.get(name, functools.partial(shared_model, name))()
    truth = truth_of(model)
    plant(monkeypatch, model)
    with pytest.raises(BadInput, match=f"{wrong[0]}.*strict"):
        Scorer.attach(model, PAIRS, exactness="strict")
    family = name.split(",")[0]
    with pytest.warns(UserWarning, match=told_of(family, ".*".join(wrong))) as told:
        scorer = Scorer.attach(model, PAIRS)
    assert len(told) == 1
    assert (scorer.route.name, scorer.route.head) == ("tree", right)
    assert set(scorer.route.dropped) == set(wrong)
    assert_right(scorer.observe(), truth)
    assert Scorer.attach(model, PAIRS).route == scorer.route


def test_errors_of_backbone_and_head_are_told_together(monkeypatch):
    model, truth = shared_model("gemma2"), shared_truth("gemma2")
    plant_no_softcap(monkeypatch, model)
    plant_no_final_cap(monkeypatch, model)
    match = r"(?s)(?=.*tree)(?=.*tiles)(?=.*rows).*Gemma2ForCausalLM|Gemma2ForCausalLM"
    with pytest.warns(UserWarning, match=match) as told:
        scorer = Scorer.attach(model, PAIRS)
    assert len(told) == 1
    assert (scorer.route.name, scorer.route.head) == ("masked", "logits")
    assert_right(scorer.observe(), truth)


@pytest.mark.parametrize(
    ("plant", "family"), [(plant_siblings, "llama"), (plant_no_window, "mistral")]
)
def test_noise_hides_no_gross_error(plant, family, monkeypatch):
    model = rough_model(family, torch.bfloat16)
    plant(monkeypatch, model)
    with pytest.warns(UserWarning, match=told_of(family, "tree")):
        assert Scorer.attach(model, PAIRS).route.name == "masked"
