"""Refuses a run that cannot fit its devices, before anything is sampled. One line says what is needed, what is there,
and what would do.

It refuses only what cannot work: it counts a pair of few tokens, and the weights and one sequence of the engine. What
fits barely may still run out of memory later.
"""

from collections.abc import Callable
from dataclasses import replace

from estep.cluster.session import gpus_by_node
from estep.config import AutoEngineConfig, RunConfig, ScriptedEngineConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.config.run import LoRAConfig
from estep.errors import ConfigError, SourceError
from estep.models.shape import ModelShape, shape_of
from estep.planning.devices import GB, Devices, cluster_devices, local_devices
from estep.planning.memory import (
    for_sampling,
    for_training,
    host_bytes,
    sampling_dtype,
    sampling_memory,
    training_memory,
    training_ranks,
)

SHORT_PAIR = (128, 32)
"""Positions and predicted tokens of a short pair."""
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)

Log = Callable[[str], None]


def check_fits(config: RunConfig, model: str, log: Log) -> None:
    """Refuse a run that cannot fit the devices of this machine, or of the cluster that it is connected to.

    Args:
        config: a resolved configuration.
        model: its model, as `from_pretrained` takes it.
        log: receives a note where nothing can be said.

    Raises:
        ConfigError: training or sampling needs more memory or devices than there are.
    """
    if isinstance(config.engine, ScriptedEngineConfig):
        return  # it has no model
    if config.cluster is None:
        devices = local_devices()
    else:
        there = gpus_by_node()
        if not there:
            return  # nodes without GPUs serve to try things out
        found = cluster_devices(there)
        if found is None:
            kinds = ", ".join(sorted({kind or "unnamed" for kind, _ in there}))
            log(f"note: the memory of the cluster's GPUs ({kinds}) is unknown, so the run is not checked")
            return
        devices = found
    try:
        shape = shape_of(model)
    except SourceError as error:
        log(f"note: the memory that this run needs is unknown: {error}")
        return
    refuse_what_cannot_fit(config, shape, devices)


def refuse_what_cannot_fit(config: RunConfig, shape: ModelShape, devices: Devices) -> None:
    """The same for a shape.

    Raises:
        ConfigError: see `check_fits`.
    """
    if devices.nodes > 1 and config.cluster is None:
        raise ConfigError(f"a run on several machines ({devices}) needs a Ray cluster: set cluster=auto")
    try:
        _refuse_training(config, shape, for_training(config, devices))
        _refuse_sampling(config, shape, for_sampling(config, devices))
    except ConfigError as error:
        if not devices.unequal:
            raise
        raise ConfigError(f"{error}; all GPUs count as the smallest: CUDA_VISIBLE_DEVICES can leave it out") from None
    if devices.device.gpu and devices.host is not None and host_bytes(shape) > devices.host + _swap():
        raise ConfigError(
            f"training {config.model} needs {host_bytes(shape) / GB:.1f} GB of main memory to read and write its "
            f"float32 weights, and the machine has {devices.host / GB:.1f} GB; use one with more, or a smaller model"
        )


def _refuse_training(config: RunConfig, shape: ModelShape, devices: Devices) -> None:
    ranks = training_ranks(config, devices)
    if devices.device.gpu and ranks > devices.count:
        raise ConfigError(f"m_step.devices={ranks}, but there are {devices}; allowed are 1 to {devices.count}, or auto")
    memory = training_memory(shape, config, devices, SHORT_PAIR, ranks)
    limit = memory.total if devices.device.gpu else memory.total + _swap() / ranks
    if memory.peak <= limit:
        return
    way = "an adapter of" if config.m_step.lora is not None else "all weights of"
    raise ConfigError(
        f"training {way} {config.model} needs at least {memory.peak / GB:.1f} GB on "
        + (f"each of {ranks} devices" if ranks > 1 else "one device")
        + f", but a device has {memory.total / GB:.1f} GB ({devices}); what would do: "
        + (", or ".join(_what_would_do(config, shape, devices)) or "devices with more memory")
    )


def _fits(config: RunConfig, shape: ModelShape, devices: Devices, ranks: int) -> bool:
    """Whether a training of a short pair fits."""
    memory = training_memory(shape, config, devices, SHORT_PAIR, ranks)
    return memory.peak <= memory.total


