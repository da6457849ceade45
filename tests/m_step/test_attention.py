"""Attention for packed rows: the path for CUDA, with a plain implementation of its kernel, against the padded batch.

`varlen` stands for torch's FlashAttention, which only runs on a GPU; `tests/gpu` compares the real one.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from estep.m_step import attention
from estep.m_step.attention import Layout, packed_attention, takes_ragged
from estep.m_step.packing import pack, register

MODULE = torch.nn.Module()


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` with a causal window, one sequence after the other.

    It also refuses what FlashAttention refuses, or would answer wrongly.
    """
    assert window_size == (-1, 0)
    assert enable_gqa
    assert query.dtype == key.dtype == value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    for cumulative, whole, longest in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        assert cumulative.dtype == torch.int32
        assert cumulative.is_contiguous()
        assert cumulative[0] == 0
        assert cumulative[-1] == len(whole)
        assert cumulative.diff().min() > 0
        assert cumulative.diff().max() == longest
    parts = []
    for (start, end), (first, last) in zip(spans(cu_seq_q), spans(cu_seq_k), strict=True):
        q, k, v = query[start:end], key[first:last], value[first:last]
        k, v = (whole.repeat_interleave(query.shape[1] // key.shape[1], 1) for whole in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(k) - len(q) + 1)  # bottom right
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(parts)


def spans(cumulative: Tensor) -> list[tuple[int, int]]:
    ends = cumulative.tolist()
    return list(pairwise(ends))


def padded(query: Tensor, key: Tensor, value: Tensor, prefix: int, lengths: list[int]) -> Tensor:
    """The same attention, one whole padded sequence per rest: [row, heads, d]."""
    starts = [prefix + sum(lengths[:n]) for n in range(len(lengths))]
    longest = prefix + max(lengths)
    rows = [
        [*range(prefix), *range(start, start + length), *[0] * (longest - prefix - length)]
        for start, length in zip(starts, lengths, strict=True)
    ]
    q, k, v = (torch.stack([whole[0][:, row] for row in rows]) for whole in (query, key, value))
    k, v = (whole.repeat_interleave(query.shape[1] // key.shape[1], 1) for whole in (k, v))
    scores = q @ k.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(longest, longest, dtype=torch.bool).triu(1), -torch.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    return torch.cat([out[0, :prefix], *(out[n, prefix : prefix + length] for n, length in enumerate(lengths))])


def layout_of(prefix: int, lengths: list[int]) -> Layout:
    shared = list(range(prefix))
    return pack([shared + list(range(100 * n, 100 * n + length)) for n, length in enumerate(lengths, 1)], prefix).layout


def results(attend: Callable[..., Tensor], inputs: tuple[Tensor, ...], weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of a weighted sum of it."""
    leaves = [part.clone().requires_grad_() for part in inputs]
    out = attend(*leaves)
    return [out, *torch.autograd.grad((out * weights).sum(), leaves)]


@settings(deadline=None, max_examples=60)
@given(
    prefix=st.integers(0, 9),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_path_gives_the_outputs_and_gradients_of_padded_attention(
    prefix: int, lengths: list[int], groups: int, repeats: int, seed: int
) -> None:
    row, layout = prefix + sum(lengths), layout_of(prefix, lengths)
    random = torch.Generator().manual_seed(seed)
    inputs = tuple(
        torch.randn(1, heads, row, 8, dtype=torch.float64, generator=random)
        for heads in (groups * repeats, groups, groups)
    )
    weights = torch.randn(row, groups * repeats, 8, dtype=torch.float64, generator=random)

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return packed_attention(MODULE, query, key, value, None, layout=layout)[0][0]

    expected = results(lambda q, k, v: padded(q, k, v, prefix, lengths), inputs, weights)
    for name, change in PATHS.items():
        with pytest.MonkeyPatch.context() as patch:
            for target, replacement in change.items():
                patch.setattr(attention, target, replacement)
            found = results(packed, inputs, weights)
        for got, wanted in zip(found, expected, strict=True):
            assert torch.allclose(got, wanted, atol=1e-10), name


PATHS: dict[str, dict[str, Any]] = {
    "CUDA": {"takes_ragged": lambda query, value: True, "flash_attention": varlen},
    "CUDA without FlashAttention": {"_attend": attention._attend_by_head},
    "products": {},
    "torch's own": {"_SHARES": 0},
}


def test_a_layout_lists_queries_and_keys_of_the_prefix_and_each_rest() -> None:
    # Row: prefix 0 1, rests 2 3 4 | 5. Copies of the prefix behind the row: 6 7 | 8 9.
    layout = layout_of(2, [3, 1])
    assert layout["keys"].tolist() == [0, 1, 6, 7, 2, 3, 4, 8, 9, 5]
    assert layout["cu_seqlens_q"].tolist() == [0, 2, 5, 6]
    assert layout["cu_seqlens_k"].tolist() == [0, 2, 7, 10]
    assert (layout["max_seqlen_q"], layout["max_seqlen_k"]) == (3, 5)


def test_an_empty_prefix_is_no_sequence() -> None:
    layout = layout_of(0, [3, 1])
    assert layout["keys"].tolist() == [0, 1, 2, 3]
    assert layout["cu_seqlens_q"].tolist() == layout["cu_seqlens_k"].tolist() == [0, 3, 4]
    assert (layout["max_seqlen_q"], layout["max_seqlen_k"]) == (3, 3)


def test_the_prefix_can_be_the_longest_sequence_of_queries() -> None:
    layout = layout_of(5, [1, 2])
    assert (layout["max_seqlen_q"], layout["max_seqlen_k"]) == (5, 7)


def test_the_kernel_gets_everything_in_autocasts_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[torch.dtype] = []

    def recorded(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        got.extend([query.dtype, key.dtype, value.dtype])
        return varlen(query, key, value, *rest, **options)

    monkeypatch.setattr(attention, "takes_ragged", lambda query, value: True)
    monkeypatch.setattr(attention, "flash_attention", recorded)
    q, v = torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8, dtype=torch.bfloat16)  # rotary embeddings leave q in float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = packed_attention(MODULE, q, q, v, None, layout=layout_of(2, [1, 1]))
    assert got == [torch.bfloat16] * 3
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, 4, 2, 8)


def test_the_kernel_accepts_the_call_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without memory, torch checks the arguments and makes results of the right shapes; nothing is computed.
    monkeypatch.setattr(attention, "takes_ragged", lambda query, value: True)
    monkeypatch.setattr(attention, "_compute_dtype", lambda query: torch.bfloat16)
    layout: Any = {
        key: part.to("meta") if isinstance(part, Tensor) else part for key, part in layout_of(3, [2, 4]).items()
    }
    q, k, v = (
        torch.empty(1, heads, 9, 8, device="meta", dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2)
    )
    out, _ = packed_attention(MODULE, q, k, v, None, layout=layout)
    assert out.shape == (1, 9, 4, 8)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    for part in (q, k, v):
        assert part.grad is not None
        assert part.grad.shape == part.shape


def test_dropout_and_plain_sequences_never_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "takes_ragged", lambda query, value: True)
    monkeypatch.setattr(attention, "flash_attention", None)
    q = torch.ones(1, 2, 4, 8)
    assert packed_attention(MODULE, q, q, q, None, dropout=0.5, layout=layout_of(2, [1, 1]))[0].shape == (1, 4, 2, 8)
    assert packed_attention(MODULE.eval(), q, q, q, None)[0].shape == (1, 4, 2, 8)
    MODULE.train()


@pytest.mark.parametrize(
    ("size", "value_size", "dtype", "capability", "taken"),
    [
        (64, 64, torch.bfloat16, (8, 0), True),
        (80, 80, torch.float16, (9, 0), True),
        (256, 256, torch.bfloat16, (8, 6), True),
        (224, 224, torch.bfloat16, (8, 6), False),
        (512, 512, torch.bfloat16, (9, 0), False),
        (60, 60, torch.bfloat16, (9, 0), False),
        (64, 32, torch.bfloat16, (9, 0), False),
        (64, 64, torch.float32, (9, 0), False),
        (64, 64, torch.float16, (7, 5), False),
    ],
)
def test_the_kernel_takes_what_flash_attention_takes(
    size: int,
    value_size: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnCUDA:
        device = torch.device("cuda", 0)

        def __init__(self, size: int) -> None:
            self.shape, self.dtype = (1, 1, 1, size), dtype

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = OnCUDA(size)
    value: Any = OnCUDA(value_size)
    assert takes_ragged(query, value) is taken
    assert not takes_ragged(torch.ones(1, 1, 1, 64, dtype=torch.bfloat16), torch.ones(1, 1, 1, 64))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_models_gradients_are_the_same_on_the_path_for_cuda(
    tiny_model: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    batch = pack([[7, 8, 9, 20, 21, 30], [7, 8, 9, 22], [7, 8, 9, 23, 24]], 3)

    def gradients() -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(
            tiny_model, dtype=torch.float64, attn_implementation=register()
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        logits = model(batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False).logits
        logits.log_softmax(-1)[..., 5].sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    expected = gradients()
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        return varlen(*arguments, **options)

    monkeypatch.setattr(attention, "takes_ragged", lambda query, value: True)
    monkeypatch.setattr(attention, "flash_attention", counted)
    found = gradients()
    assert len(calls) == (4 if checkpointing else 2)  # two layers, computed again in the backward pass
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # transformers computes norms in float32 whatever the weights are.
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max())), name
