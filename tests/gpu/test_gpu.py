"""What only a GPU can prove. `make gpu` runs it, and prints a table of its figures at the end.

The model is random and has the shape of Qwen2.5-1.5B (0.5B on cards below 70 GB), with SmolLM2's tokenizer. Without a
GPU, the checks run on a tiny model, which shows that they themselves work.
"""

import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from estep.m_step.packing import pack
from gpu.checks import (
    answers,
    closes_asleep,
    engine_speed,
    in_a_process,
    is_killed,
    iteration,
    iteration_with_transformers,
    pool,
    reloads,
    several_devices,
    starts,
    training_speed,
    two_models,
)
from gpu.exactness import attended, attention_errors, errors, losses_of, moved
from gpu.figures import (
    Ceilings,
    Table,
    measured_ceilings,
    parameters_of,
    report_engine,
    report_training,
    training_operations,
)
from gpu.work import CUDA, SEED, SHAPE_0_5B, SHAPE_1_5B, TINY, Shape, shape_for, write_model


def gpu(test: Any) -> Any:
    """Marks a test that needs a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not CUDA, reason="needs a CUDA device")(test))


gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    figures = Table()
    pytestconfig.pluginmanager.register(figures)
    return figures


@pytest.fixture(scope="session")
def shape() -> Shape:
    return shape_for(torch.cuda.get_device_properties(0).total_memory)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, shape: Shape) -> str:
    return write_model(tmp_path_factory.mktemp("model"), shape)


@pytest.fixture(scope="session")
def ceilings(table: Table) -> Ceilings:
    found = measured_ceilings(8192)
    torch.cuda.empty_cache()
    table.add("card", torch.cuda.get_device_name(0), f"{torch.cuda.device_count()} of them; torch {torch.__version__}")
    table.add("ceilings", f"{found.product / 1e12:,.0f} TFLOP/s", f"copy {found.copy / 1e9:,.0f} GB/s")
    return found


@pytest.fixture(autouse=True)
def _cache_is_given_back() -> Iterator[None]:
    """The checks' processes need the memory that tests in this process leave in torch's cache."""
    yield
    if CUDA:
        torch.cuda.empty_cache()


LAYOUTS: list[tuple[int, list[int]]] = [
    (500, [1, 37, 128, 129, 400]),
    (129, [1, 1, 1]),
    (1, [300]),
    (0, [5, 200, 1]),
    (2000, [20] * 32),
]


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "size"), [((12, 2), 128), ((9, 3), 64), ((4, 4), 80), ((8, 1), 256)])
@pytest.mark.parametrize(("prefix", "lengths"), LAYOUTS)
def test_flash_attention_is_as_exact_as_attention_with_a_mask(
    prefix: int, lengths: list[int], heads: tuple[int, int], size: int, dtype: torch.dtype, table: Table
) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs compute capability 8.0")
    found, masked = attention_errors(prefix, lengths, heads, size, dtype)
    # Both round values, weights and results to the type's precision, in another order.
    step = torch.finfo(dtype).eps
    for one, other in zip(found, masked, strict=True):
        assert one <= 2 * other + 2 * step
    if (prefix, size, dtype) == (500, 128, torch.bfloat16):
        table.add("attention, largest error", f"{max(found):.1e}", f"with a mask {max(masked):.1e}, against float32")


@gpu
def test_float32_attention_with_a_mask_is_that_of_the_cpu() -> None:
    layout = pack([[1, 2, 3, 4], [1, 2, 5, 6, 7]], 2).layout
    source = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(1, heads, 7, 64, generator=source) for heads in (4, 2, 2)]
    weights = torch.randn(1, 7, 4, 64, generator=source)
    expected = attended(inputs, weights, layout, torch.float32)
    on_gpu = attended([part.cuda() for part in inputs], weights.cuda(), moved(layout, "cuda"), torch.float32)
    assert max(errors([part.cpu() for part in on_gpu], expected)) < 1e-4


@gpu
@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_cpu(way: str, checkpointing: bool) -> None:
    found, expected = losses_of(Shape(256, 512, 4, 4, 2, 2000), "cuda", way, checkpointing)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert float(torch.cosine_similarity(found[1], expected[1], dim=0)) > 0.99
    assert float(found[1].norm() / expected[1].norm()) == pytest.approx(1, abs=0.05)


# Engine and M-step, each in a process of its own


@gpu
@needs_vllm
def test_vllm_starts_and_scores_as_transformers_does(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(starts, model, tmp_path)
    assert abs(found["difference"]) <= found["tolerance"]
    table.add("engine, start", f"{found['seconds']:.0f} s")


@gpu
@needs_vllm
def test_vllm_sleeps_wakes_and_uses_the_trained_weights(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(reloads, model, tmp_path)
    assert found["telling"]
    assert found["stale"] == "refused"
    assert found["kept_asleep"] < 4e9
    assert found["left"] < 4e9
    table.add(
        "engine, new weights", f"{found['seconds']:.1f} s", f"asleep it keeps {found['kept_asleep'] / 1e9:.1f} GB"
    )
    table.add("canary", f"{found['loaded']:.2f} nats", f"M-step {found['trained']:.2f}, before {found['before']:.2f}")


@gpu
@needs_vllm
def test_a_failed_m_step_leaves_no_memory_taken(model: str, tmp_path: Path) -> None:
    found = in_a_process(closes_asleep, model, tmp_path)
    assert found["failure"] == "this M-step fails"
    assert found["left"] < 4e9


@gpu
@needs_vllm
def test_two_models_run_one_after_the_other_in_a_process(model: str, tmp_path: Path) -> None:
    found = in_a_process(two_models, model, tmp_path)
    assert max(found["left"]) < 4e9


@gpu
@pytest.mark.parametrize(
    "check", [pytest.param(iteration, marks=needs_vllm), iteration_with_transformers], ids=["vllm", "transformers"]
)
def test_a_whole_iteration(
    check: Callable[[str, Path], dict[str, Any]], model: str, tmp_path: Path, table: Table, ceilings: Ceilings
) -> None:
    found = in_a_process(check, model, tmp_path)
    assert found["pairs"] > 0
    assert math.isfinite(found["loss"])
    assert found["weights"]
    seconds = ", ".join(f"{phase} {value:.0f} s" for phase, value in found["seconds"].items())
    table.add(check.__name__.replace("_", " "), f"{found['pairs']} pairs", seconds)


@gpu
@needs_vllm
def test_the_speed_of_the_engine(model: str, tmp_path: Path, shape: Shape, table: Table, ceilings: Ceilings) -> None:
    report_engine(table, shape, ceilings, in_a_process(engine_speed, model, tmp_path))


@gpu
def test_the_speed_and_the_memory_of_the_m_step(
    model: str, tmp_path: Path, shape: Shape, table: Table, ceilings: Ceilings
) -> None:
    found = in_a_process(training_speed, model, tmp_path)
    report_training(table, shape, ceilings, found)
    # The plan may use 75 % of the card, so it may err by a third; a plan far too high would split batches needlessly.
    assert 0.6 * found["planned"] < found["peak"] < 1.2 * found["planned"]


@gpu
@gpus
def test_all_gpus_train_as_one_does(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(several_devices, model, tmp_path)
    one, both = found["losses"]
    assert both == pytest.approx(one, rel=0.02)
    assert abs(found["canaries"][0] - found["canaries"][1]) <= found["tolerance"]
    table.add("M-step, all GPUs", f"last loss {both[-1]:.4f}", f"one GPU {one[-1]:.4f}")


@gpu
@gpus
@needs_vllm
def test_every_gpu_samples(model: str, tmp_path: Path, table: Table) -> None:
    found = in_a_process(pool, model, tmp_path)
    assert found["copies"] == torch.cuda.device_count()
    assert found["telling"]
    table.add("engine, new tokens, all GPUs", f"{found['tokens_per_second']:,.0f} tokens/s")


# On a CPU: the checks and their figures themselves


CHECKS = [starts, reloads, closes_asleep, two_models, iteration, engine_speed, training_speed]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.mark.slow
@pytest.mark.skipif(CUDA, reason="for machines without a GPU")
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_a_check_works_on_a_cpu(check: Callable[[str, Path], dict[str, Any]], tiny: str, tmp_path: Path) -> None:
    found = check(tiny, tmp_path)
    match check.__name__:
        case "starts":
            assert abs(found["difference"]) <= found["tolerance"]
        case "reloads":
            assert found["telling"]
            assert found["stale"] == "refused"
        case "closes_asleep":
            assert found["failure"] == "this M-step fails"
        case "iteration":
            assert found["pairs"] == 8
            assert found["weights"]
        case "training_speed":
            assert found["seconds"] > 0
        case "engine_speed":
            assert found["written"] > 0
            table, ceilings = Table(), Ceilings(1e12, 1e11)
            report_engine(table, TINY, ceilings, found)
            assert [what for what, *_ in table.rows] == ["engine, prompts", "engine, new tokens"]


@pytest.mark.slow
def test_a_check_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert in_a_process(answers, "model", tmp_path) == {"model": "model", "folder": str(tmp_path), "alone": True}
    with pytest.raises(pytest.fail.Exception, match=r"is_killed: ended by SIGKILL"):
        in_a_process(is_killed, "model", tmp_path)


def test_a_paper_sized_model_has_its_parameters() -> None:
    # Qwen2.5-1.5B: 1.54 billion parameters, 1.31 without the embedding, as its model card says.
    layers, head = parameters_of(SHAPE_1_5B)
    assert round(layers / 1e9, 2) == 1.31
    assert round((layers + head) / 1e9, 2) == 1.54
    assert shape_for(80_000_000_000) == SHAPE_1_5B
    assert shape_for(24_000_000_000) == SHAPE_0_5B


def test_the_operations_of_a_gradient_step() -> None:
    # 2 sequences of 10 tokens, 3 of them targets in total; 2 layers of width 128.
    layers, head = parameters_of(TINY)
    expected = 6 * layers * 20 + 6 * head * 3 + 2 * (3 * 4 * 10 * 5 * 128 * 2)
    assert training_operations(TINY, {"positions": 20, "targets": 3, "pairs": 2}) == expected


def test_the_figures_are_one_table() -> None:
    table = Table()
    measured = {"positions": 2000.0, "targets": 300.0, "pairs": 2, "seconds": 0.5, "peak": 4e9, "planned": 5e9}
    report_training(table, TINY, Ceilings(1e12, 1e11), measured)
    table.add("x", "y")
    assert table.lines()[1:] == [
        "M-step, peak memory  4.0 GB          planned 5.0 GB",
        "x                    y",
    ]
    assert table.lines()[0].startswith("M-step               4,000 tokens/s  ")


def test_the_ceilings_are_measured() -> None:
    found = measured_ceilings(64, repeats=2)
    assert found.product > 0
    assert found.copy > 0


def test_attention_is_compared_with_float32() -> None:
    found, masked = attention_errors(5, [1, 3], (4, 2), 8, torch.bfloat16)
    if not CUDA:
        assert found == masked
    assert 0 < max(found) < 0.05
    exact, _ = attention_errors(5, [1, 3], (4, 2), 8, torch.float32)
    assert max(exact) == 0


@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
def test_the_loss_is_compared_with_float32(way: str) -> None:
    found, expected = losses_of(Shape(64, 128, 2, 4, 2, 1000), "cpu", way, True)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert float(torch.cosine_similarity(found[1], expected[1], dim=0)) > 0.99
