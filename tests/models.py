"""Small random models and tokenizers, made here: no weights are downloaded."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "gpt_neox": {"num_hidden_layers": 2, "num_attention_heads": 2},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2},
    "qwen2": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 16,
        "final_logit_softcapping": 5.0,
    },
    "cohere": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "mamba2": {
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 16,
    },
}

TEXT = [
    "\n\nHuman: How do I clean a copper kettle?\n\nAssistant: Rub it with vinegar.",
    "\n\nHuman: What should I feed a young rabbit?\n\nAssistant: Some hay, twice.",
    "The quick brown fox jumps over the lazy dog while a poet sang at dawn.",
]


def byte_tokenizer(vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<|endoftext|>` as EOS and padding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        TEXT, vocab_size, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def tiny_model(
    family: str = "gpt2", dtype: torch.dtype = torch.float32, seed: int = 0, **more: Any
) -> Any:
    """A random model of a family, small, with logits spread as a trained model's."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64}
    if family == "gpt2":
        sizes = {}
    if family == "mamba2":
        sizes = {"hidden_size": 32}
    tokens = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(
        family, **{**sizes, **FAMILIES[family], **tokens, "pad_token_id": 0, **more}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


def save_tiny(path: Path, family: str = "gpt2", **more: Any) -> str:
    """Save a tiny model with its tokenizer; returns the folder as text."""
    tiny_model(family, **more).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)
