"""The M-step on a cluster trains the weights of the M-step of one process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.nodes import Nodes, wait_until
from conftest import Listen
from estep.cluster.m_step import RayTraining
from estep.cluster.session import connected
from estep.config import MStepConfig
from estep.errors import EngineError
from estep.m_step.base import MStepInput
from estep.m_step.job import TrainingJob
from estep.m_step.launch import InProcess
from estep.m_step.sft import SFTMStep
from estep.models.loading import load_model
from estep.records import ModelRef, Pair

PAIRS = [
    Pair(f"q{n}", f"q{n}#0.0", ({"role": "user", "content": "Text: " + "word " * n},), "Evaluation: Score: 3", 1.0)
    for n in range(7)
]
"""Seven pairs by four: two gradient steps."""

CONFIG = MStepConfig(precision="float32", batch_size=4, device="cpu", devices=2)


def inputs(path: str, folder: Path, **changes: Any) -> MStepInput:
    return replace(
        MStepInput(ModelRef(path), 1, PAIRS, 1e-3, 5, folder, lambda *_: -1.0, lambda count: None), **changes
    )


def weights(folder: Path) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in load_model(str(folder), "float32", "cpu").parameters()]


@pytest.mark.slow
def test_two_processes_train_what_one_does_even_if_one_of_them_dies_once(
    tiny_model: str, tmp_path: Path, nodes: Nodes
) -> None:
    alone = SFTMStep(CONFIG, 2048, "stop", "float32", InProcess(torch.device("cpu")))
    one = alone(inputs(tiny_model, tmp_path / "one"))
    advanced: list[int] = []

    def advance(pairs: int) -> None:
        if pairs and not advanced:
            nodes.kill("RayTrainWorker")
        if pairs:
            advanced.append(pairs)

    told = Listen()
    with connected("auto"):
        step = SFTMStep(CONFIG, 2048, "stop", "float32", RayTraining(2, False, list))
        two = step(inputs(tiny_model, tmp_path / "two", advance=advance, log=told.log))
        wait_until(lambda: not nodes.processes("RayTrainWorker"))
    assert one is not None
    assert two is not None
    assert sum("a process that trains was lost" in line for line in told.lines) == 1
    assert sum(advanced) == 7
    assert two.losses == pytest.approx(one.losses, rel=2e-6)
    assert two.canary.logprob == pytest.approx(one.canary.logprob, rel=1e-6)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        assert torch.allclose(a, b, atol=3e-5)  # of two steps of 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def job(folder: Path, start: str) -> TrainingJob:
    made = TrainingJob(CONFIG, start, [], 1e-3, 5, folder, [], "float32", False)
    made.partial.mkdir()
    return made


@pytest.mark.slow
def test_a_training_whose_error_is_known_stops_at_once(tmp_path: Path, nodes: Nodes) -> None:
    told = Listen()
    with connected("auto"), pytest.raises(EngineError, match="does not see /nowhere/weights: a run on a cluster needs"):
        RayTraining(1, False, list)(job(tmp_path / "run", "/nowhere/weights"), lambda pairs: None, told.log)
    assert told.lines == []


@pytest.mark.slow
def test_gpus_are_borrowed_from_the_engines_first(nodes: Nodes) -> None:
    from estep.cluster.workers import RayWorkers

    with connected("auto"):
        workers = RayWorkers(1, print)
        for number in range(2):
            workers(number)
        owned = workers.placements()
        with RayTraining(3, True, workers.placements)._reserved(print) as devices:
            assert devices.number == 3
            assert {node: len(gpus) for node, gpus in devices.gpus.items()} == nodes.gpus()
        with RayTraining(2, True, workers.placements)._reserved(print) as devices:
            assert sorted((node, gpu) for node, gpus in devices.gpus.items() for gpu in gpus) == sorted(
                (place.node, gpu) for place in owned for gpu in place.gpus
            )
        for number in range(2):
            workers.stop(number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # about its own defaults
def test_each_process_sees_one_of_the_borrowed_gpus_of_its_node(tmp_path: Path, nodes: Nodes) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from estep.cluster.borrowed import BorrowedGPUs

    def seen() -> list[Any]:
        import os

        import ray

        found: list[Any] = [None, None, None]
        mine = (ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"])
        torch.distributed.all_gather_object(found, mine)
        return found

    with connected("auto"):
        gpus = {node: [str(7 + n) for n in range(count)] for node, count in nodes.gpus().items()}
        places = [{"ray.io/node-id": node} for node, ids in gpus.items() for _ in ids]
        trainer = TorchTrainer(
            seen,
            torch_config=BorrowedGPUs(backend="gloo", gpus=gpus),
            scaling_config=ScalingConfig(num_workers=3, resources_per_worker={"CPU": 0.01}, label_selector=places),
            run_config=RunConfig(name="seen", storage_path=str(tmp_path)),
        )
        found = trainer.fit().return_value
    assert found is not None
    assert sorted(found) == sorted((node, gpu) for node, ids in gpus.items() for gpu in ids)
