"""An M-step over several processes, on a CPU: the weights are those of one process, and nothing is lost if one dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from estep.config import MStepConfig
from estep.errors import ConfigError, EstepError
from estep.m_step.base import MStepInput, MStepResult, read_m_step
from estep.m_step.launch import InProcess, Processes, launch_of
from estep.m_step.sft import SFTMStep
from estep.models.loading import load_model
from estep.records import ModelRef, Pair

pytestmark = pytest.mark.slow

PAIRS = [
    Pair(
        f"q{n}",
        f"q{n}#0.0",
        ({"role": "user", "content": "Text: " + "word " * n},),
        "Evaluation: " + "fine " * (n % 4) + "Score: 3",
        weight=1.0 + n % 3,
    )
    for n in range(7)
]
"""Seven pairs by four: the second gradient step has three, an odd number for two ranks."""


def step(**config: Any) -> SFTMStep:
    settings = {"precision": "float32", "batch_size": 4, "device": "cpu", **config}
    return SFTMStep(MStepConfig.model_validate(settings), 2048, "stop", "float32")


def inputs(path: str, folder: Path, **changes: Any) -> MStepInput:
    return replace(
        MStepInput(ModelRef(path), 1, PAIRS, 1e-3, 5, folder, lambda *_: -1.0, lambda count: None), **changes
    )


def trained(path: str, folder: Path, **config: Any) -> MStepResult:
    result = step(**config)(inputs(path, folder))
    assert result is not None
    return result


def weights(folder: Path) -> list[torch.Tensor]:
    model = load_model(str(folder), "float32", "cpu")
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "config",
    [
        {"epochs": 2},
        {"loss_reduction": "sequence", "micro_batch_size": 1, "gradient_checkpointing": True},
        {"lora": {"r": 2, "alpha": 4}},
    ],
    ids=["tokens", "sequences, one pair at a time", "lora"],
)
def test_two_ranks_train_the_weights_that_one_trains(tiny_model: str, tmp_path: Path, config: dict[str, Any]) -> None:
    one = trained(tiny_model, tmp_path / "one", **config)
    two = trained(tiny_model, tmp_path / "two", devices=2, **config)
    assert two.losses == pytest.approx(one.losses, rel=2e-6)
    assert two.canary.logprob == pytest.approx(one.canary.logprob, rel=1e-6)
    assert two.canary.visible == one.canary.visible == ("lora" not in config)
    assert (two.pairs, two.tokens, two.completion_tokens) == (one.pairs, one.tokens, one.completion_tokens)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        assert torch.allclose(a, b, atol=3e-5)  # of four steps of 1e-3
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert names[0] == names[1]
    for path in (tmp_path / "one").glob("*config.json"):
        first, second = (json.loads((tmp_path / run / path.name).read_text()) for run in ("one", "two"))
        for written in (first, second):
            written["target_modules"] = sorted(written.get("target_modules", []))  # PEFT writes a set
        assert first == second


def test_a_model_whose_layers_have_other_names_is_shared_too(tiny_model: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = tmp_path / "gpt2"
    shutil.copytree(tiny_model, model)  # for its tokenizer
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    sizes = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, **ends)).save_pretrained(model)
    lora = {"r": 2, "alpha": 4, "target_modules": ["c_attn"]}  # whose weights are kept transposed
    one = trained(str(model), tmp_path / "one", lora=lora)
    two = trained(str(model), tmp_path / "two", lora=lora, devices=2)
    assert two.losses == pytest.approx(one.losses, rel=2e-6)
    assert two.canary.logprob == pytest.approx(one.canary.logprob, rel=1e-6)  # with the adapter merged


def test_a_second_training_goes_on_from_the_weights_of_the_first(tiny_model: str, tmp_path: Path) -> None:
    runs = {}
    for devices in (1, 2):
        steps = step(devices=devices, save_dtype="bfloat16")
        first = inputs(tiny_model, tmp_path / f"{devices}-first")
        steps(first)
        start = ModelRef(str(first.folder), 1)
        runs[devices] = steps(inputs(tiny_model, tmp_path / f"{devices}-second", start=start, iteration=2))
    assert runs[1] is not None
    assert runs[2] is not None
    assert runs[2].losses == pytest.approx(runs[1].losses, rel=1e-2)  # the weights between were rounded to bfloat16
    assert runs[2].canary.visible


def when_a_step_is_done(act: Callable[[], None]) -> Callable[[int], None]:
    done = []

    def advance(count: int) -> None:
        if not done:
            act()
        done.append(count)

    return advance


def test_a_rank_that_dies_stops_the_step_and_leaves_nothing(tiny_model: str, tmp_path: Path) -> None:
    kill = when_a_step_is_done(lambda: os.kill(workers_of(os.getpid())[1], signal.SIGKILL))
    with pytest.raises(
        EstepError, match=r"process 1 of the 2 that train ended by signal 9.*run the same command again"
    ):
        step(devices=2, epochs=20)(inputs(tiny_model, tmp_path / "weights", advance=kill))
    assert list(tmp_path.iterdir()) == []
    assert workers_of(os.getpid()) == {}
    again = trained(tiny_model, tmp_path / "weights", devices=2)
    assert read_m_step(tmp_path / "weights") == again


def test_workers_end_with_the_process_that_started_them(tiny_model: str, tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]}
from pathlib import Path
from test_ranks import inputs, step
def advance(count):
    print("a step is done", flush=True)
step(devices=2, epochs=500)(inputs({tiny_model!r}, Path({str(tmp_path / "weights")!r}), advance=advance))
"""
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "a step is done\n"
    workers = workers_of(driver.pid)
    assert sorted(workers) == [0, 1]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers.values()):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)
    assert list((tmp_path / "temporary").glob("estep-*")) == []  # the pairs are in there


