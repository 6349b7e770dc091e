"""Every way to read a model, on every family, against its plain forward.

The plain forward is written out here: one sequence at a time, all of its logits, a
log-softmax in float64. Prompts and responses are longer than the sliding windows.
"""

import functools
import inspect
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from learndyn.errors import BadInput
from learndyn.measure import route as route_module, tree_attention as tree_module
from learndyn.measure.plan import Pack, ProbePlan
from learndyn.measure.score import Scorer
from learndyn.measure.tiles import Tiles
from learndyn.measure.tree_attention import NAME, attending, tree_attention
from learndyn.probes.tokenize import TokenizedPair
from learndyn.record.observation import PROBE_COLUMNS, Observation
from models import FAMILIES, WINDOW, rough_model, shared_model


TOLERANCE = 2e-5
"""Nats per token."""

ROUTES: dict[str, tuple[str, str, str]] = {
    "gpt2": ("tree", "tiles", "identity"),
    "gpt_neox": ("tree", "tiles", "identity"),
    "llama": ("tree", "tiles", "identity"),
    "qwen2": ("tree", "tiles", "identity"),
    "qwen3": ("tree", "tiles", "identity"),
    "qwen3_moe": ("tree", "tiles", "identity"),
    "phi": ("tree", "tiles", "identity"),
    "olmo2": ("tree", "tiles", "identity"),
    "deepseek_v3": ("tree", "tiles", "identity"),
    "opt": ("tree", "tiles", "identity"),
    "mistral": ("tree", "tiles", "identity"),
    "gemma2": ("tree", "tiles", "softcap 5"),
    "gemma3_text": ("tree", "tiles", "identity"),
    "gpt_oss": ("tree", "tiles", "identity"),
    "cohere": ("tree", "tiles", "scale 0.0625"),
    "cohere2": ("tree", "tiles", "scale 0.0625"),
    "granite": ("tree", "tiles", "scale 0.125"),
    "minicpm3": ("tree", "tiles", "identity"),  # scales the states, before the head
    "nanochat": ("tree", "tiles", "softcap 5"),
    # look no attention function up
    "gptj": ("masked", "tiles", "identity"),
    "falcon": ("masked", "tiles", "identity"),
    # positions are distances in the sequence (ALiBi)
    "bloom": ("cached", "tiles", "identity"),
    "mpt": ("cached", "tiles", "identity"),
    # carry a state along
    "mamba2": ("padded", "tiles", "identity"),
    "qwen3_next": ("padded", "tiles", "identity"),
    "falcon_h1": ("padded", "tiles", "scale 0.5"),
    "recurrent_gemma": ("padded", "tiles", "softcap 5"),
    # found out by the self-test alone: chunks of attention, a short convolution
    "llama4_text": ("cached", "tiles", "identity"),
    "lfm2": ("padded", "tiles", "identity"),
}
"""Tier, head and what follows it: the fastest that is right."""

WARNED = {"mpt": "masked", "llama4_text": "tree.*masked", "lfm2": "tree"}
"""Families that run in a faster way too, and are wrong in it."""

LENGTHS = (40, 1, 17, 6, 2)  # 12 + 6 - 1 tokens are read: one more than the window


def make_pairs(
    prompts: tuple[int, ...] = (40, 12), responses: tuple[int, ...] = LENGTHS
) -> tuple[TokenizedPair, ...]:
    """Responses of all lengths to each prompt, random tokens."""
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, 320) for _ in range(n))

    starts = [ids(n) for n in prompts]
    return tuple(
        TokenizedPair(p, ids(n), False, False) for p in starts for n in responses
    )


PAIRS = make_pairs()


@dataclass(frozen=True)
class Truth:
    """What the plain forward says of each response token, flat."""

    logp: np.ndarray
    argmax_logp: np.ndarray
    entropy: np.ndarray
    argmax_id: np.ndarray
    lead: np.ndarray
    """By how much the argmax leads the next token, in nats."""


