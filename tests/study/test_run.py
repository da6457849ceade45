"""A study as a whole: what its cells share, what a failure costs, and that a killed one ends as one never killed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, write_task
from estep.cluster import open_engine
from estep.engines import Engine
from estep.errors import ConfigError, DataError, StoreError
from estep.progress import Advance, Reporter, Silent
from estep.report.write import write_report
from estep.store import reuse
from estep.store.run import RunStore, locked
from estep.study import run as study
from estep.study.grid import Grid
from estep.study.run import run_study
from estep.tracking.trackers import TRACKERS, Target
from runs import ANY_TEXT, KillAfter, Killed, contents
from studies import ARMS, grid_of


class Opened(list[Engine]):
    """Counts the engines that a study opens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()

        def opened(*arguments: Any) -> Engine:
            self.append(open_engine(*arguments))
            return self[-1]

        monkeypatch.setattr(study, "open_engine", opened)


def statuses(grid: Grid) -> dict[str, str]:
    content = json.loads((grid.folder / "study.json").read_text())
    return {cell["name"]: cell["status"] for cell in content["cells"]}


def weights(grid: Grid) -> list[str]:
    return sorted(str(path.parent.relative_to(grid.folder / "runs")) for path in grid.folder.rglob("weights"))


def notes(grid: Grid, cell: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(grid.cells[cell].config.folder) / "run.json").read_text())["sessions"][-1]
    return found


@pytest.mark.slow
def test_cells_share_one_engine_base_evaluations_and_training(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    grid = grid_of(tmp_path, tiny_model)
    listen = Listen()
    outcomes = run_study(grid, listen)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 6
    assert len(opened) == 1
    pps = grid.cells[0].name
    # The vote asks the base model in its own way, and trains as pps; rejection has pps's base model.
    assert [notes(grid, n).get("base_of") for n in range(3)] == [None, None, pps]
    assert [notes(grid, n).get("training_of") for n in range(3)] == [None, pps, None]
    stores = [RunStore(Path(cell.config.folder)) for cell in grid.cells[:3]]
    for k in (1, 2):
        assert stores[1].iteration(k).pairs() == stores[0].iteration(k).pairs() != []
    assert stores[0].iteration(0).eval.read() == stores[2].iteration(0).eval.read()
    assert stores[1].iteration(0).metrics().evaluation.predictions == 4
    assert len(stores[1].iteration(2).eval.read()) == 12
    # The seeds share nothing.
    assert "base_of" not in notes(grid, 3)
    assert "training_of" not in notes(grid, 3)


@pytest.mark.slow
def test_each_cell_is_one_run_of_a_tracker_in_a_group_of_the_studys_name(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Target] = []
    monkeypatch.setitem(TRACKERS, "mlflow", targets.append)
    for module in ("estep.study.run", "estep.trainer"):
        monkeypatch.setattr(f"{module}.check_installed", lambda names: None)
    grid = grid_of(tmp_path, tiny_model, "seed=1", "iterations=1", "report_to=mlflow")
    assert [outcome.status for outcome in run_study(grid, Silent())] == ["finished"] * 3
    each = [(grid.name, cell.name) for cell in grid.cells]
    assert [(target.study, target.name) for target in targets] == each
    # Nothing was reported, because this tracker is none. Finished cells are reported, too.
    assert [outcome.status for outcome in run_study(grid, Silent())] == ["finished"] * 3
    assert [(target.study, target.name) for target in targets] == 2 * each


def test_a_missing_tracker_is_found_before_the_first_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    grid = grid_of(tmp_path, str(tmp_path), "report_to=[tensorboard]")
    with pytest.raises(ConfigError, match="report_to=tensorboard needs the package tensorboard"):
        run_study(grid, Silent())
    assert not grid.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("few_shot", ["proposal", "first"])
def test_what_is_shared_is_what_a_run_alone_would_have_made(tmp_path: Path, tiny_model: str, few_shot: str) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1", few_shot=few_shot)
    run_study(grid, Silent())
    for arm in ("vote", "rejection-2"):
        arms = {arm: ARMS[arm]}
        alone = grid_of(tmp_path, tiny_model, "seed=1", name=f"alone-{arm}", arms=arms, few_shot=few_shot)
        run_study(alone, Silent())
        shared = next(cell for cell in grid.cells if cell.arm == arm)
        ours, theirs = contents(shared.config.folder), contents(alone.cells[0].config.folder)
        assert {name: found for name, found in ours.items() if "weights" not in name and name != "config.yaml"} == {
            name: found for name, found in theirs.items() if "weights" not in name and name != "config.yaml"
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "kept"), [("none", []), ("last", ["iteration-02"]), ("all", ["iteration-01", "iteration-02"])]
)
def test_weights_stay_as_the_study_says(tmp_path: Path, tiny_model: str, keep: str, kept: list[str]) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1", keep_weights=keep)
    run_study(grid, Silent())
    assert weights(grid) == sorted(f"{cell.name}/{step}" for cell in grid.cells for step in kept)


