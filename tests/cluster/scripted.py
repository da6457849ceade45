"""A run on the cluster with a scripted engine and no training. As a program, it is killed after some pieces of work:

python -m cluster.scripted FOLDER PIECES
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import write_task
from estep.config import FEMConfig
from estep.progress import Advance, Silent
from estep.trainer import FEMTrainer
from runs import pretend, settings


class At(Silent):
    """Calls a function after the given number of pieces of work."""

    def __init__(self, pieces: int, call: Callable[[], None]):
        self.left = pieces
        self.call = call
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        def advance(count: int = 1, more: int = 0) -> None:
            self.left -= 1
            if self.left == 0:
                self.call()

        yield advance


def write_files(folder: Path) -> Path:
    """A task, a model's folder, and a script in which two of three questions are answered right. The engine's score of
    a text of ten words is -10, as the pretended M-step says."""
    write_task(folder)
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base/config.json").write_text("{}")
    texts = {
        f"r{n}": [f"Evaluation: one two three four five six seven. Score: {(n + (n % 3 == 0)) % 5}"] for n in range(12)
    }
    (folder / "script.json").write_text(json.dumps(texts))
    return folder


def scripted_settings(folder: Path, name: str, cluster: str | None) -> FEMConfig:
    return settings(
        folder / name,
        cluster=cluster,
        engine={"type": "scripted", "script": str(folder / "script.json")},
        proposal={"type": "rejection", "budget": 2},
    )


def scripted(folder: Path, name: str, cluster: str | None, reporter: Silent | None = None) -> Path:
    """A run; returns its folder."""
    config = scripted_settings(folder, name, cluster)
    task = str(folder / "judge.yaml")
    FEMTrainer(str(folder / "base"), task, config, m_step=pretend, reporter=reporter).train()
    return folder / name


if __name__ == "__main__":
    told = At(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    scripted(Path(sys.argv[1]), "cluster", "auto", told)
    print("\n".join(told.lines))
