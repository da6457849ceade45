"""A run's figures as each tracker's own reader gives them back. Nothing here uses a network."""

import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen
from estep.records import Draw
from runs import Killed, Scored, right_when_hinted, scripted_run

ELSEWHERE = "its dependencies conflict with those of the other tests: `make integrations` runs it"
TWICE = pytest.mark.parametrize("killed", [False, True], ids=["in one session", "in two sessions"])


def tracked_run(folder: Path, name: str, killed: bool) -> list[float]:
    """Run two iterations with a tracker, in one session or in two; returns the accuracies."""
    listen = Listen()

    def later(draw: Draw) -> str:
        if (folder / "run/iteration-01/iteration.json").exists():
            raise Killed
        return right_when_hinted(draw)

    if killed:
        with pytest.raises(Killed):
            scripted_run(folder, Scored(later), reporter=listen, report_to=name)
        time.sleep(1)  # W&B names a session's folder after the second
    result = scripted_run(folder, Scored(right_when_hinted), reporter=listen, report_to=name)
    assert not [line for line in listen.lines if f"warning: {name}" in line]
    return [one.evaluation.accuracy for one in result.iterations]


def state(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run/trackers.json").read_text())
    assert content[name]["reported"] == 2
    run: dict[str, Any] = content[name]
    return run


@TWICE
@pytest.mark.slow
def test_tensorboard_reads_the_event_files(killed: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accuracies = tracked_run(tmp_path, "tensorboard", killed)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    points = [(one.step, one.value) for one in events.Scalars("evaluation/accuracy")]
    assert points == [(k, pytest.approx(accuracy)) for k, accuracy in enumerate(accuracies)]
    assert [(one.step, one.value) for one in events.Scalars("m_step/step_loss")] == [(1, 1.0), (2, 1.0)]
    assert [one.step for one in events.Scalars("e_step/data_utilization")] == [1, 2]
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| m_step.learning_rate | [0.001, 0.0001] |" in text
    assert "_hparams_/session_start_info" in events.SummaryMetadata.__self__.summary_metadata


@TWICE
@pytest.mark.slow
def test_wandb_reads_the_offline_files(killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    accuracies = tracked_run(tmp_path, "wandb", killed)
    wandb.teardown()
    run = state(tmp_path, "wandb")["run"]
    files = sorted(
        (tmp_path / "run/wandb").glob(f"offline-run-*-{run}/run-{run}.wandb"), key=lambda f: f.stat().st_mtime
    )
    assert len(files) == (2 if killed else 1), "each session has a folder, for the same run"
    rows, config = read_wandb(files)
    assert [(row["iteration"], row["evaluation/accuracy"]) for row in rows if "iteration" in row] == [
        (k, pytest.approx(accuracy)) for k, accuracy in enumerate(accuracies)
    ]
    assert [(row["gradient_step"], row["m_step/step_loss"]) for row in rows if "gradient_step" in row] == [
        (1, 1),
        (2, 1),
    ]
    assert config["m_step"]["learning_rate"] == [0.001, 0.0001]


def read_wandb(files: list[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The history and the configuration in W&B's files."""
    from wandb.proto import wandb_internal_pb2

    rows, config = [], {}
    for file in files:
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            for item in record.run.config.update if record.HasField("run") else ():
                config[item.key] = json.loads(item.value_json)
    return rows, config


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB's format: blocks of 32 KiB, in which each piece of a record has a checksum, a
    length and a type: 1 for a whole record, 2 to 4 for its first, middle and last piece. W&B's header comes first."""
    assert content.startswith(b":W&B")
    position, pieces = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block is empty
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


@pytest.fixture(scope="module")
def trackio_database(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """trackio's storage, in a folder of this module: trackio reads the variable when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        pytest.importorskip("trackio", reason=ELSEWHERE)
        from trackio.sqlite_storage import SQLiteStorage

        yield SQLiteStorage


@TWICE
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries that it imports
def test_trackio_reads_its_database(killed: bool, tmp_path: Path, trackio_database: Any) -> None:
    accuracies = tracked_run(tmp_path, "trackio", killed)
    run = state(tmp_path, "trackio")["run"]
    assert re.fullmatch("run-[0-9a-f]{6}", run)
    assert run in trackio_database.get_runs("estep")
    rows = trackio_database.get_logs("estep", run)
    assert [(row["step"], row["evaluation/accuracy"]) for row in rows if "evaluation/accuracy" in row] == list(
        enumerate(accuracies)
    )
    assert [(row["step"], row["m_step/step_loss"]) for row in rows if "m_step/step_loss" in row] == [(1, 1), (2, 1)]
    assert trackio_database.get_run_config("estep", run)["m_step.learning_rate"] == "[0.001, 0.0001]"


@TWICE
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_its_store(killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason=ELSEWHERE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    accuracies = tracked_run(tmp_path, "mlflow", killed)
    client = mlflow.MlflowClient()
    run = client.get_run(state(tmp_path, "mlflow")["run"])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "estep"
    assert run.data.params["m_step.learning_rate"] == "[0.001, 0.0001]"
    history = client.get_metric_history(run.info.run_id, "evaluation/accuracy")
    assert [(one.step, one.value) for one in history] == list(enumerate(accuracies))
    losses = client.get_metric_history(run.info.run_id, "m_step/step_loss")
    assert [(one.step, one.value) for one in losses] == [(1, 1.0), (2, 1.0)]