def truth_of(model: Any, pairs: tuple[TokenizedPair, ...] = PAIRS) -> Truth:
    rows = []
    for pair in pairs:
        ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
        with torch.no_grad():
            logits = model(ids).logits[0].double()
        rows.append(logits[len(pair.prompt_ids) - 1 : -1].log_softmax(-1))
    logp = torch.cat(rows)
    labels = torch.tensor([i for pair in pairs for i in pair.response_ids])
    best, ids = logp.topk(2, dim=-1)
    return Truth(
        logp.gather(1, labels[:, None])[:, 0].numpy(),
        best[:, 0].numpy(),
        -(logp.exp() * logp).sum(-1).numpy(),
        ids[:, 0].numpy(),
        (best[:, 0] - best[:, 1]).numpy(),
    )


@cache
def shared_truth(family: str) -> Truth:
    return truth_of(shared_model(family))


def assert_right(seen: Observation, truth: Truth, atol: float = TOLERANCE) -> None:
    """Each token, and the sums and means over responses."""
    bounds = seen.offsets[:-1]
    per_probe = {
        "logp": np.add.reduceat(truth.logp, bounds),
        "argmax_logp": np.add.reduceat(truth.argmax_logp, bounds),
        "entropy": np.add.reduceat(truth.entropy, bounds),
    }
    sums = {name: getattr(seen, name) for name in ("logp", "argmax_logp")}
    sums["entropy"] = seen.entropy * seen.n_tokens
    for name, expected in per_probe.items():
        error = np.abs(sums[name] - expected) / seen.n_tokens
        assert error.max() < atol, (name, error)
    for name in ("logp", "argmax_logp"):
        error = np.abs(getattr(seen, f"token_{name}") - getattr(truth, name))
        assert error.max() < atol, (name, error.argmax())
    clear = truth.lead > 2 * atol
    np.testing.assert_array_equal(seen.token_argmax_id[clear], truth.argmax_id[clear])
    assert seen.violations() == []


def assert_same(seen: Observation, other: Observation, atol: float = TOLERANCE) -> None:
    """All columns of two observations of the same probes."""
    np.testing.assert_array_equal(seen.n_tokens, other.n_tokens)
    for name in PROBE_COLUMNS:
        error = np.abs(getattr(seen, name) - getattr(other, name)) / seen.n_tokens
        assert error.max() < atol, name
    for name in ("token_logp", "token_argmax_logp", "token_start_logp"):
        error = np.abs(getattr(seen, name) - getattr(other, name))
        assert error.max() < atol, name
    np.testing.assert_array_equal(seen.token_argmax_id, other.token_argmax_id)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """Warnings are given once in a process: here, once in a test."""
    monkeypatch.setattr(route_module, "_WARNED", set())


# Families and tiers


def test_the_zoo_is_complete():
    assert ROUTES.keys() == FAMILIES.keys()
    assert max(len(p.prompt_ids) + len(p.response_ids) for p in PAIRS) > 4 * WINDOW


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_right_and_as_fast_as_may_be(family):
    with ExitStack() as stack:
        if family in WARNED:
            match = told_of(family, WARNED[family])
            stack.enter_context(pytest.warns(UserWarning, match=match))
        scorer = Scorer.attach(shared_model(family), PAIRS)
    assert_right(scorer.observe(), shared_truth(family))
    route = scorer.route
    assert (route.name, route.head, route.after) == ROUTES[family]
    assert route.error < 1e-5
    assert route.is_exact


