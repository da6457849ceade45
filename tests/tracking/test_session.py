"""What trackers are given, and what happens when one is missing, fails or is continued."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from conftest import Listen
from estep.config import FEMConfig
from estep.config.files import load_config
from estep.engines.scripted import ScriptedEngine
from estep.errors import ConfigError
from estep.metrics import IterationMetrics, evaluate_responses
from estep.records import Draw
from estep.store.run import RunStore
from estep.study.grid import load_grid
from estep.tracking import session
from estep.tracking.figures import figures, flat
from estep.tracking.trackers import TRACKERS, Target
from runs import Killed, Scored, right_when_hinted, scripted_run
from studies import make_run


class Recorded:
    """A tracker that keeps what it is given, and fails where it is told to."""

    def __init__(self, target: Target, fails: str = ""):
        self.target = target
        self.fails = fails
        self.run = target.former or "run-1"
        self.calls: list[tuple[object, ...]] = []
        self._call("open")

    def log(self, iteration: int, figures: Mapping[str, float]) -> None:
        self._call("log", iteration, figures["evaluation/accuracy"])

    def log_losses(self, first: int, losses: Sequence[float]) -> None:
        self._call("losses", first, *losses)

    def close(self, finished: bool) -> None:
        self._call("close", finished)

    def _call(self, name: str, *what: object) -> None:
        if name == self.fails:
            raise OSError("no route to http://me:secret@host/api?token=abcdef")
        self.calls.append((name, *what))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The trackers that runs with `report_to: mlflow` open."""
    trackers: list[Recorded] = []

    def open_tracker(target: Target) -> Recorded:
        trackers.append(Recorded(target))
        return trackers[-1]

    monkeypatch.setitem(TRACKERS, "mlflow", open_tracker)
    monkeypatch.setattr(session, "check_installed", lambda names: None)
    monkeypatch.setattr("estep.trainer.check_installed", lambda names: None)
    return trackers


def test_a_tracker_gets_the_configuration_and_each_iteration(tmp_path: Path, opened: list[Recorded]) -> None:
    result = scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    (tracker,) = opened
    accuracies = [one.evaluation.accuracy for one in result.iterations]
    assert tracker.calls == [
        ("open",),
        ("log", 0, accuracies[0]),
        ("losses", 1, 1.0),
        ("log", 1, accuracies[1]),
        ("losses", 2, 1.0),
        ("log", 2, accuracies[2]),
        ("close", True),
    ]
    assert tracker.target.name == "run"
    assert flat(tracker.target.config)["m_step.learning_rate"] == "[0.001, 0.0001]"
    assert not {"run_dir", "report_to"} & set(tracker.target.config)


def test_a_resumed_run_continues_the_run_of_the_tracker(tmp_path: Path, opened: list[Recorded]) -> None:
    def killed_late(draw: Draw) -> str:
        if draw.id.startswith("r") and len(opened[0].calls) == 4:  # after iteration 1
            raise Killed
        return right_when_hinted(draw)

    with pytest.raises(Killed):
        scripted_run(tmp_path, Scored(killed_late), report_to="mlflow")
    assert opened[0].calls[-1] == ("close", False)
    scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    assert opened[1].target.former == "run-1"
    assert [call[:2] for call in opened[1].calls] == [("open",), ("losses", 2), ("log", 2), ("close", True)]


def test_a_tracker_that_is_added_later_gets_the_earlier_iterations(tmp_path: Path, opened: list[Recorded]) -> None:
    scripted_run(tmp_path, Scored(right_when_hinted))
    assert not (tmp_path / "run/trackers.json").exists()
    scripted_run(tmp_path, Scored(right_when_hinted), report_to=["mlflow"])
    assert [call[:2] for call in opened[0].calls if call[0] == "log"] == [("log", 0), ("log", 1), ("log", 2)]
    assert json.loads((tmp_path / "run/trackers.json").read_text()) == {
        "mlflow": {"run": "run-1", "reported": 2, "closed": True}
    }
    scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    assert len(opened) == 1, "a run that was reported in full is not opened again"


