"""Runs the cells of a grid, in turn or side by side on a cluster. Cells of one model share an engine, and no work is
done twice.

    study.yaml      the configuration
    study.json      the cells and their outcomes
    runs/           one run folder per cell

Running the same study again resumes it, with any cells that were added. A failed cell does not stop the others;
failures are reported at the end.
"""

import json
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from estep.cluster import connected, open_engine
from estep.cluster.engine import RayEngine
from estep.config import RunConfig, without_placement
from estep.engines import Engine
from estep.errors import ConfigError, EstepError, StoreError
from estep.models.memory import return_freed_memory
from estep.planning.check import check_fits
from estep.progress import Reporter
from estep.records import ModelRef
from estep.sources.models import resolve_model
from estep.store.files import write_whole
from estep.store.reuse import ReusableRuns
from estep.store.run import RunStore, locked
from estep.study.grid import Cell, Grid
from estep.study.side_by_side import Named, Turns, run_threads
from estep.tracking import check_installed, tracked
from estep.trainer import FEMTrainer

Status = Literal["waiting", "finished", "failed"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell."""

    cell: Cell
    status: Status
    error: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A cell with its resolved configuration."""

    cell: Cell
    study: str
    """The name of its study."""
    trainer: FEMTrainer
    store: RunStore

    @property
    def config(self) -> RunConfig:
        return self.trainer.config

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.store.finished(self.config, self.trainer.task.text)

    @property
    def started(self) -> bool:
        """Whether the cell's folder contains a part of its run; `prepare` has refused folders of other runs."""
        return (self.store.folder / "config.yaml").is_file()

    @property
    def base_key(self) -> str:
        return base_key(self.config, self.trainer.task.hint_name)

    @property
    def training_key(self) -> str:
        return training_key(self.config)

    @property
    def data_key(self) -> str:
        return _key(self.config.model_dump(mode="json", include={"task", "data", "on_invalid_row"}))


def run_study(grid: Grid, reporter: Reporter, parallel: int = 1) -> list[Outcome]:
    """Run the cells that are not finished.

    Args:
        parallel: number of cells that run at the same time, on a cluster.

    Returns:
        The outcome of each cell, in the order of the grid.

    Raises:
        ConfigError: `parallel` is above 1, and a cell does not run on a cluster.
        EstepError: a cell's configuration does not fit its task, its model does not fit the devices, its folder
            contains another run, or another process is running the study. Nothing is recorded then. An error while a
            cell runs is recorded in its outcome.
    """
    if parallel > 1 and any(cell.config.cluster is None for cell in grid.cells):
        raise ConfigError(f"--parallel {parallel} needs a Ray cluster: set cluster=auto or cluster=ray://HOST:PORT")
    for cell in grid.cells:
        check_installed(cell.config.report_to)
    cells = prepare(grid)
    cluster = grid.cells[0].config.cluster
    with connected(cluster, reporter.log), ExitStack() as stack:
        _refuse_what_cannot_fit(cells, reporter)
        stack.enter_context(locked(grid.folder))
        write_whole(grid.folder / "study.yaml", yaml.safe_dump(grid.content, sort_keys=False, allow_unicode=True))
        progress = _Progress(grid, cells)
        if parallel == 1:
            with Engines(reporter).closed() as engines:
                for prepared in cells:
                    title = f"{progress.number(prepared)} {prepared.cell.name}"
                    progress.add(prepared, _run_cell(prepared, cells, engines, title, reporter))
        else:
            _run_side_by_side(cells, parallel, progress, reporter)
    return [progress.record.outcomes[cell.name] for cell in grid.cells]


class _Progress:
    """Records in `study.json` what is finished, and removes weights that are not needed. Threads may share it."""

    def __init__(self, grid: Grid, cells: list[Prepared]):
        self.grid = grid
        self.cells = cells
        self.record = _Record(grid)
        self.record.write()
        self._finished: list[Prepared] = []
        self._lock = threading.Lock()

    def number(self, prepared: Prepared) -> str:
        """Which cell it is of how many."""
        return f"[{self.cells.index(prepared) + 1}/{len(self.cells)}]"

    def add(self, prepared: Prepared, outcome: Outcome) -> None:
        """Record a cell's outcome."""
        with self._lock:
            self.record.outcomes[prepared.cell.name] = outcome
            self.record.write()
            if outcome.status == "finished":
                self._finished.append(prepared)
            _remove_weights(self.grid, self._finished, [one for one in self.cells if one not in self._finished])


def _run_side_by_side(cells: list[Prepared], parallel: int, progress: _Progress, reporter: Reporter) -> None:
    """Run cells at the same time, each with an engine of its own."""
    turns = Turns(cells, _waits_for)
    opened: list[Engines] = []

    def run() -> None:
        named = Named(reporter, turns.check)
        with Engines(named, parallel).closed() as engines:
            opened.append(engines)
            for prepared in turns:
                named.name = prepared.cell.name
                progress.add(prepared, _run_cell(prepared, cells, engines, progress.number(prepared), named))

    def stop() -> None:
        turns.stop()
        for engines in opened:
            engines.interrupt()

    run_threads(run, parallel, stop)


def _waits_for(one: Prepared, other: Prepared) -> bool:
    """Whether a cell can reuse work that another one is about to do."""
    evaluated = other.store.iteration(0).committed
    return one.training_key == other.training_key or (one.base_key == other.base_key and not evaluated)


def prepare(grid: Grid) -> list[Prepared]:
    """The cells with their tasks' defaults filled in.

    Raises:
        EstepError: a cell's configuration does not fit its task, or its folder contains another run.
    """
    prepared = [_prepared(cell, grid.name) for cell in grid.cells]
    _refuse_others(prepared)
    trained = Counter(one.training_key for one in prepared)
    for one in prepared:
        # A cell with the same training but another evaluation reuses the weights of every iteration.
        keep = "all" if grid.keep_weights == "all" or trained[one.training_key] > 1 else "last"
        one.trainer.config = one.config.model_copy(update={"keep_weights": keep})
    return prepared


def _prepared(cell: Cell, study: str) -> Prepared:
    try:
        trainer = FEMTrainer(cell.config.model, cell.config.task, cell.config)
    except EstepError as error:
        raise type(error)(f"cell {cell.name}: {error}") from error
    return Prepared(cell, study, trainer, RunStore(cell.config.folder))


def _refuse_others(cells: list[Prepared]) -> None:
    """Refuse a study if the folder of a cell contains another run: a mistaken override must not look like a failure of
    every cell."""
    refusals = []
    for prepared in cells:
        try:
            prepared.store.started(prepared.config, prepared.trainer.task.text)
        except EstepError as error:
            refusals.append(str(error))
    if refusals:
        others = f" (and {len(refusals) - 1} more cells' folders)" if len(refusals) > 1 else ""
        raise StoreError(refusals[0] + others)


def _refuse_what_cannot_fit(cells: list[Prepared], reporter: Reporter) -> None:
    """Check each combination of model, engine and M-step once, before the first cell runs."""
    waiting: dict[str, list[Prepared]] = {}
    for prepared in cells:
        if not prepared.finished:
            waiting.setdefault(_placement_key(prepared.config), []).append(prepared)
    refused: list[tuple[Prepared, ConfigError]] = []
    for alike in waiting.values():
        try:
            check_fits(alike[0].config, alike[0].config.model, reporter.log)
        except ConfigError as error:
            refused += [(prepared, error) for prepared in alike]
    if refused:
        first, reason = refused[0]
        models = {prepared.config.model for alike in waiting.values() for prepared in alike}
        others = sorted(models - {prepared.config.model for prepared, _ in refused})
        rest = f"; to leave them out: model=[{','.join(others)}]" if others else ""
        raise ConfigError(f"{len(refused)} of {len(cells)} cells cannot run, such as {first.cell.name}: {reason}{rest}")


def _run_cell(prepared: Prepared, cells: list[Prepared], engines: "Engines", title: str, reporter: Reporter) -> Outcome:
    """Run one cell, unless it is finished."""
    failure = prepared.store.folder.with_name(prepared.store.folder.name + ".failed.txt")
    try:
        if prepared.finished:
            reporter.log(f"{title}: finished before")
            if prepared.config.report_to:  # what a tracker lacks of it
                with (
                    locked(prepared.store.folder),
                    tracked(prepared.store, prepared.config, prepared.study, reporter.log),
                ):
                    pass
            failure.unlink(missing_ok=True)
            return Outcome(prepared.cell, "finished")
        reporter.log(title)
        _train(prepared, cells, engines, reporter)
    except Exception as error:
        message = str(error) if isinstance(error, EstepError) else f"{type(error).__name__}: {error}"
        message = " ".join(message.split())
        reporter.log(f"{title}: failed: {message}")
        failure.parent.mkdir(parents=True, exist_ok=True)
        write_whole(failure, traceback.format_exc())
        return Outcome(prepared.cell, "failed", message)
    failure.unlink(missing_ok=True)
    return Outcome(prepared.cell, "finished")


def _train(prepared: Prepared, cells: list[Prepared], engines: "Engines", reporter: Reporter) -> None:
    others = [other for other in cells if other is not prepared]
    shared = ReusableRuns(
        base=[other.store for other in others if other.base_key == prepared.base_key and other.started],
        training=[other.store for other in others if other.training_key == prepared.training_key and other.started],
        peers=[other.store for other in others if other.data_key == prepared.data_key and other.started],
    )
    prepared.trainer.reporter = reporter
    try:
        prepared.trainer.use(engines.of(prepared.config), engines.cells)
        result = prepared.trainer.train(shared, prepared.study)
        if prepared.config.select == "validation":
            reporter.log(f"validation selected {result.selected.name}")
    except Exception:
        engines.close()  # the engine may be the cause
        raise
    finally:
        return_freed_memory()


_NAMES = {"name", "run_dir", "keep_weights"}
_SAMPLING = {"temperature", "top_p", "max_new_tokens"}


def base_key(config: RunConfig, hint_name: str) -> str:
    """A key of the settings that the evaluation of the base model depends on.

    Args:
        hint_name: the name of the task's hint, which decides what counts as a mention of the hint.
    """
    settings = without_placement(config.model_dump(mode="json", exclude=_NAMES))
    content = _without(settings, {"proposal", "m_step", "filters", "iterations", "train_size"})
    return _key({**content, "hint_name": hint_name, "engine": _without(content["engine"], {"temperature", "top_p"})})


def training_key(config: RunConfig) -> str:
    """A key of the settings that a run's training depends on."""
    return _key(without_placement(config.model_dump(mode="json", exclude={*_NAMES, "evaluation"})))


def _placement_key(config: RunConfig) -> str:
    return _key(config.model_dump(mode="json", include={"model", "engine", "m_step", "cluster"}))


def _engine_key(config: RunConfig) -> str:
    content = config.model_dump(mode="json", include={"model", "engine"})
    return _key({**content, "engine": _without(content["engine"], _SAMPLING)})


def _without(content: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _key(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


class Engines:
    """The current cell's engine, reused by the next cell if it needs the same one.

    Args:
        cells: number of cells that run at the same time, each with engines of its own.
    """

    def __init__(self, reporter: Reporter, cells: int = 1):
        self.reporter = reporter
        self.cells = cells
        self._key: str | None = None
        self._engine: Engine | None = None

    def of(self, config: RunConfig) -> Engine:
        """The engine for a resolved configuration."""
        key = _engine_key(config)
        if self._engine is None or self._key != key:
            self.close()
            base = ModelRef(resolve_model(config.model, self.reporter.log))
            self._engine, self._key = open_engine(config, base, self.reporter.log, self.cells), key
        return self._engine

    def interrupt(self) -> None:
        """Make the thread that uses the engine end soon; called from another one."""
        if isinstance(self._engine, RayEngine):
            self._engine.interrupt()

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @contextmanager
    def closed(self) -> Iterator["Engines"]:
        """A context that closes the engine at its end."""
        try:
            yield self
        finally:
            self.close()


class _Record:
    """`study.json`: the cells and their outcomes. Cells of earlier calls stay in it as long as their folders exist."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.path = grid.folder / "study.json"
        former = json.loads(self.path.read_text(encoding="utf-8"))["cells"] if self.path.is_file() else []
        names = {cell.name for cell in grid.cells}
        there = [row for row in former if (self._runs / row["name"]).is_dir()]
        known = {row["name"]: row for row in there}
        self.others = [row for row in there if row["name"] not in names]
        self.outcomes = {
            cell.name: Outcome(cell, known[cell.name]["status"], known[cell.name]["error"])
            if cell.name in known
            else Outcome(cell, "waiting")
            for cell in grid.cells
        }

    @property
    def _runs(self) -> Path:
        return self.grid.folder / "runs"

    def write(self) -> None:
        rows = [
            {
                "name": outcome.cell.name,
                "arm": outcome.cell.arm,
                "compared_as": outcome.cell.compared_as,
                "compared_on": outcome.cell.compared_on,
                "axes": outcome.cell.axes,
                "status": outcome.status,
                "error": outcome.error,
            }
            for outcome in self.outcomes.values()
        ]
        content = {"name": self.grid.name, "cells": [*rows, *self.others]}
        write_whole(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _remove_weights(grid: Grid, done: list[Prepared], waiting: list[Prepared]) -> None:
    """Remove weights that the study does not keep and that no waiting cell will reuse."""
    if grid.keep_weights == "all":
        return
    wanted = {prepared.training_key for prepared in waiting}
    for prepared in done:
        if prepared.training_key not in wanted:
            last = prepared.store.selected(prepared.config) if grid.keep_weights == "last" else None
            prepared.store.remove_weights(keep={last.iteration} if last else set())