def lora(family: str, *targets: str) -> Any:
    """A model whose adapters have left their start, where they change nothing."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=list(targets),
        init_lora_weights=False,
    )
    model = get_peft_model(rough_model(family), config).eval()
    adapters = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert adapters
    assert all(p.abs().max() > 0 for p in adapters)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    **{
        family: functools.partial(shared_model, family)
        for family in (
            "gpt2",
            "gpt_neox",
            "llama",
            "qwen2",
            "qwen3",
            "gemma2",
            "gemma3_text",
            "mistral",
            "gpt_oss",
            "falcon_h1",
        )
    },
    "llama, tied": functools.partial(rough_model, "llama", tie_word_embeddings=True),
    "llama, LoRA on attention": functools.partial(lora, "llama", "q_proj", "v_proj"),
    "llama, LoRA on lm_head": functools.partial(lora, "llama", "q_proj", "lm_head"),
}


@cache
def observed(name: str) -> Observation:
    """By the model's own logits of one sequence at a time, `start_ids` given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route_module, "learn_head", lambda *_: None)
        with pytest.warns(UserWarning, match="own logits"):
            scorer = Scorer.attach(model_named(name), PAIRS, tier="alone")
    assert (scorer.route.name, scorer.route.head) == ("alone", "logits")
    return scorer.observe(start_ids=START_IDS)


@cache
def model_named(name: str) -> Any:
    return MODELS[name]()


START_IDS = np.random.default_rng(0).integers(0, 320, 2 * sum(LENGTHS))


@pytest.mark.parametrize("tier", ["tree", "masked", "cached", "padded", "alone"])
@pytest.mark.parametrize("name", MODELS)
def test_all_tiers_agree_in_all_columns(name, tier):
    model = model_named(name)
    if name == "falcon_h1" and tier in ("tree", "masked", "cached"):
        with pytest.raises(BadInput, match=f"FalconH1.* by the tier '{tier}'"):
            Scorer.attach(model, PAIRS, tier=tier)
        return
    scorer = Scorer.attach(model, PAIRS, tier=tier)
    assert scorer.route.name == tier
    assert scorer.route.head == ("rows" if name.endswith("lm_head") else "tiles")
    seen = scorer.observe(start_ids=START_IDS)
    assert_same(seen, observed(name))
    assert_right(seen, truth_of(model))
    assert (seen.token_start_logp != seen.token_argmax_logp).mean() > 0.9


def test_an_adapter_that_is_switched_off_is_not_scored():
    model = lora("llama", "q_proj", "lm_head")
    scorer = Scorer.attach(model, PAIRS)
    with model.disable_adapter():
        assert_right(scorer.observe(), truth_of(model))
    assert_right(scorer.observe(), truth_of(model))


def test_a_scorer_follows_the_weights():
    model = rough_model("gemma2")
    scorer = Scorer.attach(model, PAIRS)
    before = scorer.observe()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    after = scorer.observe()
    assert_right(after, truth_of(model))
    assert np.abs(after.logp - before.logp).min() > 1e-3


def halved_in_place(weight: torch.nn.Parameter, _head: torch.nn.Module) -> None:
    with torch.no_grad():
        weight.mul_(0.5)


def halved_by_data(weight: torch.nn.Parameter, _head: torch.nn.Module) -> None:
    weight.data = weight.data * 0.5  # as model.to(), FSDP1 and some optimizers do


def replaced(weight: torch.nn.Parameter, head: torch.nn.Module) -> None:
    head.weight = torch.nn.Parameter(weight.detach() * 0.5)


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        (halved_in_place, None),
        (halved_by_data, None),
        (replaced, None),
        (halved_in_place, "bfloat16"),
        (halved_by_data, "bfloat16"),
        (replaced, "bfloat16"),
    ],
)
def test_a_scorer_follows_the_head_however_it_changes(change, precision):
    model = rough_model("llama")
    scorer = Scorer.attach(model, PAIRS, precision=precision)
    change(model.lm_head.weight, model.lm_head)
    atol = TOLERANCE if precision is None else 0.3
    error = np.abs(scorer.observe().token_logp - truth_of(model).logp)
    assert error.max() < atol


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_read_with_whole_sequences(method):
    import peft

    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    torch.manual_seed(0)
    model = peft.get_peft_model(rough_model("llama"), config).eval()
    scorer = Scorer.attach(model, PAIRS)
    assert (scorer.route.name, scorer.route.head) == ("padded", "tiles")
    seen, expected = scorer.observe(), []
    for pair in PAIRS:
        ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -len(pair.response_ids) - 1 : -1]
        labels = torch.tensor(pair.response_ids)[:, None]
        expected.append(logits.double().log_softmax(-1).gather(1, labels))
    error = np.abs(seen.token_logp - torch.cat(expected)[:, 0].numpy())
    assert error.max() < TOLERANCE