@pytest.mark.parametrize("where", ["open", "log", "losses", "close"])
def test_a_tracker_that_fails_stops_nothing(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", lambda target: Recorded(target, where))
    monkeypatch.setattr("estep.trainer.check_installed", lambda names: None)
    listen = Listen()
    result = scripted_run(tmp_path, Scored(right_when_hinted), reporter=listen, report_to="mlflow")
    assert len(result.iterations) == 3
    warnings = [line for line in listen.lines if "warning: mlflow" in line]
    assert warnings == [
        "  warning: mlflow failed, and the run goes on without it: OSError: no route to http://***@host/api?token=***"
    ]


@pytest.mark.parametrize(("where", "again"), [("log", ["log", "log", "log"]), ("close", [])])
def test_a_tracker_that_failed_is_closed_and_repaired_by_the_same_command(
    where: str, again: list[str], tmp_path: Path, opened: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing: list[Recorded] = []
    with monkeypatch.context() as patched:
        patched.setitem(TRACKERS, "mlflow", lambda target: failing.append(Recorded(target, where)) or failing[-1])
        scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    if where == "log":
        assert failing[0].calls == [("open",), ("close", False)]
    scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    assert [call[0] for call in opened[0].calls if call[0] == "log"] == again
    assert opened[0].calls[-1] == ("close", True)
    scripted_run(tmp_path, Scored(right_when_hinted), report_to="mlflow")
    assert len(opened) == 1


def test_a_warning_shows_no_value_of_a_secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert session._reason(ValueError("bad key 0123456789abcdef")) == "ValueError: bad key ***"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_sampled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    unused = ScriptedEngine(right_when_hinted)
    with pytest.raises(
        ConfigError, match=rf"^report_to={name} needs the package {name}: pip install 'estep\[{name}\]'"
    ):
        scripted_run(tmp_path, unused, report_to=name)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_results_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="needs the package trackio"):
        session.check_installed(["trackio"])


@pytest.mark.parametrize(
    ("given", "read"),
    [(None, ()), ("none", ()), ("wandb", ("wandb",)), (["tensorboard", "mlflow"], ("tensorboard", "mlflow"))],
)
def test_report_to_takes_a_name_or_a_list(given: object, read: tuple[str, ...]) -> None:
    assert FEMConfig.model_validate({"report_to": given}).report_to == read


def test_report_to_names_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"report_to.*'tensorboard', 'wandb', 'trackio' or 'mlflow', got 'wandbb'"):
        load_config("demo", ["report_to=wandbb"])
    with pytest.raises(ConfigError, match="each tracker once, got wandb, wandb"):
        load_config("demo", ["report_to=[wandb,wandb]"])


def test_report_to_is_no_axis_of_a_study() -> None:
    grid = load_grid("studies/cpu", ["report_to=[tensorboard,wandb]"])
    assert {cell.config.report_to for cell in grid.cells} == {("tensorboard", "wandb")}
    assert "tensorboard" not in grid.cells[0].name


def test_figures_have_a_name_for_each_defined_metric(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["0000000000", "01234-----"])
    named = figures(RunStore(tmp_path / "run").iteration(1).metrics())
    # Five of ten answers are right, and the others cannot be read.
    assert named["evaluation/accuracy"] == 0.5
    assert named["evaluation/predicted/unparseable"] == 5
    assert named["evaluation/predicted/3"] == 1
    assert named["e_step/accepted"] == 1
    assert named["tokens/m_step"] == 7
    assert "iteration" not in named
    assert not any(name.startswith(("evaluation/gold", "m_step/")) for name in named)


def test_counts_by_answer_are_left_out_where_answers_are_many_or_alike() -> None:
    def counts(*answers: str) -> dict[str, float]:
        metrics = IterationMetrics(0, evaluate_responses([], [], ordinal=False))
        metrics.evaluation.predicted.update(dict.fromkeys(answers, 1))
        metrics.evaluation.predicted.pop("unparseable")
        prefix = "evaluation/predicted/"
        return {name.removeprefix(prefix): v for name, v in figures(metrics).items() if name.startswith(prefix)}

    assert counts("B+", "very good") == {"B_": 1, "very_good": 1}
    assert counts("B+", "B*") == {}
    assert counts(*map(str, range(21))) == {}
