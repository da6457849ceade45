"""Grouped-query attention for the CPU without copying keys and values.

transformers repeats keys and values for every query head before it calls torch's attention; in a decode step that copy
costs more than the attention itself. Here the query heads of a group are stacked along the query axis instead, which
gives the same result.
"""

from typing import Any

import torch
from torch import Tensor

NAME = "estep_grouped"


def grouped_attention(  # noqa: PLR0913 (the calling convention of transformers)
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention.

    Args:
        query: [batch, heads, q, d]
        key: [batch, groups, k, d], where `groups` divides `heads`
        value: [batch, groups, k, d]
        attention_mask: [batch, 1, q, k], or None for plain causal attention.

    Returns:
        [batch, q, heads, d]
    """
    batch, heads, q, d = query.shape
    groups = key.shape[1]
    per_group = heads // groups
    causal = attention_mask is None and q > 1 and (is_causal is None or is_causal)
    if per_group == 1 or causal:
        if per_group > 1:
            key, value = (t.repeat_interleave(per_group, dim=1) for t in (key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, is_causal=causal
        )
    else:
        stacked = query.reshape(batch, groups, per_group * q, d)
        mask = attention_mask
        if mask is not None and q > 1:
            mask = mask.repeat(1, 1, per_group, 1)
        out = torch.nn.functional.scaled_dot_product_attention(stacked, key, value, attn_mask=mask, scale=scaling)
        out = out.reshape(batch, heads, q, d)
    return out.transpose(1, 2).contiguous(), None


def register() -> str:
    """Register the attention with transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