def _what_would_do(config: RunConfig, shape: ModelShape, devices: Devices) -> list[str]:
    """Changes of the configuration, or more devices, each of which makes the training fit."""
    ranks, m_step = training_ranks(config, devices), config.m_step
    ways = []
    if not devices.device.gpu and ranks > 1 and _fits(config, shape, devices, 1):
        ways.append("m_step.devices=1")
    if m_step.micro_batch_size not in (None, 1):
        smaller = _with(config, micro_batch_size=1)
        if _fits(smaller, shape, devices, ranks):
            ways.append("m_step.micro_batch_size=null")
    if m_step.gradient_checkpointing is False and _fits(
        _with(config, gradient_checkpointing=None), shape, devices, ranks
    ):
        ways.append("m_step.gradient_checkpointing=null")
    if devices.device.gpu:
        enough = next((n for n in _RANKS if n > ranks and _fits(config, shape, devices, n)), None)
        if enough is not None:
            there = "" if enough <= devices.count else f" ({enough} such devices)"
            ways.append(f"m_step.devices={enough}{there}")
    if m_step.lora is None:
        adapted = _with(config, lora=LoRAConfig())
        if _fits(adapted, shape, devices, ranks):
            ways.append(f"m_step.lora.r={LoRAConfig().r}")
        elif devices.device.gpu:
            enough = next((n for n in _RANKS if n > ranks and _fits(adapted, shape, devices, n)), None)
            if enough is not None:
                ways.append(f"m_step.lora.r={LoRAConfig().r} on {enough} such devices")
    return ways


def _with(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"m_step": config.m_step.model_copy(update=changes)})


def _refuse_sampling(config: RunConfig, shape: ModelShape, devices: Devices) -> None:
    engine = config.engine
    memory = sampling_memory(shape, config, devices, (0.0, 1.0))
    if memory is None or not isinstance(engine, AutoEngineConfig | VLLMEngineConfig | TransformersEngineConfig):
        return
    gpu = devices.device.gpu
    needed = memory.split * memory.copies
    if gpu and memory.split > devices.per_node:
        raise ConfigError(
            f"engine.tensor_parallel_size={memory.split} splits the model across more devices than a machine has "
            f"({devices}); allowed are 1 to {devices.per_node}"
        )
    if gpu and needed > devices.count:
        split = f"engine.tensor_parallel_size={memory.split} with " if memory.split > 1 else ""
        raise ConfigError(
            f"{split}engine.data_parallel={engine.data_parallel} needs {needed} devices, and there are {devices}; "
            f"lower {'one of them' if split else 'it'}"
        )
    budget = memory.budget if gpu else memory.budget + _swap()
    # `auto` falls back to transformers on a CPU, whose cache grows with the batch.
    strict = memory.vllm and (gpu or isinstance(engine, VLLMEngineConfig))
    least = memory.least if strict else memory.weights
    if least > budget:
        dtype = sampling_dtype(engine, devices)
        raise ConfigError(
            f"sampling from {config.model} needs {least / GB:.1f} GB on each device (weights in {dtype}, and a "
            f"sequence of {memory.longest} tokens), and the engine may use {budget / GB:.1f} GB of each of {devices}; "
            f"what would do: {_what_would_sample(config, shape, devices)}"
        )
    cache = getattr(engine, "kv_cache_gib", None)
    if memory.vllm and cache is not None and memory.longest * memory.token > cache * 2**30 and engine.max_model_len:
        raise ConfigError(
            f"engine.kv_cache_gib={cache:g} holds {int(cache * 2**30 / memory.token)} tokens, and a sequence may have "
            f"{memory.longest}; raise engine.kv_cache_gib, or lower engine.max_model_len"
        )


def _what_would_sample(config: RunConfig, shape: ModelShape, devices: Devices) -> str:
    engine = config.engine
    ways = []
    if devices.device.gpu and isinstance(engine, AutoEngineConfig | VLLMEngineConfig):
        for split in (n for n in _RANKS if n > engine.tensor_parallel_size and shape.heads % n == 0):
            wider = config.model_copy(update={"engine": engine.model_copy(update={"tensor_parallel_size": split})})
            more = replace(devices, per_node=max(devices.per_node, split))
            memory = sampling_memory(shape, wider, more, (0.0, 1.0))
            if memory is not None and memory.least <= memory.budget:
                there = "" if split <= devices.per_node else f" ({split} such devices in a machine)"
                ways.append(f"engine.tensor_parallel_size={split}{there}")
                break
        if sampling_fits_shorter(config, shape, devices):
            ways.append("a smaller engine.max_model_len")
    return ", or ".join(ways) or "a device with more memory, or a smaller model"


def sampling_fits_shorter(config: RunConfig, shape: ModelShape, devices: Devices) -> bool:
    """Whether the engine would start with a context of 2,048 tokens."""
    shorter = config.model_copy(update={"engine": config.engine.model_copy(update={"max_model_len": 2048})})
    memory = sampling_memory(shape, shorter, devices, (0.0, 1.0))
    return memory is not None and memory.least <= memory.budget


def _swap() -> float:
    """Bytes of swap space, which training on a CPU may use."""
    import psutil

    return float(psutil.swap_memory().total)
