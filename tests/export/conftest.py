"""A run of the tiny model, and one with an adapter, trained once for all tests of exports."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from conftest import write_task
from estep.cli import main
from runs import ANY_TEXT, run, settings

LORA = {"learning_rate": [1e-2, 1e-2], "batch_size": 4, "device": "cpu", "lora": {"r": 4, "alpha": 8}}


@pytest.fixture(scope="session")
def trained(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations whose weights have changed much, so that the base model's would be noticed."""
    folder = tmp_path_factory.mktemp("trained")
    m_step = {"learning_rate": [3e-2, 3e-2], "batch_size": 4, "device": "cpu"}
    run(tiny_model, write_task(folder, **ANY_TEXT), settings(folder / "run", m_step=m_step, keep_weights="all"))
    return folder / "run"


@pytest.fixture(scope="session")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration that trained an adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    run(tiny_model, write_task(folder, **ANY_TEXT), settings(folder / "run", m_step=LORA, iterations=1))
    return folder / "run"


@pytest.fixture
def judging(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run whose task reads scores, as a judge's does."""
    folder = tmp_path / "judging"
    shutil.copytree(trained, folder)
    task = yaml.safe_load((folder / "task.yaml").read_text())
    task["answer"] = {"type": "integer", "min": 0, "max": 4, "label": "Score"}
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    return folder


class Command:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> str:
        """The printed lines of a command that succeeds."""
        code, out, err = self._run(arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: str | Path) -> str:
        """The one line of a command's error."""
        code, _, err = self._run(arguments)
        assert code == 2, err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    def _run(self, arguments: tuple[str | Path, ...]) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["estep", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)
