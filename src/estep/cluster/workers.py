"""Engines on a Ray cluster: an actor for each copy of the model, behind the pool of `estep.engines.pool`.

An actor takes whole GPUs, as many as `tensor_parallel_size`, and keeps them until its engine is closed. During the
M-step its engine is released, and the training borrows its GPUs (`estep.cluster.m_step`). Fractions of GPUs would not
do: Ray could place another run's training, or two processes of one training, on the same GPU, and it refuses fractions
above 1.

Every node needs the same Python environment, and sees the same files under the same paths.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from estep.cluster.session import ray_package, resources
from estep.engines.host import EngineHost
from estep.engines.pool import Worker, WorkerDiedError
from estep.engines.processes import cpu_environment
from estep.errors import EngineError, EstepError
from estep.records import ModelRef

PLACING = 900.0
"""Seconds that an engine may wait for its GPUs, for example until the cluster has started another node."""
_NOTE = 15.0
"""Seconds after which a waiting engine is reported."""
CPU_SHARE = 0.01
"""CPUs that Ray reserves for a process: next to nothing, because engines and training take turns."""


class Placement(NamedTuple):
    """Where an engine is."""

    node: str
    """Ray's id of the node."""
    gpus: tuple[str, ...]
    """Ray's ids of the GPUs on this node that belong to the engine."""


class Cores(NamedTuple):
    """The cores of a node that an engine computes on."""

    part: int
    parts: int


class EngineActor:
    """The process of an engine.

    Args:
        cores: for an engine on a CPU.
    """

    def __init__(self, cores: Cores | None):
        if cores is not None:
            os.environ.update(
                cpu_environment(*cores)
            )  # Ray allows one thread; torch is not loaded yet and will see this
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._host = EngineHost()

    def placement(self) -> Placement:
        """Where this process is."""
        context = ray_package().get_runtime_context()
        return Placement(context.get_node_id(), tuple(context.get_accelerator_ids().get("GPU", [])))

    def call(self, method: str, arguments: list[Any]) -> Any:
        """Call a method of the host.

        Raises:
            EngineError: this node does not see the folder of a model.
        """
        for argument in arguments:
            if isinstance(argument, ModelRef) and Path(argument.path).is_absolute():
                check_visible(argument.path)
        return getattr(self._host, method)(*arguments)


