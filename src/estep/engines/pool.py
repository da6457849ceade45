"""Several engines that sample as one: one per GPU of a machine, or per GPU of a cluster."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from estep.errors import EngineError


class WorkerDiedError(EngineError):
    """The process of an engine ended."""


class Worker(Protocol):
    """An engine in a process of its own, on this machine or another."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the worker's `EngineHost` (`estep.engines.host`). One call at a time.

        The future raises what the method raises, or `WorkerDiedError`.
        """

    def stop(self) -> None:
        """End the process, even if it hangs or has ended."""


StartWorker = Callable[[int], Worker]
"""Starts the process of the worker with this number; its engine is built by a call of `open`."""
