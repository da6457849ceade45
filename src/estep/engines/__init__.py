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
from estep.errors import EngineError
from estep.records import ModelRef

__all__ = ["DrawQueue", "Engine", "Sampling", "build_engine", "open_engine", "open_proposer"]


def open_engine(config: EngineConfig, model: ModelRef, log: Callable[[str], None] = lambda _: None) -> Engine:
    """Start the configured engine with a model. Heavy imports happen here.

    Args:
        log: receives which engine `auto` chose and why, and limits of the engine on this machine.

    Raises:
        EngineError: the engine does not start.
        SourceError: the model cannot be loaded.
    """
    if isinstance(config, AutoEngineConfig):
        engine = _chosen(config, model, log)
    else:
        engine = build_engine(config)
        engine.load(model)
    if engine.metadata.get("per_request_seeds") is False:
        log("note: vLLM on a CPU does not support per-request seeds: interrupted sampling starts over")
    return engine


def open_proposer(config: ProposalModel) -> Engine:
    """The served model that a proposal samples from instead of the policy.

    Raises:
        ConfigError: the environment holds no key, or the `openai` package is missing.
    """
    from estep.engines.openai import OpenAIEngine

    engine = OpenAIEngine(config)
    engine.load(ModelRef(config.model))
    return engine


def _chosen(config: AutoEngineConfig, model: ModelRef, log: Callable[[str], None]) -> Engine:
    """vLLM if it starts, otherwise transformers."""
    settings = config.model_dump(exclude={"type"})
    engine: Engine = build_engine(VLLMEngineConfig(**settings))
    problem = None
    try:
        engine.load(model)
    except EngineError as error:
        problem = str(error)
    if problem is None:
        log("engine: vLLM, because it is installed and starts")
        return engine
    log(f"engine: transformers, because {problem}")
    engine = build_engine(TransformersEngineConfig(**settings))
    engine.load(model)
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
