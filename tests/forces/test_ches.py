"""CHES: against its definition in float64, in half precision, padded on either side."""

import numpy as np
import pytest
import torch
from models import shared_model, tiny_model

from learndyn.errors import BadInput
from learndyn.forces.foresight.ches import (
    _ches_of_states,
    _state_sums,
    ches,
    ches_with,
)
from learndyn.measure.load import weights_hash
from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair


EOS = 0

LENGTHS = ((300, 281), (173, 300), (7, 1))
"""States of chosen and rejected of each pair."""
WIDTH = 4096


def states_of(lengths, width, seed, dtype=torch.float64):
    """Answers' last hidden states as models have them: one direction in common."""
    generator = torch.Generator().manual_seed(seed)
    common = 0.7 * torch.randn(width, generator=generator)
    return [
        (common + torch.randn(n, width, generator=generator)).to(dtype) for n in lengths
    ]


def padded(states, side):
    """Side by side, with what no number may come from where no state stands."""
    time = max(map(len, states)) + 3
    out = torch.full((len(states), time, states[0].shape[1]), torch.nan).to(states[0])
    mask = torch.zeros(len(states), time, dtype=torch.bool)
    for row, one in enumerate(states):
        begin = 0 if side == "right" else time - len(one)
        out[row, begin : begin + len(one)] = one
        mask[row, begin : begin + len(one)] = True
    return out, mask


def defined(good, bad):
    """inner, norm, CHES and LN-CHES of one pair as they are written, in float64."""
    a, b = (np.float64(one.double().numpy()).sum(axis=0) for one in (good, bad))
    inner, norm = float(a @ b), float(a @ a)
    n, m = len(good), len(bad)
    return inner - norm, inner / (n * m) - norm / n**2, abs(inner) + norm


@pytest.fixture(scope="module")
def answers():
    """Chosen and rejected states per dtype, as large as a real model's."""
    chosen, rejected = zip(*LENGTHS, strict=True)
    return {
        dtype: (
            states_of(chosen, WIDTH, 0, dtype),
            states_of(rejected, WIDTH, 1, dtype),
        )
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_definition_whatever_the_precision_and_the_padding(
    answers, dtype, side
):
    good, bad = answers[dtype]
    found = _ches_of_states(*padded(good, side), *padded(bad, side))
    for i, (one, other) in enumerate(zip(good, bad, strict=True)):
        score, normalized, scale = defined(one, other)
        assert abs(found.ches[i] - score) < 1e-5 * scale
        assert abs(found.ln_ches[i] - normalized) < 1e-5 * scale / len(one) ** 2
        assert (found.n_chosen[i], found.n_rejected[i]) == LENGTHS[i]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_would_be_wrong(answers, dtype):
    good, bad = (side[0] for side in answers[dtype])
    score, _, scale = defined(good, bad)
    a, b = good.sum(0), bad.sum(0)
    naive = float((a * b).sum() - (a * a).sum())
    assert not abs(naive - score) < 1e-3 * scale
    if dtype == torch.float16:
        assert not np.isfinite(naive)  # ||S+||^2 is beyond 65,504


def test_it_does_not_depend_on_the_basis_of_the_states():
    good, bad = states_of((9, 5), 16, 0), states_of((4, 8), 16, 1)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    plain = _ches_of_states(*padded(good, "right"), *padded(bad, "right"))
    turned = _ches_of_states(
        *padded([one @ turn for one in good], "left"),
        *padded([3 * one @ turn for one in bad], "left"),
    )
    np.testing.assert_allclose(turned.inner, 3 * plain.inner, rtol=1e-9)
    np.testing.assert_allclose(turned.chosen_norm2, plain.chosen_norm2, rtol=1e-9)


def test_a_pair_of_one_answer_twice_scores_zero_and_no_pair_of_its_length_more():
    (answer,) = states_of((12,), 32, 0)
    same = _ches_of_states(*padded([answer], "right"), *padded([answer], "left"))
    assert abs(same.ches[0]) < 1e-12 * same.chosen_norm2[0]
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        noise = torch.randn(answer.shape, generator=generator, dtype=torch.float64)
        other = answer + noise
        other *= answer.sum(0).norm() / other.sum(0).norm()
        found = _ches_of_states(*padded([answer], "right"), *padded([other], "right"))
        assert found.ches[0] < 0  # Cauchy and Schwarz


def test_ln_ches_does_not_grow_with_length_and_ches_does():
    good, bad = states_of((10,), 64, 0)[0], states_of((6,), 64, 1)[0]
    once = _ches_of_states(*padded([good], "right"), *padded([bad], "right"))
    twice = _ches_of_states(
        *padded([good.repeat(2, 1)], "right"), *padded([bad.repeat(2, 1)], "right")
    )
    np.testing.assert_allclose(twice.ln_ches, once.ln_ches, rtol=1e-12)
    np.testing.assert_allclose(twice.ches, 4 * once.ches, rtol=1e-12)


def pairs_of(seed=0, count=4, *, ends=True):
    """Chosen, then rejected, of prompts of several lengths; the last token is EOS."""
    chance = np.random.default_rng(seed)

    def ids(length):
        return tuple(chance.integers(5, 300, length).tolist())

    prompts = [ids(int(n)) for n in chance.integers(3, 12, count)]
    end = (EOS,) if ends else ()
    return [
        [
            TokenizedPair(prompt, (*ids(int(n)), *end), False, ends)
            for prompt, n in zip(prompts, chance.integers(1, 20, count), strict=True)
        ]
        for _ in ("chosen", "rejected")
    ]


def predicting_states(model, pair, left_out=0):
    """One forward of one sequence: the states that predict the answer's tokens."""
    ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
    return hidden[len(pair.prompt_ids) - 1 : len(hidden) - 1 - left_out]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mamba2"])
def test_of_a_model_it_is_that_of_the_states_that_predict_the_answers(family):
    model = shared_model(family)
    good, bad = pairs_of()
    found = ches(model, good, bad)
    for i, (one, other) in enumerate(zip(good, bad, strict=True)):
        score, normalized, scale = defined(
            predicting_states(model, one), predicting_states(model, other)
        )
        assert abs(found.ches[i] - score) < 1e-5 * scale
        assert abs(found.ln_ches[i] - normalized) < 1e-5 * scale / len(one.response_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"tier": "padded", "padding_side": "left", "batch_size": 3},
        {"tier": "padded", "padding_side": "right", "batch_size": 5},
        {"tier": "cached"},
        {"tier": "masked"},
        {"tier": "alone"},
    ],
    ids=["left", "right", "cached", "masked", "alone"],
)
def test_how_the_model_is_read_changes_nothing(settings):
    model = shared_model("llama")
    good, bad = pairs_of(1)
    plain, found = ches(model, good, bad), ches(model, good, bad, **settings)
    scale = np.abs(plain.inner) + plain.chosen_norm2
    np.testing.assert_allclose((found.ches - plain.ches) / scale, 0, atol=1e-5)


