"""How a route is chosen where models are odd: large logits, half precision, no memory,
no way that agrees."""

import numpy as np
import pytest
import torch
from models import tiny_model
from tiers import PAIRS, assert_right, few_probes, truth_of

from learndyn.errors import BadInput
from learndyn.measure import route as route_module
from learndyn.measure.neutral import undisturbed
from learndyn.measure.score import Scorer
from learndyn.measure.selftest import PlainForward
from learndyn.measure.tiers import _TreeTier


def large_logits(gain: float):
    """Twelve layers, and logits as of a model that is very sure."""
    model = tiny_model("gpt2", n_layer=12, n_embd=64, n_head=4)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(gain)
    return model


def test_a_sure_model_is_held_to_its_own_rounding():
    # Float32 itself is off by more than 2e-5 nats per token here; no way is to blame.
    model = large_logits(100)
    route = Scorer.attach(model, PAIRS, exactness="strict").route
    assert (route.name, route.head) == ("tree", "tiles")
    assert route.error > 2e-5


def test_its_rounding_hides_no_planted_error(monkeypatch):
    read = _TreeTier.read

    def wrong(self, forward, piece):
        return read(self, forward, piece) * 1.001

    monkeypatch.setattr(_TreeTier, "read", wrong)
    with pytest.warns(UserWarning, match="scoring by tree is off by"):
        route = Scorer.attach(large_logits(100), PAIRS).route
    assert route.name == "masked"


def test_where_no_way_agrees_the_plain_forward_itself_is_read(monkeypatch):
    monkeypatch.setattr(PlainForward, "tolerance", -1.0)
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match="It is scored by alone with logits"):
        scorer = Scorer.attach(model, PAIRS)
    assert (scorer.route.name, scorer.route.head) == ("alone", "logits")
    assert_right(scorer.observe(), truth_of(model))
    with pytest.raises(BadInput, match="refuses to go on"):
        Scorer.attach(model, PAIRS, exactness="strict")


def limited(model, most: int) -> None:
    """A model that reads no more than so many tokens at once."""
    forward = type(model).forward

    def refuse(self, input_ids, **more):
        if input_ids.shape[1] > most:
            raise torch.OutOfMemoryError(f"{input_ids.shape[1]} tokens are too many")
        return forward(self, input_ids=input_ids, **more)

    model.forward = refuse.__get__(model)


def many_pairs(copies: int):
    """Prompts of their own, so that packs are full."""
    pairs = []
    for i in range(copies):
        for pair in PAIRS:
            ids = (1 + i % 300, *pair.prompt_ids[1:])
            pairs.append(type(pair)(ids, pair.response_ids, False, True))
    return tuple(pairs)


def test_packs_shrink_to_what_a_model_can_hold():
    model, pairs = tiny_model("llama"), many_pairs(30)
    limited(model, 700)
    scorer = Scorer.attach(model, pairs)
    assert scorer.route.name == "tree"
    del model.forward
    assert_right(scorer.observe(), truth_of(model, pairs))


def test_a_model_that_holds_no_pack_at_all_is_read_otherwise():
    model, pairs = tiny_model("llama"), many_pairs(30)
    limited(model, 100)
    with pytest.warns(UserWarning, match=r"scoring by tree failed \(OutOfMemoryError"):
        scorer = Scorer.attach(model, pairs)
    assert scorer.route.name in ("masked", "cached", "padded")
    assert_right(scorer.observe(), truth_of(model, pairs))


def test_a_head_that_cannot_be_called_alone_gives_its_logits():
    model = tiny_model("llama")
    head = type(model.lm_head).forward

    def three_axes(self, hidden):
        assert hidden.ndim == 3, "three axes, please"
        return head(self, hidden)

    model.lm_head.forward = three_axes.__get__(model.lm_head)
    with pytest.warns(UserWarning, match="its own logits are read"):
        scorer = Scorer.attach(model, PAIRS)
    assert scorer.route.head == "logits"
    assert_right(scorer.observe(), truth_of(model))


def test_weights_in_half_precision_are_named_with_every_number():
    scorer = Scorer.attach(tiny_model("llama", torch.bfloat16), PAIRS)
    assert scorer.route.weights == "bfloat16"
    assert "rounding" in scorer.route.in_words
    assert scorer.observe().approximate == "bfloat16 weights"
    mixed = tiny_model("llama", torch.bfloat16)
    mixed.lm_head.float()
    mixed.lm_head.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    route = Scorer.attach(mixed, PAIRS, exactness="strict").route
    assert (route.name, route.weights) == ("tree", "bfloat16")


@pytest.mark.parametrize(
    "settings",
    [
        {"exactness": "Strict"},
        {"padding_side": "middle"},
        {"precision": "float16"},
        {"exactness": "strict", "precision": "bfloat16"},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    attach = getattr(Scorer.attach, "__wrapped__", Scorer.attach)
    with pytest.raises((BadInput, TypeError)):
        attach(tiny_model("llama"), PAIRS, **settings)


def test_float32_is_multiplied_as_float32_whatever_training_does():
    torch.set_float32_matmul_precision("high")
    try:
        with undisturbed(tiny_model("llama")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_graph_that_training_compiled_is_left_alone():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    model, tokenized = tiny_model("llama"), few_probes()
    model.compile(backend=backend)
    ids = torch.arange(1, 30)[None]
    model(input_ids=ids, use_cache=False)
    before = list(graphs)
    seen = Scorer.attach(model, tokenized.pairs).observe()
    model(input_ids=ids, use_cache=False)
    assert graphs == before
    expected = Scorer.attach(tiny_model("llama"), tokenized.pairs).observe()
    np.testing.assert_array_equal(seen.token_logp, expected.token_logp)


def test_reasons_are_kept_for_the_record():
    route = Scorer.attach(tiny_model("mamba2"), PAIRS).route
    assert route.dropped["tree"] == "does not look its attention up"
    assert set() == route_module._WARNED


def test_a_model_that_gives_nan_is_called_untested():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    route = Scorer.attach(model, PAIRS).route
    assert np.isnan(route.error)
    assert "untested" in route.in_words
    with pytest.raises(
        BadInput, match=r"not numbers, which exactness=.strict. refuses"
    ):
        Scorer.attach(model, PAIRS, exactness="strict")


@pytest.mark.parametrize("rows", [[], [-1], [999]])
def test_pairs_that_are_not_there_cannot_be_selected(rows):
    scorer = Scorer.attach(tiny_model("llama"), PAIRS)
    with pytest.raises(BadInput, match=f"from 0 to {len(PAIRS) - 1}"):
        scorer.select(rows)
