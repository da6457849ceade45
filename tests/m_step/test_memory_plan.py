"""Forward passes that are cut so that they fit."""

from pathlib import Path

import pytest
import torch

from estep.config import MStepConfig
from estep.m_step import memory_plan
from estep.m_step.memory_plan import HEAD_CHUNK, SHARE, Plan, device_memory, memory_needs, plan
from estep.models.shape import ModelShape, shape_of

LENGTHS = [(100, 20), *[(300, 30)] * 15]
"""Sixteen pairs; the longest have 300 positions and predict 30 tokens."""


@pytest.fixture(scope="module")
def shape(tiny_model: str) -> ModelShape:
    return shape_of(tiny_model)


def planned(shape: ModelShape, total: float, ranks: int = 1, **settings: object) -> Plan:
    return plan(shape, LENGTHS, MStepConfig.model_validate(settings), total, ranks)


def enough_for(shape: ModelShape, pairs: int, checkpointing: bool, ranks: int = 1) -> float:
    """The memory whose planned share just fits the given number of the longest pairs."""
    needs = memory_needs(shape, MStepConfig(), ranks).peak(300 * pairs, 30 * pairs, checkpointing)
    return needs / SHARE * 1.0001


def test_a_gradient_step_that_fits_is_not_cut(shape: ModelShape) -> None:
    assert planned(shape, 1e12) == Plan(16 * 300, 16 * 30, False)
    assert planned(shape, enough_for(shape, 16, False)) == Plan(16 * 300, 16 * 30, False)


@pytest.mark.parametrize("room", [15, 7, 3, 1])
def test_a_forward_pass_takes_what_fits(shape: ModelShape, room: int) -> None:
    positions, targets, checkpointing = planned(shape, enough_for(shape, room, False))
    assert (targets, checkpointing) == (room * 30, False)
    assert room * 300 <= positions < (room + 1) * 300


def test_a_long_pair_does_not_make_the_passes_of_the_others_small(shape: ModelShape) -> None:
    # One pair of 3,000 positions takes the room of ten pairs of 300, so a pass takes one of them or ten others.
    lengths = [(3000, 300), *[(300, 30)] * 15]
    room = memory_needs(shape, MStepConfig(), 1).peak(3000, 300, False) / SHARE * 1.0001
    assert plan(shape, lengths, MStepConfig(), room)[:2] == pytest.approx((3000, 300), abs=1)


def test_activations_are_computed_again_only_where_one_pair_would_not_fit(shape: ModelShape) -> None:
    little = enough_for(shape, 1, True)
    assert little < enough_for(shape, 1, False)
    assert planned(shape, little).checkpointing
    assert planned(shape, 1.0) == Plan(300, 30, True)


def test_what_the_user_fixes_is_kept_and_the_rest_chosen_for_it(shape: ModelShape) -> None:
    room = enough_for(shape, 4, False)
    assert planned(shape, room, micro_batch_size=2) == Plan(2 * 300, 2 * 30, False)
    assert planned(shape, room, micro_batch_size=16) == Plan(16 * 300, 16 * 30, True)
    assert planned(shape, room, gradient_checkpointing=True).positions > planned(shape, room).positions
    assert planned(shape, 1.0, gradient_checkpointing=False) == Plan(300, 30, False)
    assert planned(shape, 1.0, micro_batch_size=2) == Plan(600, 60, True)


def test_each_rank_takes_its_share_of_a_gradient_step(shape: ModelShape) -> None:
    assert planned(shape, 1e12, ranks=4) == Plan(4 * 300, 4 * 30, False)
    assert planned(shape, 1e12, ranks=3) == Plan(6 * 300, 6 * 30, False)  # 16 pairs: 6, 5 and 5
    assert planned(shape, 1e12, ranks=4, micro_batch_size=8) == Plan(4 * 300, 4 * 30, False)


def test_a_chunk_of_the_head_bounds_the_logits(shape: ModelShape) -> None:
    needs = memory_needs(shape, MStepConfig(), 1)
    assert needs.logits(10 * HEAD_CHUNK) == needs.logits(HEAD_CHUNK) == HEAD_CHUNK * shape.vocab * (2 + 4 + 4 + 4)
    # Four pairs predict 1,200 tokens, more than a chunk: then as many predicted tokens as the positions allow.
    lengths = [(400, 300)] * 16
    room = needs.peak(4 * 400, 4 * 300, False) / SHARE * 1.0001
    positions, targets, _ = plan(shape, lengths, MStepConfig(), room)
    assert positions == pytest.approx(1600, abs=1)
    assert targets == 16 * 300


