"""Starts a Ray cluster for the tests of this folder, which are skipped without Ray."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read when Ray is imported
pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="session")
def started_nodes() -> Iterator[Any]:
    from cluster.nodes import Nodes

    source = str(Path(__file__).parents[2] / "src")
    _patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    _patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])))
    nodes = Nodes()
    _running.append(nodes)
    yield nodes
    _stop()


_running: list[Any] = []
_patch = pytest.MonkeyPatch()


def _stop() -> None:
    while _running:
        _running.pop().shutdown()
    _patch.undo()


@pytest.fixture(autouse=True)
def interrupts_are_pythons_own() -> Iterator[None]:
    """Ray Train takes over SIGINT in a process that starts a training, and keeps it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the cluster after the last test of this folder: its processes would slow the tests that follow."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _stop()


@pytest.fixture
def nodes(started_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster that `cluster: auto` finds."""
    monkeypatch.setenv("RAY_ADDRESS", started_nodes.address)
    return started_nodes
