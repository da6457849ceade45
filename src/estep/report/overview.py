"""The runs and studies below a folder, and how far each of them is.

A folder that cannot be read is listed with the reason, and does not hide the others.
"""

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from estep.config import short_task
from estep.config.names import arm_name
from estep.errors import EstepError, StoreError
from estep.report.terminal import NOTHING, percent
from estep.store.run import RunStore

State = Literal["finished", "unfinished", "waiting", "failed", "broken"]


@dataclass(frozen=True)
class RunEntry:
    """What is known about a run; None where nothing is."""

    path: Path
    state: State
    """`waiting`: a run of a study that has not been started. `failed`: an error ended it in its study. `broken`: its
    folder could not be read."""
    iteration: int | None = None
    """The last finished iteration; 0 is the base model."""
    iterations: int | None = None
    """How many the run will have."""
    task: str | None = None
    model: str | None = None
    proposal: str | None = None
    seed: int | None = None
    accuracy: float | None = None
    """Of the last finished iteration on the test questions."""
    changed: datetime | None = None
    reason: str | None = None
    """Why it failed or is broken."""

    @property
    def words(self) -> str:
        """Its state for readers."""
        if self.state != "unfinished":
            return self.state
        if not self.iteration:
            return "started" if self.iteration is None else "base only"
        return f"iteration {self.iteration} of {self.iterations}"


@dataclass(frozen=True)
class StudyEntry:
    """A study and its runs, in its order."""

    path: Path
    runs: tuple[RunEntry, ...]
    reason: str | None = None
    """Why its own files could not be read."""

    @property
    def words(self) -> str:
        """Its state for readers."""
        if self.reason is not None:
            return "broken"
        counts = {state: sum(run.state == state for run in self.runs) for state in ("finished", "failed", "broken")}
        others = [f"{counts[state]} {state}" for state in ("failed", "broken") if counts[state]]
        return ", ".join([f"{counts['finished']} of {len(self.runs)} finished", *others])

    @property
    def changed(self) -> datetime | None:
        """When the last of its runs changed."""
        return max((run.changed for run in self.runs if run.changed is not None), default=None)


Entry = RunEntry | StudyEntry