@pytest.mark.slow
def test_a_finished_study_does_nothing_and_a_grown_one_only_what_is_new(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1", keep_weights="none")
    run_study(grid, Silent())
    before = contents(grid.folder)
    opened = Opened(monkeypatch)
    listen = Listen()
    run_study(grid, listen)
    assert opened == []
    assert listen.lines == [f"[{n}/3] {cell.name}: finished before" for n, cell in enumerate(grid.cells, 1)]
    assert contents(grid.folder) == before
    arms = {**ARMS, "star": {"proposal": {"type": "star"}}}
    grown = grid_of(tmp_path, tiny_model, "seed=1", keep_weights="none", arms=arms)
    run_study(grown, Silent())
    assert set(statuses(grown).values()) == {"finished"}
    assert {name: found for name, found in contents(grid.folder).items() if name in before and "study" not in name} == {
        name: found for name, found in before.items() if "study" not in name
    }


class FailOn(Silent):
    """Lets a piece of work fail in the cells of one arm."""

    def __init__(self, arm: str, error: Exception):
        self.arm, self.error = arm, error
        self.present = ""
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith("["):
            self.present = line

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        if f"-{self.arm}-" in self.present and "M-step" in title:
            raise self.error
        with super().phase(title, total, unit, done) as advance:
            yield advance


@pytest.mark.slow
@pytest.mark.parametrize("error", [DataError("a bad row"), RuntimeError("a bug")])
def test_a_cell_that_fails_is_reported_and_the_others_run(tmp_path: Path, tiny_model: str, error: Exception) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1")
    outcomes = run_study(grid, FailOn("pps", error))
    assert [outcome.status for outcome in outcomes] == ["failed", "finished", "finished"]
    assert str(error) in str(outcomes[0].error)
    trace = (grid.folder / "runs" / f"{grid.cells[0].name}.failed.txt").read_text()
    assert "Traceback" in trace
    assert str(error) in trace
    assert list(statuses(grid).values()) == ["failed", "finished", "finished"]
    # It is tried again, and the rest is not.
    assert [outcome.status for outcome in run_study(grid, Silent())] == ["finished"] * 3
    assert not (grid.folder / "runs" / f"{grid.cells[0].name}.failed.txt").exists()


@pytest.mark.slow
def test_a_study_whose_folders_hold_other_runs_is_refused_as_it_is(tmp_path: Path, tiny_model: str) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1")
    run_study(grid, Silent())
    before = contents(grid.folder)
    changed = {**ARMS, "pps": {"proposal": {"type": "pps", "n": 2}}}
    with pytest.raises(StoreError, match=r"another configuration \(proposal.n: 1 -> 2\).*remove this one$"):
        run_study(grid_of(tmp_path, tiny_model, "seed=1", arms=changed), Silent())
    with pytest.raises(StoreError, match=r"iterations: 2 -> 3.* \(and 2 more cells' folders"):
        run_study(grid_of(tmp_path, tiny_model, "seed=1", iterations=3), Silent())
    write_task(tmp_path, system="You judge other texts.", **ANY_TEXT)
    with pytest.raises(StoreError, match="the task file changed since"):
        run_study(grid, Silent())
    assert contents(grid.folder) == before


@pytest.mark.slow
def test_arms_are_not_compared_on_other_data(tmp_path: Path, tiny_model: str) -> None:
    arms = {"pps": ARMS["pps"]}
    grid = grid_of(tmp_path, tiny_model, "seed=1", arms=arms)
    run_study(grid, Silent())
    rows = tmp_path / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before + json.dumps({"id": "new", "text": "a new text", "score": 3}) + "\n")
    # Neither another way to evaluate nor another seed.
    arms["vote"] = ARMS["vote"]
    grown = grid_of(tmp_path, tiny_model, arms=arms)
    outcomes = {outcome.cell.name: outcome for outcome in run_study(grown, Silent())}
    assert [outcome.status for outcome in outcomes.values()] == ["finished", *["failed"] * 3]
    for outcome in list(outcomes.values())[1:]:
        assert f"the data changed since {grid.cells[0].name} was run on it" in str(outcome.error)
        assert not (Path(outcome.cell.config.folder) / "test.jsonl").exists()
    rows.write_text(before)
    assert [outcome.status for outcome in run_study(grown, Silent())] == ["finished"] * 4


