"""What a power failure leaves: nothing has its final name, and nothing is deleted, before it is on the disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import write_task
from estep.store.files import write_whole
from estep.store.reuse import reuse_base_eval, reuse_training
from estep.store.run import RunStore, locked
from runs import ANY_TEXT, Scored, right_when_hinted, run, scripted_run, settings


class Event(NamedTuple):
    """A sync of `path`, which has `size` bytes, or a rename to it."""

    kind: str
    path: Path
    size: int = 0


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every sync and every rename, in order."""
    seen: list[Event] = []
    fsync, names = os.fsync, {"rename": os.rename, "replace": os.replace}

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(Event("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_size))

    def renamed(operation: Callable[..., None]) -> Callable[..., None]:
        def recorded(source: Any, target: Any, **options: Any) -> None:
            operation(source, target, **options)
            seen.append(Event("name", Path(target)))

        return recorded

    monkeypatch.setattr(os, "fsync", synced)
    for name, operation in names.items():
        monkeypatch.setattr(os, name, renamed(operation))
    return seen


def first(events: list[Event], kind: str, path: Path, after: int = 0) -> int:
    """The number of the first event of a kind on a path after another one."""
    return next(n for n, event in enumerate(events) if n > after and (event.kind, event.path) == (kind, path))


def named(events: list[Event], path: Path) -> int:
    """The number of the event that gave a folder its name, once all it holds was synced and before the name was."""
    place = first(events, "name", path)
    partial = path.with_name(path.name + ".partial")
    before = {event.path: event.size for event in events[:place] if event.kind == "sync"}
    inside = list(path.rglob("*"))
    assert inside
    for file in (path, *inside):
        assert partial / file.relative_to(path) in before
    for file in (file for file in inside if file.is_file()):
        assert before[partial / file.relative_to(path)] == file.stat().st_size
    return first(events, "sync", path.parent, after=place)


def test_weights_and_records_are_on_the_disk_before_the_commit_and_the_commit_before_anything_is_deleted(
    tiny_model: str, tmp_path: Path, events: list[Event]
) -> None:
    config = settings(tmp_path / "run", keep_weights="all")
    run(tiny_model, write_task(tmp_path, **ANY_TEXT), config)
    for number in (1, 2):
        step = RunStore(tmp_path / "run").iteration(number)
        made = first(events, "sync", step.folder.parent)
        on_disk = named(events, step.weights)
        commit = first(events, "name", step.folder / "iteration.json")
        assert made < on_disk < commit
        for log in (step.samples, step.eval):
            sizes = [event.size for event in events[:commit] if event == Event("sync", log.path, event.size)]
            assert sizes[-1] == log.path.stat().st_size
        first(events, "sync", step.folder, after=commit)
    # The same run frees its first weights once the second iteration is committed.
    events.clear()
    freed = settings(tmp_path / "freed", keep_weights="last")
    run(tiny_model, tmp_path / "judge.yaml", freed)
    step, removed = RunStore(tmp_path / "freed").iteration(2), tmp_path / "freed/iteration-01/weights.removed"
    commit = first(events, "name", step.folder / "iteration.json")
    assert commit < first(events, "sync", step.folder, after=commit) < first(events, "name", removed)


def test_a_commit_syncs_the_rows_that_a_killed_session_wrote(tmp_path: Path, events: list[Event]) -> None:
    metrics = scripted_run(tmp_path, Scored(right_when_hinted), iterations=1).base
    store = RunStore(tmp_path / "killed")
    with store.iteration(0) as first_session:
        logs = (first_session.samples, first_session.eval, first_session.validation)
        for log in logs:
            log.path.write_text('{"draw_id": "r1"}\n')  # written, never synced
    events.clear()
    with store.iteration(0) as second_session:
        second_session.commit(metrics, {})
    commit = first(events, "name", second_session.folder / "iteration.json")
    for log in logs:
        assert Event("sync", log.path, log.path.stat().st_size) in events[:commit]


def test_files_reused_from_another_run_are_on_the_disk_before_they_get_their_names(
    tiny_model: str, tmp_path: Path, events: list[Event]
) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    run(tiny_model, task, settings(tmp_path / "run", iterations=1))
    source, own = RunStore(tmp_path / "run"), RunStore(tmp_path / "own")
    with locked(own.folder):
        own.open(source.config(), (source.folder / "task.yaml").read_text())
        for split in ("train", "test"):
            own.keep_questions(split, source.questions(split))
        events.clear()
        assert reuse_base_eval(own, source)
        assert reuse_training(own, source, 1)
    named(events, own.iteration(0).folder)
    named(events, own.iteration(1).folder)


def test_a_file_that_appears_whole_is_synced_before_its_name_and_the_name_after(
    tmp_path: Path, events: list[Event]
) -> None:
    write_whole(tmp_path / "metrics.json", "four")
    assert events == [
        Event("sync", tmp_path / "metrics.json.partial", 4),
        Event("name", tmp_path / "metrics.json"),
        Event("sync", tmp_path, events[-1].size),
    ]


def test_every_new_folder_on_the_way_to_a_run_is_synced_into_its_parent(tmp_path: Path, events: list[Event]) -> None:
    with locked(tmp_path / "runs/mine"):
        assert {event.path for event in events} == {tmp_path, tmp_path / "runs"}
