"""What a run takes over from another one's folder, so that it need not be done twice.

Only what was made on the same questions of the same task file is taken over. Whoever calls makes sure that the two
configurations agree on what it depends on.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from estep.errors import writing
from estep.m_step.base import read_m_step
from estep.store.run import RunStore

_QUESTIONS = ("task.yaml", "test.jsonl", "validation.jsonl")


def reuse_base_eval(store: RunStore, other: RunStore) -> bool:
    """Take over the evaluation of the base model from a run that asked it in the same way.

    Returns:
        Whether it was there to take, and is not here already.
    """
    source, own = other.iteration(0), store.iteration(0)
    if own.folder.exists() or not source.committed or not _same(store, other, _QUESTIONS):
        return False
    store.add_metadata(base_of=other.folder.name)
    _copy(source.folder, own.folder)
    return True


def reuse_training(store: RunStore, other: RunStore, iterations: int) -> bool:
    """Take over samples and weights from a finished run that trained in the same way and is evaluated otherwise. The
    loop then finds them as if a kill had come before the evaluation.

    Returns:
        Whether they were there to take, and the run has trained nothing of its own.
    """
    steps = range(1, iterations + 1)
    own = [store.iteration(k) for k in steps]
    sources = [other.iteration(k) for k in steps]
    # A kill may have come between two iterations' folders.
    began = store.latest_metadata("training_of") == other.folder.name
    fresh = began or not any(step.folder.exists() for step in own)
    if not (has_training(other, iterations) and fresh and _same(store, other, (*_QUESTIONS, "train.jsonl"))):
        return False
    if not began:
        store.add_metadata(training_of=other.folder.name)
    for step, source in zip(own, sources, strict=True):
        if not step.folder.exists():
            _copy(source.folder, step.folder, ("samples.jsonl", "weights"))
    return True


def has_training(store: RunStore, iterations: int) -> bool:
    """Whether a run has finished so many iterations and kept the weights of each."""
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
    """Copy a folder, or what it holds by these names, under a name that appears when all of it is on the disk."""
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
                _copy_file(path, partial / path.name)
        partial.rename(target)


def _link(source: str, target: str) -> None:
    """A second name for a file that is never written again, or a copy where the disk has no such names."""
    try:
        os.link(source, target)
    except OSError:
        _copy_file(Path(source), Path(target))


def _copy_file(source: Path, target: Path) -> None:
    shutil.copy2(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


@dataclass(frozen=True)
class ReusableRuns:
    """Other runs, whose work need not be done again."""

    base: Sequence[RunStore] = ()
    """Runs that ask the base model the same questions in the same way."""
    training: Sequence[RunStore] = ()
    """Runs that train in the same way and are evaluated otherwise."""
    peers: Sequence[RunStore] = ()
    """Runs on the same data, which must not have changed since."""
