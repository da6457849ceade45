"""A Ray cluster of two nodes on this machine, with invented GPUs that nothing computes on."""

import gc
import signal
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


class Nodes:
    """The cluster. Its first node stays; the second one can be lost."""

    def __init__(self) -> None:
        from ray._common.utils import get_ray_address_file
        from ray.cluster_utils import Cluster

        first = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False}
        first["ray_client_server_port"] = self.client_port = _free_port()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Ray does not close a file of its client server
            self._cluster = Cluster(True, head_node_args=first)
            gc.collect()
        Path(get_ray_address_file(None)).unlink()  # or other programs on this machine would find this cluster
        self.address = self._cluster.address
        self.add()

    def add(self) -> None:
        self._second = self._cluster.add_node(num_cpus=1, num_gpus=2)

    def lose(self) -> None:
        """Lose the second node."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        wait_until(lambda: len(self._cluster.global_state._live_node_ids()) == 1)

    def processes(self, kind: str) -> list[Any]:
        """The processes of all actors of a class."""
        found = []
        for node in self._cluster.list_all_nodes():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                try:
                    if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{kind}"):
                        found.append(process)
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
        return found

    def gpus(self) -> dict[str, int]:
        """The number of GPUs by Ray's id of the node."""
        import ray

        return {node["NodeID"]: int(node["Resources"]["GPU"]) for node in ray.nodes() if node["Alive"]}

    def kill(self, kind: str) -> None:
        """Kill the process of one actor of a class."""
        self.processes(kind)[0].send_signal(signal.SIGKILL)

    def shutdown(self) -> None:
        self._cluster.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.1)