@pytest.mark.slow
def test_a_second_process_on_a_study_is_refused(tmp_path: Path, tiny_model: str) -> None:
    grid = grid_of(tmp_path, tiny_model)
    with locked(grid.folder), pytest.raises(StoreError, match="another process is running"):
        run_study(grid, Silent())


def report_of(grid: Grid) -> dict[str, bytes]:
    """Every file of a study's report, as if no time had passed; of the page all but its provenance."""
    for path in grid.folder.rglob("metrics.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": {}}))
    folder = write_report(grid.folder).folder
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before, after = found["index.html"].split(b'<section id="provenance">')
    found["index.html"] = before + after.split(b"</section>")[1]
    return found


@pytest.mark.slow
def test_a_study_killed_three_times_ends_in_the_same_report(tmp_path: Path, tiny_model: str) -> None:
    whole = grid_of(tmp_path, tiny_model, keep_weights="none")
    run_study(whole, Silent())
    (tmp_path / "again").mkdir()
    killed = grid_of(tmp_path, tiny_model, name="again/study", keep_weights="none")
    for pieces in (3, 17, 31):
        reporter: Reporter = KillAfter(pieces)
        with pytest.raises(Killed):
            run_study(killed, reporter)
    run_study(killed, Silent())
    assert report_of(killed) == report_of(whole)


@pytest.mark.slow
def test_what_is_finished_stays_in_the_report_while_a_study_grows(tmp_path: Path, tiny_model: str) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1")
    run_study(grid, Silent())
    arms = {"star": {"proposal": {"type": "star"}}, **ARMS}
    grown = grid_of(tmp_path, tiny_model, "seed=1", arms=arms)
    with pytest.raises(Killed):
        run_study(grown, KillAfter(2))
    assert sorted(statuses(grown).values()) == ["finished"] * 3 + ["waiting"]
    # A call for one arm alone forgets none of the others, unless its folder was removed.
    shutil.rmtree(grid.cells[2].config.folder)
    run_study(grid_of(tmp_path, tiny_model, "seed=1", arms={"pps": ARMS["pps"]}), Silent())
    left = statuses(grid)
    assert len(left) == 3
    assert grid.cells[2].name not in left


@pytest.mark.slow
def test_a_killed_reuse_resumes(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(tmp_path, tiny_model, "seed=1")
    copied: list[Path] = []
    copy = reuse._copy

    def killed(source: Path, target: Path, *names: Any) -> None:
        copied.append(target)
        if len(copied) == 2:  # the second iteration of the vote
            raise Killed(target)
        copy(source, target, *names)

    monkeypatch.setattr(reuse, "_copy", killed)
    with pytest.raises(Killed):
        run_study(grid, Silent())
    monkeypatch.undo()
    assert run_study(grid, Silent())[1].status == "finished"
    pps, vote = (RunStore(cell.config.folder) for cell in grid.cells[:2])
    assert vote.latest_metadata("training_of") == grid.cells[0].name
    assert vote.iteration(2).pairs() == pps.iteration(2).pairs()


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [9, 13, 24, 30, 37])
def test_a_killed_run_that_validates_and_keeps_the_last_weights_resumes(
    tmp_path: Path, tiny_model: str, pieces: int
) -> None:
    changes = {"arms": {"pps": ARMS["pps"]}, "iterations": 3, "select": "validation", "validation_size": 2}
    whole = grid_of(tmp_path, tiny_model, "seed=1", **changes)
    run_study(whole, Silent())
    killed = grid_of(tmp_path, tiny_model, "seed=1", name="killed", **changes)
    with pytest.raises(Killed):
        run_study(killed, KillAfter(pieces))
    assert [outcome.status for outcome in run_study(killed, Silent())] == ["finished"]
    ours, theirs = (contents(grid.cells[0].config.folder) for grid in (whole, killed))
    assert ours == theirs
