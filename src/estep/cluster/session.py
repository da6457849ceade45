"""The connection to a Ray cluster, shared by the engines and M-steps of this process.

`cluster: auto` is the cluster that the environment variable RAY_ADDRESS names, or the one that `ray start` started on
this machine; if there is neither, Ray is started on this machine and stopped at the end. Another program's own Ray is
never joined, because it ends with that program. `ray://HOST:PORT` connects through Ray's client server.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from estep.errors import ConfigError, EngineError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Unless these are set, Ray reports statistics, Train changes the folder of its workers, and a call after the end of a
connection opens another one."""

_ANSWER_SECONDS = 5.0
_ATTEMPTS = 3
_SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

_lock = threading.Lock()
_users = 0
_ours = False


class Resources(NamedTuple):
    """What the living nodes of a cluster have."""

    nodes: int
    cpus: int
    gpus: int


@contextmanager
def connected(cluster: str | None, log: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """A context with a connection to the cluster, if there is one. Contexts may be nested or belong to several threads;
    the last one closes the connection.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: the cluster cannot be reached.
    """
    if cluster is None:
        yield
        return
    connect(cluster, log)
    try:
        yield
    finally:
        disconnect()


def connect(cluster: str, log: Callable[[str], None] = lambda _: None) -> None:
    """Connect to the cluster, unless this process is connected; see `connected`."""
    global _users, _ours
    with _lock:
        if _users == 0:
            _ours = _init(cluster, log)
        _users += 1


def disconnect() -> None:
    """Undo one `connect`. The last one closes the connection, and stops Ray if this process started it."""
    global _users, _ours
    with _lock:
        _users -= 1
        if _users == 0 and _ours:
            ray_package().shutdown()
            _ours = False


def _init(cluster: str, log: Callable[[str], None]) -> bool:
    """Whether a connection was made; False if the caller's program was connected before."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray = ray_package()
    if ray.is_initialized():
        return False
    try:
        address = _address(ray) if cluster == "auto" else cluster
        if address.startswith("ray://"):
            log(f"connecting to {address}")
            _answers(*address.removeprefix("ray://").rpartition(":")[::2])
            _join(ray, address, log)
        else:
            ray.init(address=address, include_dashboard=False, **_SILENT)
    except Exception as error:  # also RuntimeError and ValueError: another version, a malformed address
        ray.shutdown()  # a connection that failed halfway would be in the way of the next one
        at = f" at {os.environ.get('RAY_ADDRESS', 'this machine')}" if cluster == "auto" else ""
        raise EngineError(f"cluster={cluster}: no connection to Ray{at}: {first_line(error)}") from error
    nodes, cpus, gpus = resources()
    where = "started on this machine" if address == "local" else f"joined at {address}"
    log(f"Ray {ray.__version__}, {where}: nodes {nodes}, CPUs {cpus}, GPUs {gpus}")
    return True


def _join(ray: Any, address: str, log: Callable[[str], None]) -> None:
    """Connect through Ray's client. Its server starts a process for each client, which sometimes ends at once: about
    one time in four with Ray 2.60, and in most cases not the next time."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(address=address, **_SILENT)
            return
        except ConnectionError as error:
            if left == 0:
                raise
            log(f"note: Ray at {address} did not start a process for this one ({first_line(error)}); connecting again")
            ray.shutdown()


def _address(ray: Any) -> str:
    """The address of the cluster that this machine belongs to, or `local` to start one.

    Raises:
        ConnectionError: nothing answers at RAY_ADDRESS.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named and named.startswith("ray://"):
        return named
    address: str | None = ray._private.services.canonicalize_bootstrap_address(None)
    if address is None:
        return "local"
    host, _, port = address.rpartition(":")
    try:
        _answers(host, port)
    except ConnectionError:
        if named:
            raise
        return "local"  # a cluster that crashed has left its address behind
    return address


def _answers(host: str, port: str) -> None:
    """Check that somebody answers at an address.

    Raises:
        ConnectionError: nobody does.
    """
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"nothing answers ({error})") from error


def ray_package() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("cluster=... needs the package ray: pip install 'estep[ray]', or set cluster=null") from error
    return ray


def resources() -> Resources:
    """The resources of the living nodes."""
    ray = ray_package()
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {kind: int(sum(one.get(kind, 0) for one in there)) for kind in ("CPU", "GPU")}
    return Resources(len(there), total["CPU"], total["GPU"])


def gpus_by_node() -> list[tuple[str, int]]:
    """For each living node with GPUs, what Ray calls their kind (empty if it does not know), and their number."""
    prefix = "accelerator_type:"
    found = []
    for node in ray_package().nodes():
        if node["Alive"] and (count := int(node["Resources"].get("GPU", 0))):
            kinds = [name.removeprefix(prefix) for name in node["Resources"] if name.startswith(prefix)]
            found.append((kinds[0] if kinds else "", count))
    return found


def first_line(error: BaseException) -> str:
    """The message of an error of Ray without its traceback and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
