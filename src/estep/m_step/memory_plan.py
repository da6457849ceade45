"""Estimate how much memory training needs, and how many tokens a forward pass may take, before training starts.

The estimate depends on the machine's total memory, not on what is free at the moment: the same run on the same machine
always splits its batches the same way, and an interrupted run continues with the same numbers. A machine with a
different amount of memory may split them differently, which changes rounding; set `m_step.micro_batch_size` to rule
that out.

One rank trains in float32 with autocast. Several ranks use FSDP2: each holds its share of the float32 weights,
gradients and moments, and gathers the weights of a layer in the precision of the products while it computes it.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from estep.config import MStepConfig
from estep.models.shape import ModelShape

if TYPE_CHECKING:
    import torch

SHARE = 0.75
"""Fraction of total memory the plan may use; the rest is for the system, the engine and the estimate's error."""
HEAD_CHUNK = 1024
"""Most predicted tokens whose logits exist at the same time: 0.6 GB in float32 with a vocabulary of 150,000."""
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Plan(NamedTuple):
    """What one forward pass of one rank may take. It always takes one pair."""

    positions: int
    """Most input positions; a prefix that its pairs share counts once."""
    targets: int
    """Most predicted tokens."""
    checkpointing: bool
    """Whether to use gradient checkpointing, which recomputes activations in the backward pass."""


class MemoryNeeds(NamedTuple):
    """Bytes that training needs on each device."""

    weights: float
    """float32 weights, or this rank's share of them."""
    gradients: float
    moments: float
    """AdamW's two moments."""
    gathered: float
    """One rank: the weights in the products' precision, which autocast keeps for a forward pass. Several: the weights
    and gradients of the layers that are gathered at the same time."""
    position: float
    """Activations kept for the backward pass, per input position."""
    kept: float
    """The same with gradient checkpointing: the input of each layer."""
    target: float
    """Per predicted token: its logits, their float32 copy, log-probabilities and gradient."""
    layers: int
    """Number of layers."""

    @property
    def fixed(self) -> float:
        """What does not depend on the forward pass."""
        return self.weights + self.gradients + self.moments + self.gathered

    def activations(self, positions: int, checkpointing: bool) -> float:
        """Activations of a forward pass; with checkpointing, one layer's are recomputed at a time."""
        return positions * (self.kept + self.position / self.layers if checkpointing else self.position)

    def logits(self, targets: int) -> float:
        """Logits and what the loss makes of them, in chunks."""
        return min(targets, HEAD_CHUNK) * self.target

    def peak(self, positions: int, targets: int, checkpointing: bool) -> float:
        """Peak memory."""
        return self.fixed + self.activations(positions, checkpointing) + self.logits(targets)


def memory_needs(shape: ModelShape, config: MStepConfig, ranks: int) -> MemoryNeeds:
    """Memory that training a decoder with float32 weights needs on each device.

    With bfloat16 matmuls, each layer keeps about thirteen float32 vectors of the hidden size per position (the residual
    stream, the norms, queries and keys before and after rotation) and six bfloat16 vectors of the inner size (measured
    in docs/log.md). With float32 matmuls it keeps the same vectors, all in float32.

    Args:
        config: precision of the matmuls (`auto` counts as bfloat16), and the adapter if there is one.
        ranks: devices that share the model.
    """
    adapter = shape.adapter(config.lora) if config.lora is not None else 0
    held = shape.parameters + adapter
    trained = adapter or shape.parameters
    size = 4 if config.precision == "float32" else 2
    if ranks == 1:
        gathered = size * held if size == 2 else 0
    else:
        # FSDP2 gathers the next layer while it computes one; the embedding and the head stay gathered. The gradients of
        # a layer are averaged in float32.
        together = shape.root + 2 * shape.largest_layer
        # At the end, the gradients of the embedding and the head are averaged; the layers are free again by then.
        whole = max(2 * size * together + 4 * shape.largest_layer, 8 * shape.root)
        gathered = size * together if adapter else whole
    return MemoryNeeds(
        weights=4 * held / ranks,
        gradients=4 * trained / ranks,
        moments=8 * trained / ranks,
        gathered=gathered,
        position=shape.layers * (52 * shape.hidden + 6 * size * shape.inner),
        kept=shape.layers * 4 * shape.hidden,
        target=shape.vocab * (size + 4 + 4 + 4),
        layers=shape.layers,
    )


def plan(
    shape: ModelShape, lengths: Sequence[tuple[int, int]], config: MStepConfig, total: float, ranks: int = 1
) -> Plan:
    """Choose how much of a gradient step fits into a forward pass, with gradient checkpointing only if a single pair
    needs it. What the configuration sets is kept. If nothing fits, the plan is a single pair: the estimate may err.

    Args:
        lengths: (positions, completion tokens) of every pair.
        config: batch size, precision, adapter, and what is set of `micro_batch_size` and `gradient_checkpointing`.
        total: memory of a device in bytes.
        ranks: devices that share the model and the pairs of each gradient step.
    """
    needs = memory_needs(shape, config, ranks)
    longest, most = max(positions for positions, _ in lengths), max(targets for _, targets in lengths)
    whole = min(-(-config.batch_size // ranks), len(lengths))
    fewest, pairs = 1, whole
    if config.micro_batch_size is not None:
        fewest = pairs = min(config.micro_batch_size, whole)
    ways = (False, True) if config.gradient_checkpointing is None else (config.gradient_checkpointing,)
    room = SHARE * total - needs.fixed
    for checkpointing in ways:
        for number in range(pairs, fewest - 1, -1):
            targets = number * most
            left = room - needs.logits(targets)
            fitting = int(min(left / needs.activations(1, checkpointing), sys.maxsize))  # unknown memory is infinite
            if fitting >= number * longest:
                # From a whole chunk on, more predicted tokens cost nothing.
                unlimited = targets >= HEAD_CHUNK
                return Plan(min(fitting, pairs * longest), pairs * most if unlimited else targets, checkpointing)
    return Plan(fewest * longest, fewest * most, ways[-1])


def device_memory(device: "torch.device") -> float:
    """Total memory of a device in bytes; for the CPU, that of the machine or its container."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, float(limit.read_text()))
    return total
