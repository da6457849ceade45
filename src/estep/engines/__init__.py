"""Engines, which sample texts."""

from collections.abc import Callable

from estep.config import (
    AutoEngineConfig,
    EngineConfig,
    OpenAIEngineConfig,
    ProposalModel,
    ScriptedEngineConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from estep.engines.base import DrawQueue, Engine, Sampling
from estep.models.precision import cpu_has_bfloat16
from estep.records import ModelRef

__all__ = ["DrawQueue", "Engine", "Sampling", "build_engine", "log_limits", "open_engine", "open_proposer"]


def open_engine(config: EngineConfig, model: ModelRef, log: Callable[[str], None] = lambda _: None) -> Engine:
    """Start the configured engine with a model: in this process, or in one process for each copy of the model
    (`engine.data_parallel`). Heavy imports happen here.

    Args:
        log: receives which engine `auto` chose and why, and limits of the engine on this machine.

    Raises:
        EngineError: the engine does not start.
        ConfigError: the machine or the chosen engine lacks what a key asks for.
        SourceError: the model cannot be loaded.
    """
    from estep.engines import choice

    if isinstance(config, AutoEngineConfig):
        config = choice.chosen(config, log)
    copies = choice.copies(config)
    engine = build_engine(config) if copies == 1 else _pooled(config, copies, log)
    engine.load(model)
    if copies > 1:
        log(f"engine: {copies} copies of the model sample at the same time (engine.data_parallel)")
    log_limits(engine, config, log)
    return engine


def log_limits(engine: Engine, config: EngineConfig, log: Callable[[str], None]) -> None:
    """Report what an engine cannot do where it runs."""
    asked, dtype = getattr(config, "dtype", None), engine.metadata.get("dtype")
    if (asked, dtype) == ("auto", "float32"):
        log("note: engine.dtype=auto is float32, because the processor has no bfloat16 instructions")
    elif (asked, engine.metadata.get("device")) == ("bfloat16", "cpu") and not cpu_has_bfloat16():
        log("note: engine.dtype=bfloat16 is emulated on this processor: slow, and too inexact for the canary")
    if engine.metadata.get("per_request_seeds") is False:
        log("note: vLLM on a CPU does not support per-request seeds: interrupted sampling starts over")


def _pooled(config: EngineConfig, copies: int, log: Callable[[str], None]) -> Engine:
    from estep.engines.choice import gpus, gpus_of_copy
    from estep.engines.pool import PooledEngine
    from estep.engines.processes import cpu_environment, gpu_environment, local_workers

    each = gpus_of_copy(config)
    on_gpus = gpus() > 0 and getattr(config, "device", "auto") != "cpu"

    def environment(number: int) -> dict[str, str]:
        return gpu_environment(number, each) if on_gpus else cpu_environment(number, copies, each)

    return PooledEngine(config, local_workers(environment), copies, log)


def open_proposer(config: ProposalModel) -> Engine:
    """The served model that a proposal samples from instead of the policy.

    Raises:
        ConfigError: the environment holds no key, or the `openai` package is missing.
    """
    from estep.engines.openai import OpenAIEngine

    engine = OpenAIEngine(config)
    engine.load(ModelRef(config.model))
    return engine


def build_engine(config: EngineConfig) -> Engine:
    """The engine of a configuration, without a model."""
    match config:
        case VLLMEngineConfig():
            from estep.engines.vllm import VLLMEngine

            return VLLMEngine(config)
        case TransformersEngineConfig():
            from estep.engines.transformers import TransformersEngine

            return TransformersEngine(config)
        case OpenAIEngineConfig():
            from estep.engines.openai import OpenAIEngine

            return OpenAIEngine(config)
        case ScriptedEngineConfig():
            from estep.engines.scripted import ScriptedEngine

            return ScriptedEngine.from_file(config.script)
        case _:
            raise TypeError(f"no engine for {type(config).__name__}")
