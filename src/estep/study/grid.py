"""A study's grid: a run's configuration in which every list is an axis.

    task: [sentiment/movies, sentiment/tweets]
    seed: [257, 521, 1031]
    arms:
      rejection-3: {proposal: {type: rejection, budget: 3}}
      pps: {proposal: {type: pps}}

Each combination is a cell: one run. An arm is a named change to the configuration. A grid that extends another one adds
arms and changes arms of the same name; `NAME: null` removes one. A setting whose value is a list in a single run, such
as `m_step.learning_rate`, is an axis if it is a list of lists.
"""

import copy
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from estep.config import RunConfig, short_task
from estep.config.files import LISTS, merge, override, read_config, types_first, validate
from estep.config.names import BASE, arm_name, file_name
from estep.config.validation import unknown_key
from estep.errors import ConfigError, nearest

KeepWeights = Literal["all", "last", "none"]

KEPT: tuple[KeepWeights, ...] = ("all", "last", "none")

NAME = r"[A-Za-z0-9][\w-]*"
"""What names of studies and arms look like."""
_NAME_WORDS = "letters, digits, '_' and '-', the first a letter or a digit"
OF_THE_STUDY = ("name", "keep_weights", "run_dir")
"""The keys that are neither axes nor settings of an arm."""
_ORDER = ("model", "seed", "task")
"""The outermost axes, so that engines are rarely rebuilt and each seed is finished before the next one starts."""


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    name: str
    """The name of its run folder."""
    arm: str
    """Its name in the study, or a name made from its proposal."""
    axes: dict[str, str]
    """The values on the axes other than the arm, as text."""
    config: RunConfig
    compared_as: str = ""
    """What a report compares: the arm, with the axes that distinguish its variants."""
    compared_on: str = ""
    """The remaining axes, without task and model; a report does not compare their values with each other."""


@dataclass(frozen=True)
class Grid:
    """A study before it runs."""

    name: str
    folder: Path
    cells: tuple[Cell, ...]
    keep_weights: KeepWeights
    """Which weights to keep after a cell is finished: those of `all` iterations, of the `last`, or `none`."""
    content: dict[str, Any]
    """The configuration that the grid was made from, with the overrides."""


def load_grid(source: str | Path, overrides: list[str] | None = None) -> Grid:
    """A study from a YAML file and dotted overrides.

    Args:
        source: a path, or the name of a shipped study such as `studies/cpu`.
        overrides: such as `seed=[257,521]` or `arms.pps.m_step.batch_size=8`.

    Raises:
        ConfigError: no such file, an unknown key, an empty axis, or a cell whose configuration is not allowed.
    """
    location, content = read_config(source)
    for pair in types_first(overrides or ()):
        _known_arm(pair, content)
        override(content, pair, also=("arms",))
    unknown = [key for key in content if key not in (*RunConfig.model_fields, "arms")]
    if unknown:
        raise ConfigError(f"{location}: {unknown_key(unknown[0], [*RunConfig.model_fields, 'arms'])}")
    name = content.get("name") or Path(source).stem
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ConfigError(f"{location}: name: {_NAME_WORDS}, got {name!r}")
    keep = content.get("keep_weights", "last")
    if keep not in KEPT:
        raise ConfigError(f"{location}: keep_weights: one of {', '.join(KEPT)}, got {keep!r}")
    where = content.get("run_dir") or f"runs/study-{name}"
    if not isinstance(where, str):
        raise ConfigError(f"{location}: run_dir: a folder, got {where!r}")
    folder = Path(where).expanduser()
    shared = {key: value for key, value in content.items() if key not in ("arms", *OF_THE_STUDY)}
    arms = _arms(content.get("arms"), location)
    cells = []
    for arm, changes in arms.items():
        merged = merge(shared, changes)
        axes = sorted(find_axes(merged, location), key=lambda axis: _rank(axis[0]))
        for values in itertools.product(*(values for _, values in axes)):
            chosen = copy.deepcopy(merged)
            for (key, _), value in zip(axes, values, strict=True):
                _set(chosen, key, value)
            labels = {key: label(value) for (key, _), value in zip(axes, values, strict=True)}
            cells.append(_cell(chosen, arm, labels, folder, location))
    order = {key: list(dict.fromkeys(getattr(cell.config, key) for cell in cells)) for key in _ORDER}
    cells.sort(key=lambda cell: [values.index(getattr(cell.config, key)) for key, values in order.items()])
    twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{location}: two cells would have the folder {twice[0]}: give arms, task files and model "
            "folders different names"
        )
    return Grid(name, folder, tuple(_placed(cells, named="" not in arms)), keep, content)


