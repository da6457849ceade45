"""Pack a batch of sequences into one row, without padding, and compute their common prefix once.

Judge tasks share instructions, rubric and examples, so most of a prompt is the same for every pair of a batch. A batch
is laid out as

    prefix | rest of sequence 1 | rest of sequence 2 | ...

in a single row. Every rest continues the prefix's positions and attends to the prefix and to itself: each token sees
exactly what it would see alone, so the loss and its gradients equal those of the padded batch. Everything except
attention runs on real tokens only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "estep_packed"


class Layout(TypedDict):
    """Where the sequences of a packed row are. A dictionary, because trainers know how to move one to a device."""

    prefix: int
    """Length of the common prefix at the start of the row."""
    indices: Tensor
    """[rests, longest]: the row index of each position of each rest; short rests repeat their last index."""
    real: Tensor
    """[row − prefix]: positions in the flattened `indices` that are not padding, in row order."""
    mask: Tensor
    """[longest, prefix + longest]: True where a position of a rest attends: to the prefix, and causally to its rest.
    Padding comes last, so no real position attends to it."""


class Packed(NamedTuple):
    """A batch as one row."""

    input_ids: Tensor
    """[1, row]"""
    position_ids: Tensor
    """[1, row]"""
    layout: Layout


def pack(sequences: Sequence[list[int]], prefix: int) -> Packed:
    """Pack sequences into one row.

    Args:
        sequences: token ids.
        prefix: length of their common prefix; each sequence is longer.
    """
    rests = [sequence[prefix:] for sequence in sequences]
    lengths = torch.tensor([len(rest) for rest in rests])
    starts = prefix + lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.max()))
    inside = steps < lengths[:, None]
    own = torch.ones(len(steps), len(steps), dtype=torch.bool).tril()
    return Packed(
        input_ids=torch.tensor([[*sequences[0][:prefix], *(token for rest in rests for token in rest)]]),
        position_ids=torch.cat([torch.arange(prefix), *(prefix + steps[: len(rest)] for rest in rests)])[None],
        layout=Layout(
            prefix=prefix,
            indices=starts[:, None] + torch.minimum(steps, lengths[:, None] - 1),
            real=inside.flatten().nonzero()[:, 0],
            mask=torch.cat([torch.ones(len(steps), prefix, dtype=torch.bool), own], dim=1),
        ),
    )


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
    prefix = query.shape[2] if layout is None else layout["prefix"]
    head_key, head_value = key[:, :, :prefix], value[:, :, :prefix]
    parts = []
    if prefix:
        causal = torch.ones(prefix, prefix, dtype=torch.bool, device=query.device).tril()
        parts.append(_attend(query[:, :, :prefix], head_key, head_value, causal, dropout, scale)[0])
    if layout is not None:
        rests = len(layout["indices"])
        own = (_at(whole, layout["indices"]) for whole in (key, value))
        shared = (part.expand(rests, -1, -1, -1) for part in (head_key, head_value))
        k, v = (torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True))
        out = _attend(_at(query, layout["indices"]), k, v, layout["mask"], dropout, scale)
        parts.append(out.transpose(0, 1).flatten(1, 2).index_select(1, layout["real"]))
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def _at(row: Tensor, indices: Tensor) -> Tensor:
    """Gather [rests, longest] indices from [1, heads, row, d]: [rests, heads, longest, d]."""
    return row[0].index_select(1, indices.flatten()).unflatten(1, indices.shape).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, scale: float) -> Tensor:
    """Attention of [batch, heads, q, d] to [batch, groups, k, d] where mask, [q, k], is True.

    The query heads that share keys are stacked along the query axis, so that keys and values are not repeated.
    """
    batch, heads, q, _ = query.shape
    groups = key.shape[1]
    mask = mask.repeat(heads // groups, 1)
    stacked = query.reshape(batch, groups, -1, query.shape[-1])
    if query.device.type != "cpu" or batch * q * key.shape[2] > _SHARES:
        out = scaled_dot_product_attention(stacked, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        return out.reshape(batch, heads, q, -1)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    with torch.autocast("cpu", enabled=False):
        flat, k, v = (t.to(dtype).flatten(0, 1) for t in (stacked, key, value))
        hidden = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
        shares = torch.baddbmm(hidden.expand(len(flat), -1, -1), flat, k.transpose(1, 2), alpha=scale).softmax(-1)
        return torch.bmm(torch.nn.functional.dropout(shares, dropout), v).reshape(batch, heads, q, -1)


_SHARES = 400_000
"""Up to this many attention weights per head, two plain matmuls are faster on a CPU, forward and backward, than torch's
fused attention (two to four times; by a quarter at the limit). They keep the attention weights for the backward pass;
fused attention does not."""


def register() -> str:
    """Register this attention with transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    return NAME


def use_packed_attention(model: Any) -> bool:
    """Switch a model to this attention if its own may be replaced; returns whether the model now uses it."""
    if not packable(type(model), model.config):
        return False
    model.set_attn_implementation(register())  # only warns on failure
    return bool(model.config.get_text_config()._attn_implementation == NAME)


def packable(model_class: Any, config: Any) -> bool:
    """Whether this attention may replace a model's own: the model uses transformers' attention interface, every layer
    attends to all earlier positions, and attention scores are not modified (no soft-capping)."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(getattr(model_class, "_supports_attention_backend", False)) and full and not capped
