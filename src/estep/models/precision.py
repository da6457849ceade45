"""Which floating-point type `auto` is on a device."""

import functools

from estep.config import MStepConfig


def resolve_dtype(asked: str, device: str) -> str:
    """A configured type, with `auto` resolved: bfloat16, or float32 on a CPU that can only emulate bfloat16.

    Args:
        asked: `auto`, `bfloat16`, `float32` or `float16`.
        device: a torch device's type, such as `cpu`.
    """
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" and not cpu_has_bfloat16() else "bfloat16"


def resolve_precision(config: MStepConfig, device: str) -> MStepConfig:
    """The M-step's section with its precision resolved for a device."""
    return config.model_copy(update={"precision": resolve_dtype(config.precision, device)})


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for bfloat16 products. Without them, products are emulated and take
    many times longer than float32 ones (measured in docs/log.md)."""
    import torch

    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))  # the last is ARM's name
