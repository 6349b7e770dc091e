"""Answers of a model to prompts, greedy or sampled, from a seed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from learndyn.measure.neutral import device_of, undisturbed


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[str]:
    """One answer to each prompt, up to EOS, special tokens left out.

    `temperature` 0 decodes greedily; otherwise every token is drawn from the whole
    distribution at that temperature (no top-k, no top-p). The model and all random
    states are left as they were. Answers do not depend on the global random state.
    """
    answers: list[str] = []
    batches = [
        list(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)
    ]
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # Named, since transformers draws from the 50 likeliest tokens by default.
        sampling = {"do_sample": True, "temperature": temperature}
        sampling |= {"top_k": 0, "top_p": 1.0}
    device = device_of(model)
    with undisturbed(model):  # which puts the random state back that this replaces
        torch.manual_seed(seed)
        for batch in progress(batches):
            ids, attention = _left_padded(tokenizer, batch, device)
            out = model.generate(
                input_ids=ids,
                attention_mask=attention,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **sampling,
            )
            answers += tokenizer.batch_decode(
                out[:, ids.shape[1] :], skip_special_tokens=True
            )
    return answers


def _left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers continue the right end of a row, so padding stands at the left."""
    rows = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    time = max(len(row) for row in rows)
    padding = tokenizer.pad_token_id
    ids = [[padding] * (time - len(row)) + row for row in rows]
    attention = [[0] * (time - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(attention, device=device)
