"""score(): relations that any right scoring of any causal LM must keep."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from models import save_tiny, tiny_model
from tiers import few_probes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from learndyn.errors import BadInput
from learndyn.measure import (
    reader,
    route as route_module,
    score as score_module,
)
from learndyn.measure.forward import learn_head
from learndyn.measure.load import load_model
from learndyn.measure.neutral import undisturbed
from learndyn.measure.score import Scorer, score
from learndyn.measure.statistics import row_statistics
from learndyn.measure.tiles import Tiles
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.observation import PROBE_COLUMNS


def loop(model, tokenized: TokenizedProbes) -> np.ndarray:
    """log pi(response | prompt), one forward per token: slow and obviously right."""
    totals = []
    for pair in tokenized.pairs:
        context, total = list(pair.prompt_ids), 0.0
        for token in pair.response_ids:
            with torch.no_grad():
                logits = model(torch.tensor([context])).logits[0, -1].double()
            total += float(logits[token] - logits.logsumexp(0))
            context.append(token)
        totals.append(total)
    return np.array(totals)


def test_float64_gpt2_equals_a_per_token_loop_to_1e9():
    model = tiny_model("gpt2", torch.float64)
    tokenized = few_probes()
    seen = score(model, tokenized)
    np.testing.assert_allclose(seen.logp, loop(model, tokenized), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "llama", "qwen2", "gemma2", "cohere", "mamba2"]
)
def test_families_equal_a_per_token_loop(family):
    model, tokenized = tiny_model(family), few_probes()
    seen = score(model, tokenized)
    per_token = np.abs(seen.logp - loop(model, tokenized)) / seen.n_tokens
    assert per_token.max() < 2e-5
    assert seen.violations() == []


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("change", ["batch_size", "padding_side", "order"])
def test_batch_padding_and_order_change_nothing(family, change):
    model = tiny_model(family)
    base = score(model, few_probes(), tier="padded", batch_size=1)
    if change == "batch_size":
        other = score(model, few_probes(), tier="padded", batch_size=5)
    elif change == "padding_side":
        other = score(model, few_probes(), tier="padded", padding_side="left")
    else:
        other = score(model, few_probes(reverse=True))
    for name in PROBE_COLUMNS:
        expected, got = getattr(base, name), getattr(other, name)
        got = got[::-1] if change == "order" else got
        assert np.max(np.abs(expected - got) / base.n_tokens) < 2e-5, name


@pytest.mark.parametrize("head", ["rows", "logits"])
@pytest.mark.filterwarnings("ignore:.* its own logits are read")
def test_row_chunks_change_nothing(head, monkeypatch):
    model = tiny_model("gpt2", torch.float64)
    tiled = score(model, few_probes())
    if head == "rows":
        monkeypatch.setattr(Tiles, "of", lambda *_: None)
    else:
        monkeypatch.setattr(route_module, "learn_head", lambda *_: None)
    assert Scorer.attach(model, few_probes().pairs).route.head == head
    whole = score(model, few_probes())
    np.testing.assert_allclose(whole.logp, tiled.logp, rtol=1e-12)
    monkeypatch.setattr(reader, "_ROW_CHUNK_BYTES", 1)
    np.testing.assert_allclose(score(model, few_probes()).logp, whole.logp, rtol=1e-12)


def test_real_logits_are_used_when_the_head_cannot_be_taken_apart(monkeypatch):
    model = tiny_model("gpt2", torch.float64)
    expected = score(model, few_probes())
    monkeypatch.setattr(route_module, "learn_head", lambda *_: None)
    with pytest.warns(UserWarning, match="GPT2LMHeadModel: .* its own logits are read"):
        got = score(model, few_probes())
    for name in PROBE_COLUMNS:
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), 1e-9)


def learnt(model):
    with undisturbed(model):
        return learn_head(model, torch.arange(20)[None])


def test_what_follows_the_projection_is_learnt():
    assert learnt(tiny_model("llama")).name == "identity"
    assert learnt(tiny_model("gemma2")).name == "softcap 5"
    assert learnt(tiny_model("cohere")).name == "scale 0.0625"


def test_a_head_that_nothing_explains_is_not_learnt():
    model = tiny_model("llama")
    forward = type(model).forward

    def warped(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.sign() * output.logits.abs() ** 1.01
        return output

    model.forward = warped.__get__(model)
    assert not learnt(model).is_exact
    with pytest.warns(UserWarning, match=r"LlamaForCausalLM: .* misses by \d\.\de-0"):
        route = Scorer.attach(model, few_probes().pairs).route
    assert (route.name, route.head) == ("tree", "logits")
    assert route.error < 1e-5
    Scorer.attach(
        model, few_probes().pairs
    )  # warned once: a second warning would be an error


def test_a_half_precision_soft_cap_is_learnt_up_to_the_models_own_rounding():
    # The model rounds after each operation of the cap; the head does not.
    head = learnt(tiny_model("gemma2", torch.bfloat16))
    assert head.name == "softcap 5"
    assert head.is_exact
    assert 1e-3 < head.error < 2**-6
    assert learnt(tiny_model("llama", torch.bfloat16)).error == 0
    assert learnt(tiny_model("gemma2")).tolerance == 1e-5


def test_a_cap_that_rounding_hides_is_taken_from_the_config():
    model = tiny_model("gemma2", torch.bfloat16, final_logit_softcapping=30.0)
    assert learnt(model).name == "softcap 30"


@pytest.fixture
def one_process():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_model_that_fsdp2_shards_is_scored_from_its_own_logits(one_process):
    # The head's weight is gathered only within the model's own forward.
    model, tokenized = tiny_model("llama"), few_probes()
    expected = score(model, tokenized).logp
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=one_process, reshard_after_forward=True)
    with pytest.warns(UserWarning, match="output embedding is sharded"):
        got = score(model, tokenized)
    np.testing.assert_allclose(got.logp, expected, rtol=1e-6)
    assert Scorer.attach(model, tokenized.pairs).route.head == "logits"


def test_an_adapter_is_loaded_in_the_precision_asked_for(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = save_tiny(tmp_path / "base", "llama")
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    given, real = {}, AutoModelForCausalLM.from_pretrained

    def watched(*args, **more):
        given.update(more)
        return real(*args, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    loaded = load_model(tmp_path / "adapter", dtype=torch.bfloat16)
    assert "torch_dtype" not in given  # its deprecated name
    assert loaded.get_output_embeddings().weight.dtype == torch.bfloat16


def test_a_probe_without_response_tokens_is_refused_and_takes_no_others_numbers():
    tokenized, model = few_probes(), tiny_model("gpt2")
    bare = replace(tokenized.pairs[1], response_ids=())
    pairs = (tokenized.pairs[0], bare, *tokenized.pairs[2:])
    with pytest.raises(BadInput, match=r"1 of 8 pairs lack .* at position 1"):
        score(model, replace(tokenized, pairs=pairs))
    rows = Scorer.attach(model, tokenized.pairs).rows()
    counts = np.array([0, *tokenized.n_tokens, 0], np.int32)
    with np.errstate(invalid="ignore"):  # its means are 0 / 0
        seen = score_module._observation(0, counts, rows)
    assert (seen.logp[0], seen.logp[-1]) == (0, 0)
    np.testing.assert_array_equal(seen.logp[1:-1], score(model, tokenized).logp)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_sequence(batch_size):
    with pytest.raises(BadInput, match=f"batch_size is {batch_size}; it must be"):
        score(tiny_model("gpt2"), few_probes(), batch_size=batch_size)


@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_drawn_while_undisturbed_are_given_back(fails):
    def draw():
        return float(torch.rand(())), random.random(), float(np.random.rand())

    model = torch.nn.Linear(1, 1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    try:
        with undisturbed(model):
            assert draw() == expected
            if fails:
                raise RuntimeError("stop")
    except RuntimeError:
        assert fails
    assert draw() == expected
    assert model.training


def test_statistics_equal_their_definitions_on_full_logits():
    torch.manual_seed(0)
    logits, labels = 4 * torch.randn(64, 500), torch.randint(0, 500, (64,))
    labels[:20] = logits[:20].argmax(-1)
    log_pi = logits.double().log_softmax(-1)
    pi, onehot = log_pi.exp(), torch.nn.functional.one_hot(labels, 500)
    rows = row_statistics(logits.clone(), labels, labels.flip(0))

    def picked(ids):
        return log_pi.gather(1, ids[:, None])[:, 0]

    for name, expected in {
        "logp": picked(labels),
        "start_logp": picked(labels.flip(0)),
        "argmax_logp": log_pi.amax(1),
        "rest_logp": torch.log1p(-pi.amax(1)),
        "entropy": -(pi * log_pi).sum(1),
        "p_norm2": (pi**2).sum(1),
        "p_gap": (pi - onehot).norm(dim=1),
        "energy": 1 - picked(labels).exp(),
    }.items():
        torch.testing.assert_close(getattr(rows, name), expected, rtol=0, atol=1e-7)
    assert torch.equal(rows.argmax_id, logits.argmax(-1))


@pytest.mark.parametrize("gap", [20.0, 40.0, 90.0, 300.0])
def test_rest_keeps_its_digits_when_the_model_is_sure(gap):
    # 1 - pi_max = 999 e^-gap: 2e-6 ... 1e-127. log(1 - pi_max) in floating point is
    # -inf from gap 45 on.
    logits = torch.zeros(1, 1000)
    logits[0, 7] = gap
    rows = row_statistics(logits, torch.tensor([7]))
    expected = np.log(999) - gap - np.log1p(999 * np.exp(-gap))
    assert float(rows.rest_logp) == pytest.approx(expected, rel=1e-9)
    assert float(rows.logp) == pytest.approx(-999 * np.exp(-gap), rel=1e-5)


def test_start_ids_follow_the_first_argmax_not_the_present_one():
    model, tokenized = tiny_model("llama"), few_probes()
    first = score(model, tokenized)
    np.testing.assert_array_equal(first.token_start_logp, first.token_argmax_logp)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight))
    later = score(model, tokenized, start_ids=first.token_argmax_id)
    assert (later.token_argmax_id != first.token_argmax_id).any()
    assert (later.token_start_logp <= later.token_argmax_logp).all()
    same = later.token_argmax_id == first.token_argmax_id
    np.testing.assert_array_equal(
        later.token_start_logp[same], later.token_argmax_logp[same]
    )
    assert (later.token_start_logp[~same] < later.token_argmax_logp[~same]).all()


def test_scoring_leaves_model_and_random_state_as_they_were():
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()  # a module the user froze must stay in eval
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    score(model, few_probes())
    assert model.training
    assert not model.transformer.h[0].training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert "forward" not in model.lm_head.__dict__


def test_the_head_is_restored_after_an_error(monkeypatch):
    model = tiny_model("gpt2").train()

    def fail(*_):
        raise RuntimeError("stop")

    scorer = Scorer.attach(model, few_probes().pairs)
    monkeypatch.setattr(Tiles, "__call__", fail)
    with pytest.raises(RuntimeError, match="stop"):
        scorer.observe()
    assert model.training
    assert "forward" not in model.lm_head.__dict__


def test_a_model_that_is_no_causal_lm_is_refused():
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(BadInput, match="not a causal language model"):
        score(AutoModel.from_config(config), few_probes())


def test_probes_longer_than_the_context_are_refused_with_the_numbers():
    model = tiny_model("gpt2", n_positions=16)
    with pytest.raises(BadInput, match=r"has \d+ tokens, the model's context is 16"):
        score(model, few_probes())


def test_probes_of_a_larger_vocabulary_are_refused():
    model = tiny_model("gpt2", vocab_size=260)
    with pytest.raises(BadInput, match=r"token id \d+, but the model has 260"):
        score(model, few_probes())
