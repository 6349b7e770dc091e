"""Attention over packed prefix trees, as a function that transformers models call.

transformers looks an attention function up by name, in a registry, at every call. Under
the name `_NAME` it finds `_tree_attention`, which gives every response its prompt and
itself to attend to. Nothing is masked out that was computed first: a response of a
packed sequence costs what it costs alone. `attending` makes a model use it, for the
length of a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from learndyn.measure.plan import Pack, Segment


_NAME = "learndyn_tree"


@dataclass(eq=False)
class _PackInUse:
    """The pack that is being read, and what its layers share."""

    pack: Pack
    calls: int = 0
    masks: dict[Any, Any] = field(default_factory=dict)

    def shared(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.masks:
            self.masks[key] = make()
        return self.masks[key]


_PACK: ContextVar[_PackInUse] = ContextVar("learndyn_tree_layout")


@contextmanager
def attending(model: nn.Module, pack: Pack) -> Iterator[_PackInUse]:
    """Within the block, `model` reads the packed sequence `pack`.

    Yields what counts the calls: 0 afterwards means that the model does not look its
    attention up, and attended in its own way.
    """
    if _NAME not in AttentionInterface().valid_keys():
        AttentionInterface.register(_NAME, _tree_attention)
    configs = _configs(model)
    own = [config._attn_implementation for config in configs]
    layout = _PackInUse(pack)
    token = _PACK.set(layout)
    try:
        for config in configs:
            # Past the property, whose setter writes to all sub-configs too: they may
            # name attention functions of their own, which would be lost.
            config._attn_implementation_internal = _NAME
        yield layout
    finally:
        for config, name in zip(configs, own, strict=True):
            config._attn_implementation_internal = name
        _PACK.reset(token)


def _configs(model: nn.Module) -> list[Any]:
    """Every config that a part of the model holds, once."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            configs[id(config)] = config
    return list(configs.values())


def _tree_attention(
    module: nn.Module,
    query: Float[Tensor, "1 head time d"],
    key: Float[Tensor, "1 kv_head time d"],
    value: Float[Tensor, "1 kv_head time d_value"],
    attention_mask: Any = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 time head d_value"], None]:
    """Causal attention of each segment to its prompt and itself.

    `scaling`, `sliding_window`, `softcap` and `s_aux` (attention sinks) are what the
    layer asks its attention function for.
    """
    layout = _PACK.get()
    layout.calls += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # grouped queries: each key serves `groups` heads in a row
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
    # torch's fused attention knows neither caps nor sinks.
    plain = softcap is None and s_aux is None
    if plain and query.device.type == "cuda":
        return _flex(layout, query, key, value, scale, sliding_window), None
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for segment in layout.pack.segments:
        own = query[:, :, segment.own]
        keys, values = _before(key, segment), _before(value, segment)
        mask = _mask(layout, segment, own.dtype, sliding_window)
        if plain:
            attended = functional.scaled_dot_product_attention(
                own, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
            )
        else:
            attended = _written_out(own, keys, values, mask, scale, softcap, s_aux)
        out[:, segment.own] = attended.transpose(1, 2)
    return out, None


def _before(states: Tensor, segment: Segment) -> Tensor:
    """The prompt and the segment itself."""
    if segment.is_prompt:
        return states[:, :, segment.own]
    # Copied, since the prompt and its response do not lie side by side. A mask over the
    # whole pack would need no copy, but time and memory in the square of its length.
    return torch.cat([states[:, :, segment.prompt], states[:, :, segment.own]], 2)


def _mask(
    layout: _PackInUse, segment: Segment, dtype: torch.dtype, window: int | None
) -> Tensor | None:
    """What is added to the scores; None for plain causal attention of a prompt."""
    own = segment.own.stop - segment.own.start
    before = 0 if segment.is_prompt else segment.prompt.stop - segment.prompt.start
    if window is not None and before + own <= window:
        window = None  # too short for the window to bite
    if not before and window is None:
        return None

    # By its shape, so that layers and segments of one length share a mask.
    of = (before, own, window, dtype)
    return layout.shared(of, lambda: _hiding(*of, layout.pack.ids.device))


def _hiding(
    before: int,
    own: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Minus infinity where one of `own` tokens must not look, at what came `before` or
    at another of them."""
    columns = torch.arange(before + own, device=device)
    back = columns[before:, None] - columns
    hidden = back < 0 if window is None else (back < 0) | (back >= window)
    zeros = torch.zeros(own, before + own, dtype=dtype, device=device)
    return zeros.masked_fill_(hidden, -torch.inf)


def _written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention whose scores are capped, or compete with sinks that have no value."""
    scores = (query @ key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        hidden = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    else:
        scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1)
        scores = torch.cat([scores, column.expand(*scores.shape[:-1], 1)], -1)
    # transformers' own eager attention takes this softmax in float32, too.
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=wide).to(value.dtype)
    return weights[..., : key.shape[-2]] @ value


def _flex(
    layout: _PackInUse,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """One kernel for all segments: many small ones would leave a GPU waiting."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    time = len(layout.pack.ids)
    tree, branch = layout.pack.tree, layout.pack.branch
    position = layout.pack.positions
    reach = time if window is None else window
    mask = layout.shared(
        ("flex", window),
        lambda: create_block_mask(
            lambda _batch, _head, at, to: (
                (at >= to)
                & (tree[at] == tree[to])
                & ((branch[to] == 0) | (branch[at] == branch[to]))
                & (position[at] - position[to] < reach)
            ),
            *(None, None, time, time),
            device=query.device.type,
        ),
    )
    run = flex_attention
    if query.device.type == "cuda":
        run = _COMPILED.setdefault("flex", torch.compile(flex_attention, dynamic=True))
    return run(query, key, value, block_mask=mask, scale=scale).transpose(1, 2)


_COMPILED: dict[str, Any] = {}
"""The compiled kernel, once per process."""
