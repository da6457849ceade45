"""A model that a run trained: which run, which iteration, and the settings with which the run asked it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from estep.config import DEFAULT_TYPES, RunConfig, hint_variant, takes_hint
from estep.config.engine import engine_keys
from estep.errors import ConfigError, DataError
from estep.metrics import selected
from estep.store.run import RunStore
from estep.tasks import Task, load_task, parse_task
from estep.tasks.file import TaskFile

_OF_THE_TASK = ("test_size", "data", "evaluation", "on_invalid_row", "on_overlength")
"""The settings that a command on a run's model inherits only if it works on the run's own task."""


def run_of(model: str) -> Path | None:
    """The run folder that a model is, or lies in; None for any other model."""
    folder = Path(model).expanduser()
    for candidate in (folder, folder.parent.parent):
        if (candidate / "run.json").is_file() and (candidate / "config.yaml").is_file():
            return candidate
    return None


def task_file_of(run: Path) -> TaskFile:
    """The task file that a run keeps."""
    path = run / "task.yaml"
    return parse_task(path.read_text(encoding="utf-8"), str(path))


def run_on(task: Task, model: str) -> Path | None:
    """The run on this task whose weights the model is; None for any other model."""
    run = run_of(model)
    if run is None:
        return None
    return run if task_file_of(run).name == task.name else None


def own_task(model: str) -> str:
    """The task of the run that trained a model, as `load_task` takes it.

    Raises:
        ConfigError: no run trained it.
        DataError: the task file has changed since, or is gone.
    """
    run = run_of(model)
    if run is None:
        raise ConfigError(f"{model} is no run, so its task is not known: add --task")
    config = RunStore(run).config()
    copy = run / "task.yaml"
    try:
        same = load_task(config.task, hint_variant(config.proposal), config.few_shot).text == copy.read_text("utf-8")
    except (ConfigError, DataError) as error:
        raise DataError(f"the run's task cannot be read ({error}); --task {copy} is the run's copy") from error
    if not same:
        raise DataError(f"the task {config.task} has changed since the run: add --task {copy}, which is the run's copy")
    return config.task


def iteration_of(model: str) -> int:
    """The iteration in which a run evaluated these weights of its own; 0 for any other model, as for a base model."""
    run, folder = run_of(model), Path(model).expanduser()
    if run is None:
        return 0
    if run == folder:
        store = RunStore(run)
        committed = [step.metrics() for step in store.committed()]
        return selected(committed, store.config().select).iteration if committed else 0
    named = re.fullmatch(r"iteration-(\d+)", folder.parent.name)
    return int(named[1]) if named else 0


def run_settings(
    model: str, task: str, engine_type: str | None = None, proposal_type: str | None = None
) -> dict[str, Any]:
    """The settings of a run that also apply to a command on its model, so that the model is asked as the run asked it.

    These are `seed`, `few_shot` and the whole `engine` section, and for the run's own task also those that say little
    about another task: `test_size`, `data`, `evaluation`, `on_invalid_row`, `on_overlength`, `engine.max_new_tokens`
    and the proposal's `hint`. An engine of another type inherits the keys that it has too, such as `max_new_tokens`,
    `max_model_len` and `dtype`.

    Args:
        task: the name or path of the task that the command works on.
        engine_type: the `engine.type` that the command is given; None for the run's.
        proposal_type: the `proposal.type` that the command is given, which inherits the hint if it uses one; None for
            the default.
    """
    run = run_of(model)
    if run is None:
        return {}
    config = RunStore(run).config()
    content = config.model_dump(mode="json")
    path = Path(task).expanduser().resolve()
    same = content["task"] in (task, str(path)) or path == (run / "task.yaml").resolve()
    kept = ("seed", "few_shot", *(_OF_THE_TASK if same else ()))
    engine = dict(content["engine"])
    if engine_type not in (None, engine["type"]):
        engine = {key: engine[key] for key in engine if key != "type" and key in engine_keys(str(engine_type))}
    if not same:
        engine.pop("max_new_tokens", None)
    settings = {**{key: content[key] for key in kept if key in content}, "engine": engine}
    hint = hint_variant(config.proposal)
    if same and hint is not None and takes_hint(proposal_type or DEFAULT_TYPES["proposal"]):
        settings["proposal"] = {"hint": hint}
    return settings


def settings_line(settings: dict[str, Any], config: RunConfig) -> str:
    """One line for people: the settings that a configuration inherited from a run, without those that are defaults and
    those that were overridden."""
    return f"settings of the run: {', '.join(_inherited(settings, config)) or 'the defaults'}"


def _inherited(settings: dict[str, Any], section: BaseModel, prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        present = getattr(section, key, None)
        default = DEFAULT_TYPES["engine"] if key == "type" else type(section).model_fields[key].default
        if isinstance(present, BaseModel) and isinstance(value, dict):
            yield from _inherited(value, present, f"{prefix}{key}.")
        elif present == value != default:
            yield f"{prefix}{key}={value}"
