"""Every way to read a model, on every family, against its plain forward."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, WINDOW, rough_model, shared_model
from tiers import (
    LENGTHS,
    PAIRS,
    ROUTES,
    TOLERANCE,
    Truth,
    assert_right,
    assert_same,
    make_pairs,
    replace_attention,
    rewire,
    shared_truth,
    told_of,
    truth_of,
)
from torch.nn.attention import flex_attention

from learndyn.errors import BadInput
from learndyn.measure import (
    route as route_module,
    tree_attention as tree_module,
)
from learndyn.measure.plan import ProbePlan
from learndyn.measure.score import Scorer
from learndyn.measure.tree_attention import _tree_attention, attending
from learndyn.record.observation import PROBE_COLUMNS, Observation


WARNED = {"mpt": "masked", "llama4_text": "tree.*masked", "lfm2": "tree"}
"""Families that run in a faster way too, and are wrong in it."""


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


@cache
def truth_named(name: str) -> Truth:
    return truth_of(model_named(name))


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
    assert_right(seen, truth_named(name))
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
            n: t.detach().contiguous().view(torch.uint8).numpy().tobytes()
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
    with pytest.warns(UserWarning, match=r"scoring by tree failed \(Stop: no atten"):
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
        expected, _ = _tree_attention(
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
            got, _ = _tree_attention(
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
