"""LBK and SignDelta: the paper's, from a real step, and the notebook's, from a run."""

import numpy as np
import pytest
import torch
from synthetic import write_run
from test_kernel_norm import as_probes, jacobian, random_pairs, small_model

from learndyn.errors import BadInput
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel.lbk import a_norm_squared, proxies
from learndyn.measure.load import weights_hash
from learndyn.measure.score import Scorer
from learndyn.paper.finetuning.learning_one_kind import (
    notebook_lbk,
    notebook_sign_delta,
)
from learndyn.record.trajectory import Trajectory


LR = 1e-4


def one_step(model, pair, lr=LR):
    """An SGD step of SFT on one response: its displacement, and its pushes."""
    push = np.full(len(pair.response_ids), -1.0)
    reader = TokenLogps.of(Scorer.attach(model, [pair]))
    gradient = reader.pullback(push)
    return {name: -lr * part for name, part in gradient.items()}, push


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lbk_is_below_the_norms_of_the_exact_kernel(family):
    model = small_model(family)
    pairs, trained = random_pairs(4, 0), random_pairs(2, 1)
    for one in trained:
        direction, push = one_step(model, one)
        found = proxies(model, as_probes(pairs), direction, [one], push)
        seen = jacobian(model, one)
        for lbk, pair in zip(found.lbk, pairs, strict=True):
            kernel = jacobian(model, pair) @ seen.T
            largest = float(torch.linalg.matrix_norm(kernel, 2))
            whole = float(kernel.norm())
            assert 0 < lbk < 1.01 * LR**2 * largest**2 <= 1.02 * LR**2 * whole**2
            assert lbk > 1e-4 * LR**2 * largest**2


def test_the_change_is_eta_a_k_g():
    model, pair, one = small_model(), random_pairs(1, 0)[0], random_pairs(1, 1)[0]
    direction, push = one_step(model, one, lr=1e-6)
    found = proxies(model, as_probes([pair]), direction, [one], push)

    def probabilities(p):
        ids = torch.tensor([(*p.prompt_ids, *p.response_ids)])
        with torch.no_grad():
            return model(ids).logits[0, len(p.prompt_ids) - 1 : -1].softmax(-1)

    pi, trained = probabilities(pair), probabilities(one)
    g = trained - torch.nn.functional.one_hot(torch.tensor(one.response_ids), 40)
    kernel = jacobian(model, pair) @ jacobian(model, one).T
    moved = (kernel @ g.flatten()).reshape(pi.shape)
    a = torch.eye(40, dtype=torch.float64) - pi[:, None, :]
    change = -1e-6 * torch.einsum("mvw,mw->mv", a, moved)
    assert found.change2[0] == pytest.approx(float(change.square().sum()), rel=1e-3)
    assert found.sign_delta[0] == pytest.approx(float(change.mean()), rel=1e-3)
    assert found.a_norm2[0] == pytest.approx(float(a.square().sum()), rel=1e-12)
    assert found.g_norm2 == pytest.approx(float(g.square().sum()), rel=1e-12)
    assert found.lbk[0] == found.change2[0] / (found.a_norm2[0] * found.g_norm2)


@pytest.mark.parametrize("vocabulary", [2, 7, 40])
def test_the_norm_of_a_needs_no_matrix(vocabulary):
    logits = 3 * torch.randn(5, vocabulary, dtype=torch.float64)
    logp = logits.log_softmax(-1)
    a = torch.eye(vocabulary) - logp.exp()[:, None, :]
    torch.testing.assert_close(a_norm_squared(logp), a.square().sum((1, 2)))


