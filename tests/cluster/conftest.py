"""Starts a Ray cluster for the tests of this folder, which are skipped without Ray."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read when Ray is imported
pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="session")
def started_nodes() -> Iterator[Any]:
    from cluster.nodes import Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        source = str(Path(__file__).parents[2] / "src")
        patch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
        nodes = Nodes()
        yield nodes
        nodes.shutdown()


@pytest.fixture
def nodes(started_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster that `cluster: auto` finds."""
    monkeypatch.setenv("RAY_ADDRESS", started_nodes.address)
    return started_nodes
