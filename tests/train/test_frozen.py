"""Scores of a frozen model: kept for the same weights and tokens, only for those."""

import numpy as np
import pytest
import torch
from models import tiny_model
from peft import LoraConfig, get_peft_model

from learndyn.measure.score import Scorer
from learndyn.probes.tokenize import TokenizedPair
from learndyn.train.reference import _cache_folder, _cached_sums, check_reference


PAIRS = (
    TokenizedPair((1, 2, 3), (4, 5), False, True),
    TokenizedPair((1, 2), (3, 4, 5), False, True),
)


class Counted:
    """Hands out numbers and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.array([-1.0 * self.calls, -2.0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNDYN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_same_weights_and_tokens_are_scored_once(folder):
    compute = Counted()
    first = _cached_sums(tiny_model("llama"), PAIRS, compute)
    again = _cached_sums(tiny_model("llama"), PAIRS, compute)  # as another process
    assert compute.calls == 1
    np.testing.assert_array_equal(first, again)
    assert len(list(folder.rglob("*.npy"))) == 1


def other_weights(model):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-6
    return model, PAIRS


def other_settings(model):
    model.config.rms_norm_eps = 1e-3
    return model, PAIRS


def other_tokens(model):
    return model, (PAIRS[0], TokenizedPair((1, 2), (3, 4, 6), False, True))


def other_boundary(model):
    # The same ids in the same order, cut elsewhere.
    return model, (TokenizedPair((1, 2), (3, 4, 5), False, True), PAIRS[1])


def other_attention(model):
    model.config._attn_implementation = "eager"
    return model, PAIRS


@pytest.mark.parametrize(
    "change",
    [other_weights, other_settings, other_tokens, other_boundary, other_attention],
)
def test_anything_that_decides_a_number_is_in_the_key(folder, change):
    compute = Counted()
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    _cached_sums(*change(tiny_model("llama")), compute)
    assert compute.calls == 2


def adapted(seed: int):
    base = tiny_model("llama")
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM"))


def test_a_disabled_adapter_is_another_model_and_its_weights_decide_nothing(folder):
    model, compute = adapted(0), Counted()
    _cached_sums(model, PAIRS, compute)
    with model.disable_adapter():
        _cached_sums(model, PAIRS, compute)
    assert compute.calls == 2
    other = adapted(1)  # a fresh adapter on the same base
    with other.disable_adapter():
        _cached_sums(other, PAIRS, compute)
    assert compute.calls == 2
    _cached_sums(other, PAIRS, compute)
    assert compute.calls == 3


def test_weights_that_are_elsewhere_are_no_key(folder):
    # DeepSpeed's ZeRO-3 leaves parameters empty: any two models would look the same.
    model, compute = tiny_model("llama"), Counted()
    model.lm_head.weight.data = torch.empty(0)
    _cached_sums(model, PAIRS, compute)
    _cached_sums(model, PAIRS, compute)
    assert compute.calls == 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01", b"no array"])
def test_a_damaged_file_only_costs_time(folder, damage):
    compute = Counted()
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    (file,) = folder.rglob("*.npy")
    file.write_bytes(damage)
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    assert compute.calls == 2


def test_pickles_are_not_read(folder):
    compute = Counted()
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    (file,) = folder.rglob("*.npy")
    np.save(file, np.array([{}, {}], dtype=object), allow_pickle=True)
    _cached_sums(tiny_model("llama"), PAIRS, compute)
    assert compute.calls == 2


def test_a_folder_that_cannot_be_made_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LEARNDYN_CACHE", str(tmp_path / "file"))
    compute = Counted()
    assert _cached_sums(tiny_model("llama"), PAIRS, compute)[0] == -1.0
    assert _cached_sums(tiny_model("llama"), PAIRS, compute)[0] == -2.0


def test_where_scores_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("LEARNDYN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache_folder() == tmp_path / "learndyn"
    monkeypatch.setenv("LEARNDYN_CACHE", "")
    assert _cache_folder() is None


def test_the_check_at_step_0_scores_a_known_reference_no_more(folder, monkeypatch):
    scored, real = [], Scorer.attach.__func__

    def watched(cls, model, *args, **more):
        scored.append(model)
        return real(cls, model, *args, **more)

    monkeypatch.setattr(Scorer, "attach", classmethod(watched))
    policy, reference = tiny_model("llama"), tiny_model("llama")
    first = check_reference(policy, reference, PAIRS)
    again = check_reference(policy, reference, PAIRS)
    assert [model is policy for model in scored] == [True, False, True]
    assert first == again < 1e-5
