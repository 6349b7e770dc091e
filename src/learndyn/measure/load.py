"""Models and tokenizers from disk or hub, with errors that say what to do."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from learndyn.errors import BadInput


_TOKENIZER_FILES = ("*token*", "vocab*", "*.model")


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """Load a causal language model, in float32 unless told otherwise.

    `source` is a folder or a hub id; a folder with a PEFT adapter is loaded with its
    base model.

    Raises:
        BadInput: if nothing loadable is there, or the model is not a causal LM.
    """
    source = str(source)
    adapter = Path(source) / "adapter_config.json"
    try:
        if adapter.is_file():
            return _load_adapter(source, dtype, trust_remote_code)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        # to list the mapping's keys would import every family: a second
        known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or trust_remote_code
        if config.is_encoder_decoder or not known:
            raise BadInput(
                f"{source} holds a {type(config).__name__}, which is not a causal "
                "language model. learndyn scores models that "
                "AutoModelForCausalLM can load."
            )
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except BadInput:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"cannot load a model from {source!r}: {_first_line(error)}\nGive a folder "
            "that save_pretrained wrote (config.json and weights), or a hub id."
        ) from error


def load_tokenizer(
    source: str | Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without padding token pads with EOS.

    Padding is masked everywhere, so no number depends on the token that pads.

    Raises:
        BadInput: if nothing loadable is there, or it has no EOS token.
    """
    folder = Path(source)
    if folder.is_dir() and not any(
        file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)
    ):
        # transformers would make one without a vocabulary, by the model's type alone
        raise BadInput(
            f"{source} holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)}. Save "
            "the tokenizer beside the model, with tokenizer.save_pretrained."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"cannot load a tokenizer from {str(source)!r}: {_first_line(error)}\n"
            "Give a folder that save_pretrained wrote, or a hub id."
        ) from error
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"the tokenizer of {source} has no EOS token, so the end of a response "
            "cannot be scored. Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def weights_hash(model: nn.Module, without: tuple[str, ...] = ()) -> str:
    """SHA-256 of all parameters and buffers, by name: equal iff bit-identical.

    Names that begin with one of `without` are left out.
    """
    digest = hashlib.sha256()
    # Sorted: two ways of loading list the same tensors in different orders.
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(without):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes: numpy knows no bfloat16, and -0.0 and NaN have bits of their own.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_adapter(source: str, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    try:
        from peft import AutoPeftModelForCausalLM
    except ImportError as error:
        raise BadInput(
            f"{source} holds a PEFT adapter, and peft is not installed: "
            "pip install 'learndyn[train]'."
        ) from error
    return AutoPeftModelForCausalLM.from_pretrained(
        source, dtype=dtype, trust_remote_code=trust_remote_code
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
