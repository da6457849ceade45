"""The real model on real ratings, through the command line, and a real kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from estep.data.check import check_task
from estep.data.split import load_pool
from estep.sources.archives import fetch
from estep.tasks import load_task
from runs import contents

pytestmark = pytest.mark.slow

SMALL = [
    "train_size=12",
    "test_size=6",
    "iterations=1",
    "engine.type=transformers",
    "engine.batch_size=4",
    "engine.max_new_tokens=40",
]


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "estep.cli", "train", "demo", *SMALL, f"run_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return err


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_packaged_data_is_sound() -> None:
    sizes = {"movies": 10605, "tweets": 4200, "products": 3708, "editorials": 5190}
    for name, size in {
        **{f"sentiment/{domain}": size for domain, size in sizes.items()},
        "mmlu-offline": 14042,
    }.items():
        task = load_task(name)
        found = check_task(task, load_pool(task))
        assert found.problems == []
        assert found.train == size
        assert found.invalid_rows == 0


def test_the_converted_model_is_an_ordinary_bf16_folder() -> None:
    config = json.loads((fetch("smollm2-135m") / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config


def test_killed_while_sampling_a_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    fetch("hutto-sentiment")
    fetch("smollm2-135m")
    finish(start(tmp_path / "whole"))

    process = start(tmp_path / "killed")
    samples = tmp_path / "killed/iteration-01/samples.jsonl"
    deadline = time.monotonic() + 300
    while lines_of(samples) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = lines_of(samples)
    assert 3 <= before < 12, "the kill came in the middle of the E-step"
    err = finish(start(tmp_path / "killed"))
    assert "resuming in" in err
    assert lines_of(samples) == 12  # what was finished is not sampled again
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    metrics = json.loads((tmp_path / "killed/iteration-01/metrics.json").read_text())
    assert metrics["e_step"]["accepted"] > 0
    assert metrics["m_step"]["pairs"] == metrics["e_step"]["accepted"]
    canary = json.loads((tmp_path / "killed/iteration-01/iteration.json").read_text())["canary"]
    assert canary["telling"]
