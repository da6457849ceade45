"""A run on a cluster gives the records of a local run, whatever dies meanwhile."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.nodes import Nodes, wait_until
from cluster.scripted import At, scripted, write_files
from runs import contents


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.fixture
def local(files: Path) -> dict[str, object]:
    """The records of a local run."""
    return contents(scripted(files, "local", None))


# Pieces of work of this run: 4 evaluation texts; then per iteration 7 draws of the first round and one more for each
# question that was answered wrong; the pretended M-step reports nothing; 4 texts.


@pytest.mark.slow
def test_a_run_on_two_nodes_equals_a_local_one(files: Path, local: dict[str, object], nodes: Nodes) -> None:
    count: list[int] = []
    told = At(6, lambda: count.append(len(nodes.processes("EngineActor"))))
    assert contents(scripted(files, "cluster", "auto", told)) == local
    assert count == [3]  # one for each GPU: one on the first node, two on the second
    assert any("GPUs 3" in line for line in told.lines)
    wait_until(lambda: not nodes.processes("EngineActor"))


@pytest.mark.slow
def test_rays_client_gives_the_same(files: Path, local: dict[str, object], nodes: Nodes) -> None:
    told = At(6, lambda: nodes.kill("EngineActor"))
    assert contents(scripted(files, "cluster", f"ray://127.0.0.1:{nodes.client_port}", told)) == local
    assert sum("started again" in line for line in told.lines) == 1


@pytest.mark.slow
def test_a_killed_actor_is_replaced(files: Path, local: dict[str, object], nodes: Nodes) -> None:
    told = At(6, lambda: nodes.kill("EngineActor"))
    assert contents(scripted(files, "cluster", "auto", told)) == local
    assert sum("started again" in line for line in told.lines) == 1


@pytest.mark.slow
def test_the_engines_of_a_lost_node_start_on_another(files: Path, local: dict[str, object], nodes: Nodes) -> None:
    def lose() -> None:
        nodes.lose()
        nodes.add()

    told = At(6, lose)
    assert contents(scripted(files, "cluster", "auto", told)) == local
    assert sum("started again" in line for line in told.lines) == 2


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_behind_and_goes_on(files: Path, local: dict[str, object], nodes: Nodes) -> None:
    command = [sys.executable, "-m", "cluster.scripted", str(files), "6"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (files / "cluster/iteration-01/iteration.json").exists()
    wait_until(lambda: not nodes.processes("EngineActor"))
    assert contents(scripted(files, "cluster", "auto")) == local
