"""The memory of training and sampling, by hand and against measurements."""

import pytest

from estep.config import MStepConfig, RunConfig
from estep.config.files import load_config
from estep.data.prepare import open_task
from estep.m_step.memory_plan import memory_needs
from estep.models.shape import shape_of
from estep.planning.devices import Device, Devices, parse_devices
from estep.planning.memory import CPU_RESERVE, for_sampling, for_training, sampling_memory, training_memory


def resolved(model: str, *overrides: str) -> RunConfig:
    return open_task(load_config("paper/helpsteer2", [f"model={model}", *overrides]))[1]


@pytest.mark.parametrize(
    ("model", "devices", "gigabytes"),
    [
        ("qwen2.5-1.5b", 1, 24.7),  # 16 x 1.544e9
        ("qwen2.5-3b", 2, 24.7),  # 16 x 3.086e9 / 2
        ("llama-3.2-3b", 2, 25.7),  # 16 x 3.213e9 / 2
        ("qwen2.5-7b", 4, 30.5),  # 16 x 7.616e9 / 4
        ("llama-3.1-8b", 4, 32.1),  # 16 x 8.030e9 / 4
    ],
)
def test_weights_gradients_and_moments_on_the_papers_devices(model: str, devices: int, gigabytes: float) -> None:
    there = parse_devices(f"{devices}x80GB")
    memory = training_memory(shape_of(model), resolved(model), there, (1256, 256), devices)
    parts = memory.parts(memory.pairs)
    assert round((parts["weights"] + parts["gradients"] + parts["optimizer"]) / 1e9, 1) == gigabytes
    assert memory.peak == sum(parts.values())
    assert memory.peak - memory.reserve <= 0.75 * 80e9
    assert memory.peak <= 80e9


def test_the_parts_of_a_pass_of_the_7b_model_on_four_devices() -> None:
    # A position keeps 28 x (52 x 3,584 + 12 x 18,944) = 11.58 MB, a predicted token 14 x 152,064 = 2.13 MB.
    memory = training_memory(shape_of("qwen2.5-7b"), resolved("qwen2.5-7b"), parse_devices("4x80GB"), (1256, 256), 4)
    parts = memory.parts(memory.pairs)
    assert (memory.pairs, memory.plan.checkpointing) == (1, False)
    assert parts["activations"] == 1256 * 28 * (52 * 3584 + 12 * 18944)
    assert parts["logits"] == 256 * 14 * 152064
    assert parts["reserve"] == 2e9


@pytest.mark.parametrize(
    ("positions", "targets", "megabytes"),
    [
        # docs/log.md, 2026-11-21: batches of four of smollm2-135m; a shared prefix counts once.
        (317 + 4 * 57, 4 * 40, 3921),  # shared: 377 tokens, most of them shared
        (62 + 4 * 63, 4 * 25, 3476),  # demo: 125 tokens, half of them shared
        (4 * 317, 4 * 60, 4737),  # plain: 317 tokens
    ],
    ids=["shared", "demo", "plain"],
)
def test_the_memory_of_training_is_within_a_tenth_of_what_was_measured(
    positions: int, targets: int, megabytes: float
) -> None:
    needs = memory_needs(shape_of("smollm2-135m"), MStepConfig(), 1)
    predicted = needs.peak(positions, targets, False) + CPU_RESERVE
    assert predicted == pytest.approx(megabytes * 1e6, rel=0.1)


def test_the_engines_cache_is_what_the_weights_leave() -> None:
    # 0.85 x 80e9 - 2 x 7.616e9 - 2e9 = 50.77e9 bytes. A token takes 2 x 28 x 4 x 128 x 2 = 57,344 bytes, a sequence of
    # 1,256 tokens 72 MB: 704 sequences, of which the engine runs 256.
    memory = sampling_memory(shape_of("qwen2.5-7b"), resolved("qwen2.5-7b"), parse_devices("4x80GB"), (1000, 256))
    assert memory is not None
    assert round(memory.cache / 1e9, 2) == 50.77
    assert (memory.token, memory.sequences, memory.copies, memory.split) == (57344, 256, 4, 1)
    many = sampling_memory(
        shape_of("qwen2.5-7b"), resolved("qwen2.5-7b", "engine.max_num_seqs=1000"), parse_devices("1x80GB"), (1000, 256)
    )
    assert many is not None
    assert many.sequences == 704


def test_tensor_parallelism_splits_weights_and_cache() -> None:
    config = resolved("llama-3.3-70b", "engine.tensor_parallel_size=4")
    memory = sampling_memory(shape_of("llama-3.3-70b"), config, parse_devices("2x8x80GB"), (1000, 256))
    assert memory is not None
    # 2 x 70.55e9 / 4 = 35.3e9 bytes of weights; a token takes 2 x 80 x 8 x 128 x 2 / 4 = 81,920 bytes.
    assert round(memory.weights / 1e9, 1) == 35.3
    assert (memory.token, memory.copies, memory.split) == (81920, 4, 4)


def test_an_engine_that_samples_elsewhere_takes_no_memory() -> None:
    config = resolved("qwen2.5-3b")
    elsewhere = load_config("paper/helpsteer2", ["engine={type: openai}"])
    assert sampling_memory(shape_of("qwen2.5-3b"), config, parse_devices("80GB"), (1, 1)) is not None
    assert sampling_memory(shape_of("qwen2.5-3b"), elsewhere, parse_devices("80GB"), (1, 1)) is None


def test_what_is_told_to_use_the_cpu_is_planned_there() -> None:
    gpus = Devices(parse_devices("H100").device, 4, host=500e9)
    config = resolved("qwen2.5-3b", "m_step.device=cpu")
    assert for_training(config, gpus).device.memory == 500e9
    assert for_sampling(config, gpus) == gpus
    # Two processes of one machine share its memory.
    cpu = Devices(Device("CPU", 20e9, 1e12, 20e9, gpu=False), host=20e9)
    assert training_memory(shape_of("smollm2-135m"), config, cpu, (100, 20), 2).total == 10e9
