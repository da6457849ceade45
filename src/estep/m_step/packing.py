"""A batch of sequences in one row: no padding, and what all of them begin with computed once.

Judge tasks share instructions, rubric and examples, so most of a prompt is the same for every pair of a batch. A batch
is laid out as

    prefix | rest of sequence 1 | rest of sequence 2 | ...

in a single row. Positions start again after the prefix, and each rest attends to the prefix and to itself: every token
sees exactly what it would see alone, so the loss and its gradients are those of the plain batch. All but attention runs
on real tokens only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "estep_packed"


class Layout(TypedDict):
    """Where the sequences of a packed row lie: a dictionary, since trainers move those to a device."""

    prefix: int
    """Positions at the head of the row that all sequences share."""
    places: Tensor
    """[rests, longest]: where in the row each position of each rest lies; a short rest is filled up with its last."""
    real: Tensor
    """[row − prefix]: the elements of the flattened `places` that are no filling, in the row's order."""
    mask: Tensor
    """[longest, prefix + longest]: True where a position of a rest attends: to the prefix, and to itself and what is
    before it. Filling comes after all that is real, so no real position attends to it."""


class Packed(NamedTuple):
    """A batch as one row."""

    input_ids: Tensor
    """[1, row]"""
    position_ids: Tensor
    """[1, row]"""
    layout: Layout


def pack(sequences: Sequence[list[int]], prefix: int) -> Packed:
    """Lay sequences out in one row.

    Args:
        sequences: tokens.
        prefix: how many of them all sequences share; each sequence is longer.
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
            places=starts[:, None] + torch.minimum(steps, lengths[:, None] - 1),
            real=inside.flatten().nonzero()[:, 0],
            mask=torch.cat([torch.ones(len(steps), prefix, dtype=torch.bool), own], dim=1),
        ),
    )


def packed_attention(
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
        attention_mask: None; the layout says who attends to whom.
        layout: of the row; None for one plain sequence.

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
        rests = len(layout["places"])
        own = (_at(whole, layout["places"]) for whole in (key, value))
        shared = (part.expand(rests, -1, -1, -1) for part in (head_key, head_value))
        k, v = (torch.cat(pair, dim=2) for pair in zip(shared, own, strict=True))
        out = _attend(_at(query, layout["places"]), k, v, layout["mask"], dropout, scale)
        parts.append(out.transpose(0, 1).flatten(1, 2).index_select(1, layout["real"]))
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def _at(row: Tensor, places: Tensor) -> Tensor:
    """[1, heads, row, d] at [rests, longest] places: [rests, heads, longest, d]."""
    return row[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)


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
"""Up to so many shares of attention a head, two plain products are faster on a CPU, there and back, than torch's own
attention (two to four times; at the limit by a quarter). They keep the shares for the backward pass, torch's does
not."""


def register() -> str:
    """Make the attention known to transformers; its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    return NAME


def use_packed_attention(model: Any) -> bool:
    """Give a model this attention, where it may be replaced; returns whether the model has it now."""
    if not packable(type(model), model.config):
        return False
    model.set_attn_implementation(register())  # which only warns where it cannot
    return bool(model.config.get_text_config()._attn_implementation == NAME)


def packable(model_class: Any, config: Any) -> bool:
    """Whether a model's attention may be replaced by this one: it goes through transformers' interface, looks at all
    earlier positions in every layer, and does nothing of its own to its scores."""
    config = config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(getattr(model_class, "_supports_attention_backend", False)) and full and not capped
