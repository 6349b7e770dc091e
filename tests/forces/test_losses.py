"""The losses: value, push against its closed form, and when push is above 0."""

import functools
import math
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext

import jaxtyping
import numpy as np
import pytest
import torch
from closed_forms import closed_form
from hypothesis import given, settings, strategies as st
from torch.nn.functional import logsigmoid, relu

from learndyn.errors import BadInput
from learndyn.forces.losses import LOSSES, Responses, loss_named
from learndyn.forces.losses.loss import PairLoss, log_one_minus_exp
from learndyn.forces.losses.negative import negative_gradient


VARIANTS = [
    *((name, {}) for name in LOSSES),
    ("cdpo", {"label_smoothing": 0.3, "beta": 0.5}),
    ("slic", {"delta": 4.0, "regularise": 0.3}),
    ("kto", {"z_ref": 2.5, "desirable": 1.3, "undesirable": 0.7}),
    ("cal-dpo", {"weight": 0.5, "beta": 1.0}),
    ("gate-dpo", {"probability": "q10", "alpha": 20.0, "tau": 0.05}),
    ("cw-dpo", {"floor": -2.0, "tau": 1.5}),
    ("simpo", {"beta": 2.5, "gamma": 0.3}),
    ("unlikelihood", {"alpha": 0.4}),
    ("grpo", {"mean": "token", "epsilon_high": 0.28}),
]
every_loss = pytest.mark.parametrize(
    "loss", [loss_named(n, **o) for n, o in VARIANTS], ids=repr
)
PAIRED = [loss_named(n, **o) for n, o in VARIANTS if LOSSES[n].layout == "pairs"]
every_pair_loss = pytest.mark.parametrize("loss", PAIRED, ids=repr)


def batch(seed=0, lengths=((3, 5), (1, 2), (4, 4)), spread=1.0, dtype=torch.float64):
    """Log-probabilities of pairs with these lengths, chosen and rejected in turn."""
    draw = torch.Generator().manual_seed(seed)
    counts = torch.tensor(lengths).ravel()
    size, total = len(counts), int(counts.sum())
    logp = -3 * torch.rand(total, generator=draw, dtype=torch.float64) - 0.05

    def noise(n):
        return torch.randn(n, generator=draw, dtype=torch.float64)

    responses = Responses(
        n_tokens=counts,
        chosen=torch.tensor([True, False]).repeat(size // 2),
        reference=None,
        old_logp=logp + 0.3 * noise(total),
        advantage=noise(size),
    )
    reference = responses.sums(logp) + spread * 4 * noise(size)
    given = {"reference": reference, "old_logp": responses.old_logp}
    given["advantage"] = responses.advantage
    cast = {name: value.to(dtype) for name, value in given.items()}
    return logp.to(dtype), replace(responses, **cast)


def close(found, wanted, tolerance=1e-12):
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * scale)


pair_lengths = st.lists(
    st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5
)


@every_loss
@settings(max_examples=25, deadline=None)
@given(pair_lengths, st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0, 5.0]))
def test_push_is_the_closed_form(loss, lengths, seed, spread):
    logp, responses = batch(seed, lengths, spread)
    close(loss.push(logp, responses), closed_form(loss, logp, responses))


MARGINS = [0.0, 1.0, -1.0, 50.0, -50.0, 500.0, -500.0, 1e4, -1e4]
SURENESS = [0.0, -1e-20, -1e-9, -1e-5, -40.0, -500.0, -1e5]


def state(margin=0.0, every_token=None):
    """A batch this far from its reference (nats), or with this logp at every token."""
    logp, responses = batch(seed=7)
    if every_token is not None:
        logp = torch.full_like(logp, every_token)
    sign = torch.where(responses.chosen, 0.5, -0.5).double()
    away = logp - max(-80.0, min(80.0, margin)) / 20  # so that some ratios are clipped
    reference = responses.sums(logp) - margin * sign
    return logp, replace(responses, reference=reference, old_logp=away)


