"""The devices that a run is planned for: those of this machine, or a notation such as `2x8xH100`.

Peak rates are those of the vendors' data sheets, for dense bfloat16 products (half of what a sheet states "with
sparsity"). Sizes of memory are in GB of 10⁹ bytes; drivers report up to 7 % more for a card that is sold as 80 GB.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from estep.errors import ConfigError

GB = 1e9


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU of a machine."""

    name: str
    memory: float
    """Bytes."""
    flops: float
    """Peak rate of dense bfloat16 products, in FLOP per second."""
    bandwidth: float
    """Bytes per second from its memory."""
    gpu: bool = True


@dataclass(frozen=True)
class Devices:
    """Equal devices, on one or several machines."""

    device: Device
    per_node: int = 1
    nodes: int = 1
    host: float | None = None
    """Main memory of each machine in bytes; None if unknown."""
    unequal: bool = False
    """Whether there are larger ones, too; all count as the smallest."""

    @property
    def count(self) -> int:
        return self.per_node * self.nodes

    def __str__(self) -> str:
        kind = self.device.name if self.device.gpu else f"{self.device.name}, {self.device.memory / GB:.0f} GB"
        return f"{f'{self.nodes} x ' if self.nodes > 1 else ''}{self.per_node} x {kind}"


def _gpu(name: str, gigabytes: float, teraflops: float, gigabytes_per_second: float) -> Device:
    return Device(name, gigabytes * GB, teraflops * 1e12, gigabytes_per_second * 1e9)


GPUS = {
    # NVIDIA's data sheets of each card (SXM where there are several forms); RTX: the whitepapers of Ada and GA102, with
    # float32 accumulation.
    "B200": _gpu("B200", 180, 2250, 8000),
    "H200": _gpu("H200", 141, 989, 4800),
    "H100": _gpu("H100", 80, 989, 3350),
    "H100-PCIe": _gpu("H100-PCIe", 80, 756, 2000),
    "A100": _gpu("A100", 80, 312, 2039),
    "A100-40GB": _gpu("A100-40GB", 40, 312, 1555),
    "A40": _gpu("A40", 48, 149.7, 696),
    "A10": _gpu("A10", 24, 125, 600),
    "L40S": _gpu("L40S", 48, 362, 864),
    "L4": _gpu("L4", 24, 121, 300),
    "RTX4090": _gpu("RTX4090", 24, 165.2, 1008),
    "RTX3090": _gpu("RTX3090", 24, 71, 936),
}
"""By name, as in the notation."""

UNNAMED = GPUS["A100"]
"""A device of which only the memory is known counts as fast as an A100."""

CPU_FLOPS = 0.42e12
CPU_FLOAT32_FLOPS = 0.05e12
CPU_BANDWIDTH = 20e9
"""Rates of one core's products, as measured in docs/log.md: bfloat16 on a processor with matrix instructions (0.83e12
on two cores; with AVX512-BF16 alone half of it), and float32 on one without instructions for bfloat16 (0.1e12). The
bandwidth is assumed."""

FORM = "COUNTxKIND or NODESxCOUNTxKIND, such as 4x80GB, 2xH100, 8xA100-40GB or 2x8x80GB"


def parse_devices(text: str) -> Devices:
    """Devices from their notation.

    >>> devices = parse_devices("2x8xH100")
    >>> devices.nodes, devices.per_node, devices.device.memory
    (2, 8, 80000000000.0)

    Raises:
        ConfigError: the text is no such notation, or the name of the device is unknown.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([a-z][\w-]*|[\d.]+gb)", text.strip().lower().replace(" ", ""))
    counts = [int(count) for count in match.groups()[:2] if count is not None] if match else []
    if match is None or 0 in counts:
        raise ConfigError(f"devices '{text}': expected {FORM}")
    per_node = counts[-1] if counts else 1
    return Devices(_device(match[3], text), per_node, counts[0] if len(counts) == 2 else 1)


def _device(kind: str, text: str) -> Device:
    known = {name.lower(): device for name, device in GPUS.items()}
    if kind in known:
        return known[kind]
    name, _, size = kind.rpartition("-")
    if not re.fullmatch(r"\d+(\.\d+)?gb", size) or (name and name not in known):
        raise ConfigError(
            f"devices '{text}': unknown device '{kind}'; known are {', '.join(GPUS)}, or a size such as 80GB"
        )
    base = known[name] if name else UNNAMED
    label = f"{base.name}-{size.upper()}" if name else f"{size[:-2]} GB"
    return replace(base, name=label, memory=float(size[:-2]) * GB)


def local_devices() -> Devices:
    """The devices of this machine: its GPUs, with the memory of the smallest, or else its CPU."""
    import torch

    from estep.m_step.memory_plan import device_memory
    from estep.models.precision import cpu_has_bfloat16

    host = device_memory(torch.device("cpu"))
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name()
        sizes = [device_memory(torch.device("cuda", index)) for index in range(count)]
        device = replace(_named(name), name=name, memory=min(sizes))
        return Devices(device, count, host=host, unequal=max(sizes) > 1.1 * min(sizes))
    cores = torch.get_num_threads()
    flops = cores * (CPU_FLOPS if cpu_has_bfloat16() else CPU_FLOAT32_FLOPS)
    return Devices(Device(f"CPU of {cores} cores", host, flops, CPU_BANDWIDTH, gpu=False), host=host)


def cluster_devices(gpus: Sequence[tuple[str, int]]) -> Devices | None:
    """The GPUs of a cluster, as if all were of the kind with the least memory and all nodes had as many as the fullest.
    None without GPUs, or with a kind whose memory is unknown.

    Args:
        gpus: for each node its kind of GPU, as its driver or Ray names it, and their number.
    """
    kinds = [_known(kind) for kind, _ in gpus]
    smallest = min((kind for kind in kinds if kind is not None), key=lambda kind: kind.memory, default=None)
    if smallest is None or None in kinds:
        return None
    return Devices(smallest, max(count for _, count in gpus), len(gpus))


def _named(reported: str) -> Device:
    """The card that a driver reports, or `UNNAMED`."""
    return _known(reported) or UNNAMED


def _known(reported: str) -> Device | None:
    """The card whose name occurs in what a driver reports, such as `NVIDIA H100 80GB HBM3`."""
    patterns = {name: ".*".join(part.replace("RTX", "RTX ?") for part in name.split("-")) for name in GPUS}
    matches = [name for name, form in patterns.items() if re.search(rf"\b{form}\b", reported, re.IGNORECASE)]
    return GPUS[max(matches, key=len)] if matches else None
