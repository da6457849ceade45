"""The memory that training and sampling take on each device, part by part, in bytes (GB are 10⁹ bytes)."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from estep.config import AutoEngineConfig, EngineConfig, RunConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.m_step.memory_plan import MemoryNeeds, Plan, memory_needs, plan
from estep.models.precision import resolve_dtype, resolve_precision
from estep.models.shape import ModelShape
from estep.planning.devices import GB, Device, Devices

GPU_RESERVE = 2 * GB
"""On each GPU, beside what is counted: about 0.5 GB for the CUDA context, 0.5 GB for buffers of NCCL and the allocator,
and 1 GB that a sleeping vLLM keeps. Assumed, not measured."""
CPU_RESERVE = 0.65 * GB
"""The libraries of a process; measured (docs/log.md)."""
ENGINE_WORK = 2 * GB
"""What vLLM takes on a GPU beside weights and cache: activations of a prefill and CUDA graphs. Assumed, not
measured."""
CPU_CACHE = 2 * 2**30
"""vLLM's key-value cache on a CPU, if `kv_cache_gib` does not set it."""
_SIZE = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of the M-step on each device."""

    devices: int
    """Devices that share the model."""
    total: float
    """Memory of a device in bytes; devices that share the main memory of a machine have a part of it each."""
    needs: MemoryNeeds
    plan: Plan
    pair: tuple[int, int]
    """Input positions and predicted tokens of a pair."""
    pairs: int
    """Pairs of this length that one forward pass of one device takes."""
    reserve: float

    def parts(self, pairs: int) -> dict[str, float]:
        """Bytes by part, in a forward pass of some pairs."""
        positions, targets = self.pair
        return {
            "weights": self.needs.weights,
            "gradients": self.needs.gradients,
            "optimizer": self.needs.moments,
            "gathered": self.needs.gathered,
            "activations": self.needs.activations(pairs * positions, self.plan.checkpointing),
            "logits": self.needs.logits(pairs * targets),
            "reserve": self.reserve,
        }

    @property
    def peak(self) -> float:
        """Bytes of the planned forward pass, with the reserve."""
        return sum(self.parts(self.pairs).values())


@dataclass(frozen=True)
class SamplingMemory:
    """The memory of an engine on each of its devices."""

    copies: int
    """Copies of the model that sample at the same time."""
    split: int
    """Devices of each copy."""
    vllm: bool
    budget: float
    """Bytes that the engine may take on a device."""
    weights: float
    work: float
    """Bytes for everything but weights and cache."""
    cache: float
    """Bytes for keys and values."""
    longest: int
    """Tokens that the cache must hold for the engine to start."""
    sequence: float
    """Bytes that a sequence of the run's usual length takes in the cache."""
    token: float
    """Bytes of one token in the cache."""
    sequences: int
    """Sequences of that length that a copy samples at the same time."""

    @property
    def least(self) -> float:
        """Bytes without which the engine cannot start: the weights, and the cache of one sequence of the longest
        length."""
        return self.weights + self.longest * self.token


