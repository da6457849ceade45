"""What training needs of memory, estimated before it is tried, so that the batch need not be cut by hand.

The estimate depends on the machine's whole memory, not on what is free at the moment: the same run on the same machine
always cuts its batches alike, and an interrupted run goes on with the same numbers.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

_SHARE = 0.75
"""Of the whole memory may be planned for; the rest is the system's, the engine's and the estimate's error."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Plan(NamedTuple):
    """How a gradient step's pairs go through the model."""

    micro_batch_size: int
    """Pairs a forward pass; divides the batch."""
    checkpointing: bool
    """Whether activations are computed again in the backward pass."""


class Footprint(NamedTuple):
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


def footprint(model: Any) -> Footprint:
    """A decoder's needs under bfloat16 autocast with float32 weights.

    A layer keeps, for a position: in float32 the residual stream before each norm and within it; in bfloat16 the normed
    inputs of both halves, queries, keys, values and what attention gives, and three vectors of the feed-forward part.
    """
    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Footprint(
        fixed=parameters * (4 + 2) + trained * (4 + 8),
        position=config.num_hidden_layers * (36 * hidden + 10 * inner),
        kept=config.num_hidden_layers * 4 * hidden,
        target=config.vocab_size * (2 + 4 + 4 + 4),
    )


def plan(model: Any, lengths: list[tuple[int, int]], batch_size: int, total: float) -> Plan:
    """The largest micro-batches that fit; activations are computed again only where one pair would not fit otherwise.

    Args:
        model: the model to train.
        lengths: (positions, completion tokens) of every pair.
        batch_size: pairs a gradient step.
        total: bytes of memory.
    """
    needs, layers = footprint(model), model.config.get_text_config().num_hidden_layers
    longest, most_targets = max(n for n, _ in lengths), max(n for _, n in lengths)

    def fits(pairs: int, checkpointing: bool) -> bool:
        return needs.peak(pairs * longest, pairs * most_targets, checkpointing, layers) <= _SHARE * total

    divisors = [size for size in range(batch_size, 0, -1) if batch_size % size == 0]
    for checkpointing in (False, True):
        for size in divisors:
            if fits(size, checkpointing):
                return Plan(size, checkpointing)
    return Plan(1, True)  # the estimate may be wrong, and the machine has the last word


def device_memory(device: torch.device) -> float:
    """All memory of a device in bytes; of the CPU, what the machine or its container has."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(total, float(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total