def _placed(cells: list[Cell], named: bool) -> list[Cell]:
    """The cells with `compared_as` and `compared_on` filled in.

    An axis of the proposal, or one that not every cell has, distinguishes arms. Any other axis is a setting that arms
    are compared on, unless there is nothing else to compare.
    """
    keys = {key for cell in cells for key in cell.axes if key not in _ORDER}
    everywhere = {key for key in keys if all(key in cell.axes for cell in cells)}
    ours = {key for key in keys if key not in everywhere or key.partition(".")[0] == "proposal"}
    if not named and not ours:
        ours = keys
    if not named and ours == {"proposal"} and len({c.arm for c in cells}) == len({c.axes["proposal"] for c in cells}):
        ours = set()  # the arms' names already distinguish them
        keys = keys - {"proposal"}

    def words(cell: Cell, chosen: set[str]) -> list[str]:
        return [f"{short_key(key, keys)} {cell.axes[key]}" for key in cell.axes if key in chosen]

    return [
        replace(
            cell,
            compared_as=", ".join([cell.arm, *words(cell, ours)]),
            compared_on=", ".join(words(cell, keys - ours)),
        )
        for cell in cells
    ]


def _arms(arms: Any, location: str) -> dict[str, dict[str, Any]]:
    if arms is None:
        return {"": {}}
    if isinstance(arms, dict):
        arms = {name: changes for name, changes in arms.items() if changes is not None}
    if not isinstance(arms, dict) or not arms or not all(isinstance(changes, dict) for changes in arms.values()):
        raise ConfigError(f"{location}: arms: a mapping of names to settings, such as pps: {{proposal: {{type: pps}}}}")
    for name, changes in arms.items():
        if not re.fullmatch(NAME, str(name)):
            raise ConfigError(f"{location}: an arm's name: {_NAME_WORDS}, got '{name}'")
        if name == BASE:
            raise ConfigError(
                f"{location}: an arm cannot be called '{BASE}': reports use that name for the model before training"
            )
        idle = [key for key in OF_THE_STUDY if key in changes]
        if idle:
            raise ConfigError(f"{location}: arms.{name}.{idle[0]}: this key is for the whole study")
    return {str(name): changes for name, changes in arms.items()}


def _known_arm(pair: str, content: dict[str, Any]) -> None:
    """Refuse an override within an arm that does not exist."""
    section, _, rest = pair.partition("=")[0].partition(".")
    name, within, _ = rest.partition(".")
    arms = content.get("arms")
    changed = within or pair.endswith("=null")
    if section == "arms" and changed and isinstance(arms, dict) and name not in arms:
        raise ConfigError(f"override '{pair}': unknown arm '{name}'; {nearest(name, arms)}")


def find_axes(content: dict[str, Any], location: str, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The axes of configuration data: a dotted key and its values.

    Raises:
        ConfigError: an axis is empty or has a value twice.
    """
    for key, value in content.items():
        if isinstance(value, dict):
            yield from find_axes(value, location, f"{prefix}{key}.")
        elif isinstance(value, list) and (key not in LISTS or all(isinstance(inner, list) for inner in value)):
            twice = [inner for inner in value if value.count(inner) > 1]
            if not value or twice:
                fault = f"{twice[0]} appears twice in {value}" if twice else "a list is an axis and must not be empty"
                raise ConfigError(f"{location}: {prefix}{key}: {fault}")
            yield f"{prefix}{key}", value


def label(value: Any) -> str:
    """A setting's value as text for a folder's name.

    >>> label([1e-06, 1e-07]), label({"type": "rejection", "budget": 3})
    ('1e-06-1e-07', 'rejection-budget3')
    """
    if isinstance(value, dict):
        inner = "-".join(f"{key}{label(v)}" for key, v in value.items() if key != "type")
        return "-".join(part for part in (str(value.get("type", "")), inner) if part)
    if isinstance(value, list):
        return "-".join(label(inner) for inner in value)
    return "null" if value is None else str(value)


def _cell(content: dict[str, Any], arm: str, axes: dict[str, str], folder: Path, location: str) -> Cell:
    words = ", ".join([*([arm] if arm else []), *(f"{key}={value}" for key, value in axes.items())])
    config = validate(content, f"{location}: cell {words}" if words else location)
    arm = arm or arm_name(config.proposal)
    others = [f"{short_key(key, axes)}{value}" for key, value in axes.items() if key not in _ORDER]
    name = "-".join([short_task(config.task), Path(config.model).name, arm, *others, f"s{config.seed}"])
    name = file_name(name)
    return Cell(name, arm, axes, config.model_copy(update={"name": arm, "run_dir": str(folder / "runs" / name)}))


def short_key(key: str, keys: Collection[str]) -> str:
    """The last part of a dotted key, or the whole key if another key has the same last part."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _rank(key: str) -> int:
    return _ORDER.index(key) if key in _ORDER else len(_ORDER)


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    content[last] = value