def workers_of(parent: int) -> dict[int, int]:
    """The process ids of a process's training workers by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            command = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == parent and b"estep.m_step.worker" in command:
            found[int(command[command.index(b"estep.m_step.worker") + 2])] = int(path.name)
    return found


def test_ranks_that_run_out_of_memory_start_again_with_less(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers fail as CUDA does, as long as a forward pass takes more than one pair.
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('ESTEP_TEST_OUT_OF_MEMORY') and '-m' in __import__('sys').orig_argv:\n"
        "    import torch\n"
        "    import estep.m_step.steps as steps\n"
        "    from estep.m_step.batches import Collator\n"
        "    call = Collator.__call__\n"
        "    def collate(self, rows):\n"
        "        if len(rows) > 1:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory')\n"
        "        return call(self, rows)\n"
        "    Collator.__call__ = collate\n"
    )
    monkeypatch.setenv("ESTEP_TEST_OUT_OF_MEMORY", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    told: list[str] = []
    done: list[int] = []
    result = step(devices=2)(inputs(tiny_model, tmp_path / "weights", log=told.append, advance=done.append))
    assert result is not None
    assert sum(done) == len(PAIRS)
    start, *restarts = told
    assert start == "  starting 2 processes on this machine, which share its cores and are slower than one"
    assert restarts
    assert set(restarts) == {
        "  note: training ran out of memory; it starts again with half as much in each forward pass"
    }
    monkeypatch.undo()
    assert result.losses == pytest.approx(trained(tiny_model, tmp_path / "plain").losses, rel=1e-5)


def test_a_file_in_the_present_folder_takes_the_place_of_no_package(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "queue.py").write_text("raise RuntimeError('not the library')")
    monkeypatch.chdir(here)
    assert trained(tiny_model, tmp_path / "weights", devices=2).pairs == len(PAIRS)


def test_devices_that_cannot_share_a_training_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("estep.m_step.launch.pick_device", lambda name: torch.device("mps"))
    with pytest.raises(ConfigError, match=r"m_step.devices=2 needs CUDA or m_step.device=cpu, and .* is mps"):
        launch_of(MStepConfig(devices=2))
    assert isinstance(launch_of(MStepConfig()), InProcess)


def test_one_small_device_needs_no_other_process() -> None:
    assert isinstance(launch_of(MStepConfig(device="cpu")), InProcess)
    two = launch_of(MStepConfig(device="cpu", devices=2))
    assert isinstance(two, Processes)
    assert two.count == 2
