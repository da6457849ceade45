"""Estimate how much memory training needs, and split batches to fit before training starts.

The estimate depends on the machine's total memory, not on what is free at the moment: the same run on the same machine
always splits its batches the same way, and an interrupted run continues with the same numbers. A machine with a
different amount of memory may split them differently, which changes rounding; set `m_step.micro_batch_size` to rule
that out.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from estep.config import MStepConfig

_SHARE = 0.75
"""Fraction of total memory the plan may use; the rest is for the system, the engine and the estimate's error."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Plan(NamedTuple):
    """How the pairs of a gradient step are split into forward passes."""

    micro_batch_size: int
    """Pairs per forward pass; divides the batch size."""
    checkpointing: bool
    """Whether to use gradient checkpointing, which recomputes activations in the backward pass."""


class MemoryNeeds(NamedTuple):
    """Bytes that training needs."""

    fixed: float
    """Weights, gradients, AdamW's two moments, and the bfloat16 weights of autocast."""
    position: float
    """Activations kept for the backward pass, per input position."""
    kept: float
    """The same with gradient checkpointing: the input of each layer."""
    target: float
    """Per predicted token: its logits, their float32 copy, log-probabilities and gradient."""

    def peak(self, positions: int, targets: int, checkpointing: bool, layers: int) -> float:
        """Peak memory."""
        body = positions * (self.kept + self.position / layers if checkpointing else self.position)
        return self.fixed + body + targets * self.target


def memory_needs(model: Any, precision: str) -> MemoryNeeds:
    """Memory that a decoder with float32 weights needs.

    With bfloat16 matmuls, each layer keeps about thirteen float32 vectors of the hidden size per position (the residual
    stream, the norms, queries and keys before and after rotation) and six bfloat16 vectors of the inner size (measured
    in docs/log.md). With float32 matmuls it keeps the same vectors, all in float32.

    Args:
        precision: precision of the matmuls, `bfloat16` or `float32`.
    """
    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = 2 if precision == "bfloat16" else 4
    return MemoryNeeds(
        fixed=parameters * (4 + 2) + trained * (4 + 8),
        position=config.num_hidden_layers * (52 * hidden + 6 * size * inner),
        kept=config.num_hidden_layers * 4 * hidden,
        target=config.vocab_size * (size + 4 + 4 + 4),
    )


def plan(model: Any, lengths: list[tuple[int, int]], config: MStepConfig, total: float) -> Plan:
    """Choose the largest micro-batch that fits, with gradient checkpointing only if a single pair needs it. What the
    configuration sets is kept.

    Args:
        model: the model to train.
        lengths: (positions, completion tokens) of every pair.
        config: batch size, precision, and what is set of `micro_batch_size` and `gradient_checkpointing`.
        total: memory in bytes.
    """
    needs, layers = memory_needs(model, config.precision), model.config.get_text_config().num_hidden_layers
    longest, most_targets = max(n for n, _ in lengths), max(n for _, n in lengths)
    sizes = [config.micro_batch_size] if config.micro_batch_size is not None else range(config.batch_size, 0, -1)
    ways = (False, True) if config.gradient_checkpointing is None else (config.gradient_checkpointing,)
    plans = [Plan(size, way) for way in ways for size in sizes if config.batch_size % size == 0]
    for plan in plans:
        positions, targets = plan.micro_batch_size * longest, plan.micro_batch_size * most_targets
        if needs.peak(positions, targets, plan.checkpointing, layers) <= _SHARE * total:
            return plan
    return plans[-1]  # try the smallest plan: the estimate may be wrong


def device_memory(device: torch.device) -> float:
    """Total memory of a device in bytes; for the CPU, that of the machine or its container."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, float(limit.read_text()))
    return total
