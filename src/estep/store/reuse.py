"""Reuse of another run's results.

Results are reused only if they come from the same questions and the same task file. The caller makes sure that both
configurations agree on everything else that the results depend on.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from estep.durable import publish, sync_tree
from estep.errors import writing
from estep.m_step.base import read_m_step
from estep.store.run import RunStore

_QUESTIONS = ("task.yaml", "test.jsonl", "validation.jsonl")


def reuse_base_eval(store: RunStore, other: RunStore) -> bool:
    """Copy the evaluation of the base model from a run that evaluates it in the same way.

    Returns:
        Whether it was copied: the other run has it, and this one does not.
    """
    source, own = other.iteration(0), store.iteration(0)
    if own.folder.exists() or not source.committed or not _same(store, other, _QUESTIONS):
        return False
    store.add_metadata(base_of=other.folder.name)
    _copy(source.folder, own.folder)
    return True


def reuse_training(store: RunStore, other: RunStore, iterations: int) -> bool:
    """Copy samples and weights from a finished run that trains in the same way but is evaluated differently. The loop
    then continues as if it had been killed before the evaluation.

    Returns:
        Whether they were copied: the other run has them, and this one has trained nothing of its own.
    """
    steps = range(1, iterations + 1)
    own = [store.iteration(k) for k in steps]
    sources = [other.iteration(k) for k in steps]
    # The copy may have been killed between two iterations.
    began = store.latest_metadata("training_of") == other.folder.name
    fresh = began or not any(step.folder.exists() for step in own)
    if not (has_training(other, iterations) and fresh and _same(store, other, (*_QUESTIONS, "train.jsonl"))):
        return False
    if not began:
        store.add_metadata(training_of=other.folder.name)
    for step, source in zip(own, sources, strict=True):
        if not step.folder.exists():
            _copy(source.folder, step.folder, ("samples.jsonl", "scores.jsonl", "weights"))
    return True


def has_training(store: RunStore, iterations: int) -> bool:
    """Whether a run has finished this number of iterations and kept the weights of each."""
    return all(
        step.committed
        and (read_m_step(step.weights) is not None or step.record()["weights_of_iteration"] != step.number)
        for step in map(store.iteration, range(1, iterations + 1))
    )


def _same(store: RunStore, other: RunStore, names: Sequence[str]) -> bool:
    return all(_bytes(store.folder / name) == _bytes(other.folder / name) for name in names)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _copy(source: Path, target: Path, names: Sequence[str] | None = None) -> None:
    """Copy a folder, or only these entries of it. The copy appears under its name once all of it is on the disk."""
    partial = target.with_name(target.name + ".partial")
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in sorted(source.iterdir()):
            if names is not None and path.name not in names:
                continue
            if path.is_dir():
                shutil.copytree(path, partial / path.name, copy_function=_link)
            else:
                shutil.copy2(path, partial / path.name)
        sync_tree(partial)
        publish(partial, target)


def _link(source: str, target: str) -> None:
    """Hard-link a file that is never written again; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class ReusableRuns:
    """Other runs whose results can be reused."""

    base: Sequence[RunStore] = ()
    """Runs that evaluate the base model in the same way."""
    training: Sequence[RunStore] = ()
    """Runs that train in the same way and are evaluated differently."""
    peers: Sequence[RunStore] = ()
    """Runs that must have used the same data."""