STATES = [
    *({"margin": margin} for margin in MARGINS),
    *({"every_token": logp} for logp in SURENESS),
]


def cast(logp, responses, dtype):
    names = ("reference", "old_logp", "advantage")
    given = {name: getattr(responses, name).to(dtype) for name in names}
    return logp.to(dtype), replace(responses, **given)


def token_error(push, true):
    """Largest error of a token, as a share of its own push: tiny pushes count too."""
    return float(((push.double() - true).abs() / (true.abs() + 1e-37)).max())


@every_loss
@pytest.mark.parametrize("where", STATES, ids=str)
def test_push_has_the_digits_of_the_closed_form(loss, where):
    narrow = cast(*state(**where), torch.float32)
    wide = cast(*narrow, torch.float64)
    true = closed_form(loss, *wide)
    assert token_error(loss.push(*wide), true) < 1e-12
    by_hand = token_error(closed_form(loss, *narrow), true)
    assert token_error(loss.push(*narrow), true) < 4 * by_hand + 1e-6


@every_loss
def test_push_needs_no_graph_and_leaves_none(loss):
    logp, responses = batch(seed=2)
    expected = loss.push(logp, responses)
    logp.requires_grad_()
    with torch.no_grad():
        push = loss.push(logp, responses)
    assert torch.equal(push, expected)
    assert not push.requires_grad
    assert logp.grad is None


@every_loss
def test_push_times_label_minus_probabilities_is_the_gradient_at_the_logits(loss):
    _, responses = batch(seed=3)
    draw = torch.Generator().manual_seed(4)
    total, vocab = int(responses.n_tokens.sum()), 11
    logits = 2 * torch.randn(total, vocab, generator=draw, dtype=torch.float64)
    labels = torch.randint(vocab, (total, 1), generator=draw)
    logits.requires_grad_()
    logp = logits.log_softmax(-1).gather(1, labels)[:, 0]
    responses = replace(responses, old_logp=logp.detach() - 0.1)
    (gradient,) = torch.autograd.grad(loss.value(logp, responses), logits)
    probabilities = logits.detach().softmax(-1)
    label = torch.zeros_like(probabilities).scatter(1, labels, 1.0)
    push = loss.push(logp, responses)
    assert not push.requires_grad
    close(push[:, None] * (label - probabilities), gradient)


def permuted(logp, responses, order):
    """The same responses in another order."""
    tokens = logp.split(responses.n_tokens.tolist())
    old = responses.old_logp.split(responses.n_tokens.tolist())
    moved = Responses(
        n_tokens=responses.n_tokens[order],
        chosen=responses.chosen[order],
        reference=responses.reference[order],
        old_logp=torch.cat([old[i] for i in order]),
        advantage=responses.advantage[order],
    )
    return torch.cat([tokens[i] for i in order]), moved


@every_loss
@pytest.mark.parametrize("order", [[2, 3, 4, 5, 0, 1], [0, 2, 4, 1, 3, 5]], ids=str)
def test_the_order_of_pairs_and_of_their_sides_changes_nothing(loss, order):
    logp, responses = batch(seed=5)
    there, moved = permuted(logp, responses, order)
    close(loss.value(there, moved), loss.value(logp, responses))
    tokens = loss.push(logp, responses).split(responses.n_tokens.tolist())
    close(loss.push(there, moved), torch.cat([tokens[i] for i in order]))


@every_loss
def test_float32_gives_float32_and_the_same_numbers(loss):
    wide, narrow = batch(seed=6), batch(seed=6, dtype=torch.float32)
    for found, wanted in [
        (loss.value(*narrow), loss.value(*wide)),
        (loss.push(*narrow), loss.push(*wide)),
    ]:
        assert found.dtype == torch.float32
        close(found.double(), wanted, 2e-5)


