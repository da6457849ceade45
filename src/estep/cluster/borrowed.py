"""GPUs that Ray Train's workers borrow from the engines of their run, which sleep meanwhile.

Importing this module imports Ray Train.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.train.torch import TorchConfig


@dataclass
class BorrowedGPUs(TorchConfig):
    """Torch processes on GPUs that Ray has not assigned to them."""

    gpus: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Ray's ids of the GPUs by Ray's id of the node, one for each process on this node."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Shows each process its GPU before the processes meet: NCCL looks for it then."""

    def on_start(self, worker_group: Any, backend_config: BorrowedGPUs) -> None:
        left = {node: list(gpus) for node, gpus in backend_config.gpus.items()}
        for rank, worker in enumerate(worker_group.get_workers()):
            worker_group.execute_single(rank, _see, left[worker.metadata.node_id].pop(0))
        super().on_start(worker_group, backend_config)


def _see(gpu: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
