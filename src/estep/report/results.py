"""What a run folder or a study folder holds, read for a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from estep.config import RunConfig, short_task
from estep.errors import StoreError
from estep.evaluate import responses
from estep.grid import arm_of
from estep.metrics import IterationMetrics, selected, voted
from estep.store import Log, RunStore

_GROUPED = ("model", "task", "seed")


@dataclass(frozen=True)
class Run:
    """A run with at least its base model evaluated."""

    name: str
    variant: str
    """What sets it apart from the other runs of its task and model: its arm, and the study's other axes."""
    store: RunStore
    config: RunConfig
    iterations: tuple[IterationMetrics, ...]

    @property
    def setting(self) -> "Setting":
        return Setting(short_task(self.config.task), Path(self.config.model).name)

    @property
    def last(self) -> IterationMetrics:
        return self.iterations[-1]

    @property
    def highest(self) -> IterationMetrics:
        """The trained iteration of the highest test accuracy, as the paper reports it; the earliest of equals."""
        return max(self.iterations[1:] or self.iterations, key=lambda metrics: metrics.evaluation.accuracy)

    @property
    def selected(self) -> IterationMetrics:
        """The iteration whose weights the run ends in."""
        return selected(self.iterations, self.config.select)

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`."""
        content: dict[str, Any] = json.loads((self.store.folder / "run.json").read_text(encoding="utf-8"))
        return content

    def scores(self, iteration: int) -> dict[str, float]:
        """Each test question's share of right predictions after an iteration: 0 or 1, unless several samples count."""
        predictions = voted(list(responses(self.store.iteration(iteration).eval.read())), self.config.evaluation.vote)
        right: dict[str, list[float]] = {}
        for prediction in predictions:
            right.setdefault(prediction.question_id, []).append(float(prediction.status == "correct"))
        return {question: sum(values) / len(values) for question, values in right.items()}


class Setting(NamedTuple):
    """What is asked, and who is taught."""

    task: str
    model: str


@dataclass(frozen=True)
class Results:
    """All of a study, or one run."""

    name: str
    folder: Path
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]
    """Cells of a study that are left out: they are waiting, or failed."""
    study: str | None
    """The study's configuration as YAML; None of a run."""

    @property
    def settings(self) -> list[Setting]:
        """In the order of the study."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(run.variant for run in self.runs))

    def of(self, setting: Setting, variant: str) -> list[Run]:
        """The runs of a cell of the tables: one for each seed."""
        return [run for run in self.runs if (run.setting, run.variant) == (setting, variant)]


def read_results(folder: Path) -> Results:
    """The finished runs of a study folder, or a run folder's committed iterations.

    Raises:
        StoreError: the folder holds neither, or nothing is finished in it.
    """
    if (folder / "study.json").is_file():
        return _read_study(folder)
    if not (folder / "config.yaml").is_file():
        raise StoreError(f"{folder} holds neither a run (config.yaml) nor a study (study.json)")
    run = _read_run(folder, "")
    if run is None:
        raise StoreError(f"the run in {folder} has not evaluated its base model yet")
    return Results(folder.name, folder, (run,), (), None)


def _read_study(folder: Path) -> Results:
    content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    runs, unfinished = [], []
    for cell in content["cells"]:
        others = [f"{key.rpartition('.')[2]} {value}" for key, value in cell["axes"].items() if key not in _GROUPED]
        run = None
        if cell["status"] == "finished":
            run = _read_run(folder / "runs" / cell["name"], _variant(cell["arm"], others))
        if run is None:
            unfinished.append(f"{cell['name']}: {cell['error'] or cell['status']}")
        else:
            runs.append(run)
    if not runs:
        raise StoreError(f"no run of the study in {folder} is finished yet")
    study = (folder / "study.yaml").read_text(encoding="utf-8")
    return Results(content["name"], folder, tuple(runs), tuple(unfinished), study)


def _variant(arm: str, others: Sequence[str]) -> str:
    return ", ".join([arm, *others])


def _read_run(folder: Path, variant: str) -> Run | None:
    store = RunStore(folder)
    config = store.config()
    iterations = tuple(step.metrics() for step in store.committed())
    if not iterations:
        return None
    return Run(folder.name, variant or arm_of(config.proposal), store, config, iterations)


def questions(run: Run) -> dict[str, dict[str, Any]]:
    """The rows of a run's questions by id."""
    rows = [row for split in ("train", "test") for row in Log(run.store.folder / f"{split}.jsonl").read()]
    return {row["id"]: row for row in rows}
