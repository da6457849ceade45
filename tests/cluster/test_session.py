"""The connection to a cluster, and what is refused."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.scripted import scripted, write_files
from estep.cluster import session
from estep.cluster.session import connect, connected
from estep.cluster.workers import EngineActor, RayWorkers, check_visible
from estep.errors import ConfigError, EngineError
from estep.records import ModelRef
from runs import contents


@pytest.mark.slow
def test_without_a_cluster_ray_is_started_here_and_stopped_at_the_end(tmp_path: Path) -> None:
    import ray

    files = write_files(tmp_path)
    # A process of its own: one that has started Ray cannot join the cluster of the other tests afterwards.
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "cluster.scripted", str(files), "999"]
    folder = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=90)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Ray {ray.__version__}, started on this machine: nodes 1, ")
    assert "engine: 1 copy of the model on the cluster" in lines
    assert contents(files / "cluster") == contents(scripted(files, "local", None))


def test_an_address_where_nothing_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"cluster=auto: no connection to Ray at 127.0.0.1:1: nothing answers"):
        connect("auto")


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray: pip install 'estep\[ray\]', or set cluster=null"):
        connect("auto")


def test_a_node_that_does_not_see_a_folder_says_so(tmp_path: Path) -> None:
    check_visible(tmp_path)
    with pytest.raises(EngineError, match=r"does not see .*/weights: a run on a cluster needs its run_dir"):
        EngineActor(None).call("load", [ModelRef(str(tmp_path / "weights"), 1)])


@pytest.mark.slow
def test_an_engine_takes_several_gpus_of_one_node_or_says_that_there_are_none(
    nodes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from estep.cluster import workers

    told: list[str] = []
    with connected("auto"):
        start = RayWorkers(2, told.append)  # the first node has one GPU, the second has two
        worker = start(0)
        assert [len(place.gpus) for place in start.placements()] == [2]
        monkeypatch.setattr(workers, "_NOTE", 0.5)
        monkeypatch.setattr(workers, "PLACING", 1.0)
        with pytest.raises(EngineError, match=r"2 GPUs of one node did not become free within .* minutes; lower"):
            start(1).call("open").result()
        worker.stop()
        with pytest.raises(EngineError, match="was stopped"):
            worker.call("score").result()
    assert len(told) == 1
    assert told[0].startswith("note: 2 GPUs of one node must become free; the cluster has 3")


@pytest.mark.parametrize("failures", [1, 3])
def test_rays_client_connects_again_if_its_server_did_not_start(failures: int) -> None:
    asked: list[str] = []

    class Ray:
        """Ray, whose server fails some times."""

        @staticmethod
        def init(**options: object) -> None:
            asked.append("init")
            if asked.count("init") <= failures:
                raise ConnectionAbortedError("Initialization failure from server:\nTraceback")

        @staticmethod
        def shutdown() -> None:
            asked.append("shutdown")

    told: list[str] = []
    with pytest.raises(ConnectionAbortedError) if failures == 3 else nullcontext():
        session._join(Ray, "ray://host:1", told.append)
    assert asked == (["init", "shutdown"] * 3)[: 5 if failures == 3 else 3]
    note = "did not start a process for this one (Initialization failure from server:); connecting again"
    assert told == [f"note: Ray at ray://host:1 {note}"] * min(failures, 2)
