"""Attention with further keys and values in front, for every way the encoders compute attention.

Prefixes have no position: they carry no rotary angle and no relative distance, and the tokens' own positions stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from petl_bench.backbones.attention import MASKED_PAIRWISE, attention_kernel

# The name under which attention modules with a prefix look up their attention function.
IMPLEMENTATION = "petl_bench_prefix"

# How an attention module gives the prefix its keys and values, each (heads, length, head width); None: none active.
PrefixSource = Callable[[], tuple[torch.Tensor, torch.Tensor] | None]


def prefixed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function for transformers' interface: puts the prefix in front and calls the model's own kernel.

    Args:
        module: The attention module; its `prefix_source` gives the prefix, its `plain_config` names the kernel.
        query: Shape (batch, heads, tokens, head width), as `key` and `value`.
        key: See `query`.
        value: See `query`.
        attention_mask: None, boolean or additive, shape (batch, 1, 1 or tokens, tokens).
        **kwargs: What the kernel takes.
    """
    source: Any = module.prefix_source
    prefix = source()
    if prefix is not None:
        heads, length, width = prefix[0].shape
        rows = (query.shape[0], heads, length, width)
        key, value = (
            torch.cat([part.to(tensor.dtype).expand(rows), tensor], dim=2)
            for part, tensor in zip(prefix, (key, value), strict=True)
        )
        attention_mask = _widened(attention_mask, length)
    return _kernel(module)(module, query, key, value, attention_mask, **kwargs)


def _widened(mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """The mask with `length` columns in front that every query may see."""
    if mask is None:
        return None
    return nn.functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)


def _kernel(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    plain_config: Any = module.plain_config
    name = plain_config._attn_implementation
    # A prefix widens the mask.
    if name not in MASKED_PAIRWISE:
        raise ValueError(f"prefix tuning needs attn_implementation {' or '.join(MASKED_PAIRWISE)}, not {name!r}")
    return attention_kernel(module, name)


def disentangled_attention(
    module: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    output_attentions: bool = False,
    query_states: torch.Tensor | None = None,
    relative_pos: torch.Tensor | None = None,
    rel_embeddings: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """DeBERTa's attention with a prefix: `DisentangledSelfAttention.forward` of transformers 5, which has no interface.

    The prefix takes part in the content-to-content term alone.

    Returns:
        Context of shape (batch, tokens, d); the probabilities where asked for, else None.
    """
    keys, values = module.prefix_source()
    heads, length, _ = keys.shape
    split = module.transpose_for_scores
    query = split(module.query_proj(hidden_states if query_states is None else query_states), heads)
    key, value = split(module.key_proj(hidden_states), heads), split(module.value_proj(hidden_states), heads)
    batch = hidden_states.shape[0]

    def repeated(part: torch.Tensor) -> torch.Tensor:
        return part.to(query.dtype).repeat(batch, 1, 1)

    num_terms = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    # Divided as the library does it, so that a prefix of no weight changes no bit.
    scale = torch.sqrt(torch.tensor(query.size(-1), dtype=torch.float) * num_terms).to(query.dtype)
    scores = torch.bmm(query, key.transpose(-1, -2) / scale)
    if module.relative_attention:
        embeddings = module.pos_dropout(rel_embeddings)
        scores = scores + module.disentangled_attention_bias(query, key, relative_pos, embeddings, num_terms)
    scores = torch.cat([torch.bmm(query, repeated(keys).transpose(-1, -2) / scale), scores], dim=-1)
    mask = nn.functional.pad(attention_mask.bool(), (length, 0), value=True)
    scores = scores.view(batch, heads, *scores.shape[1:]).masked_fill(~mask, torch.finfo(query.dtype).min)
    probabilities = module.dropout(scores.softmax(dim=-1))
    context = torch.bmm(probabilities.flatten(0, 1), torch.cat([repeated(values), value], dim=1))
    context = context.view(batch, heads, *context.shape[1:]).transpose(1, 2).flatten(2)
    return context, probabilities if output_attentions else None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, prefixed_attention)
