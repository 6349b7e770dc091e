"""The kernel between probes: exact, by ghosts, sketched, and whether it stays."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import byte_tokenizer, rough_model, shared_model, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from learndyn.diagnose.intervals import spearman
from learndyn.errors import BadInput
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel import ghost as ghosts
from learndyn.forces.kernel.entk import _ghost_bytes, entk
from learndyn.forces.kernel.ghost import Ghost, NotCovered
from learndyn.forces.kernel.sketch import CountSketch, ProbeGradients
from learndyn.forces.kernel.stability import KernelWatch, Sketches, drift
from learndyn.measure.load import weights_hash
from learndyn.measure.score import Scorer
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import tokenize


KINDS = {
    "chosen": " Use vinegar, then wait {} days.",
    "rejected": " No idea, maybe {} walks.",
    "irrelevant_train": " hay",
}
LAID_OUT = ["gpt2", "llama", "qwen2"]  # GPT-2's and Qwen2's embeddings are tied


def watched(prompts=4):
    rows = [
        {
            "prompt_id": f"p{i}",
            "kind": kind,
            "prompt": f"\n\nHuman: What of case {i}{'?' * (1 + i % 3)}\n\nAssistant:",
            "response": text.format(i + 2),
            "split": "train",
        }
        for i in range(prompts)
        for kind, text in KINDS.items()
    ]
    return tokenize(ProbeSet.from_rows(rows), byte_tokenizer())


def plain_gradients(model, pairs):
    """Flat gradients of log pi(response | prompt), one plain forward each."""
    found = []
    for pair in pairs:
        ids = torch.tensor([(*pair.prompt_ids, *pair.response_ids)])
        with sdpa_kernel(SDPBackend.MATH):
            logits = model(ids).logits[0, len(pair.prompt_ids) - 1 : -1]
        labels = torch.tensor(pair.response_ids)[:, None]
        logp = logits.log_softmax(-1).gather(-1, labels).sum()
        parts = torch.autograd.grad(logp, list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def gradients_of(model, probes, pattern=None):
    reader = TokenLogps.of(Scorer.attach(model, probes.pairs))
    return ProbeGradients.of(reader, pattern)


def relative(found, true):
    """Largest error as a share of the gradients' norms."""
    norms = np.sqrt(true.diagonal())
    return float((np.abs(found - true) / (norms[:, None] * norms)).max())