def test_an_unknown_tier_is_refused():
    with pytest.raises(BadInput, match="tree, masked, cached, padded, alone"):
        Scorer.attach(shared_model("llama"), PAIRS, tier="fast")


def test_positions_that_depend_on_the_longest_neighbour_are_read_alone():
    # longrope: beyond 32 tokens all positions of a forward are scaled
    model = rough_model(
        "llama",
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [3.0] * 8,
            "original_max_position_embeddings": 32,
            "factor": 16.0,
        },
    )
    match = told_of("llama", "tree.*masked.*cached.*padded")
    with pytest.warns(UserWarning, match=match):
        scorer = Scorer.attach(model, PAIRS)
    assert (scorer.route.name, scorer.route.head) == ("alone", "tiles")
    assert_right(scorer.observe(), truth_of(model))


def test_an_unknown_setting_is_no_silent_default():
    with pytest.raises((TypeError, BadInput)):
        Scorer.attach(shared_model("llama"), PAIRS, batchsize=4)


# Planted errors: each must be seen, told once and stepped down from


def rewire(monkeypatch, model: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    """`change` alters, in place, what the model's forward is given by name."""
    forward = type(model).forward

    @functools.wraps(forward)
    def changed(self, *args, **inputs):
        change(inputs)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", changed)


def reattend(monkeypatch, **changes: Callable[[Any], Any]) -> None:
    """Models are given wrong numbers by the layers that call the tree's attention."""

    def wrong(module, query, key, value, mask=None, **asked):
        for name, change in changes.items():
            asked[name] = change(asked.get(name))
        return tree_attention(module, query, key, value, mask, **asked)

    replace_attention(monkeypatch, wrong)


def replace_attention(monkeypatch, function: Callable[..., Any]) -> None:
    monkeypatch.setattr(tree_module, "tree_attention", function)
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, function)


def no_tree(monkeypatch, model: Any) -> None:
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)


def refuse_masks(inputs: dict[str, Any]) -> None:
    mask = inputs.get("attention_mask")
    if isinstance(mask, dict) or (mask is not None and mask.ndim == 4):
        raise ValueError("no masks of four axes here")


def plant_siblings(monkeypatch, _model):
    def flat(module, query, key, value, mask=None, scaling=None, **_):
        tree_module._LAYOUT.get().calls += 1
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


def told_of(family: str, name: str) -> str:
    """What a warning must match: the model's class, the culprit and a number."""
    return rf"(?s){type(shared_model(family)).__name__}.*{name}.*\d\.?\d*(e-0\d)?"


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


# The model stays as it was


def traces(model: Any) -> dict[str, Any]:
    """All of a model that scoring could have touched."""
    modules = dict(model.named_modules())
    configs = {n: m.config for n, m in modules.items() if hasattr(m, "config")}
    return {
        "attention": {n: c._attn_implementation for n, c in configs.items()},
        "configs": {n: c.to_dict() for n, c in configs.items()},
        "training": {n: m.training for n, m in modules.items()},
        "attributes": {n: set(vars(m)) for n, m in modules.items()},
        "forwards": {n: vars(m).get("forward") for n, m in modules.items()},
        "class": {n: set(vars(type(m))) for n, m in modules.items()},
        "gradients": {n: p.grad is None for n, p in model.named_parameters()},
        "cpu": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "bits": {
            n: t.detach().clone().view(torch.uint8).tolist()
            for n, t in (*model.named_parameters(), *model.named_buffers())
            if t.ndim
        },
    }


