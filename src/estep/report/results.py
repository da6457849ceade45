"""Reading the folder of a run or a study for a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from estep.config import RunConfig, short_task
from estep.config.names import arm_name
from estep.errors import ConfigError, StoreError
from estep.metrics import IterationMetrics, selected, shares_right, voted
from estep.store.run import RunStore
from estep.tasks import Task, parse_task


class Setting(NamedTuple):
    """What arms are compared on: a task, a model, and values of the study's other axes."""

    task: str
    model: str
    also: str = ""
    """The other axes with their values, such as `train_size 1000`."""

    @property
    def words(self) -> str:
        return ", ".join(filter(None, self))


@dataclass(frozen=True)
class Run:
    """A run whose base model, at least, has been evaluated."""

    name: str
    setting: Setting
    arm: str
    """In a study, the arm with the axes that only it has; otherwise named after the proposal."""
    store: RunStore
    config: RunConfig
    iterations: tuple[IterationMetrics, ...]
    _scores: dict[int, dict[str, float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def base(self) -> IterationMetrics:
        """The metrics before training."""
        return self.iterations[0]

    @property
    def highest(self) -> IterationMetrics:
        """The trained iteration with the highest test accuracy, which the paper reports; the earliest of equals."""
        return max(self.iterations[1:] or self.iterations, key=lambda metrics: metrics.evaluation.accuracy)

    @property
    def final(self) -> IterationMetrics:
        """The iteration whose weights the run ends in."""
        return selected(self.iterations, self.config.select)

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`."""
        content: dict[str, Any] = json.loads((self.store.folder / "run.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def task(self) -> Task:
        """The run's task, from its `task.yaml`."""
        return Task(parse_task((self.store.folder / "task.yaml").read_text(encoding="utf-8"), self.name))

    def scores(self, iteration: int) -> dict[str, float]:
        """Each test question's share of correct predictions after an iteration: 0 or 1 unless several samples count."""
        if iteration not in self._scores:
            responses = self.store.iteration(iteration).responses()
            self._scores[iteration] = shares_right(voted(responses, self.config.evaluation.vote))
        return self._scores[iteration]


@dataclass(frozen=True)
class Results:
    """The results of a study or of one run."""

    name: str
    folder: Path
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]
    """A line for each run that is left out because it waits or failed, or that is included as far as it goes."""
    study: str | None
    """The study's configuration as YAML; None for a run."""
    reference: str
    """The arm that all others are compared with."""

    @property
    def settings(self) -> list[Setting]:
        """In the study's order."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def arms(self) -> list[str]:
        """In the study's order."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, setting: Setting, arm: str) -> list[Run]:
        """The runs of one arm in one setting, one per seed."""
        return [run for run in self.runs if (run.setting, run.arm) == (setting, arm)]

    def bases(self, setting: Setting) -> list[Run]:
        """The runs that provide a setting's base model, one per seed: the reference's, or another arm's for seeds that
        it lacks."""
        of_seed: dict[int, Run] = {}
        for run in [*self.of(setting, self.reference), *self.runs]:
            if run.setting == setting:
                of_seed.setdefault(run.config.seed, run)
        return list(of_seed.values())

    def trained_in(self, run: Run) -> Run | None:
        """The run that did a run's training: itself, or the one whose samples and weights it took; None if that is not
        among the results."""
        source = run.store.latest_metadata("training_of")
        return run if source is None else next((other for other in self.runs if other.name == source), None)

    def name_of(self, setting: Setting) -> str:
        """A setting's name for readers; the model is named only if there are several."""
        models = {other.model for other in self.settings}
        parts = [setting.task, *([setting.model] if len(models) > 1 else []), *([setting.also] if setting.also else [])]
        return ", ".join(parts)


def read_results(folder: Path, reference: str | None = None) -> Results:
    """The finished runs of a study folder, or a run folder's committed iterations.

    Args:
        reference: the arm that all others are compared with; None for the first whose name begins with `pps`, or the
            first arm if there is none.

    Raises:
        StoreError: the folder is neither, or nothing in it is finished.
        ConfigError: no such arm.
    """
    if (folder / "study.json").is_file():
        content = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        runs, unfinished = _runs_of(folder, content["cells"])
        if not runs:
            raise StoreError(f"no run of the study in {folder} is finished yet")
        study = (folder / "study.yaml").read_text(encoding="utf-8")
        return Results(content["name"], folder, runs, unfinished, study, _reference(runs, reference))
    if not (folder / "config.yaml").is_file():
        raise StoreError(f"{folder} holds neither a run (config.yaml) nor a study (study.json)")
    run = _read_run(folder)
    if run is None:
        raise StoreError(f"the run in {folder} has not evaluated its base model yet")
    ends, wanted = run.iterations[-1].iteration, run.config.iterations
    unfinished = (f"{folder.name}: {ends} of {wanted} iterations",) if ends < wanted else ()
    return Results(folder.name, folder, (run,), unfinished, None, _reference((run,), reference))


def _reference(runs: Sequence[Run], asked: str | None) -> str:
    arms = list(dict.fromkeys(run.arm for run in runs))
    if asked is None:
        return next((arm for arm in arms if arm.startswith("pps")), arms[0])
    if asked not in arms:
        raise ConfigError(f"--reference: the arms are {', '.join(arms)}; got '{asked}'")
    return asked


def _runs_of(folder: Path, cells: Sequence[Mapping[str, Any]]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The finished runs of a study, and a line about each of the others."""
    runs: dict[tuple[Setting, str, int], Run] = {}
    unfinished = []
    for cell in cells:
        run = None
        if cell["status"] == "finished":
            arm, also = cell.get("compared_as") or cell["arm"], cell.get("compared_on", "")
            run = _read_run(folder / "runs" / cell["name"], arm, also)
        if run is None:
            unfinished.append(f"{cell['name']}: {cell['error'] or 'waiting'}")
        elif runs.setdefault((run.setting, run.arm, run.config.seed), run) is not run:
            raise StoreError(f"two runs of the study have the same setting, arm and seed: one is {run.name}")
    return tuple(runs.values()), tuple(unfinished)


def _read_run(folder: Path, arm: str = "", also: str = "") -> Run | None:
    store = RunStore(folder)
    if not (folder / "config.yaml").is_file():
        return None
    config = store.config()
    iterations = tuple(step.metrics() for step in store.committed())
    if not iterations:
        return None
    setting = Setting(short_task(config.task), Path(config.model).name, also)
    return Run(folder.name, setting, arm or arm_name(config.proposal), store, config, iterations)
