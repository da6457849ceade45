"""Runs a training: in this process, or in one process per device of this machine."""

import contextlib
import json
import pickle
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from estep import errors
from estep.config import MStepConfig
from estep.engines.processes import MODULE, same_packages
from estep.errors import ConfigError, EstepError, writing
from estep.m_step.job import (
    STARTS_AGAIN,
    Advance,
    CountedAdvance,
    Launch,
    Log,
    OutOfDeviceMemoryError,
    TrainingJob,
    TrainingOutcome,
)
from estep.models.loading import cast_weights, pick_device
from estep.models.memory import free_memory

JOB, EVENTS, ERROR, OUTPUT, MEETING = "job.pickle", "events.jsonl", "error-{}.json", "output-{}.txt", "meeting"
"""The files by which this process and its workers talk."""
_POLL_SECONDS = 0.1


def launch_of(config: MStepConfig) -> Launch:
    """How to train with this machine's devices.

    Raises:
        ConfigError: the machine has fewer GPUs than `devices`, or a kind of GPU that cannot share a training.
    """
    device = pick_device(config.device)
    if device.type not in ("cuda", "cpu") and config.devices not in (1, "auto"):
        raise ConfigError(
            f"m_step.devices={config.devices} needs CUDA or m_step.device=cpu, and the device here is {device.type}"
        )
    there = torch.cuda.device_count() if device.type == "cuda" else None
    if config.devices == "auto":
        count = there or 1
    elif there is not None and config.devices > there:
        raise ConfigError(f"m_step.devices is {config.devices}, but there are {there} GPUs here")
    else:
        count = config.devices
    return InProcess(device) if count == 1 else Processes(count, device.type)


class InProcess:
    """Trains in this process, on one device. A training that starts from the weights of the last one does not read
    them again."""

    def __init__(self, device: torch.device):
        self.device = device
        self._written: tuple[str, Any] | None = None
        """The folder that was written last, and its model."""

    def __call__(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        from estep.m_step.training import alone, train

        written, self._written = self._written, None
        model = None
        if written is not None and written[0] == job.start:
            model = written[1]
            cast_weights(model, "float32")
        keep = job.config.init == "previous" and job.config.lora is None
        kept: list[Any] = []
        try:
            outcome = train(job, alone(self.device), advance, log, model, kept.append if keep else None)
        finally:
            del written, model
            free_memory(self.device)  # the engine may need it
        self._written = (str(job.folder), kept[0]) if kept else None
        return outcome


class Processes:
    """Trains in one process per device of this machine. They end with this process, even if it is killed.

    Args:
        count: number of processes.
        device: `cuda`, where process n takes the GPU n; or `cpu`, where the processes share the cores.
    """

    def __init__(self, count: int, device: str):
        self.count = count
        self.device = device

    def __call__(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        slower = ", which share its cores and are slower than one" if self.device == "cpu" else ""
        log(f"  starting {self.count} processes on this machine{slower}")
        counted = CountedAdvance(advance)
        while True:
            try:
                return self._run(job, counted, log)
            except OutOfDeviceMemoryError as error:
                job = replace(job, halvings=error.halvings)
                counted.take_back()
                log(STARTS_AGAIN)

    def _run(self, job: TrainingJob, advance: Advance, log: Log) -> TrainingOutcome:
        with tempfile.TemporaryDirectory(prefix="estep-m-step-") as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            with writing(folder):
                (folder / JOB).write_bytes(pickle.dumps(job))
            workers = [stack.enter_context(self._worker(folder, rank)) for rank in range(self.count)]
            events = _Events(folder / EVENTS)
            outcome = None
            while outcome is None:  # all of the weights are written by then
                codes = [worker.poll() for worker in workers]
                for event in events.new():
                    match event:
                        case {"advance": int(pairs)}:
                            advance(pairs)
                        case {"log": str(line)}:
                            log(line)
                        case {"outcome": dict(content)}:
                            outcome = outcome_of(content)
                if outcome is None and (any(codes) or all(code == 0 for code in codes)):
                    raise _failure(folder, codes)
                time.sleep(_POLL_SECONDS)
        return outcome

    @contextlib.contextmanager
    def _worker(self, folder: Path, rank: int) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process, which is killed at the end of the block if it still runs."""
        environment = {**same_packages(), "TOKENIZERS_PARALLELISM": "false"}
        if self.device == "cpu":
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // self.count))
        command = [*MODULE, "estep.m_step.worker", str(folder), str(rank), str(self.count), self.device]
        with (folder / OUTPUT.format(rank)).open("wb") as output:
            # The worker ends when its standard input does, which is when this process ends.
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
        try:
            yield worker
        finally:
            worker.kill()
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()


def outcome_of(content: dict[str, Any]) -> TrainingOutcome:
    """An outcome after a round trip through JSON."""
    former = content["former_scores"]
    return TrainingOutcome(
        losses=tuple(content["losses"]),
        former_scores=None if former is None else tuple(former),
        scores=tuple(content["scores"]),
        halvings=content["halvings"],
        precision=content["precision"],
    )


class _Events:
    """Reads the lines that are added to a file."""

    def __init__(self, path: Path):
        self.path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self._read += len(line)
                yield json.loads(line)


def _failure(folder: Path, codes: list[int | None]) -> EstepError:
    """The error that made the workers fail. When one ends, the others fail as well, because they wait for it."""
    time.sleep(_POLL_SECONDS)  # others may be writing theirs
    files = sorted(folder.glob(ERROR.format("*")), key=lambda path: path.stat().st_mtime_ns)
    found = [(path.stem.removeprefix("error-"), json.loads(path.read_text(encoding="utf-8"))) for path in files]
    for _, content in found:
        if "halvings" in content:
            return OutOfDeviceMemoryError(content["halvings"])
        kind = vars(errors).get(content["type"])
        if isinstance(kind, type) and issubclass(kind, EstepError):
            return kind(content["message"])
    of = f"of the {len(codes)} that train"
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            killed = ", as when memory runs out" if -code == signal.SIGKILL else ""
            return EstepError(
                f"process {rank} {of} ended by signal {-code}{killed}; no weights were written; "
                "to go on, run the same command again"
            )
    for name, content in found:
        return EstepError(f"process {name} {of} failed: {content['type']}: {content['message']}")
    rank = next((rank for rank, code in enumerate(codes) if code), 0)
    output = (folder / OUTPUT.format(rank)).read_text(encoding="utf-8", errors="replace")
    last = [line.strip() for line in output.splitlines() if line.strip()][-1:]
    return EstepError(f"process {rank} {of} ended with exit code {codes[rank]}{''.join(f': {line}' for line in last)}")
