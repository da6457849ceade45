"""Pack a batch of sequences into one row, without padding, and compute their common prefix once.

Judge tasks share instructions, rubric and examples, so most of a prompt is the same for every pair of a batch. A batch
is laid out as

    prefix | rest of sequence 1 | rest of sequence 2 | ...

in a single row. Every rest continues the prefix's positions and attends to the prefix and to itself
(`estep.m_step.attention`): each token sees exactly what it would see alone, so the loss and its gradients equal those
of the padded batch. Everything except attention runs on real tokens only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from estep.m_step.attention import Layout, packed_attention

NAME = "estep_packed"


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
    ids = [*sequences[0][:prefix], *(token for rest in rests for token in rest)]
    return Packed(
        input_ids=torch.tensor([ids]),
        position_ids=torch.cat([torch.arange(prefix), *(torch.arange(prefix, len(it)) for it in sequences)])[None],
        layout=_layout(prefix, torch.tensor([len(rest) for rest in rests])),
    )


def _layout(prefix: int, lengths: Tensor) -> Layout:
    """The layout of rests of these lengths behind a prefix."""
    ends = prefix + lengths.cumsum(0)
    starts, row = ends - lengths, int(ends[-1])
    steps = torch.arange(int(lengths.max()))
    heads = [] if prefix == 0 else [prefix]  # an empty prefix is no sequence
    queries = torch.tensor([*heads, *lengths.tolist()])
    keys = torch.tensor([*heads, *(prefix + lengths).tolist()])
    copies = torch.arange(row, row + len(lengths) * prefix).view(len(lengths), prefix)
    own = torch.arange(prefix, row).split(lengths.tolist())
    return Layout(
        prefix=prefix,
        indices=starts[:, None] + torch.minimum(steps, lengths[:, None] - 1),
        real=(steps < lengths[:, None]).flatten().nonzero()[:, 0],
        keys=torch.cat([torch.arange(prefix), *(part for pair in zip(copies, own, strict=True) for part in pair)]),
        cu_seqlens_q=_cumulative(queries),
        cu_seqlens_k=_cumulative(keys),
        max_seqlen_q=int(queries.max()),
        max_seqlen_k=int(keys.max()),
    )


def _cumulative(lengths: Tensor) -> Tensor:
    """0, and the sums of the first 1, 2, ... lengths, as FlashAttention takes them."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


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
