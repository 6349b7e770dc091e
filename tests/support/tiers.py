"""Pairs, and the plain forward of any model on them, written out: what is right.

One sequence at a time, all of its logits, a log-softmax in float64. Prompts and
responses are longer than the sliding windows of the models.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from models import byte_tokenizer, shared_model
from transformers import AttentionInterface

from learndyn.measure import tree_attention as tree_module
from learndyn.measure.tree_attention import _NAME
from learndyn.probes.probe import Probe, ProbeSet
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes, tokenize
from learndyn.record.observation import PROBE_COLUMNS, Observation


TOLERANCE = 2e-5
"""Nats per token."""

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
        # A delta rule (qwen3_next) makes 3.6e-5 of float32 rounding at single tokens.
        assert error.max() < 5 * atol, (name, error.argmax())
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


def rewire(monkeypatch, model: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    """`change` alters, in place, what the model's forward is given by name."""
    forward = type(model).forward

    @functools.wraps(forward)
    def changed(self, *args, **inputs):
        change(inputs)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", changed)


def replace_attention(monkeypatch, function: Callable[..., Any]) -> None:
    monkeypatch.setattr(tree_module, "_tree_attention", function)
    monkeypatch.setitem(AttentionInterface._global_mapping, _NAME, function)


def told_of(family: str, name: str) -> str:
    """What a warning must match: the model's class, the culprit and a number."""
    return rf"(?s){type(shared_model(family)).__name__}.*{name}.*\d\.?\d*(e-0\d)?"


def few_probes(reverse: bool = False) -> TokenizedProbes:
    """Two prompts of four kinds; one response is end-of-text alone."""
    responses = {
        "chosen": " Rub it with vinegar and a cloth until it shines.",
        "rejected": " Whatever.",
        "irrelevant_train": " Some hay, twice a day, and fresh water for the rabbit.",
        "random_words": "",
    }
    items = [
        Probe(f"p{i}", kind, f"\n\nHuman: {question}\n\nAssistant:", text)
        for i, question in enumerate(["How do I clean a copper kettle?", "Why?"])
        for kind, text in responses.items()
    ]
    return tokenize(
        ProbeSet(tuple(items[::-1] if reverse else items)), byte_tokenizer()
    )
