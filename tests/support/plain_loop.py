"""SFT and DPO as the original DPO code trains, in plain torch: an oracle for recipes.

Nothing here is imported from learndyn or TRL. Order is the data's; batch 4; RMSprop;
lr warmed up as (s + 1)/(w + 1); gradients clipped at norm 10; float32; no dropout.
"""

import copy
from typing import Any

import torch
from torch.nn.functional import log_softmax, logsigmoid


Example = tuple[list[int], list[int]]
"""Prompt ids and response ids."""


def encode(tokenizer: Any, prompt: str, response: str) -> Example:
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return prompt_ids, [*response_ids, tokenizer.eos_token_id]


def summed_logp(model: Any, example: Example) -> torch.Tensor:
    """log pi(response | prompt), one sequence, no padding."""
    prompt, response = example
    ids = torch.tensor([prompt + response])
    logp = log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logp[rows, torch.tensor(response)].sum()


def sft_loss(model: Any, batch: list[Example]) -> torch.Tensor:
    """Summed over tokens, averaged over examples."""
    return -torch.stack([summed_logp(model, example) for example in batch]).mean()


def dpo_loss(
    model: Any, reference: Any, batch: list[tuple[Example, Example]], beta: float
) -> torch.Tensor:
    """Rafailov et al. 2023, Eq. 7."""
    losses = []
    for chosen, rejected in batch:
        with torch.no_grad():
            base = summed_logp(reference, chosen) - summed_logp(reference, rejected)
        margin = summed_logp(model, chosen) - summed_logp(model, rejected) - base
        losses.append(-logsigmoid(beta * margin))
    return torch.stack(losses).mean()


def train(
    model: Any, examples: list[Any], method: str, updates: int, lr: float, warmup: int
) -> Any:
    """Train a copy of `model` for `updates` batches of 4, in order, around again."""
    reference = copy.deepcopy(model).eval()
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.RMSprop(model.parameters(), lr=lr)
    batches = [examples[i : i + 4] for i in range(0, len(examples), 4)]
    for step in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / (warmup + 1), 1.0)
        batch = batches[step % len(batches)]
        if method == "sft":
            loss = sft_loss(model, batch)
        else:
            loss = dpo_loss(model, reference, batch, beta=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model
