"""Cells of a study side by side."""

import functools
import json
from pathlib import Path

import pytest

from cluster.nodes import Nodes, wait_until
from cluster.scripted import At, write_files
from conftest import Listen
from estep.errors import ConfigError
from estep.progress import Silent
from estep.study import run as study
from estep.study.grid import Grid, load_grid
from estep.study.run import run_study
from estep.trainer import FEMTrainer
from runs import Killed, contents, pretend
from studies import ARMS, grid_of


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "FEMTrainer", functools.partial(FEMTrainer, m_step=pretend))
    return write_files(tmp_path)


def grid(files: Path, name: str, cluster: str | None) -> Grid:
    """Three arms and two seeds. `vote` trains as `pps` does; `rejection-2` evaluates the base model as `pps` does."""
    engine = {"type": "scripted", "script": str(files / "script.json")}
    made = grid_of(files, str(files / "base"), name=name, engine=engine, filters={}, cluster=cluster)
    assert [cell.arm for cell in made.cells] == list(ARMS) * 2
    return made


def notes(made: Grid) -> list[tuple[str | None, str | None]]:
    """Whose base model's evaluation and whose training each cell reused."""
    found = []
    for cell in made.cells:
        sessions = json.loads((Path(cell.config.folder) / "run.json").read_text())["sessions"]
        found.append((sessions[-1].get("base_of"), sessions[-1].get("training_of")))
    return found


@pytest.mark.slow
def test_cells_side_by_side_give_the_records_of_cells_in_turn(files: Path, nodes: Nodes) -> None:
    serial, parallel = grid(files, "serial", None), grid(files, "parallel", "auto")
    run_study(serial, Silent())
    told = Listen()
    outcomes = run_study(parallel, told, parallel=2)
    assert [outcome.cell.name for outcome in outcomes] == [cell.name for cell in serial.cells]
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert [outcome.status for outcome in outcomes] == ["finished"] * 6
    assert contents(parallel.folder / "runs") == contents(serial.folder / "runs")
    assert json.loads((parallel.folder / "study.json").read_text())["cells"] == [
        *json.loads((serial.folder / "study.json").read_text())["cells"]
    ]
    # No work is done twice, although cells run at the same time. Which cell is first depends on their speed.
    assert [sum(kind is not None for kind in pair) for pair in notes(parallel)].count(0) == 2
    names = [cell.name for cell in parallel.cells]
    cells_lines = [line for line in told.lines if not line.startswith("Ray ")]
    assert all(line.startswith(tuple(f"{name}: " for name in names)) for line in cells_lines)


@pytest.mark.slow
def test_what_ends_one_cell_ends_all_and_the_same_command_goes_on(files: Path, nodes: Nodes) -> None:
    def kill() -> None:
        raise Killed

    made = grid(files, "study", "auto")
    with pytest.raises(Killed):
        run_study(made, At(20, kill), parallel=2)
    assert "waiting" in {cell["status"] for cell in json.loads((made.folder / "study.json").read_text())["cells"]}
    wait_until(lambda: not nodes.processes("EngineActor"))
    serial = grid(files, "serial", None)
    run_study(serial, Silent())
    assert [outcome.status for outcome in run_study(made, Silent(), parallel=2)] == ["finished"] * 6
    assert contents(made.folder / "runs") == contents(serial.folder / "runs")


def test_cells_side_by_side_need_a_cluster(files: Path) -> None:
    with pytest.raises(ConfigError, match="--parallel 2 needs a Ray cluster: set cluster=auto or cluster=ray://"):
        run_study(grid(files, "study", None), Silent(), parallel=2)
    assert load_grid(files / "study.yaml", ["cluster=auto"]).cells[0].config.cluster == "auto"
