"""What `estep runs` says about the runs and studies below a folder."""

import json
import os
from pathlib import Path

import pytest

from commands import estep, refused
from estep.errors import StoreError
from estep.report.overview import RunEntry, StudyEntry, find_entries, reasons
from studies import make_run, make_study, right


def the_run(folder: Path) -> RunEntry:
    (entry,) = find_entries(folder)
    assert isinstance(entry, RunEntry)
    return entry


def the_study(folder: Path) -> StudyEntry:
    (entry,) = find_entries(folder)
    assert isinstance(entry, StudyEntry)
    return entry


def uncommit(folder: Path, *iterations: int) -> None:
    for k in iterations:
        (folder / f"iteration-{k:02d}/iteration.json").unlink()


def test_a_run_is_as_far_as_its_last_committed_iteration(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [right(2), right(5), right(7)], seed=3, proposal={"type": "rejection", "budget": 4})
    entry = the_run(tmp_path / "a")
    assert (entry.words, entry.state, entry.iteration, entry.iterations) == ("finished", "finished", 2, 2)
    assert (entry.task, entry.model, entry.proposal, entry.seed) == ("judge", "model", "rejection-4", 3)
    assert entry.accuracy == 0.7
    for uncommitted, words, accuracy in ((2, "iteration 1 of 2", 0.5), (1, "base only", 0.2), (0, "started", None)):
        uncommit(tmp_path / "a", uncommitted)
        entry = the_run(tmp_path)
        assert (entry.words, entry.state, entry.accuracy) == (words, "unfinished", accuracy)


def test_the_runs_of_a_study_are_in_its_order_with_what_it_says_of_them(tmp_path: Path) -> None:
    answers = [right(1), right(2)]
    arms = ("star", "pps", "direct", "rejection")
    folder = make_study(tmp_path / "study", {("judge", arm, 1): answers for arm in arms})
    content = json.loads((folder / "study.json").read_text())
    failed, unfinished, missing = content["cells"][1:]
    failed.update(status="failed", error="out of memory")
    uncommit(folder / "runs" / failed["name"], 1)
    unfinished.update(status="waiting")
    uncommit(folder / "runs" / unfinished["name"], 1)
    (folder / "runs" / missing["name"]).rename(folder / "runs/renamed")
    content["cells"].append({"name": "later", "arm": "later", "axes": {}, "status": "waiting", "error": None})
    (folder / "study.json").write_text(json.dumps(content))
    entry = the_study(tmp_path)
    assert [(run.path.name, run.words) for run in entry.runs] == [
        ("judge-star-s1", "finished"),
        ("judge-pps-s1", "failed"),
        ("judge-direct-s1", "base only"),
        ("judge-rejection-s1", "broken"),
        ("later", "waiting"),
        ("renamed", "finished"),
    ]
    assert entry.runs[1].accuracy == 0.1
    assert entry.words == "2 of 6 finished, 1 failed, 1 broken"
    first, second = reasons([entry])
    assert first == f"failed: {folder}/runs/judge-pps-s1: out of memory"
    assert second.endswith("the study says that it is finished, but its folder is missing")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", None, "holds no run"),
        ("config.yaml", "task: [", "ParserError: "),
        ("config.yaml", "- 1", "TypeError: "),
        ("config.yaml", "task: t\nmodel: m\nmstep: {}", "'mstep' is now 'm_step'"),
        ("iteration-01/metrics.json", None, "FileNotFoundError: "),
        ("iteration-01/metrics.json", '{"iteration": 1, "evalu', "JSONDecodeError: "),
        ("iteration-01/metrics.json", '{"iteration": 1, "evaluation": {"good": 1}}', "TypeError: "),
        ("iteration-01/metrics.json", b"\xff\xfe", "UnicodeDecodeError: "),
    ],
)
def test_a_broken_run_has_a_reason_and_hides_no_other(
    name: str, content: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "sound", [right(2), right(5)])
    make_run(tmp_path / "broken", [right(2), right(5)])
    path = tmp_path / "broken" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    entries = {entry.path.name: entry for entry in find_entries(tmp_path)}
    assert entries["sound"].words == "finished"
    assert entries["broken"].words == "broken"
    assert reason in str(entries["broken"].reason)
    assert "\n" not in str(entries["broken"].reason)


@pytest.mark.parametrize("content", ['{"name": "made", "cel', "[]", '{"cells": [{"name": "x"}]}', '{"cells": 3}'])
def test_a_study_with_a_broken_list_still_has_its_runs(content: str, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", {("judge", "pps", 1): [right(1), right(2)]})
    (folder / "study.json").write_text(content)
    entry = the_study(folder)
    assert entry.words == "broken"
    assert entry.reason
    assert [(run.path.name, run.words) for run in entry.runs] == [("judge-pps-s1", "finished")]


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "sound", [right(2), right(5)])
    (tmp_path / "closed").mkdir()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert {entry.path.name: entry.words for entry in find_entries(tmp_path)} == {
        "sound": "finished",
        "closed": "broken",
    }


def test_the_latest_comes_first_and_nothing_twice(tmp_path: Path) -> None:
    for name, time in (("b", 2000), ("deeper/a", 3000), ("c", 1000)):
        make_run(tmp_path / name, [right(2), right(5)])
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (time, time))
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "a-link").symlink_to(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "notes.txt").write_text("no folder")
    assert [str(entry.path.relative_to(tmp_path)) for entry in find_entries(tmp_path)] == ["deeper/a", "b", "c"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.yaml").write_text("hidden_size: 8")
    with pytest.raises(StoreError, match="holds no runs and no studies"):
        find_entries(tmp_path)


def test_runs_are_listed_as_a_table_and_as_plain_data(tmp_path: Path) -> None:
    assert "there is no folder runs; runs are in runs/ unless run_dir says otherwise" in refused(
        estep("runs", cwd=tmp_path)
    )
    make_study(tmp_path / "runs/study-made", {("judge", "pps", 1): [right(1), right(2)]})
    make_run(tmp_path / "runs" / ("a-long-name-" * 12), [right(2), right(5)])
    make_run(tmp_path / "runs/broken", [right(2), right(5)])
    (tmp_path / "runs/broken/config.yaml").unlink()
    result = estep("runs", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert rows["study-made"].split()[1:5] == ["1", "of", "1", "finished"]
    assert rows["judge-pps-s1"].startswith("  judge-pps-s1")
    assert rows["judge-pps-s1"].split()[1:7] == ["finished", "judge", "model", "pps", "1", "20.0%"]
    assert rows["a-long-name-" * 12].split()[6] == "50.0%"
    assert rows["broken:"] == "broken: runs/broken: runs/broken holds no run"

    result = estep("runs", "runs/study-made", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (study,) = json.loads(result.stdout)
    (run,) = study.pop("runs")
    assert study.pop("changed") == run.pop("changed")
    assert study == {"kind": "study", "path": "runs/study-made", "reason": None}
    assert run == {
        "kind": "run",
        "path": "runs/study-made/runs/judge-pps-s1",
        "state": "finished",
        "iteration": 1,
        "iterations": 1,
        "task": "judge",
        "model": "model",
        "proposal": "pps",
        "seed": 1,
        "accuracy": 0.2,
        "reason": None,
    }
