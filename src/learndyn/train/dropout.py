"""Dropout, all of it."""

from torch import nn


def disable_dropout(model: nn.Module) -> list[str]:
    """Set every dropout probability of a model to 0; returns the names of all changed.

    TRL's own helper reaches `nn.Dropout` modules alone. Attention dropout in
    transformers is functional: its probability is a number on the attention module
    (`attention_dropout` on Llama and GPT-NeoX), and it stays on.
    """
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = 0.0
            changed.append(name)
        for key, value in list(vars(module).items()):
            is_rate = "dropout" in key or key.endswith("pdrop")
            if is_rate and type(value) is float and value > 0:
                setattr(module, key, 0.0)
                changed.append(f"{name}.{key}")
    return changed