def find_entries(folder: Path) -> list[Entry]:
    """The runs and studies in a folder and in the folders below it, the latest first. The folder may itself be one.

    Raises:
        StoreError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}; runs are in runs/ unless run_dir says otherwise")
    entries = sorted(_search(folder, set()), key=_age)
    if not entries:
        raise StoreError(f"{folder} holds no runs and no studies")
    return entries


def _age(entry: Entry) -> tuple[float, str]:
    return (-entry.changed.timestamp() if entry.changed else math.inf, str(entry.path))


def _search(folder: Path, visited: set[Path]) -> list[Entry]:
    if folder.resolve() in visited:  # through a link
        return []
    visited.add(folder.resolve())
    try:
        if (folder / "study.json").is_file():
            return [_study(folder)]
        if _is_run(folder):
            return [_run(folder)]
        below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        below.sort(key=lambda path: (path.is_symlink(), path.name))
        return [entry for path in below for entry in _search(path, visited)]
    except OSError as error:
        return [RunEntry(folder, "broken", reason=_reason(error))]


def _is_run(folder: Path) -> bool:
    there = [name for name in ("run.json", "config.yaml", "task.yaml", "iteration-00") if (folder / name).exists()]
    return "run.json" in there or len(there) > 1


def _study(folder: Path) -> StudyEntry:
    below = folder / "runs"
    listed: dict[str, RunEntry] = {}
    reason = None
    try:
        cells = json.loads((folder / "study.json").read_text(encoding="utf-8"))["cells"]
        listed = {cell["name"]: _cell(below / cell["name"], cell) for cell in cells}
    except Exception as error:
        reason = _reason(error)
    others = sorted(path for path in below.iterdir() if _is_run(path)) if below.is_dir() else []
    return StudyEntry(folder, (*listed.values(), *(_run(path) for path in others if path.name not in listed)), reason)


def _cell(folder: Path, cell: dict[str, Any]) -> RunEntry:
    """A run of a study, whose folder may be missing."""
    there = _run(folder) if _is_run(folder) else None
    if cell["status"] == "failed":
        return replace(there or RunEntry(folder, "failed"), state="failed", reason=cell["error"])
    if there is None and cell["status"] == "finished":
        return RunEntry(folder, "broken", reason="the study says that it is finished, but its folder is missing")
    return there or RunEntry(folder, "waiting")


def _run(folder: Path) -> RunEntry:
    entry = RunEntry(folder, "broken")
    try:
        entry = replace(entry, changed=_changed(folder))
        store = RunStore(folder)
        config = store.config()
        entry = replace(
            entry,
            iterations=config.iterations,
            task=short_task(config.task),
            model=Path(config.model).name,
            proposal=arm_name(config.proposal),
            seed=config.seed,
        )
        committed = store.committed()
        if committed:
            last = committed[-1]
            entry = replace(entry, iteration=last.number, accuracy=last.metrics().evaluation.accuracy)
        return replace(entry, state="finished" if len(committed) > config.iterations else "unfinished")
    except Exception as error:  # whatever is wrong in one folder, the others are still listed
        return replace(entry, reason=_reason(error))


def _changed(folder: Path) -> datetime:
    """When the run last wrote something."""
    iterations = sorted(path for path in folder.glob("iteration-*") if path.is_dir())
    latest = [*folder.iterdir(), *(iterations[-1].iterdir() if iterations else ())]
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in latest if path.is_file()), UTC)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, EstepError) else f"{type(error).__name__}: {text}"


# For people and for programs


def overview_table(entries: list[Entry], folder: Path) -> Table:
    """One row per run or study; the runs of a study are indented below it."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "state", "task", "model", "proposal"):
        table.add_column(column, overflow="fold")
    for column in ("seed", "accuracy", "last change"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        name = str(entry.path.relative_to(folder)) if entry.path != folder else folder.resolve().name
        if isinstance(entry, RunEntry):
            table.add_row(*_row(name, entry))
        else:
            table.add_row(Text(name), Text(entry.words), "", "", "", "", "", _when(entry.changed))
            for run in entry.runs:
                table.add_row(*_row(f"  {run.path.name}", run))
    return table


def _row(name: str, run: RunEntry) -> list[Text]:
    seed = NOTHING if run.seed is None else str(run.seed)
    accuracy = NOTHING if run.accuracy is None else percent(run.accuracy)
    words = [name, run.words, *(value or NOTHING for value in (run.task, run.model, run.proposal))]
    return [Text(word) for word in (*words, seed, accuracy, _when(run.changed))]


def _when(changed: datetime | None) -> str:
    return NOTHING if changed is None else f"{changed.astimezone():%Y-%m-%d %H:%M}"


def reasons(entries: list[Entry]) -> list[str]:
    """A line for everything that failed or is broken."""
    each = [part for entry in entries for part in (entry, *(entry.runs if isinstance(entry, StudyEntry) else ()))]
    states = ((part, part.state if isinstance(part, RunEntry) else "broken") for part in each)
    return [f"{state}: {part.path}: {part.reason}" for part, state in states if part.reason is not None]


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as plain data. Times are in UTC; an undefined accuracy is null."""
    changed = None if entry.changed is None else entry.changed.isoformat(timespec="seconds")
    if isinstance(entry, StudyEntry):
        runs = [as_json(run) for run in entry.runs]
        return {"kind": "study", "path": str(entry.path), "reason": entry.reason, "changed": changed, "runs": runs}
    accuracy = None if entry.accuracy is None or math.isnan(entry.accuracy) else entry.accuracy
    return {"kind": "run", **vars(entry), "path": str(entry.path), "accuracy": accuracy, "changed": changed}