@every_loss
@pytest.mark.parametrize("far", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_far_from_the_reference_nothing_is_nan(loss, far, dtype):
    logp, responses = batch(seed=7, dtype=dtype)
    sign = torch.where(responses.chosen, 1.0, -1.0).to(dtype)
    moved = replace(
        responses,
        reference=responses.sums(logp) - far * sign,
        old_logp=logp - far,
        # only a token whose ratio grows against its advantage has no bound
        advantage=responses.advantage.abs() * (1 if far > 0 else -1),
    )
    for there in (logp, logp * 1e4):
        moved = replace(moved, old_logp=there - far)
        assert torch.isfinite(loss.value(there, moved))
        assert torch.isfinite(loss.push(there, moved)).all()
        close(loss.push(there, moved), closed_form(loss, there, moved), 1e-5)


@pytest.mark.parametrize("name", ["unlikelihood", "orpo"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_token_the_model_is_sure_of_has_a_finite_push(name, dtype):
    logp, responses = batch(seed=8, dtype=dtype)
    loss, sure = loss_named(name), torch.zeros_like(logp)
    push = loss.push(sure, responses)
    assert torch.isfinite(loss.value(sure, responses))
    assert torch.isfinite(push).all()
    close(push, closed_form(loss, sure, responses), 1e-6)
    lowered = push[~responses.chosen[responses.owner()]]
    assert (lowered > 1e3 * loss.push(logp, responses).abs().max()).all()


@pytest.mark.parametrize("x", [-1e-18, -1e-9, -0.3, -0.7, -2.0, -40.0, -700.0])
def test_log_of_1_minus_p_is_exact_at_both_ends(x):
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log_one_minus_exp(at)
    (slope,) = torch.autograd.grad(found, at)
    with localcontext() as context:
        context.prec = 400
        rest = 1 - Decimal(x).exp()
        assert found.item() == pytest.approx(float(rest.ln()), rel=1e-14)
        assert slope.item() == pytest.approx(float(1 - 1 / rest), rel=1e-14)


# What TRL 1.16 computes, written out: its trainers see summed log-probabilities.


def sides(logp, responses):
    c, r = (responses.sums(logp)[responses.chosen == side] for side in (True, False))
    rc, rr = (responses.reference[responses.chosen == side] for side in (True, False))
    nc, nr = (responses.n_tokens[responses.chosen == side] for side in (True, False))
    return c, r, rc, rr, nc, nr


def trl_kto(logp, responses, beta=0.1, kl=0.8):
    c, r, rc, rr, _, _ = sides(logp, responses)
    chosen = 1 - torch.sigmoid(beta * ((c - rc) - kl))
    rejected = 1 - torch.sigmoid(beta * (kl - (r - rr)))
    return torch.cat([chosen, rejected]).mean()


def trl_orpo(logp, responses, beta=0.1):
    c, r, _, _, nc, nr = sides(logp, responses)
    c, r = c / nc, r / nr
    odds = (c - r) - (torch.log1p(-torch.exp(c)) - torch.log1p(-torch.exp(r)))
    return -c.mean() - (beta * logsigmoid(odds)).mean()


def trl_ipo(logp, responses, beta=0.1):
    c, r, rc, rr, nc, nr = sides(logp, responses)
    return (((c - rc) / nc - (r - rr) / nr - 1 / (2 * beta)) ** 2).mean()


def trl_simpo(logp, responses, beta=2.0, gamma=1.0):
    c, r, _, _, nc, nr = sides(logp, responses)
    return -logsigmoid(beta * (c / nc - r / nr - gamma / beta)).mean()


def trl_sppo(logp, responses, beta=0.1):
    c, r, rc, rr, _, _ = sides(logp, responses)
    return ((c - rc - 0.5 / beta) ** 2 + (r - rr + 0.5 / beta) ** 2).mean()


def trl_dpo(logp, responses, beta=0.1):
    c, r, rc, rr, _, _ = sides(logp, responses)
    return -logsigmoid(beta * ((c - rc) - (r - rr))).mean()


def trl_grpo(logp, responses, kind="grpo"):
    rows = responses.n_tokens.tolist()
    per_response = []
    for new, old, advantage in zip(
        logp.split(rows),
        responses.old_logp.split(rows),
        responses.advantage,
        strict=True,
    ):
        ratio = torch.exp(new - old)
        clipped = torch.clamp(ratio, 1 - 0.2, 1 + 0.2)
        per_response.append(-torch.min(ratio * advantage, clipped * advantage))
    if kind == "bnpo":
        return torch.cat(per_response).mean()
    return torch.stack([loss.mean() for loss in per_response]).mean()


def hf_nll(logp, responses):
    return -logp.mean()


TRL = [
    (loss_named("dpo"), trl_dpo),
    (loss_named("ipo-mean"), trl_ipo),
    (loss_named("sppo"), trl_sppo),
    (loss_named("simpo"), trl_simpo),
    (loss_named("orpo"), trl_orpo),
    (loss_named("kto", z_ref=0.8), trl_kto),
    (loss_named("grpo"), trl_grpo),
    (loss_named("grpo", mean="token"), lambda *a: trl_grpo(*a, kind="bnpo")),
    (loss_named("sft-mean"), hf_nll),
]


@pytest.mark.parametrize(("loss", "theirs"), TRL, ids=[repr(loss) for loss, _ in TRL])
def test_value_and_push_are_those_of_trl(loss, theirs):
    for seed in range(5):
        logp, responses = batch(seed)
        close(loss.value(logp, responses), theirs(logp, responses))
        logp.requires_grad_()
        (gradient,) = torch.autograd.grad(theirs(logp, responses), logp)
        close(loss.push(logp, responses), gradient)


# The papers' formulas of the others, written out.


def test_values_are_those_of_the_papers():
    logp, responses = batch(seed=9)
    c, r, rc, rr, _, nr = sides(logp, responses)
    plus, minus, beta = c - rc, r - rr, 0.1
    h = plus - minus
    ones = torch.log1p(-logp.exp())[~responses.chosen[responses.owner()]].sum()
    w = 1 / (1 + torch.exp(-(r / nr + 3.0) / 0.5))
    wanted = {
        "sft": -(c.sum() + r.sum()) / 6,
        "gradient-ascent": (c.sum() + r.sum()) / 6,
        "npo": (
            2 / beta * torch.log1p(torch.exp(beta * torch.cat([plus, minus])))
        ).sum()
        / 6,
        "unlikelihood": -(c.sum() + ones) / 6,
        "cdpo": (-0.9 * logsigmoid(beta * h) - 0.1 * logsigmoid(-beta * h)).mean(),
        "ipo": ((h - 5) ** 2).mean(),
        "slic": relu(1 - (c - r)).mean(),
        "dpop": -logsigmoid(beta * (h - 50 * relu(-plus))).mean(),
        "dpo-shift": -logsigmoid(beta * (plus - 0.75 * minus)).mean(),
        "cal-dpo": (-logsigmoid(h) + (plus - 5) ** 2 + (minus + 5) ** 2).mean(),
        "cw-dpo": -logsigmoid(beta * (plus - w * minus)).mean(),
        "gate-dpo": -logsigmoid(beta * h).mean(),
    }
    for name, value in wanted.items():
        close(loss_named(name).value(logp, responses), value)
    for_all = {*wanted, *(loss.name for loss, _ in TRL)}
    assert for_all == set(LOSSES)


def test_regularised_slic_adds_sft_on_the_chosen():
    logp, responses = batch(seed=10)
    plain, more = loss_named("slic"), loss_named("slic", regularise=0.3)
    c, *_ = sides(logp, responses)
    close(more.value(logp, responses), plain.value(logp, responses) - 0.3 * c.mean())


def test_sums_and_means_are_different_things():
    logp, responses = batch(seed=11, lengths=((3, 5),))
    sft, mean = loss_named("sft"), loss_named("sft-mean")
    close(sft.value(logp, responses) * 2 / 8, mean.value(logp, responses))
    assert sft.push(logp, responses).tolist() == [-0.5] * 8
    assert mean.push(logp, responses).tolist() == [-0.125] * 8
    ipo = loss_named("ipo").push(logp, responses)
    mean = loss_named("ipo-mean").push(logp, responses)
    close(ipo[0], -ipo[-1])
    close(mean[0] * 3, -mean[-1] * 5)
    # with one token each, sums are means
    logp, responses = batch(seed=11, lengths=((1, 1), (1, 1)))
    for short, averaged in [("ipo", "ipo-mean"), ("sft", "sft-mean")]:
        a, b = loss_named(short), loss_named(averaged)
        close(a.value(logp, responses), b.value(logp, responses))
        close(a.push(logp, responses), b.push(logp, responses))


def at_reference(seed=12):
    logp, responses = batch(seed)
    start = replace(responses, reference=responses.sums(logp), old_logp=logp)
    return logp, start, responses.chosen[responses.owner()]


def test_at_the_reference_the_pushes_are_the_known_ones():
    logp, start, chosen = at_reference()
    sign = torch.where(chosen, -1.0, 1.0).double()
    close(loss_named("dpo", beta=0.4).push(logp, start), 0.2 * sign / 3)
    close(loss_named("ipo", beta=0.4).push(logp, start), 2.5 * sign / 3)
    close(loss_named("sppo", beta=0.4).push(logp, start), 2.5 * sign / 3)
    close(loss_named("kto", beta=0.4).push(logp, start), 0.1 * sign / 6)
    close(loss_named("cdpo", label_smoothing=0).push(logp, start), 0.05 * sign / 3)
    ascent = loss_named("gradient-ascent").push(logp, start)
    close(loss_named("npo").push(logp, start), ascent)
    # at its kink the penalty has no slope yet
    close(loss_named("dpop", beta=0.4).push(logp, start), 0.2 * sign / 3)
    below = replace(start, reference=start.reference + 1e-9)
    push = loss_named("dpop", beta=0.4, weight=3.0).push(logp, below)
    close(push, 0.2 * torch.where(chosen, -4.0, 1.0).double() / 3, 1e-8)
    shift = loss_named("dpo-shift", f=0.6).push(logp, start)
    close(shift, 0.05 * torch.where(chosen, sign, 0.6 * sign) / 3)


def test_simpo_at_equal_means_and_gamma_0_is_half_beta_over_length():
    _, start, chosen = at_reference()
    flat = torch.full((len(chosen),), -1.3, dtype=torch.float64)
    push = loss_named("simpo", beta=2, gamma=1e-12).push(flat, start)
    each = start.spread(1 / start.n_tokens.double())
    close(push, torch.where(chosen, -each, each) / 3, 1e-11)


@pytest.mark.parametrize("old", ["given", "none"])
def test_grpo_at_ratio_1_is_minus_the_advantage(old):
    logp, start, _ = at_reference()
    start = replace(start, old_logp=logp if old == "given" else None)
    per_response = start.advantage / start.n_tokens / 6
    close(loss_named("grpo").push(logp, start), -start.spread(per_response))
    total = int(start.n_tokens.sum())
    found = loss_named("grpo", mean="token").push(logp, start)
    close(found, -start.spread(start.advantage) / total)


def test_grpo_stops_where_it_is_clipped_and_not_on_the_other_side():
    logp, start, _ = at_reference()
    up = torch.ones(6).double()
    loss = loss_named("grpo")
    for shift, sign, stops in [(0.2, 1, True), (0.2, -1, False), (-0.3, -1, True)]:
        state = replace(start, old_logp=logp - shift, advantage=sign * up)
        assert bool((loss.push(logp, state) == 0).all()) == stops


def test_far_away_kto_dpo_and_npo_no_longer_push():
    logp, start, chosen = at_reference()
    away = torch.where(start.chosen, 1.0, -1.0).double() * 1e3
    settled = replace(start, reference=start.reference - away)
    for name in ("kto", "dpo"):
        assert loss_named(name).push(logp, settled).abs().max() < 1e-20
    assert loss_named("npo").push(logp, settled)[~chosen].max() < 1e-20
    # KTO also gives up on what is hopeless; DPO does not.
    hopeless = replace(start, reference=start.reference + away)
    assert loss_named("kto").push(logp, hopeless).abs().max() < 1e-20
    close(
        loss_named("dpo").push(logp, hopeless).abs().max(),
        torch.tensor(0.1).double() / 3,
        1e-8,
    )


def test_an_open_gate_is_dpo_and_a_shut_one_leaves_only_the_chosen():
    logp, responses = batch(seed=13)
    chosen = responses.chosen[responses.owner()]
    dpo = loss_named("dpo").push(logp, responses)
    for probability in ("sequence", "q10"):
        more = {"probability": probability, "alpha": 1e3}
        wide = loss_named("gate-dpo", tau=-1, **more).push(logp, responses)
        close(wide, dpo)
        shut = loss_named("gate-dpo", tau=2, **more).push(logp, responses)
        close(shut, torch.where(chosen, dpo, 0))
    close(loss_named("cw-dpo", floor=-1e4).push(logp, responses), dpo)
    assert (loss_named("cw-dpo", floor=1e4).push(logp, responses)[~chosen] == 0).all()


def test_gates_follow_the_probability_they_name():
    logp, responses = batch(seed=14)
    rejected = [
        tokens.exp()
        for tokens, chosen in zip(
            logp.split(responses.n_tokens.tolist()), responses.chosen, strict=True
        )
        if not chosen
    ]
    likely = {
        "sequence": [float(t.prod() ** (1 / len(t))) for t in rejected],
        "q10": [float(np.quantile(t.numpy(), 0.1)) for t in rejected],
    }
    dpo = loss_named("dpo").push(logp, responses)
    first = responses.n_tokens.cumsum(0)[::2]  # first token of each rejected response
    for probability, values in likely.items():
        loss = loss_named("gate-dpo", probability=probability, alpha=7, tau=0.2)
        gate = 1 / (1 + np.exp(-7 * (np.array(values) - 0.2)))
        ratio = loss.push(logp, responses)[first] / dpo[first]
        np.testing.assert_allclose(ratio.numpy(), gate, rtol=1e-10)


# What is refused.


@pytest.mark.parametrize(
    "name", [n for n, loss in LOSSES.items() if loss.needs_reference]
)
def test_a_missing_reference_is_refused(name):
    logp, responses = batch()
    responses = replace(responses, reference=None)
    for call in (loss_named(name).value, loss_named(name).push):
        with pytest.raises(BadInput, match="reference model"):
            call(logp, responses)


@pytest.mark.parametrize(
    "name", [n for n, loss in LOSSES.items() if not loss.needs_reference]
)
def test_the_others_need_none(name):
    logp, responses = batch()
    without = replace(responses, reference=None)
    loss = loss_named(name)
    close(loss.push(logp, without), loss.push(logp, responses))


@every_pair_loss
def test_unequal_numbers_of_chosen_and_rejected_are_refused(loss):
    logp, responses = batch()
    responses = replace(responses, chosen=torch.tensor([True] * 2 + [False] * 4))
    for call in (loss.value, loss.push):
        with pytest.raises(BadInput, match="2 chosen and 4 rejected"):
            call(logp, responses)


@every_loss
def test_log_probabilities_that_do_not_fit_are_refused(loss):
    logp, responses = batch()
    for call in (loss.value, loss.push):
        with pytest.raises(BadInput, match="18 tokens, but the 6 responses have 19"):
            call(logp[:-1], responses)


AVERAGING = [loss for name, loss in LOSSES.items() if loss.averages] + [
    LOSSES["gate-dpo"],
    LOSSES["cw-dpo"],
]


@every_loss
def test_an_empty_response_is_refused_where_a_mean_is_taken(loss):
    logp, responses = batch(lengths=((3, 0), (2, 2)))
    for call in (loss.value, loss.push):
        if type(loss) in AVERAGING:
            with pytest.raises(BadInput, match="1 of 4 responses have no tokens"):
                call(logp, responses)
        else:
            assert torch.isfinite(call(logp, responses)).all()


def test_grpo_without_advantages_is_refused():
    logp, responses = batch()
    for call in (loss_named("grpo").value, loss_named("grpo").push):
        with pytest.raises(BadInput, match="advantage"):
            call(logp, replace(responses, advantage=None))


@pytest.fixture
def outside_of_tests():
    """Without the check of shapes, which is faster than ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_impossible_batches_are_refused():
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(BadInput, match="no responses"):
        Responses(n_tokens=none, chosen=none.bool())
    with pytest.raises(BadInput, match="-1"):
        Responses(n_tokens=torch.tensor([-1]), chosen=torch.tensor([True]))


def test_numbers_that_do_not_fit_the_responses_are_refused(outside_of_tests):
    two, one = torch.tensor([1, 2]), torch.tensor([True])
    with pytest.raises(BadInput, match="chosen has 1 entries for 2"):
        Responses(n_tokens=two, chosen=one)
    both = torch.tensor([True, False])
    for name in ("reference", "advantage"):
        with pytest.raises(BadInput, match=f"{name} has 3 entries for 2"):
            Responses(n_tokens=two, chosen=both, **{name: torch.zeros(3)})
    with pytest.raises(BadInput, match="old_logp has 4 tokens"):
        Responses(n_tokens=two, chosen=both, old_logp=torch.zeros(4))


def test_two_devices_are_refused():
    logp, responses = batch()
    with pytest.raises(BadInput, match="logp is on meta and the responses on cpu"):
        loss_named("sft").value(logp.to("meta"), responses)


def test_options_come_as_text_or_as_they_are():
    assert loss_named("dpo", beta="5e-2") == loss_named("dpo", beta=0.05)
    assert loss_named("slic", delta=2) == loss_named("slic", delta="2.0")
    assert loss_named("grpo", mean="token").mean == "token"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dop", {}, "Did you mean dpo"),
        ("nonsense-xyz", {}, "Losses: sft, sft-mean, dpo"),
        ("dpo", {"bta": 1}, "Did you mean beta"),
        ("sft", {"beta": 1}, "it has none"),
        ("dpo", {"beta": "much"}, "dpo: beta is 'much': give a number"),
        ("dpo", {"beta": "0"}, "give a number above 0"),
        ("dpo", {"beta": float("nan")}, "not finite"),
        ("simpo", {"gamma": "inf"}, "not finite"),
        ("cdpo", {"label_smoothing": 0.5}, "below 0.5"),
        ("kto", {"z_ref": -1}, "never below 0"),
        ("grpo", {"mean": "sequence"}, "choose from response, token"),
        ("gate-dpo", {"probability": "max"}, "choose from sequence, q10"),
    ],
)
def test_wrong_names_and_options_are_refused(outside_of_tests, name, options, message):
    with pytest.raises(BadInput, match=message):
        loss_named(name, **options)


# When push is above 0.


@functools.cache
def lowered(name, **options):
    """Where each role is lowered; searched for once."""
    return negative_gradient(loss_named(name, **options)).lowered


def stretches(name, role, **options):
    return lowered(name, **options)[role].stretches


@pytest.mark.parametrize("beta", [0.01, 0.37])
def test_boundaries_are_where_the_papers_put_the_targets(beta):
    target = 0.5 / beta
    for name, other in [("ipo", target), ("ipo-mean", target), ("sppo", -target)]:
        ((low, high),) = stretches(name, "chosen", beta=beta)
        assert high == math.inf
        assert low == pytest.approx(target, rel=1e-9)
        ((low, high),) = stretches(name, "rejected", beta=beta)
        assert (high if low == -math.inf else low) == pytest.approx(other, rel=1e-9)
    turn = math.log(0.7 / 0.3) / beta
    ((low, _),) = stretches("cdpo", "chosen", beta=beta, label_smoothing=0.3)
    assert low == pytest.approx(turn, rel=1e-9)


def test_the_hinge_and_the_clip_end_thenegative_gradient():
    assert stretches("slic", "chosen") == ()
    ((_, high),) = stretches("slic", "rejected", delta=3.5)
    assert high == pytest.approx(3.5, rel=1e-9)
    ((low, high),) = stretches("grpo", "advantage < 0", epsilon=0.3)
    assert (low, high) == (pytest.approx(math.log(0.7), rel=1e-9), math.inf)


@pytest.mark.parametrize(
    "name",
    [
        *("dpo", "simpo", "kto", "orpo", "dpop", "dpo-shift", "gate-dpo", "cw-dpo"),
        "unlikelihood",
    ],
)
def test_rejected_is_lowered_everywhere_and_chosen_nowhere(name):
    for options in ({}, {"beta": 0.03}, {"beta": 5.0}):
        if "beta" in options and name == "unlikelihood":
            continue
        assert stretches(name, "rejected", **options) == ((-math.inf, math.inf),)
        assert stretches(name, "chosen", **options) == ()


def test_single_responses_are_never_or_always_lowered():
    for name in ("sft", "sft-mean"):
        assert negative_gradient(loss_named(name)).in_words == "never"
    for name in ("gradient-ascent", "npo"):
        assert negative_gradient(loss_named(name)).in_words == "always"


def test_a_boundary_that_moves_with_the_other_response_says_how_far():
    found = negative_gradient(loss_named("cal-dpo", beta=0.1)).lowered["rejected"]
    ((low, high),) = found.stretches
    # 2 (r + 5) + sigmoid(r) = 0 with the chosen at its reference
    assert 2 * (low + 5) + 1 / (1 + math.exp(-low)) == pytest.approx(0, abs=1e-9)
    assert high == math.inf
    assert found.elsewhere == (pytest.approx(-5.5), pytest.approx(-5.0))


@dataclass(frozen=True)
class Planted(PairLoss):
    """Lowers the rejected while 2 < margin < 3 or margin > 7, the chosen never."""

    name = "planted"
    needs_reference = True
    reach = 12.5

    def each(self, pairs):
        h, (chosen, rejected) = pairs.margin().detach(), pairs.log_ratios()
        lowered = ((h > 2) & (h < 3)) | (h > 7)
        return 0 * chosen + (lowered.to(h) - 0.5) * rejected


def test_planted_stretches_are_found():
    found = negative_gradient(Planted()).lowered
    assert found["chosen"].stretches == ()
    rejected = found["rejected"]
    assert rejected.coordinate == "margin"
    flat = [end for pair in rejected.stretches for end in pair]
    assert flat == [pytest.approx(2), pytest.approx(3), pytest.approx(7), math.inf]
    assert rejected.in_words == "once 2 < margin < 3 or once margin > 7"


@dataclass(frozen=True)
class Backwards(Planted):
    """Lowers the rejected once the margin is below -2."""

    def each(self, pairs):
        chosen, rejected = pairs.log_ratios()
        return -chosen + (-2 - pairs.margin().detach()) * rejected


def test_a_stretch_that_training_does_not_start_in_begins_once():
    rejected = negative_gradient(Backwards()).lowered["rejected"]
    assert rejected.in_words == "once margin < -2"


def test_words_say_while_or_once_by_where_training_starts():
    words = negative_gradient(loss_named("ipo")).in_words
    assert words == "chosen: once margin > 5; rejected: while margin < 5"
    words = negative_gradient(loss_named("sppo")).in_words
    assert words.endswith("rejected: while its log-ratio > -5")
    words = negative_gradient(loss_named("slic")).in_words
    assert words == "chosen: never; rejected: while gap < 1"
