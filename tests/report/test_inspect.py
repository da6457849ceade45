"""Logs of inspect_ai, read back by inspect_ai."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from estep.cli import app
from estep.errors import EstepError
from estep.report.inspect_logs import write_inspect_logs
from studies import make_run

ANSWERS = ["0000000000", "01234-----", "012340123-"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", ANSWERS)
    return tmp_path / "run"


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(EstepError, match=r"pip install 'estep\[inspect\]'"):
        write_inspect_logs(run, run / "logs")


@pytest.fixture
def inspect_ai() -> Any:
    return pytest.importorskip(
        "inspect_ai", reason="it needs an older fsspec than the other tests: `make integrations` runs it"
    )


@pytest.mark.filterwarnings("ignore")  # of the libraries that inspect_ai imports
def test_logs_read_back_as_they_were_written(run: Path, tmp_path: Path, inspect_ai: Any) -> None:
    from inspect_ai.log import list_eval_logs, read_eval_log

    written = write_inspect_logs(run, tmp_path / "logs")
    assert len(written) == len(list_eval_logs(str(tmp_path / "logs"))) == 3
    logs = [read_eval_log(str(path)) for path in written]
    assert [log.eval.model for log in logs] == [
        "estep/model",
        "estep/model/pps/iteration-1",
        "estep/model/pps/iteration-2",
    ]
    assert {log.eval.task for log in logs} == {"judge"}
    # Two of ten golds are 0; five answers are right; nine are.
    metrics = [log.results.scores[0].metrics for log in logs]
    assert [found["accuracy"].value for found in metrics] == [0.2, 0.5, 0.9]
    # The standard error of ten scores, nine of them 1: sqrt(0.09 * 10 / 9 / 10).
    assert metrics[2]["stderr"].value == pytest.approx(0.1)
    sample = logs[2].samples[0]
    assert [message.role for message in sample.input] == ["system", "user"]
    assert "text number 0" in sample.input[-1].text
    assert (sample.target, sample.scores["estep"].answer, sample.scores["estep"].value) == ("0", "0", "C")
    assert sample.scores["estep"].explanation == "one two three four"
    assert sample.output.completion == sample.messages[-1].text
    unread = logs[2].samples[-1].scores["estep"]
    assert (unread.value, unread.answer, unread.metadata["status"]) == ("I", None, "unparseable")
    assert write_inspect_logs(run, tmp_path / "logs") == written
    assert len(write_inspect_logs(run, tmp_path / "last", last=True)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inspects_own_command_lists_and_dumps_them(run: Path, tmp_path: Path, inspect_ai: Any) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["inspect-logs", str(run), "-o", str(tmp_path / "logs"), "--last"])
    assert result.exit_code == 0
    assert "1 logs in" in result.output

    def inspect(*arguments: str) -> Any:
        command = [sys.executable, "-m", "inspect_ai", *arguments]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    (listed,) = inspect("log", "list", "--json", "--log-dir", str(tmp_path / "logs"))
    assert listed["task"] == "judge"
    dumped = inspect("log", "dump", listed["name"])
    assert dumped["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.9
    assert len(dumped["samples"]) == 10
