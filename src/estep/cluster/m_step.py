"""The M-step on a Ray cluster: Ray Train starts a process per device, and each calls `estep.m_step.training.train`.

The processes borrow the GPUs of the run's engines, which are released meanwhile. An actor on the cluster starts Ray
Train and collects its progress: this also works through Ray's client, and everything ends when the actor does. Weights
are handed over by their path.
"""

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from estep.cluster.session import first_line, ray_package, resources
from estep.cluster.workers import CPU_SHARE, Placement, RayWorker, absolute, check_visible
from estep.errors import EstepError
from estep.m_step.job import (
    STARTS_AGAIN,
    Advance,
    CountedAdvance,
    Log,
    OutOfDeviceMemoryError,
    TrainingJob,
    TrainingOutcome,
)

_POLL_SECONDS = 0.2
_MEETING_SECONDS = 2 * 3600
"""Longest wait of a process for the others: the first one reads and writes the weights alone."""


class Devices(NamedTuple):
    """The devices of a training."""

    number: int
    gpus: dict[str, list[str]]
    """Ray's ids of the GPUs, by Ray's id of the node; empty for CPUs."""


class Event(NamedTuple):
    """What a process reports."""

    pairs: int = 0
    """Pairs of a finished gradient step."""
    line: str | None = None
    """A message for the user."""
    error: EstepError | None = None
    """What ended the process."""


class RayTraining:
    """Trains on the cluster; satisfies `Launch`.

    Args:
        devices: the number of processes, `m_step.devices`.
        on_gpu: whether they use GPUs where the cluster has any.
        owned: where the run's engines are, whose GPUs are borrowed.
        cells: number of runs that share the cluster's GPUs at the same time.
    """

    def __init__(self, devices: int | str, on_gpu: bool, owned: Callable[[], list[Placement]], cells: int = 1):
        self._devices = devices
        self._on_gpu = on_gpu
        self._owned = owned
        self._cells = cells

    def __call__(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        """See `Launch`. The training starts again if it runs out of memory, and once if a process or node is lost."""
        job = replace(job, folder=job.folder.absolute(), start=absolute(job.start))
        counted = CountedAdvance(advance)
        lost = 0
        while True:
            try:
                return self._train(job, counted, log)
            except OutOfDeviceMemoryError as out:
                job = replace(job, halvings=out.halvings)
                log(STARTS_AGAIN)
            except _LostError as error:
                lost += 1
                if lost > 1:
                    raise EstepError(
                        f"{error}, for the second time; no weights were written; to go on, run the same command again"
                    ) from error
                log(f"  note: {error}; it starts again")
            counted.take_back()
            shutil.rmtree(job.partial, ignore_errors=True)
            job.partial.mkdir()

    def _train(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        ray = ray_package()
        scratch = job.folder.with_name(job.folder.name + ".ray")  # Train wants a folder; nothing in it is used
        with self._reserved(log) as devices:
            conductor = ray.remote(Conductor).options(num_cpus=0, max_concurrency=8, max_restarts=0).remote()
            try:
                running = conductor.fit.remote(job, devices, str(scratch))
                error = None
                while True:
                    ended, _ = ray.wait([running], timeout=_POLL_SECONDS)
                    advance(0)  # ends this training if its run was stopped
                    for event in ray.get(conductor.take.remote()):
                        error = error or event.error
                        if event.pairs:
                            advance(event.pairs)
                        if event.line is not None:
                            log(event.line)
                    if ended:
                        break
                outcome, problem = ray.get(running)
            except ray.exceptions.RayActorError as lost:
                raise _LostError("the process that conducts the training was lost") from lost
            finally:
                ray.kill(conductor)  # and with it all processes of the training
                shutil.rmtree(scratch, ignore_errors=True)
        if error is not None:
            raise error
        if outcome is None:
            raise _LostError(f"a process that trains was lost ({problem})")
        return outcome

    @contextmanager
    def _reserved(self, log: Log) -> Iterator[Devices]:
        """The devices to train on. GPUs that no engine of the run has are reserved for the duration of the block."""
        there = resources().gpus if self._on_gpu else 0
        count = max(1, there // self._cells) if self._devices == "auto" else int(self._devices)
        if not there:
            yield Devices(count, {})
            return
        places = [(place.node, gpu) for place in self._owned() for gpu in place.gpus]
        held = [RayWorker(1, None, log) for _ in range(count - len(places))]
        try:
            places += [(place.node, gpu) for place in (worker.placement() for worker in held) for gpu in place.gpus]
            gpus = defaultdict(list)
            for node, gpu in sorted(places)[:count]:
                gpus[node].append(gpu)
            yield Devices(count, dict(gpus))
        finally:
            for worker in held:
                worker.stop()


class _LostError(EstepError):
    """A process or node of a training is gone."""


class Conductor:
    """Starts Ray Train on the cluster and collects what its processes report."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Keep an event."""
        with self._lock:
            self._events.append(event)

    def take(self) -> list[Event]:
        """Remove and return the events."""
        with self._lock:
            taken, self._events = self._events, []
        return taken

    def fit(self, job: TrainingJob, devices: Devices, scratch: str) -> tuple[TrainingOutcome | None, str]:
        """Train; returns the outcome, or None and why there is none."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        from estep.cluster.borrowed import BorrowedGPUs

        backend = BorrowedGPUs(backend="nccl", gpus=devices.gpus) if devices.gpus else TorchConfig(backend="gloo")
        backend.timeout_s = _MEETING_SECONDS
        nodes = [{"ray.io/node-id": node} for node, gpus in devices.gpus.items() for _ in gpus]
        trainer = TorchTrainer(
            train_on_rank,
            train_loop_config={"job": job, "conductor": ray_package().get_runtime_context().current_actor},
            torch_config=backend,
            scaling_config=ScalingConfig(
                num_workers=devices.number,
                resources_per_worker={"CPU": CPU_SHARE},
                placement_strategy="SPREAD",
                label_selector=nodes or None,
            ),
            run_config=RunConfig(
                name="m-step",
                storage_path=scratch,
                # Not Train's own retries: each would need an empty folder.
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        try:
            return trainer.fit().return_value, ""
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            ended = [(rank, one) for rank, one in failures.items() if "health check" in str(one)]
            for rank, one in ended or failures.items():  # the others only lost their connection to it
                return None, f"rank {rank}: {first_line(one)}"
            return None, first_line(error)


def train_on_rank(settings: dict[str, Any]) -> TrainingOutcome:
    """One process of a training."""
    import torch
    from ray.train import get_context

    from estep.m_step.steps import Ranks
    from estep.m_step.training import train

    job: TrainingJob = settings["job"]
    ray, context = ray_package(), get_context()

    def tell(event: Event) -> None:
        ray.get(settings["conductor"].tell.remote(event))  # raises if the conductor was ended, which ends this process

    def advance(pairs: int) -> None:
        if context.get_world_rank() == 0:
            tell(Event(pairs=pairs))

    def log(line: str) -> None:
        if context.get_world_rank() == 0:
            tell(Event(line=line))

    device = torch.device("cpu")
    if torch.distributed.get_backend() == "nccl":
        device = torch.device("cuda", 0)  # the only one that this process sees
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    try:
        for path in (job.start, str(job.partial)):
            if Path(path).is_absolute():
                check_visible(path)
        return train(job, Ranks(context.get_world_rank(), context.get_world_size(), device), advance, log)
    except EstepError as error:
        tell(Event(error=error))
        raise
