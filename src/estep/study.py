"""A study: every cell of a grid run in turn, with one engine for all cells of a model, and nothing done twice.

    study.yaml      the configuration
    study.json      the cells, and how each ended
    runs/           a run folder for each cell

The same command goes on with a study that was interrupted, and takes up cells that were added to it. A cell that fails
is told of at the end; the others run.
"""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from estep.config import RunConfig
from estep.engines import Engine, open_engine
from estep.errors import EstepError
from estep.grid import Cell, Grid
from estep.progress import Reporter
from estep.records import ModelRef
from estep.sources import resolve_model
from estep.store import RunStore, held, write_whole
from estep.trainer import FEMTrainer, Shared

Status = Literal["waiting", "finished", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    status: Status
    error: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A cell whose configuration is resolved."""

    cell: Cell
    trainer: FEMTrainer
    store: RunStore

    @property
    def config(self) -> RunConfig:
        return self.trainer.config

    @property
    def finished(self) -> bool:
        return self.store.finished(self.config)


def run_study(grid: Grid, reporter: Reporter) -> list[Outcome]:
    """Run the cells that are not finished.

    Returns:
        How each cell ended, in the order of the grid.

    Raises:
        EstepError: a cell's configuration does not fit its task, or another process runs the study. What goes wrong
            within a cell is in its outcome instead.
    """
    cells = prepare(grid)
    outcomes = {cell.name: Outcome(cell, "waiting") for cell in grid.cells}
    with held(grid.folder), Engines(reporter).closed() as engines:
        write_whole(grid.folder / "study.yaml", yaml.safe_dump(grid.content, sort_keys=False, allow_unicode=True))
        for number, prepared in enumerate(cells, 1):
            name = prepared.cell.name
            outcomes[name] = _run_cell(prepared, cells, engines, f"[{number}/{len(cells)}] {name}", reporter)
            _write_outcomes(grid, outcomes)
            _remove_weights(grid, cells, outcomes)
    return list(outcomes.values())


def prepare(grid: Grid) -> list[Prepared]:
    """The cells with their tasks' defaults filled in.

    Raises:
        EstepError: a cell's configuration does not fit its task.
    """
    keys = [training_key(cell.config) for cell in grid.cells]
    prepared = []
    for cell, key in zip(grid.cells, keys, strict=True):
        # A cell that is evaluated otherwise takes over the weights of every iteration.
        keep = "all" if grid.keep_weights == "all" or keys.count(key) > 1 else "last"
        config = cell.config.model_copy(update={"keep_weights": keep})
        prepared.append(Prepared(cell, FEMTrainer(config.model, config.task, config), RunStore(config.folder)))
    return prepared


def _run_cell(prepared: Prepared, cells: list[Prepared], engines: "Engines", title: str, reporter: Reporter) -> Outcome:
    """Run one cell, unless it is finished."""
    failure = prepared.store.folder.with_name(prepared.store.folder.name + ".failed.txt")
    try:
        if prepared.finished:
            reporter.say(f"{title}: finished before")
            return Outcome(prepared.cell, "finished")
        reporter.say(title)
        prepared.trainer.reporter = reporter
        prepared.trainer.use(engines.of(prepared.config))
        prepared.trainer.train(_shared(prepared, cells))
    except Exception as error:
        engines.close()  # it may be what failed
        told = str(error) if isinstance(error, EstepError) else f"{type(error).__name__}: {error}"
        reporter.say(f"{title}: failed: {told}")
        failure.parent.mkdir(parents=True, exist_ok=True)
        write_whole(failure, traceback.format_exc())
        return Outcome(prepared.cell, "failed", told)
    failure.unlink(missing_ok=True)
    return Outcome(prepared.cell, "finished")


def _shared(prepared: Prepared, cells: list[Prepared]) -> Shared:
    """The other cells of the grid that have done a part of a cell's work."""
    others = [other for other in cells if other is not prepared and (other.store.folder / "test.jsonl").is_file()]
    return Shared(
        base=[other.store for other in others if base_key(other.config) == base_key(prepared.config)],
        training=[other.store for other in others if training_key(other.config) == training_key(prepared.config)],
    )


_NAMES = {"name", "run_dir", "keep_weights"}
_SAMPLING = {"temperature", "top_p", "max_new_tokens"}


def base_key(config: RunConfig) -> str:
    """What the evaluation of the base model depends on, as far as a resolved configuration says it."""
    content = config.model_dump(
        mode="json", exclude={*_NAMES, "proposal", "mstep", "filters", "iterations", "train_size"}
    )
    return _key({**content, "engine": _without(content["engine"], {"temperature", "top_p"})})


def training_key(config: RunConfig) -> str:
    """What a run's training depends on, as far as a resolved configuration says it."""
    return _key(config.model_dump(mode="json", exclude={*_NAMES, "evaluation"}))


def _engine_key(config: RunConfig) -> str:
    content = config.model_dump(mode="json", include={"model", "engine"})
    return _key({**content, "engine": _without(content["engine"], _SAMPLING)})


def _without(content: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _key(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


class Engines:
    """The engine of the present cell, kept for the next one where that needs the same."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self._key: str | None = None
        self._engine: Engine | None = None

    def of(self, config: RunConfig) -> Engine:
        """The engine for a resolved configuration."""
        key = _engine_key(config)
        if self._engine is None or self._key != key:
            self.close()
            base = ModelRef(resolve_model(config.model, self.reporter.say))
            self._engine, self._key = open_engine(config.engine, base, self.reporter.say), key
        return self._engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @contextmanager
    def closed(self) -> Iterator["Engines"]:
        """Itself, closed at the end."""
        try:
            yield self
        finally:
            self.close()


def _write_outcomes(grid: Grid, outcomes: dict[str, Outcome]) -> None:
    cells = [
        {
            "name": outcome.cell.name,
            "arm": outcome.cell.arm,
            "axes": outcome.cell.axes,
            "status": outcome.status,
            "error": outcome.error,
        }
        for outcome in outcomes.values()
    ]
    content = {"name": grid.name, "cells": cells}
    write_whole(grid.folder / "study.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _remove_weights(grid: Grid, cells: list[Prepared], outcomes: dict[str, Outcome]) -> None:
    """Free the disk of weights that neither the study keeps nor another cell will take over."""
    if grid.keep_weights == "all":
        return
    done = [prepared for prepared in cells if outcomes[prepared.cell.name].status == "finished"]
    wanted = {training_key(prepared.config) for prepared in cells if prepared not in done}
    for prepared in done:
        if training_key(prepared.config) in wanted:
            continue
        last = prepared.store.selected(prepared.config) if grid.keep_weights == "last" else None
        prepared.store.remove_weights(keep={last.iteration} if last else set())
