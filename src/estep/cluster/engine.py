"""The engine of a run: on this machine, or on a cluster."""

from collections.abc import Callable
from pathlib import Path

from estep import engines
from estep.cluster.m_step import RayTraining
from estep.cluster.session import connect, disconnect, resources
from estep.cluster.workers import RayWorkers
from estep.config import AutoEngineConfig, EngineConfig, OpenAIEngineConfig, RunConfig, ScriptedEngineConfig
from estep.engines import Engine, choice
from estep.engines.pool import PooledEngine
from estep.errors import EngineError
from estep.m_step.job import Launch
from estep.records import ModelRef


class RayEngine(PooledEngine):
    """A pool of engines on the cluster. It holds a connection to the cluster until it is closed."""

    def __init__(self, config: EngineConfig, workers: RayWorkers, count: int, log: Callable[[str], None]):
        super().__init__(config, workers, count, log)
        self.workers = workers
        self.restarts *= count  # a node that is lost takes all of its engines with it
        self._connected = True

    def interrupt(self) -> None:
        """Stop all workers at once, from another thread: whoever waits for them gets an error."""
        self.workers.stop_all()

    def close(self) -> None:
        super().close()
        if self._connected:
            self._connected = False
            disconnect()


def open_engine(
    config: RunConfig, model: ModelRef, log: Callable[[str], None] = lambda _: None, cells: int = 1
) -> Engine:
    """Start the engine of a run with a model, on the cluster if the run has one.

    Args:
        log: receives what is to be known about the engine.
        cells: number of runs that share the cluster's GPUs at the same time.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: the engine does not start, or the cluster cannot be reached.
        SourceError: the model cannot be loaded.
    """
    if config.cluster is None or isinstance(config.engine, OpenAIEngineConfig):
        return engines.open_engine(config.engine, model, log)
    connect(config.cluster, log)
    try:
        engine = _pool(_everywhere(config.engine, log), log, cells)
    except BaseException:
        disconnect()
        raise
    try:
        engine.load(model)
    except BaseException:
        engine.close()
        raise
    copies = engine.metadata["data_parallel"]
    log(f"engine: {copies} {'copy' if copies == 1 else 'copies'} of the model on the cluster")
    engines.log_limits(engine, config.engine, log)
    return engine


def launch_of(config: RunConfig, engine: Engine, cells: int = 1) -> Launch | None:
    """Where a run trains, if that is not this machine.

    Args:
        engine: the run's engine, whose GPUs the training borrows.
        cells: number of runs that share the cluster's GPUs at the same time.
    """
    if config.cluster is None:
        return None
    owned = engine.workers.placements if isinstance(engine, RayEngine) else list
    return RayTraining(config.m_step.devices, config.m_step.device == "auto", owned, cells)


def _pool(config: EngineConfig, log: Callable[[str], None], cells: int) -> RayEngine:
    there = resources()
    each: int = getattr(config, "tensor_parallel_size", 1) if there.gpus else 0
    wanted: int | str = getattr(config, "data_parallel", "auto")
    if wanted != "auto":
        count = int(wanted)
    else:
        count = there.gpus // each // cells if each else 1
        if count == 0:
            raise EngineError(
                f"the cluster has {there.gpus} GPUs, and {cells} x {each} are needed: lower "
                "engine.tensor_parallel_size or the number of runs at a time"
            )
    return RayEngine(config, RayWorkers(each, log, count, there.nodes), count, log)


def _everywhere(config: EngineConfig, log: Callable[[str], None]) -> EngineConfig:
    """A configuration that means the same on every node."""
    if isinstance(config, AutoEngineConfig):
        return choice.chosen(config, log)
    if isinstance(config, ScriptedEngineConfig):
        return config.model_copy(update={"script": str(Path(config.script).absolute())})
    return config
