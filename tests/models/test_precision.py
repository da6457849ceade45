"""The floating-point type that `auto` stands for, by device."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from estep.config import MStepConfig, TransformersEngineConfig
from estep.engines import log_limits
from estep.engines.transformers import TransformersEngine
from estep.models.precision import cpu_has_bfloat16, resolve_dtype, resolve_precision
from estep.planning.devices import local_devices


@pytest.fixture(params=["amx_bf16", "avx512_bf16", "bf16", "avx2"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {request.param: True, "avx512_fp16": True})
    cpu_has_bfloat16.cache_clear()
    yield str(request.param)
    cpu_has_bfloat16.cache_clear()


def test_auto_is_bfloat16_where_the_device_computes_it(instructions: str) -> None:
    expected = "float32" if instructions == "avx2" else "bfloat16"
    assert resolve_dtype("auto", "cpu") == expected
    assert resolve_precision(MStepConfig(), "cpu").precision == expected
    assert TransformersEngine(TransformersEngineConfig(device="cpu")).metadata["dtype"] == expected
    assert resolve_dtype("auto", "cuda") == "bfloat16"


@pytest.mark.parametrize("asked", ["bfloat16", "float32", "float16"])
def test_a_type_that_was_asked_for_is_kept(instructions: str, asked: str) -> None:
    assert resolve_dtype(asked, "cpu") == resolve_dtype(asked, "cuda") == asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="plans for the GPU")
def test_a_plan_knows_that_a_cpu_without_bfloat16_is_slower(instructions: str) -> None:
    per_core = local_devices().device.flops / torch.get_num_threads()
    assert per_core == pytest.approx(0.05e12 if instructions == "avx2" else 0.42e12)


def log_of(asked: str, found: str, device: str) -> list[str]:
    """What is said of an engine's type."""
    said: list[str] = []
    engine = SimpleNamespace(metadata={"dtype": found, "device": device})
    log_limits(engine, TransformersEngineConfig(dtype=asked), said.append)  # type: ignore[arg-type]
    return said


def test_a_run_says_what_auto_is_and_that_bfloat16_is_emulated(instructions: str) -> None:
    native = instructions != "avx2"
    assert log_of("auto", "bfloat16", "cpu") == log_of("float32", "float32", "cpu") == []
    assert "auto is float32" in log_of("auto", "float32", "cpu")[0]
    emulated = log_of("bfloat16", "bfloat16", "cpu")
    assert [("emulated" in line) for line in emulated] == ([] if native else [True])
    assert log_of("bfloat16", "bfloat16", "NVIDIA H200") == []