def test_float32_products_need_more(shape: ModelShape) -> None:
    room = enough_for(shape, 8, False)
    assert planned(shape, room, precision="float32").positions < 8 * 300


def test_one_rank_takes_18_bytes_a_parameter_and_an_adapter_6() -> None:
    # float32 weights 4, gradients 4, moments 8 and the bfloat16 weights of autocast 2: docs/models.md.
    shape = shape_of("qwen2.5-3b")
    whole = memory_needs(shape, MStepConfig(), 1)
    assert whole.fixed == 18 * 3_085_938_688
    lora = MStepConfig.model_validate({"lora": {"r": 16}})
    adapter = shape.adapter(lora.lora)  # type: ignore[arg-type]
    assert memory_needs(shape, lora, 1).fixed == 6 * (3_085_938_688 + adapter) + 12 * adapter
    assert memory_needs(shape, MStepConfig(precision="float32"), 1).fixed == 16 * 3_085_938_688


@pytest.mark.parametrize(
    ("model", "ranks", "gigabytes"),
    [
        ("qwen2.5-3b", 2, 24.7),  # 16 x 3.086e9 / 2
        ("qwen2.5-7b", 4, 30.5),  # 16 x 7.616e9 / 4
        ("llama-3.1-8b", 4, 32.1),  # 16 x 8.030e9 / 4
        ("llama-3.3-70b", 16, 70.6),  # 16 x 70.554e9 / 16
    ],
)
def test_several_ranks_share_16_bytes_a_parameter(model: str, ranks: int, gigabytes: float) -> None:
    needs = memory_needs(shape_of(model), MStepConfig(), ranks)
    assert round((needs.weights + needs.gradients + needs.moments) / 1e9, 1) == gigabytes


def test_several_ranks_gather_two_layers_and_the_root() -> None:
    # Qwen2.5 7B: embedding and head of 152,064 x 3,584 each and a norm of 3,584, layers of 233,057,792 parameters;
    # bfloat16 weights and gradients: 4 bytes. (1,089,998,336 + 2 x 233,057,792) x 4 = 6.22e9. The gradients of a layer
    # on their way in float32: 0.93e9.
    together, layer = 2 * 152064 * 3584 + 3584 + 2 * 233_057_792, 233_057_792
    needs = memory_needs(shape_of("qwen2.5-7b"), MStepConfig(), 4)
    # More than that, the gradients of embedding and head at the end, 8 bytes each with their float32: 8.72e9.
    assert 4 * together + 4 * layer < needs.gathered == 8 * (2 * 152064 * 3584 + 3584)
    float32 = memory_needs(shape_of("qwen2.5-7b"), MStepConfig(precision="float32"), 4)
    assert float32.gathered == 8 * together + 4 * layer
    # With an adapter, the gathered weights have no gradients.
    lora = MStepConfig.model_validate({"lora": {"r": 16}})
    assert memory_needs(shape_of("qwen2.5-7b"), lora, 4).gathered == 2 * together


def test_an_adapter_shares_the_frozen_weights_too() -> None:
    # 70B on 16 devices: 4 x 70.554e9 / 16 = 17.64e9 bytes of frozen weights. The adapter of rank 16 has
    # 207,093,760 parameters: 16 x 0.2071e9 / 16 = 0.21e9 bytes.
    lora = MStepConfig.model_validate({"lora": {"r": 16}})
    needs = memory_needs(shape_of("llama-3.3-70b"), lora, 16)
    assert round((needs.weights + needs.gradients + needs.moments) / 1e9, 2) == 17.85


def test_the_memory_of_a_container_is_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory_plan, "_CGROUP_LIMITS", (tmp_path / "none", limit))
    cpu = torch.device("cpu")
    whole = device_memory(cpu)
    assert whole > 1e8
    limit.write_text("max\n")
    assert device_memory(cpu) == whole
    limit.write_text("67108864\n")
    assert device_memory(cpu) == 67108864
