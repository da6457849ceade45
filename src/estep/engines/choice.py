"""Which engine `engine.type: auto` is, and how many copies of the model sample at the same time."""

from collections.abc import Callable
from importlib.util import find_spec

from estep.config import AutoEngineConfig, EngineConfig, TransformersEngineConfig, VLLMEngineConfig
from estep.errors import ConfigError
from estep.models.loading import pick_device

_CHANGES_SAMPLES_OR_PLACEMENT = ("structured", "tensor_parallel_size")


def chosen(config: AutoEngineConfig, log: Callable[[str], None]) -> VLLMEngineConfig | TransformersEngineConfig:
    """vLLM where it is installed, otherwise transformers.

    Args:
        log: receives which one, and why.

    Raises:
        ConfigError: vLLM is not installed, and a key asks for what only vLLM does; or it is installed on a machine with
            a GPU, and cannot be imported.
    """
    from estep.engines import vllm_adapter

    problem = vllm_adapter.installed()
    settings = config.model_dump(exclude={"type"})
    if problem is None:
        log("engine: vLLM, because it is installed")
        return VLLMEngineConfig(**settings)
    if gpus() and find_spec("vllm") is not None:
        raise ConfigError(
            f"{problem}; mend it, or set engine.type=transformers, which is several times slower on a GPU"
        )
    log(f"engine: transformers, because {problem}")
    fields = AutoEngineConfig.model_fields
    only_vllm = settings.keys() - TransformersEngineConfig.model_fields.keys()
    changed = sorted(key for key in only_vllm if settings[key] != fields[key].default)
    for key in _CHANGES_SAMPLES_OR_PLACEMENT:
        if key in changed:
            raise ConfigError(f"engine.{key}={settings[key]} needs vLLM, but {problem}")
    if changed:
        log(f"note: only vLLM has {', '.join(f'engine.{key}' for key in changed)}; transformers does without")
    return TransformersEngineConfig(**{key: value for key, value in settings.items() if key not in only_vllm})


def gpus() -> int:
    """The number of GPUs that this process sees. Does not initialize CUDA."""
    import torch

    return torch.cuda.device_count()


def copies(config: EngineConfig) -> int:
    """The number of copies of the model on this machine: `data_parallel`, with `auto` resolved.

    Raises:
        ConfigError: more than the GPUs that are there, or a device that cannot be divided.
    """
    if not isinstance(config, VLLMEngineConfig | TransformersEngineConfig):
        return 1
    asked, there, each = config.data_parallel, gpus(), gpus_of_copy(config)
    if isinstance(config, TransformersEngineConfig) and config.device != "auto":
        device = pick_device(config.device)
        if device.type != "cpu" and asked not in (1, "auto"):
            raise ConfigError(
                f"engine.data_parallel={asked} needs engine.device=auto, got engine.device={config.device}: each copy "
                "has a GPU of its own"
            )
        return 1 if asked == "auto" else asked
    if not there:
        return 1 if asked == "auto" else asked
    if asked == "auto":
        return max(1, there // each)
    if asked * each > there:
        split = f" with engine.tensor_parallel_size={each}" if each > 1 else ""
        raise ConfigError(
            f"engine.data_parallel={asked}{split} needs {asked * each} GPUs, and {there} are there; `auto` uses all"
        )
    return asked


def gpus_of_copy(config: EngineConfig) -> int:
    """The number of GPUs that one copy of the model uses, where there are any."""
    return config.tensor_parallel_size if isinstance(config, VLLMEngineConfig) else 1
