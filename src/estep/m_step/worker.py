"""A process that trains on one device together with others: `python -m estep.m_step.worker`, started by `launch`."""

import contextlib
import json
import os
import pickle
import shutil
import sys
import threading
import traceback
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from estep.m_step.job import OutOfDeviceMemoryError, TrainingJob, TrainingOutcome
from estep.m_step.launch import ERROR, EVENTS, JOB, MEETING
from estep.m_step.steps import Ranks
from estep.m_step.training import train

_TIMEOUT = timedelta(hours=2)
"""Longest wait of a rank for the others: the first one reads and writes the weights alone."""


def main(folder: Path, rank: int, size: int, device: str) -> int:
    """Train as one of `size` ranks; returns the exit code."""
    threading.Thread(target=_end_with_the_parent, args=(folder,), daemon=True).start()
    try:
        outcome = _train(folder, rank, size, device)
        if rank == 0:
            _Events(folder).add(outcome=asdict(outcome))
    except Exception as error:
        traceback.print_exc()
        path = folder / ERROR.format(rank)
        content: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, OutOfDeviceMemoryError):
            content["halvings"] = error.halvings
        path.with_suffix(".partial").write_text(json.dumps(content), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
        return 1
    with contextlib.suppress(Exception):  # the outcome is known, and the parent ends what is left
        torch.distributed.destroy_process_group()
    return 0


def _train(folder: Path, rank: int, size: int, device: str) -> TrainingOutcome:
    job: TrainingJob = pickle.loads((folder / JOB).read_bytes())
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    torch.distributed.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        init_method=f"file://{folder / MEETING}",
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=place if place.type == "cuda" else None,
    )
    events = _Events(folder) if rank == 0 else None
    return train(
        job,
        Ranks(rank, size, place),
        advance=lambda pairs: events.add(advance=pairs) if events else None,
        log=lambda line: events.add(log=line) if events else None,
    )


class _Events:
    """Tells the parent what happens."""

    def __init__(self, folder: Path):
        self._path = folder / EVENTS

    def add(self, **event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _end_with_the_parent(folder: Path) -> None:
    os.read(0, 1)  # nothing is ever written; Python's own reader would hold a lock at exit
    shutil.rmtree(folder, ignore_errors=True)  # a parent that was killed left it behind
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # after an error, an orderly end would wait for ranks that wait for this one