def off_diagonal(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


def test_exact_is_the_explicit_product_of_gradients():
    model, probes = rough_model("gpt2", torch.float64), watched()
    found = entk(model, probes, method="exact")
    each = plain_gradients(model, probes.pairs)
    assert relative(found.kernel, (each @ each.T).numpy()) < 1e-10
    assert found.method == "exact"
    assert found.sketch is None


def test_exact_does_not_depend_on_how_many_gradients_are_held():
    model, probes = shared_model("qwen2"), watched()
    one = gradients_of(model, probes).n_bytes
    whole = entk(model, probes, method="exact").kernel
    for held in (0, 2, 5, 9):
        blocks = entk(model, probes, method="exact", memory=held * one).kernel
        assert relative(blocks, whole) < 1e-12, held


@pytest.mark.parametrize(
    "family", [*LAID_OUT, "gpt_neox", "phi", "granite", "falcon", "bloom"]
)
def test_ghost_is_exact(family):
    model, probes = shared_model(family), watched()
    # the padding id among the prompts: a padding row has no gradient
    pairs = [replace(p, prompt_ids=(0, 0, *p.prompt_ids[2:])) for p in probes.pairs]
    probes = replace(probes, pairs=tuple(pairs))
    exact = entk(model, probes, method="exact").kernel
    found = entk(model, probes, method="ghost")
    assert relative(found.kernel, exact) < 1e-6
    assert found.method == "ghost"


@pytest.mark.parametrize("family", LAID_OUT)
def test_ghost_does_not_depend_on_how_much_is_held(family):
    model, probes = shared_model(family), watched()
    whole = entk(model, probes, method="ghost").kernel
    blocks = entk(model, probes, method="ghost", memory=0).kernel
    # float32 gradients, computed in other batches: their last bits are the machine's
    assert relative(blocks, whole) < 1e-6


def test_a_ghost_without_the_cross_terms_of_tied_embeddings_is_refused(monkeypatch):
    real = ghosts._gram

    def without(a, b):
        return real(a, b) * (a.ndim == b.ndim)

    monkeypatch.setattr(ghosts, "_gram", without)
    for family in ("gpt2", "qwen2"):
        with pytest.raises(NotCovered, match="off by"):
            Ghost.attach(gradients_of(shared_model(family), watched()))
    Ghost.attach(gradients_of(shared_model("llama"), watched()))  # has none


@pytest.mark.parametrize(
    ("family", "why"),
    [("gemma2", "shared by modules"), ("opt", "embed_positions"), ("gpt_oss", "sinks")],
)
def test_a_model_without_ghosts_is_sketched_and_says_why(family, why):
    model, probes = shared_model(family), watched(2)
    found = entk(model, probes, memory=1000, size=64)
    assert found.method == "sketch"
    assert why in found.why
    with pytest.raises(BadInput, match=f"ghost is wrong .*{why}"):
        entk(model, probes, method="ghost")


def test_auto_takes_the_first_method_that_fits_into_memory():
    wide = {"hidden_size": 128, "intermediate_size": 512}
    model, probes = tiny_model("gpt_neox", **wide), watched(2)
    gradients = gradients_of(model, probes)
    all_of_them = len(probes) * gradients.n_bytes
    factors = len(probes) * _ghost_bytes(Ghost.attach(gradients))
    assert factors < all_of_them
    for memory, method in (
        (all_of_them, "exact"),
        (all_of_them - 1, "ghost"),
        (factors - 1, "sketch"),
    ):
        found = entk(model, probes, memory=memory, size=64)
        assert (found.method, str(memory) in found.why) == (method, True)


@pytest.mark.parametrize("family", LAID_OUT)
def test_cosines_of_sketches_are_off_by_less_than_1_5_over_the_root_of_k(family):
    model, probes = shared_model(family), watched()
    exact = off_diagonal(entk(model, probes, method="exact").cosine)
    once = entk(model, probes, method="sketch", size=1024)
    assert once.sketch.shape == (len(probes), 1024)
    gradients = gradients_of(model, probes)
    each = [gradients[row] for row in range(len(probes))]
    for size in (1024, 8192):
        misses = []
        for seed in range(4):
            sketches = torch.stack([CountSketch(size, seed)(g) for g in each])
            if (size, seed) == (1024, 0):
                assert np.allclose(sketches, once.sketch, rtol=1e-5, atol=1e-5)
            unit = torch.nn.functional.normalize(sketches.double()).numpy()
            misses.append(off_diagonal(unit @ unit.T) - exact)
        assert np.sqrt(np.mean(np.square(misses))) < 1.5 / np.sqrt(size)


def test_a_sketch_is_unbiased_and_its_error_falls_with_its_length():
    chance = torch.Generator().manual_seed(0)
    a = {
        n: torch.randn(s, generator=chance).double() for n, s in (("x", 700), ("y", 9))
    }
    b = {n: a[n] + torch.randn(len(a[n]), generator=chance) for n in a}
    true = sum(float(a[n] @ b[n]) for n in a)
    scale = np.sqrt(
        sum(float(a[n] @ a[n]) for n in a) * sum(float(b[n] @ b[n]) for n in a)
    )
    spread = {}
    for size in (64, 1024):
        tries = [CountSketch(size, seed) for seed in range(400)]
        found = np.array([float(s(a) @ s(b)) for s in tries])
        error = found.std(ddof=1) / np.sqrt(len(found))
        assert abs(found.mean() - true) < 3.5 * error
        spread[size] = found.std() / scale
    assert spread[64] < 1.5 / 8
    assert 3 < spread[64] / spread[1024] < 5.3


@pytest.mark.parametrize("method", ["exact", "ghost", "sketch"])
def test_the_kernel_is_symmetric_and_has_no_negative_eigenvalue(method):
    found = entk(shared_model("qwen2"), watched(), method=method, size=64)
    assert np.array_equal(found.kernel, found.kernel.T)
    values = np.linalg.eigvalsh(found.kernel)
    assert values[0] > -1e-6 * values[-1]
    assert np.array_equal(found.cosine.diagonal(), np.ones(len(found.kernel)))
    assert np.abs(found.cosine).max() <= 1 + 1e-12


@pytest.mark.parametrize("method", ["exact", "ghost", "sketch"])
def test_reordered_probes_have_the_reordered_kernel(method):
    model, probes = shared_model("gpt2"), watched()
    order = np.random.default_rng(0).permutation(len(probes))
    found = entk(model, probes, method=method, size=512).kernel
    again = entk(model, probes.select(order.tolist()), method=method, size=512).kernel
    assert relative(again, found[np.ix_(order, order)]) < 1e-6


def test_neither_padding_nor_batch_nor_layout_changes_the_kernel():
    model, probes = rough_model("llama", torch.float64), watched()
    true = entk(model, probes, method="exact").kernel
    for settings in (
        {"tier": "padded", "padding_side": "left", "batch_size": 3},
        {"tier": "alone"},
        {"tier": "cached"},
    ):
        found = entk(model, probes, method="exact", **settings).kernel
        assert relative(found, true) < 1e-6, settings  # float32 within, see models


def test_chosen_parameters_give_their_part_of_the_kernel():
    model, probes = shared_model("llama"), watched()
    whole = entk(model, probes, method="exact").kernel
    for method in ("exact", "ghost"):
        parts = [
            entk(model, probes, method=method, parameters=pattern).kernel
            for pattern in ("embed_tokens", "lm_head", r"layers\.|model\.norm")
        ]
        assert relative(sum(parts), whole) < 1e-6


def test_an_adapter_has_the_kernel_of_its_own_parameters():
    peft = pytest.importorskip("peft")
    model = rough_model("qwen2")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.eval()
    probes = watched()
    gradients = gradients_of(wrapped, probes)
    assert all("lora" in name for name in gradients.parameters)
    exact = entk(wrapped, probes)
    assert exact.method == "exact"
    assert relative(entk(wrapped, probes, method="ghost").kernel, exact.kernel) < 1e-6


def test_the_model_is_left_as_it_was():
    model, probes = rough_model("gpt2"), watched(2)
    model.train()
    before, state = weights_hash(model), torch.get_rng_state()
    for method in ("exact", "ghost", "sketch"):
        entk(model, probes, method=method, size=64)
    assert weights_hash(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_computed_is_refused_with_the_reason():
    model, probes = rough_model("gpt2"), watched(2)
    with pytest.raises(BadInput, match=r"none of the 28 .*transformer\.wte\.weight"):
        entk(model, probes, parameters="no such name")
    with pytest.raises(BadInput, match="not a regular expression"):
        entk(model, probes, parameters="(")
    with pytest.raises(BadInput, match="power of two"):
        entk(model, probes, size=1000)
    # positions that no probe reaches, so that their gradient is zero
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
    with pytest.raises(BadInput, match=r"(?s)6 of 6 probes.*0: chosen of p0: .* 0\.0"):
        entk(model, probes, parameters=r"h\.0")
    with torch.no_grad():
        model.transformer.wte.weight.fill_(torch.nan)
    with pytest.raises(BadInput, match=r"(?s)6 of 6 probes.*is nan"):
        entk(model, probes, method="exact")
    model.requires_grad_(False)
    with pytest.raises(BadInput, match=r"no parameter .* has requires_grad"):
        entk(model, probes, method="exact")


def test_every_process_makes_the_same_sketch():
    part = torch.arange(1, 11, dtype=torch.float64)
    sketch = CountSketch(8, 3)({"a.weight": part, "b": -part})
    # Written down by another process, whose hashes of strings were other ones: a run
    # that was begun with an older version must find the same.
    assert sketch.tolist() == [-18, 7, 19, -3, 16, 4, 3, 2]


def test_a_sketch_depends_on_seed_and_name():
    part = torch.arange(1, 100, dtype=torch.float32)
    first = CountSketch(64, 0)({"a": part})
    assert torch.equal(first, CountSketch(64, 0)({"a": part.reshape(9, 11)}))
    assert not torch.equal(first, CountSketch(64, 1)({"a": part}))
    assert not torch.equal(first, CountSketch(64, 0)({"b": part}))


def test_a_kernel_that_has_not_moved_has_no_drift(tmp_path):
    model, probes = shared_model("gpt2"), watched()
    watch = KernelWatch(size=512, seed=4)
    first = watch.look(model, probes.pairs)
    pq.write_table(first.to_table(), tmp_path / "first.parquet")
    kept = Sketches.from_table(pq.read_table(tmp_path / "first.parquet"))
    assert np.array_equal(kept.values, first.values)
    reader = TokenLogps.of(Scorer.attach(model, probes.pairs))
    for now in (first, watch.look(reader, probes.pairs)):
        found = drift(kept, now)
        assert found.rank_correlation == pytest.approx(1, abs=1e-9)
        assert found.self_cosine == pytest.approx(1, abs=1e-9)
        assert found.kernel_cosine == pytest.approx(1, abs=1e-9)


def test_drift_of_sketches_is_that_of_the_gradients():
    probes = watched()
    before, after = rough_model("gpt2"), rough_model("gpt2")
    with torch.no_grad():
        for p in after.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
    watch = KernelWatch(size=2**14)
    found = drift(*(watch.look(m, probes.pairs) for m in (before, after)))
    then, now = (plain_gradients(m, probes.pairs).double() for m in (before, after))
    own = torch.cosine_similarity(then, now).mean()
    assert found.self_cosine == pytest.approx(float(own), abs=0.02)
    kernels = [(g @ g.T).flatten() for g in (then, now)]
    true = torch.cosine_similarity(*kernels, dim=0)
    assert found.kernel_cosine == pytest.approx(float(true), abs=0.02)
    unit = [torch.nn.functional.normalize(g) for g in (then, now)]
    rank = spearman(*(off_diagonal((g @ g.T).numpy()) for g in unit))
    assert found.rank_correlation == pytest.approx(rank, abs=0.05)
    assert found.self_cosine < 0.99


def test_spearman_is_the_correlation_of_mean_ranks():
    assert spearman(np.array([1.0, 2, 3]), np.array([5.0, 7, 70])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), -np.array([5.0, 7, 70])) == pytest.approx(-1)
    # ranks 1.5 1.5 3 4 against 1 2 3 4: sxy 4.5, sxx 4.5, syy 5
    tied = spearman(np.array([2.0, 2, 3, 4]), np.array([1.0, 2, 3, 4]))
    assert tied == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_sketches_that_cannot_be_compared_are_refused():
    model, probes = shared_model("gpt2"), watched(2)
    first = KernelWatch(64).look(model, probes.pairs)
    for other in (
        KernelWatch(128).look(model, probes.pairs),
        KernelWatch(64, seed=1).look(model, probes.pairs),
        KernelWatch(64, parameters="wte").look(model, probes.pairs),
        KernelWatch(64).look(model, probes.pairs[::-1]),
    ):
        with pytest.raises(BadInput, match="cannot be compared"):
            drift(first, other)
    two = KernelWatch(64).look(model, probes.pairs[:2])
    with pytest.raises(BadInput, match="three or more pairs"):
        drift(two, two)
    with pytest.raises(BadInput, match="power of two"):
        KernelWatch(63)
    with pytest.raises(BadInput, match="holds no sketches"):
        Sketches.from_table(first.to_table().replace_schema_metadata(None))
    dead = Sketches(first.values * np.nan, first.seed, first.what)
    with pytest.raises(BadInput, match="zero or not finite, at positions"):
        drift(first, dead)
