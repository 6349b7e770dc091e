"""Small random models and tokenizers, made here: no weights are downloaded."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


WINDOW = 16
"""Tokens that sliding attention sees, itself included."""

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
ONE_KEY: dict[str, Any] = {**SIZES, "num_key_value_heads": 1}
TWO_KEYS: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
MIXED = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "gpt_neox": SIZES,
    "llama": SIZES,
    "qwen2": {**ONE_KEY, "tie_word_embeddings": True},
    "qwen3": {**ONE_KEY, "head_dim": 16},
    "qwen3_moe": {**ONE_KEY, **EXPERTS, "head_dim": 16, "num_experts": 4},
    "phi": SIZES,
    "olmo2": SIZES,
    "deepseek_v3": {
        **TWO_KEYS,
        **LATENT,
        **EXPERTS,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    },
    "mistral": {**ONE_KEY, "head_dim": 16, "sliding_window": WINDOW},
    "gemma2": {
        **ONE_KEY,
        **MIXED,
        "head_dim": 16,
        "query_pre_attn_scalar": 1,  # scores of the size of the cap
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        **ONE_KEY,
        "num_hidden_layers": 3,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "gpt_oss": {
        **ONE_KEY,
        **MIXED,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "cohere": TWO_KEYS,
    "cohere2": {**TWO_KEYS, **MIXED},
    "granite": {
        **TWO_KEYS,
        "logits_scaling": 8.0,
        "attention_multiplier": 0.5,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
    },
    "minicpm3": {**TWO_KEYS, **LATENT, "v_head_dim": 8, "dim_model_base": 16},
    "nanochat": {**TWO_KEYS, "final_logit_softcapping": 5.0},
    "gptj": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 64,
        "rotary_dim": 8,
        "n_positions": 512,
    },
    "falcon": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_hidden_size": 64,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "expansion_ratio": 2},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 16,
    },
    "qwen3_next": {
        **ONE_KEY,
        **EXPERTS,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
    },
    "falcon_h1": {
        **ONE_KEY,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.5,
    },
    "llama4_text": {
        **ONE_KEY,
        "head_dim": 16,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
        "attention_chunk_size": WINDOW,
    },
    "lfm2": {**ONE_KEY, "layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {
        **ONE_KEY,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
        "attention_window_size": WINDOW,
        "logits_soft_cap": 5.0,
    },
}
"""Sizes at which every family's peculiarities show in sequences of 50 tokens."""

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
    tokens = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(
        family, **{**FAMILIES[family], **tokens, "pad_token_id": 0, **more}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


def rough_model(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **more: Any
) -> Any:
    """A tiny model in which every part counts, so that a mistake in any shows.

    Fresh biases, norms and sinks are 0 or 1, attention is nearly even, and scaled or
    capped logits are small: here they have a standard deviation of about 2.
    """
    model = tiny_model(family, dtype, seed, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            else:
                parameter.mul_(8 if parameter.ndim == 3 else 2)  # 3 axes: experts
        head = model.get_output_embeddings()
        for _ in range(2):  # a cap makes it less than proportional
            logits = model(torch.arange(1, 65)[None]).logits
            head.weight.mul_(2 / logits.float().std())
    return model


@cache
def shared_model(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same `rough_model` for all tests that leave it as it is."""
    return rough_model(family, dtype)


def save_tiny(path: Path, family: str = "gpt2", **more: Any) -> str:
    """Save a tiny model with its tokenizer; returns the folder as text."""
    tiny_model(family, **more).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)
