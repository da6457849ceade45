"""Engines: what samples texts."""

from estep.config import EngineConfig, ScriptedEngineConfig, TransformersEngineConfig
from estep.engines.base import DrawQueue, Engine, Sampling

__all__ = ["DrawQueue", "Engine", "Sampling", "build_engine"]


def build_engine(config: EngineConfig) -> Engine:
    """The engine that a config section describes; its heavy imports happen here."""
    match config:
        case TransformersEngineConfig():
            from estep.engines.transformers import TransformersEngine

            return TransformersEngine(config)
        case ScriptedEngineConfig():
            from estep.engines.scripted import ScriptedEngine

            return ScriptedEngine.from_file(config.script)
