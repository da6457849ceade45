"""What training needs of memory, estimated before it is tried, so that the batch need not be cut by hand.

The estimate depends on the machine's whole memory, not on what is free at the moment: the same run on the same machine
always cuts its batches alike, and an interrupted run goes on with the same numbers. On a machine with another memory it
may cut them otherwise, which changes the rounding of sums; set `m_step.micro_batch_size` to rule that out.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SHARE = 0.75
"""Of the whole memory may be planned for; the rest is the system's, the engine's and the estimate's error."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Plan(NamedTuple):
    """How a gradient step's pairs go through the model."""

    micro_batch_size: int
    """Pairs a forward pass; divides the batch."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""


class MemoryNeeds(NamedTuple):
    """Bytes that training needs."""

    fixed: float
    """Weights, gradients, AdamW's two moments, and the bfloat16 weights of autocast."""
    position: float
    """What a position of the input leaves behind for the backward pass."""
    kept: float
    """The same with checkpointing: each layer's input."""
    target: float
    """A position from which a token is predicted: its logits, their float32 copy, log-probabilities and gradient."""

    def peak(self, positions: int, targets: int, checkpointing: bool, layers: int) -> float:
        """The most that is held at once."""
        body = positions * (self.kept + self.position / layers if checkpointing else self.position)
        return self.fixed + body + targets * self.target


def footprint(model: Any, precision: str) -> MemoryNeeds:
    """A decoder's needs with float32 weights.

    With bfloat16 products a layer keeps, for a position, some thirteen vectors of the hidden size in float32 (the
    residual stream, the norms, queries and keys before and after rotation) and six of the inner size in bfloat16;
    measured, see docs/log.md. With float32 products it keeps no more vectors, but none in bfloat16.

    Args:
        precision: of the products, `bfloat16` or `float32`.
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


def plan(
    model: Any,
    lengths: list[tuple[int, int]],
    batch_size: int,
    total: float,
    precision: str = "bfloat16",
    micro_batch_size: int | None = None,
    checkpointing: bool | None = None,
) -> Plan:
    """The largest micro-batches that fit; activations are computed again only where one pair would not fit otherwise.

    Args:
        model: the model to train.
        lengths: (positions, completion tokens) of every pair.
        batch_size: pairs a gradient step.
        total: bytes of memory.
        precision: of the products.
        micro_batch_size: what the user wants; None to choose.
        checkpointing: what the user wants; None to choose.
    """
    needs, layers = footprint(model, precision), model.config.get_text_config().num_hidden_layers
    longest, most_targets = max(n for n, _ in lengths), max(n for _, n in lengths)
    sizes = [micro_batch_size] if micro_batch_size is not None else range(batch_size, 0, -1)
    ways = (False, True) if checkpointing is None else (checkpointing,)
    plans = [Plan(size, way) for way in ways for size in sizes if batch_size % size == 0]
    for found in plans:
        positions, targets = found.micro_batch_size * longest, found.micro_batch_size * most_targets
        if needs.peak(positions, targets, found.checkpointing, layers) <= _SHARE * total:
            return found
    return plans[-1]  # the estimate may be wrong, and the machine has the last word


def device_memory(device: torch.device) -> float:
    """All memory of a device in bytes; of the CPU, what the machine or its container has."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, float(limit.read_text()))
    return total
