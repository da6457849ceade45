"""The settings with which vLLM starts, in this process or as a server; part of `vllm_adapter`.

Findings with vLLM 0.32 on a CPU:

- Prefix caching works in whole blocks, so long blocks waste part of a common prefix: blocks have 32 tokens, the minimum
  of the CPU kernels, instead of the default 128.
- The size of the key-value cache is set explicitly; by default vLLM allocates and zeroes most of the machine's memory.
"""

from typing import Any

from estep.config import VLLMEngineConfig
from estep.models.precision import resolve_dtype

CPU_KV_CACHE_GIB = 2.0
_CPU_BLOCK = 32
_CPU_BATCHED_TOKENS = 8192


def shared_arguments(config: VLLMEngineConfig, model: str, tokenizer: str, on_cpu: bool) -> dict[str, Any]:
    """The arguments of vLLM's engine that a run and a server have in common.

    Args:
        config: the engine's section.
        model: a folder or a hub id.
        tokenizer: path of the tokenizer.
        on_cpu: whether vLLM's platform is a CPU.
    """
    arguments: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "dtype": resolve_dtype(config.dtype, "cpu" if on_cpu else "cuda"),
        "generation_config": "vllm",  # a model's own sampling defaults would override ours
        "max_model_len": config.max_model_len or -1,  # -1: what the cache holds of the model's context
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        "enforce_eager": on_cpu if config.eager is None else config.eager,
    }
    kv_cache_gib = config.kv_cache_gib
    if on_cpu:
        kv_cache_gib = kv_cache_gib or CPU_KV_CACHE_GIB
        arguments |= {"block_size": _CPU_BLOCK, "max_num_batched_tokens": _CPU_BATCHED_TOKENS}
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    if kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
    return arguments


def engine_arguments(config: VLLMEngineConfig, model: str, tokenizer: str, on_cpu: bool) -> dict[str, Any]:
    """The arguments of an engine in this process; see `shared_arguments`."""
    alone = config.tensor_parallel_size == 1
    arguments = shared_arguments(config, model, tokenizer, on_cpu) | {
        "skip_tokenizer_init": not config.structured,  # only constrained sampling needs it
        "distributed_executor_backend": "uni" if alone else "mp",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "logprobs_mode": "processed_logits" if on_cpu and alone else "processed_logprobs",
    }
    return arguments if on_cpu else arguments | {"enable_sleep_mode": True}


def server_flags(config: VLLMEngineConfig, model: str, tokenizer: str, on_cpu: bool) -> list[str]:
    """The arguments of vLLM's server; see `shared_arguments`."""
    flags: list[str] = []
    for key, value in shared_arguments(config, model, tokenizer, on_cpu).items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags
