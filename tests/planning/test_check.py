"""Runs that cannot fit are refused before anything is sampled."""

from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, write_task
from estep import FEMConfig, FEMTrainer
from estep.config import RunConfig
from estep.config.files import load_config
from estep.data.prepare import open_task
from estep.errors import ConfigError
from estep.models.shape import shape_of
from estep.planning import check
from estep.planning.check import check_fits, refuse_what_cannot_fit
from estep.planning.devices import GPUS, Device, Devices, parse_devices
from estep.study.run import run_study
from studies import grid_of

LAPTOP = Devices(Device("CPU of 2 cores", 8e9, 1e12, 20e9, gpu=False), host=8e9)


def resolved(model: str, *overrides: str) -> RunConfig:
    return open_task(load_config("paper/helpsteer2", [f"model={model}", *overrides]))[1]


def refusal(model: str, devices: str | Devices, *overrides: str) -> str:
    there = parse_devices(devices) if isinstance(devices, str) else devices
    with pytest.raises(ConfigError) as error:
        refuse_what_cannot_fit(resolved(model, *overrides), shape_of(model), there)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_refusal_names_the_type_of_the_weights() -> None:
    assert "(weights in bfloat16, and a sequence" in refusal("qwen2.5-7b", "1x12GB", "m_step.device=cpu")


def fits(model: str, devices: str | Devices, *overrides: str) -> None:
    there = parse_devices(devices) if isinstance(devices, str) else devices
    refuse_what_cannot_fit(resolved(model, *overrides), shape_of(model), there)


@pytest.mark.parametrize(
    ("model", "devices"),
    [
        ("qwen2.5-1.5b", "1x80GB"),
        ("qwen2.5-3b", "2x80GB"),
        ("llama-3.2-3b", "2x80GB"),
        ("qwen2.5-7b", "4x80GB"),
        ("llama-3.1-8b", "4x80GB"),
    ],
)
def test_the_papers_models_fit_the_papers_devices(model: str, devices: str) -> None:
    fits(model, devices)


def test_a_model_that_needs_more_devices_says_how_many_and_that_an_adapter_would_do() -> None:
    # 18 x 7.616e9 = 137.1 GB, and 2 GB in reserve; a pair of 128 tokens adds 0.2 GB.
    message = refusal("qwen2.5-7b", "1x80GB")
    assert message == (
        "training all weights of qwen2.5-7b needs at least 139.3 GB on one device, but a device has 80.0 GB "
        "(1 x 80 GB); what would do: m_step.devices=2 (2 such devices), or m_step.lora.r=16"
    )
    fits("qwen2.5-7b", "4x80GB")
    fits("qwen2.5-7b", "1x80GB", "m_step.lora.r=16")


def test_a_run_that_was_limited_to_one_device_hears_of_the_others() -> None:
    message = refusal("llama-3.1-8b", "4x80GB", "m_step.devices=1")
    assert "m_step.devices=2, or" in message  # they are there


def test_70b_needs_an_adapter_on_two_machines() -> None:
    # 16 x 70.55e9 / 16 = 70.6 GB of shards, 4 x (2.101e9 + 2 x 0.856e9) + 4 x 0.856e9 = 18.7 GB of gathered layers and
    # their gradients, 0.4 GB for the pair, 2 GB in reserve.
    assert "needs at least 91.7 GB on each of 16 devices" in refusal(
        "llama-3.3-70b", "2x8x80GB", "cluster=auto", "engine.tensor_parallel_size=4"
    )
    fits("llama-3.3-70b", "2x8x80GB", "cluster=auto", "engine.tensor_parallel_size=4", "m_step.lora.r=16")


def test_more_devices_than_there_are_are_refused() -> None:
    assert refusal("qwen2.5-1.5b", "2x80GB", "m_step.devices=4") == (
        "m_step.devices=4, but there are 2 x 80 GB; allowed are 1 to 2, or auto"
    )
    assert "needs 4 devices, and there are 2 x 80 GB" in refusal(
        "qwen2.5-1.5b", "2x80GB", "engine.tensor_parallel_size=2", "engine.data_parallel=2"
    )


def test_what_the_user_fixed_is_named_if_it_is_the_cause() -> None:
    # Qwen2.5 1.5B takes 27.8 GB. 256 pairs of 128 positions at 28 x (52 x 1,536 + 12 x 8,960) = 5.2 MB: 172 GB.
    settings = ["m_step.batch_size=256", "m_step.micro_batch_size=256", "m_step.gradient_checkpointing=false"]
    message = refusal("qwen2.5-1.5b", "1x80GB", *settings)
    assert "m_step.micro_batch_size=null" in message
    assert "m_step.gradient_checkpointing=null" in message
    fits("qwen2.5-1.5b", "1x80GB", settings[0], settings[2])


def test_an_engine_that_cannot_hold_the_weights_says_how_to_split_them() -> None:
    # 2 x 70.55e9 = 141.1 GB, and 8,192 tokens of 327,680 bytes: 2.7 GB; the engine may use 0.85 of 80 GB.
    message = refusal("llama-3.3-70b", "8x80GB", "m_step.lora.r=16")
    assert "needs 143.8 GB on each device" in message
    assert "a sequence of 8192 tokens" in message
    assert "the engine may use 68.0 GB of each of 8 x 80 GB" in message
    assert message.endswith("what would do: engine.tensor_parallel_size=4")
    fits("llama-3.3-70b", "8x80GB", "m_step.lora.r=16", "engine.tensor_parallel_size=4")


def test_a_context_that_the_cache_cannot_hold_is_refused() -> None:
    # A token of Qwen2.5 1.5B takes 2 x 28 x 2 x 128 x 2 = 28,672 bytes: 0.1 GiB hold 3,744 tokens.
    message = refusal("qwen2.5-1.5b", "1x80GB", "engine.kv_cache_gib=0.1")
    assert "engine.kv_cache_gib=0.1 holds 3744 tokens, and a sequence may have 8192" in message
    fits("qwen2.5-1.5b", "1x80GB", "engine.kv_cache_gib=0.1", "engine.max_model_len=2048")


def test_the_main_memory_must_hold_the_float32_weights() -> None:
    gpus = Devices(parse_devices("H100").device, 8, host=20e9)
    assert "needs 30.5 GB of main memory" in refusal("qwen2.5-7b", gpus)


def test_the_demo_fits_a_laptop_of_8_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_swap", lambda: 0.0)
    _, config = open_task(load_config("demo"))
    refuse_what_cannot_fit(config, shape_of("smollm2-135m"), LAPTOP)
    larger = Devices(Device("CPU of 2 cores", 16e9, 1e12, 20e9, gpu=False), host=16e9)
    assert refusal("qwen2.5-1.5b", larger).endswith("what would do: m_step.lora.r=16")


def test_an_unknown_architecture_is_left_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    told = Listen()
    check_fits(resolved("qwen2.5-1.5b"), str(tmp_path), told.log)
    assert told.lines[0].startswith("note: the memory that this run needs is unknown")


def test_a_run_on_a_cluster_is_checked_against_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "local_devices", lambda: LAPTOP)
    with pytest.raises(ConfigError, match="needs"):
        check_fits(resolved("qwen2.5-7b"), "qwen2.5-7b", Listen().log)
    there: list[tuple[str, int]] = []
    monkeypatch.setattr(check, "gpus_by_node", lambda: there)

    def told(*gpus: tuple[str, int]) -> list[str]:
        there[:] = gpus
        listen = Listen()
        check_fits(resolved("qwen2.5-7b", "cluster=auto"), "qwen2.5-7b", listen.log)
        return listen.lines

    assert told() == []  # CPUs
    assert told(("A100", 2), ("H100", 2)) == []  # 16 x 7.6 / 4 = 30 GB on each of four
    # 18 x 7.6 = 137 GB, 2 GB of reserve, and a short pair.
    with pytest.raises(
        ConfigError, match=r"needs at least 139\.\d GB on one device, but a device has 80\.0 GB \(1 x H100\)"
    ):
        told(("H100", 1))
    note = "note: the memory of the cluster's GPUs (H100, unnamed) is unknown, so the run is not checked"
    assert told(("H100", 1), ("", 1)) == [note]


def test_a_run_is_refused_before_its_engine_opens(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: Any) -> None:
        raise AssertionError("the engine was opened")

    small = Devices(Device("CPU of 2 cores", 1e6, 1e12, 20e9, gpu=False), host=1e6)
    monkeypatch.setattr("estep.trainer.open_engine", opened)
    monkeypatch.setattr(check, "local_devices", lambda: small)
    monkeypatch.setattr(check, "_swap", lambda: 0.0)
    args = FEMConfig.model_validate({"train_size": 4, "test_size": 3, "run_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="training all weights of"):
        FEMTrainer(tiny_model, str(write_task(tmp_path)), args).train()
    assert not (tmp_path / "run").exists()


def test_a_study_is_refused_before_its_first_cell(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Devices(Device("CPU of 2 cores", 1e6, 1e12, 20e9, gpu=False), host=1e6)
    asked: list[str] = []

    def devices() -> Devices:
        asked.append("devices")
        return small

    monkeypatch.setattr(check, "local_devices", devices)
    monkeypatch.setattr(check, "_swap", lambda: 0.0)
    grid = grid_of(tmp_path, tiny_model)
    with pytest.raises(ConfigError, match=r"^6 of 6 cells cannot run, such as judge-.*: training all weights of"):
        run_study(grid, Listen())
    assert asked == ["devices"]  # six cells, one placement
    assert not (grid.folder / "study.json").exists()


def test_several_machines_need_a_cluster_and_a_copy_of_the_model_stays_on_one() -> None:
    assert refusal("qwen2.5-7b", "2x8x80GB") == (
        "a run on several machines (2 x 8 x 80 GB) needs a Ray cluster: set cluster=auto"
    )
    assert refusal("qwen2.5-7b", "2x8x80GB", "cluster=auto", "engine.tensor_parallel_size=16") == (
        "engine.tensor_parallel_size=16 splits the model across more devices than a machine has (2 x 8 x 80 GB); "
        "allowed are 1 to 8"
    )


def test_unequal_gpus_count_as_the_smallest_and_the_refusal_says_so() -> None:
    small = Devices(GPUS["L4"], 2, unequal=True)
    _, config = open_task(load_config("paper/helpsteer2", ["model=qwen2.5-3b"]))
    with pytest.raises(ConfigError, match=r"all GPUs count as the smallest: CUDA_VISIBLE_DEVICES can leave it out"):
        refuse_what_cannot_fit(config, shape_of("qwen2.5-3b"), small)
