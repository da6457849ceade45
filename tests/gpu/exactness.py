"""Packed attention and the loss in 16 bits, compared with float32."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from estep.m_step import attention
from estep.m_step.attention import packed_attention
from estep.m_step.head import IGNORED, CompletionLoss
from estep.m_step.packing import pack, register
from gpu.work import DEVICE, SEED, Shape


def attended(inputs: Sequence[Tensor], weights: Tensor, layout: Any, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of packed attention, in float32."""
    leaves = [part.to(dtype, copy=True).requires_grad_() for part in inputs]
    query, key, value = leaves
    out, _ = packed_attention(torch.nn.Module(), query, key, value, None, layout=layout)
    gradients = torch.autograd.grad((out.float() * weights).sum(), leaves)
    return [out.detach().float(), *(gradient.float() for gradient in gradients)]


def moved(batch: Any, device: str) -> Any:
    if isinstance(batch, dict):
        return {name: moved(value, device) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


def attention_errors(
    prefix: int, lengths: list[int], heads: tuple[int, int], size: int, dtype: torch.dtype
) -> tuple[list[float], list[float]]:
    """Errors, against float32, of the output and the gradients of packed attention in `dtype`: of the path that it
    takes on this device, and of the one with a mask."""
    shared = list(range(prefix))
    layout = moved(pack([[*shared, *[n + 1] * length] for n, length in enumerate(lengths)], prefix).layout, DEVICE)
    row = prefix + sum(lengths)
    source = torch.Generator().manual_seed(SEED)

    def numbers(*shape: int) -> Tensor:
        # Rounded, so that all paths start from the same numbers.
        return torch.randn(*shape, generator=source).to(dtype).float().to(DEVICE)

    inputs = [numbers(1, count, row, size) for count in (heads[0], heads[1], heads[1])]
    weights = numbers(1, row, heads[0], size)
    exact = attended(inputs, weights, layout, torch.float32)
    found = attended(inputs, weights, layout, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "takes_ragged", lambda query, value: False)
        masked = attended(inputs, weights, layout, dtype)
    return errors(found, exact), errors(masked, exact)


def errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Largest differences, relative to the largest value."""
    return [
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        for one, other in zip(found, exact, strict=True)
    ]


def loss_and_gradient(model: Any, batch: dict[str, Any]) -> tuple[float, Tensor]:
    """The loss, and the gradients of all weights in one vector on the CPU."""
    model.zero_grad()
    loss = CompletionLoss(model, chunk=20)(batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.float().flatten().cpu() for p in model.parameters()])


def packed_batch(prefix: int, lengths: list[int], targets: int) -> dict[str, Any]:
    """A packed row of random tokens; the last `targets` of each sequence are trained on."""
    source = random.Random(SEED)
    shared = [source.randrange(1000) for _ in range(prefix)]
    rests = [[source.randrange(1000) for _ in range(length)] for length in lengths]
    labels = [IGNORED] * prefix
    for rest in rests:
        labels += [IGNORED] * (len(rest) - targets - 1) + rest[-targets:] + [IGNORED]
    weights = [source.choice([0.5, 1.0]) if label != IGNORED else 0.0 for label in labels]
    whole = pack([shared + rest for rest in rests], prefix)
    return {**whole._asdict(), "labels": torch.tensor([labels]), "weights": torch.tensor([weights])}


def losses_of(
    shape: Shape, device: str, way: str, checkpointing: bool
) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """Loss and gradient of a packed batch of 48 targets in bfloat16 on a device, and in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    batch = packed_batch(40, [20, 35, 130], 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape.config(), attn_implementation=register()).train()
    model = model.bfloat16().float()  # so that both computations have the same weights
    expected = loss_and_gradient(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = model.to(device)
    if way == "bfloat16 weights":
        model = model.bfloat16()
    with torch.autocast(device, dtype=torch.bfloat16, enabled=way == "autocast"):
        return loss_and_gradient(model, moved(batch, device)), expected