def test_a_and_g_are_those_before_the_step_and_the_model_is_left_as_it_was():
    model, probes = small_model(), as_probes(random_pairs(3, 0))
    (one,) = random_pairs(1, 1)
    direction, push = one_step(model, one, lr=0.1)
    before = weights_hash(model)
    found = proxies(model, probes, direction, [one], push)
    small = {name: 1e-3 * part for name, part in direction.items()}
    less = proxies(model, probes, small, [one], push)
    assert weights_hash(model) == before
    np.testing.assert_array_equal(found.a_norm2, less.a_norm2)
    assert found.g_norm2 == less.g_norm2
    assert np.all(found.lbk > 100 * less.lbk)


def test_a_stronger_push_is_divided_out():
    model, probes = small_model(), as_probes(random_pairs(3, 0))
    (one,) = random_pairs(1, 1)
    direction, push = one_step(model, one, lr=1e-6)
    found = proxies(model, probes, direction, [one], push)
    doubled = {name: 2 * part for name, part in direction.items()}
    again = proxies(model, probes, doubled, [one], 2 * push)
    np.testing.assert_allclose(again.lbk, found.lbk, rtol=1e-4)


def test_pushes_that_do_not_fit_are_refused():
    model, probes = small_model(), as_probes(random_pairs(3, 0))
    (one,) = random_pairs(1, 1)
    direction, push = one_step(model, one)
    with pytest.raises(BadInput, match=rf"push has 1 entries, .* {len(push)} tokens"):
        proxies(model, probes, direction, [one], push[:1])
    with pytest.raises(BadInput, match="nothing pushes"):
        proxies(model, probes, direction, [one], 0 * push)
    with pytest.raises(BadInput, match="direction is zero"):
        proxies(model, probes, {n: 0 * d for n, d in direction.items()}, [one], push)


def test_the_notebooks_numbers_are_the_notebooks_formula(tmp_path):
    run = Trajectory.load(write_run(tmp_path / "run"))
    vocabulary = 50304
    chance = np.random.default_rng(0)  # what was written is the same at all steps
    for column in ("p_norm2", "p_gap"):
        run.columns[column][:] = chance.uniform(0.1, 0.9, run.columns[column].shape)
    for kind in ("chosen", "rejected"):
        logp = run.values("logp", kind)
        peak = vocabulary - 2 + vocabulary * run.values("p_norm2", kind)
        p_e = run.values("p_gap", "chosen")
        for t in range(len(run.steps) - 1):
            delta = logp[t + 1] - logp[t]
            divisor = np.mean(peak[t + 1] ** 0.5) ** 0.5 * np.mean(p_e[t + 1])
            size = sum(d**2 for d in delta) ** 0.5 / divisor
            assert notebook_lbk(run, kind, vocabulary)[t] == pytest.approx(size)
            signed = delta.mean() / divisor
            found = notebook_sign_delta(run, kind, vocabulary)[t]
            assert found == pytest.approx(signed)
            other = notebook_lbk(run, kind, vocabulary, error_kind="rejected")[t]
            gap = run.values("p_gap", "rejected")[t + 1].mean()
            assert other * gap == pytest.approx(size * np.mean(p_e[t + 1]))


def test_the_sign_of_the_notebooks_sign_delta_is_that_of_the_change(tmp_path):
    run = Trajectory.load(
        write_run(tmp_path / "run", drift={"chosen": 5, "rejected": -9})
    )
    assert np.all(notebook_sign_delta(run, "chosen", 320) > 0)
    assert np.all(notebook_sign_delta(run, "rejected", 320) < 0)
    assert np.all(notebook_lbk(run, "rejected", 320) > 0)


def test_runs_without_a_change_are_refused(tmp_path):
    run = Trajectory.load(write_run(tmp_path / "run"))
    with pytest.raises(BadInput, match="vocabulary is 1"):
        notebook_lbk(run, "chosen", 1)
    with pytest.raises(BadInput, match="no probe of kind"):
        notebook_lbk(run, "nothing", 320)
    alone = Trajectory.load(write_run(tmp_path / "one", steps=(0,)))
    with pytest.raises(BadInput, match="a change needs two"):
        notebook_sign_delta(alone, "chosen", 320)
