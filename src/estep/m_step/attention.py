"""Attention for batches that are packed into one row (`estep.m_step.packing`): a rest sees the prefix and itself.

On CUDA in bfloat16 or float16, FlashAttention takes the row as ragged sequences, with a copy of the prefix's keys and
values for every rest. A copied position costs 1 to 4 KB per layer (1.5B to 8B), against 190 to 390 KB of activations
for a position of the row, and no products. Two passes merged by their log-sum-exps need no copies, but torch drops the
gradient of a log-sum-exp; flex_attention computes whole blocks of 128 tokens and compiles first.

Everything else takes the rests as one padded batch: CPUs, float32, dropout, other head sizes, cards before Ampere.
"""

from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Layout(TypedDict):
    """Where the sequences of a packed row are. A dictionary, because trainers know how to move one to a device.

    The ragged sequences are the prefix, if there is one, and the rests.
    """

    prefix: int
    """Length of the common prefix at the start of the row."""
    indices: Tensor
    """[rests, longest]: the row index of each position of each rest; short rests repeat their last index."""
    real: Tensor
    """[row − prefix]: positions in the flattened `indices` that are not padding, in row order."""
    keys: Tensor
    """[all keys]: the ragged sequences' keys, one after the other, as indices into the row followed by one copy of the
    prefix for every rest. Each index occurs once."""
    cu_seqlens_q: Tensor
    """[sequences + 1], int32: where each ragged sequence starts in the row, and the row's end."""
    cu_seqlens_k: Tensor
    """[sequences + 1], int32: the same in `keys`."""
    max_seqlen_q: int
    """Length of the longest ragged sequence."""
    max_seqlen_k: int
    """Its largest number of keys."""


def packed_attention(  # noqa: PLR0913 (the calling convention of transformers)
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention.

    Args:
        query: [1, heads, row, d]
        key: [1, groups, row, d], where `groups` divides `heads`
        value: [1, groups, row, d]
        attention_mask: None; the layout defines the mask.
        layout: the row's layout; None for a single plain sequence.

    Returns:
        [1, row, heads, d]
    """
    if attention_mask is not None or (module.training and layout is None):
        raise RuntimeError(f"{type(module).__name__} does not pass on a packed batch's layout")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layout is not None and dropout == 0 and takes_ragged(query, value):
        return _ragged(query, key, value, layout, scale), None
    prefix = query.shape[2] if layout is None else layout["prefix"]
    head_key, head_value = key[:, :, :prefix], value[:, :, :prefix]
    parts = []
    if prefix:
        parts.append(_attend(query[:, :, :prefix], head_key, head_value, dropout, scale)[0])
    if layout is not None:
        rests = len(layout["indices"])
        own = (_at(whole, layout["indices"]) for whole in (key, value))
        shared = (part.expand(rests, -1, -1, -1) for part in (head_key, head_value))
        k, v = (torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True))
        out = _attend(_at(query, layout["indices"]), k, v, dropout, scale)
        parts.append(out.transpose(0, 1).flatten(1, 2).index_select(1, layout["real"]))
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def takes_ragged(query: Tensor, value: Tensor) -> bool:
    """Whether torch's FlashAttention for ragged sequences takes these heads, forward and backward."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and torch.version.hip is None
        and _compute_dtype(query) in (torch.bfloat16, torch.float16)
        and (size <= 192 or size == 256)  # other large sizes have no backward pass on every card
        and size % 8 == 0
        and value.shape[-1] == size
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which autocast, if it is on, multiplies."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _ragged(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The prefix and the rests as ragged sequences.

    A causal window ends at each sequence's last key, so the queries of a rest see the whole prefix. Autocast does not
    know this operation, and rotated queries and keys are float32 under it: all three are cast here.
    """
    dtype = _compute_dtype(query)
    q, k, v = (whole[0].transpose(0, 1).to(dtype) for whole in (query, key, value))
    out = flash_attention(
        q,
        _with_copies(k, layout),
        _with_copies(v, layout),
        layout["cu_seqlens_q"],
        layout["cu_seqlens_k"],
        layout["max_seqlen_q"],
        layout["max_seqlen_k"],
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return out[None]


def flash_attention(*arguments: Any, **options: Any) -> Tensor:
    """torch's FlashAttention for ragged sequences; importing it takes seconds."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(*arguments, **options)
    assert isinstance(out, Tensor)
    return out


def _with_copies(row: Tensor, layout: Layout) -> Tensor:
    """The keys of all ragged sequences, [all keys, groups, d], from those of the row, [row, groups, d].

    The gradients of the copies are summed at once, and rounded to bfloat16 once. A gather from the row would add them
    up one by one and round each time.
    """
    prefix = layout["prefix"]
    if not prefix:
        return row
    copies = row[:prefix].expand(len(layout["indices"]), -1, -1, -1).flatten(0, 1)
    return torch.cat([row, copies]).index_select(0, layout["keys"])


def _at(row: Tensor, indices: Tensor) -> Tensor:
    """Gather [rests, longest] indices from [1, heads, row, d]: [rests, heads, longest, d]."""
    return row[0].index_select(1, indices.flatten()).unflatten(1, indices.shape).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float) -> Tensor:
    """Attention of [batch, heads, q, d] to [batch, groups, k, d]: the last query attends to all keys, each earlier one
    to one key less. Padding comes last among both, so no real position attends to it."""
    if query.device.type == "cuda":
        return _attend_by_head(query, key, value, dropout, scale)
    return _attend_stacked(query, key, value, dropout, scale)


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float) -> Tensor:
    """One mask for all heads, and none for a plain sequence. The heads of a group see the same keys, without copies."""
    batch, heads, q, _ = query.shape
    groups, k = key.shape[1:3]
    mask = None if q == k else torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q)
    split = query.reshape(batch * groups, heads // groups, q, -1)
    keys, values = (part.flatten(0, 1)[:, None].expand(-1, heads // groups, -1, -1) for part in (key, value))
    out = scaled_dot_product_attention(
        split, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale
    )
    return out.reshape(batch, heads, q, -1)


def _attend_stacked(query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float) -> Tensor:
    """The query heads that share keys are stacked along the query axis, so that keys and values are not repeated."""
    batch, heads, q, _ = query.shape
    groups, k = key.shape[1:3]
    stacked = query.reshape(batch, groups, -1, query.shape[-1])
    if query.device.type != "cpu" or batch * q * k > _SHARES:
        mask = torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q).repeat(heads // groups, 1)
        out = scaled_dot_product_attention(stacked, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        return out.reshape(batch, heads, q, -1)
    dtype = _compute_dtype(query)
    with torch.autocast("cpu", enabled=False):
        flat, keys, values = (t.to(dtype).flatten(0, 1) for t in (stacked, key, value))
        hidden = torch.full((q, k), -torch.inf, dtype=dtype).triu(k - q + 1).repeat(heads // groups, 1)
        shares = torch.baddbmm(hidden.expand(len(flat), -1, -1), flat, keys.transpose(1, 2), alpha=scale).softmax(-1)
        return torch.bmm(torch.nn.functional.dropout(shares, dropout), values).reshape(batch, heads, q, -1)


_SHARES = 400_000
"""Up to this many attention weights per head, two plain matmuls are faster on a CPU, forward and backward, than torch's
fused attention (two to four times; by a quarter at the limit). They keep the attention weights for the backward pass;
fused attention does not."""