def training_memory(
    shape: ModelShape, config: RunConfig, devices: Devices, pair: tuple[int, int], ranks: int
) -> TrainingMemory:
    """The memory of the M-step.

    Args:
        devices: those that train.
        pair: (positions, completion tokens) of a pair.
        ranks: how many of them share the model.
    """
    total = devices.device.memory if devices.device.gpu else devices.device.memory / ranks
    lengths: Sequence[tuple[int, int]] = [pair] * config.m_step.batch_size
    m_step = resolve_precision(config.m_step, _kind(devices))
    chosen = plan(shape, lengths, m_step, total, ranks)
    pairs = max(1, min(chosen.positions // pair[0], chosen.targets // pair[1]))
    reserve = GPU_RESERVE if devices.device.gpu else CPU_RESERVE
    return TrainingMemory(ranks, total, memory_needs(shape, m_step, ranks), chosen, pair, pairs, reserve)


def training_ranks(config: RunConfig, devices: Devices) -> int:
    """The devices that the M-step uses: `auto` is every GPU, and one process on a CPU."""
    if config.m_step.devices != "auto":
        return config.m_step.devices
    return devices.count if devices.device.gpu else 1


def for_training(config: RunConfig, devices: Devices) -> Devices:
    """The devices that the M-step may use."""
    return _cpu_of(devices) if config.m_step.device == "cpu" and devices.device.gpu else devices


def for_sampling(config: RunConfig, devices: Devices) -> Devices:
    """The devices that the engine may use."""
    engine = config.engine
    asked = engine.device if isinstance(engine, TransformersEngineConfig) else "auto"
    return _cpu_of(devices) if asked == "cpu" and devices.device.gpu else devices


def _cpu_of(devices: Devices) -> Devices:
    """The processors of machines with GPUs; their memory is infinite if it is unknown."""
    memory = devices.host if devices.host is not None else float("inf")
    return replace(devices, device=Device("CPU", memory, devices.device.flops, devices.device.bandwidth, gpu=False))


def _kind(devices: Devices) -> str:
    """The torch device's type."""
    return "cuda" if devices.device.gpu else "cpu"


def sampling_dtype(engine: EngineConfig, devices: Devices) -> str:
    """The type of a local engine's weights, with `auto` resolved."""
    return resolve_dtype(getattr(engine, "dtype", "auto"), _kind(devices))


def uses_vllm(engine: EngineConfig, devices: Devices) -> bool:
    """Whether an engine is vLLM. `auto` on devices elsewhere counts as vLLM."""
    if isinstance(engine, AutoEngineConfig):
        elsewhere = devices.host is None
        return elsewhere or importlib.util.find_spec("vllm") is not None
    return isinstance(engine, VLLMEngineConfig)


def sampling_memory(
    shape: ModelShape, config: RunConfig, devices: Devices, lengths: tuple[float, float]
) -> SamplingMemory | None:
    """The memory of an engine; None for one that samples elsewhere or from a script.

    Args:
        devices: those that sample.
        lengths: usual tokens of a prompt and of a response.
    """
    engine = config.engine
    if not isinstance(engine, AutoEngineConfig | VLLMEngineConfig | TransformersEngineConfig):
        return None
    size, vllm = _SIZE[sampling_dtype(engine, devices)], uses_vllm(engine, devices)
    split = 1 if isinstance(engine, TransformersEngineConfig) else engine.tensor_parallel_size
    gpu = devices.device.gpu
    copies = engine.data_parallel if engine.data_parallel != "auto" else max(1, devices.count // split) if gpu else 1
    token = shape.cache_bytes(size) / min(split, shape.kv_heads)
    weights = size * shape.parameters / split
    memory = devices.device.memory if gpu else devices.device.memory / copies
    usual = sum(lengths)
    longest = engine.max_model_len or usual
    if shape.context is not None:
        longest = min(longest, shape.context)
    if vllm and not isinstance(engine, TransformersEngineConfig):
        most = engine.max_num_seqs
        budget = engine.gpu_memory_utilization * memory if gpu else memory
        work = ENGINE_WORK if gpu else CPU_RESERVE
        cache = budget - weights - work
        if engine.kv_cache_gib is not None or not gpu:
            cache = min(cache, (engine.kv_cache_gib or CPU_CACHE / 2**30) * 2**30)
    else:
        most = getattr(engine, "batch_size", 64)
        budget, longest, work = memory, usual, GPU_RESERVE if gpu else CPU_RESERVE
        cache = min(budget - weights - work, most * usual * token)
    fitting = int(cache / (usual * token)) if cache > 0 else 0
    return SamplingMemory(
        copies=copies,
        split=split,
        vllm=vllm,
        budget=budget,
        weights=weights,
        work=work,
        cache=cache,
        longest=int(longest),
        sequence=usual * token,
        token=token,
        sequences=min(most, fitting),
    )


def host_bytes(shape: ModelShape) -> float:
    """Main memory that the first process of a training takes: it holds the float32 weights while it reads and writes
    them. The other processes do not."""
    return 4.0 * shape.parameters
