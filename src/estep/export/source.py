"""What is exported of a run: the weights of an iteration, and how the run asked them."""

import re
from dataclasses import dataclass
from pathlib import Path

from estep.config import RunConfig, hint_variant
from estep.errors import ConfigError, DataError
from estep.metrics import selected
from estep.models.precision import resolve_dtype
from estep.records import Question, Response
from estep.store.model import run_of, task_file_of
from estep.store.run import IterationStore, RunStore
from estep.tasks import Task


@dataclass(frozen=True)
class Trained:
    """The weights that a run had after one of its iterations."""

    store: RunStore
    config: RunConfig
    task: Task
    """Its `prompt` is what the weights were trained on."""
    step: IterationStore
    """The iteration."""
    weights: str
    """Their folder: a model, or a LoRA adapter. An iteration that trained nothing has those of an earlier one."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.store.folder.resolve().name

    @property
    def dtype(self) -> str:
        """The floating-point type in which the run's engine held the weights, so the one that the run evaluated."""
        engine = self.store.latest_metadata("engine") or {}
        return str(engine.get("dtype") or resolve_dtype("auto", "cpu"))

    def responses(self) -> list[tuple[Question, Response]]:
        """The held-out questions in their order, each with the first response that the run's evaluation of these
        weights recorded."""
        first: dict[str, Response] = {}
        for response in self.step.responses():
            first.setdefault(response.question_id, response)
        questions = self.store.questions("test")
        return [(question, first[question.id]) for question in questions if question.id in first]


def find_trained(name: str, iteration: int | None = None) -> Trained:
    """The trained weights that a run folder, or the folder of one of its iterations, stands for.

    Args:
        name: a run folder, also that of a study's run; or `RUN/iteration-K`, with or without `/weights`.
        iteration: the iteration, from 1; None for the one that the folder names, or else the one that the run selects.

    Raises:
        ConfigError: the iteration does not exist, or the folder names another one.
        DataError: this is no run, or there are no such weights.
    """
    folder = Path(name).expanduser()
    if (folder / "study.json").is_file():
        raise DataError(f"{folder} is a study; name one of the run folders in {folder / 'runs'}")
    run = run_of(str(folder)) or run_of(str(folder / "weights"))
    if run is None:
        raise DataError(
            f"{name} is no run folder; allowed are the folder of a run, also of one in a study, and those of its "
            "iterations, such as RUN/iteration-02"
        )
    store = RunStore(run)
    config = store.config()
    number = _iteration(store, config, folder, iteration)
    trained = store.model_after(number)
    if trained is None and number == 0 and len(store.committed()) > 1:
        raise DataError(f"the run in {run} selected its base model; --iteration K exports another iteration")
    if trained is None:
        raise DataError(
            f"{run}: nothing was trained up to iteration {number}, so its weights are those of {config.model}"
        )
    if not Path(trained.path).is_dir():
        kept = [str(step.number) for step in store.committed() if step.weights.is_dir()]
        raise DataError(
            f"the weights of iteration {trained.iteration} of {run} were not kept (keep_weights); there are those of "
            f"iteration {', '.join(kept) or 'none'}"
        )
    return Trained(store, config, read_task(store), store.iteration(number), trained.path)


def read_task(store: RunStore) -> Task:
    """The task of a run, whose `prompt` is the one that the run trains and evaluates."""
    config = store.config()
    return Task(task_file_of(store.folder), None, hint_variant(config.proposal), config.few_shot, trained=True)


def _iteration(store: RunStore, config: RunConfig, folder: Path, asked: int | None) -> int:
    """The iteration that a folder or `--iteration` names, or else the one that the run selects."""
    inside = folder.parent if folder.name == "weights" else folder
    named = re.fullmatch(r"iteration-(\d+)", inside.name) if inside != store.folder else None
    if asked is not None and named is not None and int(named[1]) != asked:
        raise ConfigError(f"--iteration {asked}, but {folder} is iteration {int(named[1])}; give one of the two")
    committed = store.committed()
    if not committed:
        raise DataError(f"the run in {store.folder} has no finished iteration yet")
    if asked is None and named is None:
        return selected([step.metrics() for step in committed], config.select).iteration
    number = int(named[1]) if named is not None else asked or 0
    if not 1 <= number < len(committed):
        known = f"from 1 to {len(committed) - 1}" if len(committed) > 1 else "none yet"
        raise ConfigError(f"iteration {number} of {store.folder}: the run has trained iterations {known}")
    return number
