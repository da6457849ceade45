"""Engines in processes of this machine, for the pool (`estep.engines.pool`).

A process is `python -m estep.engines.processes`, with its own GPUs or cores. It shares a socket with this process that
has no name, so nobody else can connect to it. It ends when this process ends, even if this process is killed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from estep.engines.host import EngineHost
from estep.engines.pool import StartWorker, WorkerDiedError
from estep.errors import EstepError

_FIRST_PORT, _PORTS = 29600, 20
"""Where the first engine looks for free ports, and how many each engine has for itself."""
_WATCHED = 0.5
"""Seconds between two checks whether the parent process is alive."""


MODULE = (sys.executable, "-P", "-m")
"""Runs a module in a process of its own. Without -P, a file in the present folder could take the place of a package."""


def same_packages() -> dict[str, str]:
    """The environment of a process that finds the same packages as this one."""
    path = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def gpu_environment(number: int, gpus: int) -> dict[str, str]:
    """The environment of the worker with this number on a machine with GPUs.

    Args:
        number: from 0.
        gpus: GPUs of each worker. They are taken, in turn, from those that this process sees.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range((number + 1) * gpus)]
    mine = [name.strip() for name in names[number * gpus : (number + 1) * gpus]]
    # Engines that start at the same time would look for a free port in the same place.
    port = int(os.environ.get("VLLM_PORT", _FIRST_PORT)) + number * _PORTS
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine), "VLLM_PORT": str(port)}


def cpu_environment(number: int, workers: int, parts: int = 1) -> dict[str, str]:
    """The environment of the worker with this number on a machine without GPUs: its part of the cores.

    Args:
        number: from 0.
        workers: the number of workers. If there are more of them than cores, several share a core.
        parts: vLLM's `tensor_parallel_size`.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    mine = _part(cores, number, workers)
    bound = [",".join(map(str, _part(mine, part, parts))) for part in range(parts)]
    return {"OMP_NUM_THREADS": str(len(mine)), "VLLM_CPU_OMP_THREADS_BIND": "|".join(bound)}


def _part(cores: Sequence[int], number: int, parts: int) -> Sequence[int]:
    """One of several parts of equal size, within one core."""
    if len(cores) < parts:
        return [cores[number % len(cores)]]
    return cores[number * len(cores) // parts : (number + 1) * len(cores) // parts]


def local_workers(environment: Callable[[int], Mapping[str, str]]) -> StartWorker:
    """Starts workers on this machine.

    Args:
        environment: what to change in the environment of the worker with a number.
    """
    return lambda number: LocalWorker(number, environment(number))


class LocalWorker:
    """A process with an `EngineHost`; see `estep.engines.pool.Worker`."""

    def __init__(self, number: int, environment: Mapping[str, str]):
        self._number = number
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*MODULE, "estep.engines.processes", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                env={**same_packages(), **environment},
                start_new_session=True,  # an interrupt from the keyboard reaches this process alone
            )
        self._connection = Connection(ours.detach())
        self._asked: Future[Any] | None = None
        self._dead: WorkerDiedError | None = None
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"engine {number}", daemon=True)
        self._reader.start()

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """See `Worker.call`."""
        future: Future[Any] = Future()
        with self._lock:
            if self._dead is not None:
                future.set_exception(self._dead)
                return future
            self._asked = future
        with contextlib.suppress(OSError):  # `_read` finds that the process ended
            self._connection.send((method, arguments))
        return future

    def _read(self) -> None:
        """Hand the answers over, until the process ends."""
        try:
            while True:
                answer, error = self._connection.recv()
                with self._lock:
                    future, self._asked = self._asked, None
                if future is None:
                    continue
                if error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(error)
        except (EOFError, OSError):
            pass
        except Exception as error:  # an answer that cannot be read: nobody would ever hear of the next one either
            self._stderr.write(f"\nits answer cannot be read: {type(error).__name__}: {error}\n".encode())
            self._process.kill()
        ended = self._process.wait()
        with contextlib.suppress(OSError):  # none are left
            os.killpg(self._process.pid, signal.SIGKILL)  # processes that vLLM started there, which hold a GPU's memory
        with self._lock:
            self._dead = WorkerDiedError(f"the process of engine {self._number} ended ({self._reason(ended)})")
            future, self._asked = self._asked, None
        if future is not None:
            future.set_exception(self._dead)

    def _reason(self, ended: int) -> str:
        """Why the process ended: its signal or status, and the last line that it wrote."""
        names = {one.value: one.name for one in signal.Signals}  # there are signals without a name
        reason = f"status {ended}" if ended >= 0 else names.get(-ended, f"signal {-ended}")
        if ended == -signal.SIGKILL:
            reason += ", as when memory runs out"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        written = [line.strip() for line in lines if line.strip()]
        return f"{reason}: {written[-1]}" if written else reason

    def stop(self) -> None:
        """See `Worker.stop`."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with the processes that vLLM started there
        self._reader.join()
        self._connection.close()
        self._stderr.close()


def serve(connection: Connection, host: EngineHost) -> None:
    """Answer calls until the other end closes the connection."""
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        answer: Any = None
        error: Exception | None = None
        try:
            answer = getattr(host, method)(*arguments)
        except EstepError as raised:
            error = type(raised)(*raised.args)  # without the traceback, which holds the engine's memory
        except Exception:
            error = RuntimeError(f"in an engine's process:\n{traceback.format_exc()}")
        connection.send((answer, error))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCHED)
    os._exit(1)


def main() -> None:
    """The process of a `LocalWorker`. Arguments: the descriptor of the socket, and the id of the parent process."""
    descriptor, parent = map(int, sys.argv[1:])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    serve(Connection(descriptor), EngineHost())


if __name__ == "__main__":
    main()