def training_step(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and gradients of a step in training mode, dropout on."""
    torch.manual_seed(5)
    ids = torch.arange(1, 61)[None] * 5 % 320
    output = model(input_ids=ids, labels=ids)
    output.loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return output.logits.detach(), gradients


def training_model(name: str) -> Any:
    model = MODELS[name]() if "LoRA" in name else rough_model(name)
    model.train()
    next(m for m in model.modules() if isinstance(m, torch.nn.Linear)).eval()
    return model


@pytest.mark.parametrize(
    "name",
    ["llama", "gemma2", "gptj", "bloom", "mamba2", "llama, LoRA on lm_head"],
)
def test_a_model_is_left_as_it_was_and_trains_on_alike(name, monkeypatch):
    model = training_model(name)
    rewire(monkeypatch, model, lambda _: torch.rand(()))  # as noisy routers draw
    before, step = traces(model), training_step(model)
    torch.set_rng_state(torch.tensor(before["cpu"], dtype=torch.uint8))
    for tier in ("tree", "masked", "cached", "padded", "alone", None):
        try:
            Scorer.attach(model, PAIRS, tier=tier).observe()
        except BadInput:
            assert ROUTES.get(name, ("",))[0] != tier
        assert traces(model) == before
    Scorer.attach(model, PAIRS, precision="bfloat16").observe()
    assert traces(model) == before
    logits, gradients = training_step(model)
    assert torch.equal(logits, step[0])
    assert all(map(torch.equal, gradients, step[1]))


def test_a_head_with_a_forward_of_its_own_keeps_it_and_is_read_through_it():
    model = rough_model("llama")
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 0.5 * plain(hidden)  # as accelerate wraps
    before, truth = traces(model), truth_of(model)
    scorer = Scorer.attach(model, PAIRS)
    assert (scorer.route.name, scorer.route.head) == ("tree", "rows")
    assert_right(scorer.observe(), truth)
    assert traces(model) == before


def test_dropout_is_off_while_scoring_and_on_again_afterwards():
    model = rough_model("gpt2").train()  # its dropout is 0.1
    truth = truth_of(model.eval())
    assert_right(Scorer.attach(model.train(), PAIRS).observe(), truth)
    assert not torch.equal(training_step(model)[0], training_step(model.eval())[0])


class Stop(Exception):
    """Ends a forward in the middle."""


@pytest.mark.parametrize(
    ("name", "calls"),
    [("llama", 0), ("bloom", 0), ("bloom", 1), ("bloom", 3), ("mamba2", 3)],
)
def test_a_model_is_left_as_it_was_by_an_error_within_its_forward(name, calls):
    model = training_model(name)
    scorer = Scorer.attach(model, PAIRS * 3)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-2]
    left = [calls]

    def stop(*_):
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    hook = last.register_forward_hook(stop)
    before = traces(model)
    with pytest.raises(Stop):
        scorer.observe()
    assert traces(model) == before
    left[0] = calls
    with pytest.raises((Stop, BadInput)):
        Scorer.attach(model, PAIRS)
    assert traces(model) == before
    hook.remove()
    assert_right(scorer.observe(), truth_of(model.eval(), PAIRS * 3))


def test_a_tier_that_raises_is_stepped_down_from(monkeypatch):
    model, truth = shared_model("llama"), shared_truth("llama")

    def stop(*_, **__):
        raise Stop("no attention today")

    replace_attention(monkeypatch, stop)
    before = traces(model)
    scorer = Scorer.attach(model, PAIRS)
    assert scorer.route.name == "masked"
    assert scorer.route.dropped["tree"] == "Stop: no attention today"
    assert_right(scorer.observe(), truth)
    assert traces(model) == before


# Precision


def test_a_float64_model_is_scored_in_float64():
    model = rough_model("gpt2", torch.float64)  # others cast parts to float32
    for tier in ("tree", "masked", "cached", "padded", "alone"):
        scorer = Scorer.attach(model, PAIRS, tier=tier)
        assert scorer.route.error < 1e-11
        np.testing.assert_allclose(
            scorer.observe().logp,
            np.add.reduceat(truth_of(model).logp, scorer.observe().offsets[:-1]),
            rtol=1e-11,
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_bfloat16_model_is_accepted_up_to_its_own_noise(family):
    model = rough_model(family, torch.bfloat16)
    scorer = Scorer.attach(model, PAIRS)
    assert (scorer.route.name, scorer.route.head) == ROUTES[family][:2]
    assert TOLERANCE < scorer.route.error < 0.1
    assert scorer.route.is_exact
    # No further from the model in float64 than its plain forward is
    exact = truth_of(rough_model(family, torch.bfloat16).double())
    plain = np.abs(truth_of(model).logp - exact.logp)
    assert np.abs(scorer.observe().token_logp - exact.logp).mean() < 1.5 * plain.mean()


@pytest.mark.parametrize(
    ("plant", "family"), [(plant_siblings, "llama"), (plant_no_window, "mistral")]
)
def test_noise_hides_no_gross_error(plant, family, monkeypatch):
    model = rough_model(family, torch.bfloat16)
    plant(monkeypatch, model)
    with pytest.warns(UserWarning, match=told_of(family, "tree")):
        assert Scorer.attach(model, PAIRS).route.name == "masked"


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "llama, LoRA on lm_head"])
def test_lower_precision_is_said_to_be_approximate_and_is_near(name):
    model = MODELS.get(name, functools.partial(shared_model, name))()
    exact = Scorer.attach(model, PAIRS)
    first = exact.observe()
    low = Scorer.attach(model, PAIRS, precision="bfloat16")
    assert (low.route.approximate, low.route.is_exact) == ("bfloat16", False)
    assert 1e-4 < low.route.approximation < 0.2
    assert low.route.error < 1e-5  # of the same way in full precision
    assert (low.route.name, low.route.head) == (exact.route.name, exact.route.head)
    seen = low.observe()
    error = np.abs(seen.logp - first.logp) / first.n_tokens
    assert 1e-5 < error.max() < 0.2
    assert seen.violations() == []
    assert (exact.route.approximate, exact.route.approximation) == (None, 0.0)
    again = exact.observe()
    for column in (*PROBE_COLUMNS, "token_logp", "token_argmax_id"):
        np.testing.assert_array_equal(getattr(again, column), getattr(first, column))


def test_lower_precision_follows_the_weights_within_an_outer_autocast():
    model = rough_model("llama")
    low = Scorer.attach(model, PAIRS, precision="bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        low.observe()
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "lm_head" in name else 1.3)
        seen = low.observe()
    np.testing.assert_array_equal(low.observe().token_logp, seen.token_logp)


def test_a_model_that_diverged_is_scored_without_blame():
    model = rough_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    seen = Scorer.attach(model, PAIRS).observe()
    assert np.isnan(seen.logp).all()
    assert seen.violations()


# Sizes and orders


ODD = {
    "forty responses, more than a pack": make_pairs((60,), tuple(range(1, 41)) * 2),
    "one token each": make_pairs((40, 12), (1, 1, 1)),
    "a single probe": make_pairs((20,), (9,)),
    "a single token after a single one": make_pairs((1,), (1,)),
    "prompts of one token": make_pairs((1, 1, 1), (30, 2, 1)),
    "twice the same": make_pairs((20,), (9, 3)) * 2 + make_pairs((20,), (9, 3)),
}


@pytest.mark.parametrize("tier", ["tree", "masked", "cached", "padded", "alone"])
@pytest.mark.parametrize("case", ODD)
def test_odd_probe_sets(case, tier):
    pairs, model = ODD[case], shared_model("gemma2")
    seen = Scorer.attach(model, pairs, tier=tier).observe()
    assert_right(seen, truth_of(model, pairs))


def test_the_same_pair_gets_the_same_numbers():
    seen = Scorer.attach(shared_model("llama"), ODD["twice the same"]).observe()
    np.testing.assert_allclose(seen.logp[:2], seen.logp[2:4], rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    ("family", "tier"),
    [("gpt2", "padded"), ("gemma2", "cached"), ("gemma2", "padded"), ("bloom", None)],
)
def test_batches_and_padding_change_nothing(family, tier, batch_size, side):
    scorer = Scorer.attach(
        shared_model(family),
        PAIRS,
        tier=tier,
        batch_size=batch_size,
        padding_side=side,
    )
    assert_right(scorer.observe(), shared_truth(family))


@pytest.mark.parametrize("tier", ["tree", "masked", "cached", "padded"])
def test_order_and_selection_change_nothing(tier):
    model = shared_model("qwen3")
    scorer = Scorer.attach(model, PAIRS, tier=tier)
    whole, order = scorer.observe(), np.random.default_rng(0).permutation(len(PAIRS))
    mixed = Scorer.attach(model, [PAIRS[i] for i in order], tier=tier).observe()
    part = scorer.select(order[:4].tolist())
    some = part.observe()
    assert part.route == scorer.route
    for column in PROBE_COLUMNS:
        expected = getattr(whole, column)[order]
        np.testing.assert_allclose(getattr(mixed, column), expected, rtol=2e-5)
        np.testing.assert_allclose(getattr(some, column), expected[:4], rtol=2e-5)


def test_start_ids_stay_with_their_tokens_in_every_tier():
    model = shared_model("gpt_neox")
    for tier in ("tree", "masked", "cached", "padded", "alone"):
        scorer = Scorer.attach(model, PAIRS, tier=tier)
        labels = np.array([i for pair in PAIRS for i in pair.response_ids])
        seen = scorer.observe(start_ids=labels)
        np.testing.assert_array_equal(seen.token_start_logp, seen.token_logp)
        top = scorer.observe(start_ids=seen.token_argmax_id)
        np.testing.assert_array_equal(top.token_start_logp, top.token_argmax_logp)


# The kernel of other devices


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 5, WINDOW])
def test_the_one_kernel_of_gpus_equals_segment_by_segment(window, monkeypatch):
    # torch counts a mask function's arguments; the type checks of these tests hide them
    make = flex_attention.create_block_mask
    monkeypatch.setattr(
        flex_attention,
        "create_block_mask",
        lambda seen, *more, **named: make(inspect.unwrap(seen), *more, **named),
    )
    plan = ProbePlan(make_pairs((40, 12, 3)))
    (pack,) = plan.packs(10**6)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, len(pack.ids), 16) for _ in range(3))
    with attending(torch.nn.Identity(), pack) as layout:
        expected, _ = tree_attention(
            torch.nn.Identity(), query, key, value, scaling=0.3, sliding_window=window
        )
        got = tree_module._flex(layout, query, key, value, 0.3, window)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_tree_attention_is_what_its_visible_tokens_say():
    plan = ProbePlan(make_pairs((9, 12), (8, 1, 5)))
    (pack,) = plan.packs(10**6)
    torch.manual_seed(0)
    query = torch.randn(1, 4, len(pack.ids), 8, dtype=torch.float64)
    key = torch.randn(1, 2, len(pack.ids), 8, dtype=torch.float64)
    value = torch.randn(1, 2, len(pack.ids), 6, dtype=torch.float64)
    sinks = torch.randn(4, dtype=torch.float64)
    for window in (None, 4):
        scores = query @ key.repeat_interleave(2, 1).mT * 0.3
        scores = torch.tanh(scores / 0.7) * 0.7
        scores = scores.masked_fill(~pack.visible(window), -torch.inf)
        total = scores.exp().sum(-1, keepdim=True) + sinks.exp()[:, None, None]
        expected = (scores.exp() / total) @ value.repeat_interleave(2, 1)
        with attending(torch.nn.Identity(), pack):
            got, _ = tree_attention(
                torch.nn.Identity(),
                query,
                key,
                value,
                scaling=0.3,
                sliding_window=window,
                softcap=0.7,
                s_aux=sinks,
            )
        torch.testing.assert_close(got, expected.transpose(1, 2))