class RayWorker:
    """An actor; satisfies `Worker`.

    Args:
        gpus: GPUs of the engine.
        cores: see `EngineActor`.
        log: receives a line if the actor has to wait for its GPUs.
    """

    def __init__(self, gpus: int, cores: Cores | None, log: Callable[[str], None]):
        ray = ray_package()
        options = {"num_cpus": CPU_SHARE, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self._ray = ray
        self._gpus = gpus
        self._log = log
        self._actor: Any = ray.remote(EngineActor).options(**options).remote(cores)
        self._placement: Any = self._actor.placement.remote()
        self._called = False

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """See `Worker.call`. Paths of models are made absolute."""
        answer: Future[Any] = Future()
        if not self._called:
            self._called = True
            threading.Thread(target=self._watch, args=(answer,), daemon=True).start()
        actor = self._actor
        if actor is None:
            _settle(answer, error=WorkerDiedError("an engine on the cluster was stopped"))
            return answer
        asked = actor.call.remote(method, [anywhere(argument) for argument in arguments])
        asked.future().add_done_callback(lambda done: _pass_on(done, answer))
        return answer

    def placement(self) -> Placement:
        """Where the actor is; waits until it has its GPUs.

        Raises:
            EngineError: it did not get them within `PLACING` seconds.
            WorkerDiedError: it ended.
        """
        self._wait_for_place()
        if (asked := self._placement) is None:
            raise WorkerDiedError("an engine on the cluster was stopped")
        try:
            placement: Placement = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            raise translated(error) from error
        return placement

    def stop(self) -> None:
        """See `Worker.stop`."""
        # References must not outlive the connection to Ray.
        actor, self._actor, self._placement = self._actor, None, None
        if actor is not None:
            self._ray.kill(actor)

    def _watch(self, answer: Future[Any]) -> None:
        try:
            self._wait_for_place()
        except EngineError as error:
            _settle(answer, error=error)
            self.stop()

    def _wait_for_place(self) -> None:
        """Wait until the actor has its GPUs, has ended, or was stopped."""
        if self._over(_NOTE):
            return
        self._log(
            f"note: {_gpus(self._gpus)} of one node must become free; the cluster has {resources().gpus}. The run "
            f"stops if this takes more than {PLACING / 60:.0f} minutes"
        )
        if not self._over(PLACING - _NOTE):
            raise EngineError(
                f"{_gpus(self._gpus)} of one node did not become free within {PLACING / 60:.0f} minutes; lower "
                "engine.data_parallel, engine.tensor_parallel_size or m_step.devices, or add nodes, and run the same "
                "command again"
            )

    def _over(self, seconds: float) -> bool:
        """Whether the wait is over within some seconds."""
        end = time.monotonic() + seconds
        while (asked := self._placement) is not None and time.monotonic() < end:
            try:
                ready, _ = self._ray.wait([asked], timeout=min(1.0, max(0.0, end - time.monotonic())))
            except Exception:
                if self._placement is None:
                    return True  # stopped, and Ray as well
                raise
            if ready:
                return True
        return asked is None


class RayWorkers:
    """Starts the workers of a pool, and knows where they are; satisfies `StartWorker`.

    Args:
        gpus: GPUs of each engine; 0 for CPUs.
        log: receives messages for the user.
        count: number of engines.
        nodes: number of nodes, among which Ray spreads them.
    """

    def __init__(self, gpus: int, log: Callable[[str], None], count: int = 1, nodes: int = 1):
        self._gpus = gpus
        self._log = log
        self._nodes = nodes
        self._on_a_node = -(-count // nodes)
        self._present: dict[int, RayWorker] = {}

    def __call__(self, number: int) -> Worker:
        cores = None if self._gpus else Cores(number // self._nodes, self._on_a_node)
        self._present[number] = RayWorker(self._gpus, cores, self._log)
        return self._present[number]

    def stop(self, number: int) -> None:
        """Stop a worker."""
        self._present.pop(number).stop()

    def stop_all(self) -> None:
        """Stop all workers."""
        for worker in list(self._present.values()):
            worker.stop()

    def placements(self) -> list[Placement]:
        """Where the living workers are."""
        found = []
        for _, worker in sorted(self._present.items()):
            try:
                found.append(worker.placement())
            except WorkerDiedError:
                continue  # the pool replaces it when it is called next
        return found


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def anywhere(argument: Any) -> Any:
    """An argument that means the same in a process with another working directory."""
    return replace(argument, path=absolute(argument.path)) if isinstance(argument, ModelRef) else argument


def absolute(model: str) -> str:
    """A model's folder as a path that does not depend on the working directory; a hub id as it is."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def check_visible(path: str | Path) -> None:
    """Check that this node sees a folder.

    Raises:
        EngineError: it does not.
    """
    if not Path(path).is_dir():
        import socket

        raise EngineError(
            f"the node {socket.gethostname()} does not see {path}: a run on a cluster needs its run_dir, and the cache "
            "of models (ESTEP_CACHE), on a file system that all nodes share"
        )


def translated(error: BaseException) -> BaseException:
    """What an error of Ray means: the exception of the remote method, or that its process ended."""
    exceptions = ray_package().exceptions
    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        if isinstance(cause, EstepError):
            return cause
        return cause if isinstance(cause, BaseException) else error
    text = str(error)
    if "No module named" in text:
        line = next(line.strip() for line in text.splitlines() if "No module named" in line)
        return EngineError(f"a node of the cluster has another Python environment ({line}): install the same on each")
    if isinstance(error, exceptions.RayError):
        return WorkerDiedError("an engine on the cluster died, or its node did")
    return error


def _pass_on(done: Future[Any], answer: Future[Any]) -> None:
    error = done.exception()
    if error is None:
        _settle(answer, result=done.result())
    else:
        _settle(answer, error=translated(error))


def _settle(answer: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Settle a future, unless it is settled."""
    with contextlib.suppress(InvalidStateError):
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