def test_states_are_summed_in_any_number_of_parts(monkeypatch):
    model = shared_model("llama")
    good, bad = pairs_of(1)
    plain = ches(model, good, bad)
    monkeypatch.setattr("learndyn.forces.foresight.ches._CHUNK", 3)
    found = ches(model, good, bad)
    np.testing.assert_allclose(found.inner, plain.inner, rtol=1e-12)
    np.testing.assert_allclose(found.chosen_norm2, plain.chosen_norm2, rtol=1e-12)


def test_where_the_head_cannot_be_learnt_the_states_are_read_all_the_same(monkeypatch):
    model = tiny_model("llama")
    good, bad = pairs_of(2)
    plain = ches(model, good, bad)
    monkeypatch.setattr("learndyn.measure.route.learn_head", lambda *_: None)
    with pytest.warns(UserWarning, match="not called just once"):
        scorer = Scorer.attach(model, (*good, *bad))
    assert scorer.reader.head_name == "logits"
    scale = np.abs(plain.inner) + plain.chosen_norm2
    found = ches_with(scorer)
    np.testing.assert_allclose((found.ches - plain.ches) / scale, 0, atol=1e-5)


def test_eos_is_counted_or_left_out_as_asked():
    model = shared_model("gpt2")
    good, bad = pairs_of(3)
    found = ches(model, good, bad, eos="exclude", eos_id=EOS)
    for i, (one, other) in enumerate(zip(good, bad, strict=True)):
        score, _, scale = defined(
            predicting_states(model, one, 1), predicting_states(model, other, 1)
        )
        assert abs(found.ches[i] - score) < 1e-5 * scale
    np.testing.assert_array_equal(
        found.n_chosen, [len(pair.response_ids) - 1 for pair in good]
    )


def test_what_a_template_writes_after_eos_is_left_out_with_it():
    model = shared_model("gpt2")
    plain = TokenizedPair((7, 8), (9, 10, EOS), False, True)
    written = TokenizedPair((7, 8), (9, 10, EOS, 11, 12), False, True)
    cut = TokenizedPair((7, 8), (9, 10), True, False)
    scorer = Scorer.attach(model, [plain, written, cut])
    sums, counts = _state_sums(scorer, "exclude", EOS)
    assert counts.tolist() == [2, 2, 2]
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums[2], sums[0], rtol=1e-5, atol=1e-5)
    assert _state_sums(scorer, "exclude")[1].tolist() == [2, 4, 2]
    assert _state_sums(scorer)[1].tolist() == [3, 5, 2]


def test_of_two_ends_in_an_answer_the_last_one_is_left_out():
    twice = TokenizedPair((7, 8), (9, EOS, 10, EOS, 11), False, True)
    scorer = Scorer.attach(shared_model("gpt2"), [twice])
    assert _state_sums(scorer, "exclude", EOS)[1].tolist() == [3]


def test_the_model_is_left_as_it_was():
    model = tiny_model("gpt2").train()
    before, state = weights_hash(model), torch.get_rng_state()
    ches(model, *pairs_of(4))
    assert weights_hash(model) == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_scored_is_refused():
    model = shared_model("gpt2")
    good, bad = pairs_of(5)
    with pytest.raises(BadInput, match="4 chosen and 3 rejected"):
        ches(model, good, bad[:3])
    empty = TokenizedPair((7, 8), (EOS,), False, True)
    assert ches(model, [empty], bad[:1]).n_chosen.tolist() == [1]
    with pytest.raises(BadInput, match=r"1 of 1 pairs .* without a state"):
        ches(model, [empty], bad[:1], eos="exclude", eos_id=EOS)
    states, mask = padded(states_of((4,), 8, 0), "right")
    broken = states.clone()
    broken[0, 1, 1] = torch.inf
    with pytest.raises(BadInput, match="not finite"):
        _ches_of_states(broken, mask, states, mask)
