"""What a run folder or a study folder holds, read for a report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from estep.config import RunConfig, short_task
from estep.config.names import arm_name
from estep.errors import ConfigError, StoreError
from estep.metrics import IterationMetrics, mean, selected, voted
from estep.store.run import RunStore


class Setting(NamedTuple):
    """What arms are compared on: what is asked, and who is taught."""

    task: str
    model: str
    also: str = ""
    """The study's other axes, such as `train_size 1000`."""

    @property
    def words(self) -> str:
        return ", ".join(filter(None, self))


@dataclass(frozen=True)
class Run:
    """A run with at least its base model evaluated."""

    name: str
    setting: Setting
    arm: str
    """Of a study: its arm, with the axes that only this arm has."""
    store: RunStore
    config: RunConfig
    iterations: tuple[IterationMetrics, ...]
    _scores: dict[int, dict[str, float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def base(self) -> IterationMetrics:
        """Before training."""
        return self.iterations[0]

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
        if iteration not in self._scores:
            responses = self.store.iteration(iteration).responses()
            right: dict[str, list[float]] = {}
            for prediction in voted(responses, self.config.evaluation.vote):
                right.setdefault(prediction.question_id, []).append(float(prediction.status == "correct"))
            self._scores[iteration] = {question: mean(values) for question, values in right.items()}
        return self._scores[iteration]


@dataclass(frozen=True)
class Results:
    """All of a study, or one run."""

    name: str
    folder: Path
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...]
    """Runs that are left out because they are waiting or failed, or that are told of as far as they go."""
    study: str | None
    """The study's configuration as YAML; None of a run."""
    reference: str
    """The arm that the others are compared with."""

    @property
    def settings(self) -> list[Setting]:
        """In the order of the study."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @property
    def arms(self) -> list[str]:
        """In the order of the study."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, setting: Setting, arm: str) -> list[Run]:
        """The runs of a cell of the tables: one for each seed."""
        return [run for run in self.runs if (run.setting, run.arm) == (setting, arm)]

    def bases(self, setting: Setting) -> list[Run]:
        """The runs whose base model a setting's tables tell of: the reference's, or another's where it lacks a seed."""
        of_seed: dict[int, Run] = {}
        for run in [*self.of(setting, self.reference), *self.runs]:
            if run.setting == setting:
                of_seed.setdefault(run.config.seed, run)
        return list(of_seed.values())

    def name_of(self, setting: Setting) -> str:
        """A setting for people: its model only where there are several."""
        models = {other.model for other in self.settings}
        parts = [setting.task, *([setting.model] if len(models) > 1 else []), *([setting.also] if setting.also else [])]
        return ", ".join(parts)


def read_results(folder: Path, reference: str | None = None) -> Results:
    """The finished runs of a study folder, or a run folder's committed iterations.

    Args:
        reference: the arm that the others are compared with; None for the first whose name begins with `pps`, or else
            the first.

    Raises:
        StoreError: the folder holds neither, or nothing is finished in it.
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
    """The finished runs of a study, and what is said of the others."""
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
