"""The y+ / y- split of the first DPO update."""

import numpy as np
import pytest
import torch
from models import byte_tokenizer, tiny_model
from runs import data, probes

from learndyn.errors import BadInput
from learndyn.measure.load import weights_hash
from learndyn.measure.score import score
from learndyn.paper.world.evidence import _split_first_update
from learndyn.probes.tokenize import PairTokenizer, tokenize


def setting(dtype=torch.float64):
    encode = PairTokenizer(byte_tokenizer())
    chosen, rejected = (
        [encode(r.prompt, r.responses[kind]) for r in data().rows]
        for kind in ("chosen", "rejected")
    )
    tokenized = tokenize(probes(), byte_tokenizer())
    return tiny_model("gpt2", dtype), chosen, rejected, tokenized


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-3), (torch.float32, 5e-3)], ids=str
)
def test_the_parts_sum_to_the_whole(optimizer, dtype, bound):
    model, *rest = setting(dtype)
    found = _split_first_update(model, *rest, optimizer=optimizer)
    # argmax_logp has kinks where two tokens tie, so only logp is smooth enough for this
    total = found.pull.logp + found.push.logp
    size = np.abs(total).max()
    np.testing.assert_allclose(found.both.logp, total, rtol=0, atol=bound * size)
    assert np.abs(found.push.logp).max() > 1e-3 * size


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_the_whole_is_what_one_step_of_torchs_optimizer_does(optimizer):
    from plain_loop import dpo_loss

    model, chosen, rejected, tokenized = setting()
    found = _split_first_update(model, chosen, rejected, tokenized, optimizer=optimizer)
    before = score(model, tokenized).logp
    lr = 1e-6
    torch_optimizer = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    stepper = torch_optimizer[optimizer](model.parameters(), lr=lr)
    batch = [
        (
            (list(c.prompt_ids), list(c.response_ids)),
            (list(r.prompt_ids), list(r.response_ids)),
        )
        for c, r in zip(chosen, rejected, strict=True)
    ]
    import copy

    dpo_loss(model, copy.deepcopy(model), batch, beta=0.1).backward()
    stepper.step()
    change = (score(model, tokenized).logp - before) / lr
    size = np.abs(change).max()
    np.testing.assert_allclose(found.both.logp, change, rtol=0, atol=5e-3 * size)


def test_pull_raises_chosen_and_push_lowers_rejected_of_the_trained_pairs():
    model, chosen, rejected, _ = setting()
    everything = tokenize(probes(6), byte_tokenizer())
    found = _split_first_update(model, chosen, rejected, everything, optimizer="sgd")
    trained = np.array([p.split == "train" for p in everything.probes])
    kind = np.array([p.kind for p in everything.probes])
    assert found.pull.logp[trained & (kind == "chosen")].mean() > 0
    assert found.push.logp[trained & (kind == "rejected")].mean() < 0


def test_weights_are_bit_identical_afterwards_also_after_an_error(monkeypatch):
    from learndyn.paper.world import evidence as sign_split

    model, *rest = setting(torch.float32)
    before = weights_hash(model)
    _split_first_update(model, *rest)
    assert weights_hash(model) == before
    real, calls = sign_split.Scorer.observe, []

    def fail_later(*args, **more):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("stop")
        return real(*args, **more)

    monkeypatch.setattr(sign_split.Scorer, "observe", fail_later)
    with pytest.raises(RuntimeError, match="stop"):
        _split_first_update(model, *rest)
    assert weights_hash(model) == before


def test_unequal_numbers_and_dead_gradients_are_refused():
    model, chosen, rejected, tokenized = setting(torch.float32)
    with pytest.raises(BadInput, match="12 chosen and 11 rejected"):
        _split_first_update(model, chosen, rejected[1:], tokenized)
    with torch.no_grad():
        model.transformer.wte.weight.fill_(torch.nan)
    with pytest.raises(BadInput, match="not finite"):
        _split_first_update(model, chosen, rejected, tokenized)


def test_in_float16_nothing_overflows():
    model, *rest = setting(torch.float16)
    found = _split_first_update(model, *rest)
    assert np.isfinite(found.both.logp).all()
    assert np.abs(found.both.logp).max() > 0
