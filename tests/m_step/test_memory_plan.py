"""Batches that are cut so that they fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from estep.config import MStepConfig
from estep.m_step import memory_plan
from estep.m_step.memory_plan import Plan, device_memory, plan
from estep.models.loading import load_model

LENGTHS = [(100, 20), (300, 30)]


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Any:
    return load_model(tiny_model, "float32", "cpu")


def planned(model: Any, batch_size: int, total: float, **settings: object) -> Plan:
    return plan(model, LENGTHS, MStepConfig.model_validate({"batch_size": batch_size, **settings}), total)


def enough_for(model: Any, pairs: int, checkpointing: bool) -> float:
    """The memory whose planned share just fits the given number of the longest pairs."""
    needs = memory_plan.memory_needs(model, "bfloat16").peak(300 * pairs, 30 * pairs, checkpointing, 2)
    return needs / memory_plan._SHARE * 1.0001


def test_a_batch_that_fits_is_not_cut(model: Any) -> None:
    assert planned(model, 16, 1e12) == Plan(16, False)
    assert planned(model, 16, enough_for(model, 16, False)) == Plan(16, False)


@pytest.mark.parametrize(("room", "micro"), [(15, 8), (8, 8), (7, 4), (3, 2), (1, 1)])
def test_a_batch_is_cut_into_the_largest_equal_parts_that_fit(model: Any, room: int, micro: int) -> None:
    assert planned(model, 16, enough_for(model, room, False)) == Plan(micro, False)


def test_a_batch_of_a_prime_number_goes_whole_or_one_by_one(model: Any) -> None:
    assert planned(model, 7, enough_for(model, 6, False)) == Plan(1, False)


def test_activations_are_computed_again_only_where_one_pair_would_not_fit(model: Any) -> None:
    little = enough_for(model, 1, True)
    assert little < enough_for(model, 1, False)
    assert planned(model, 16, little).checkpointing
    assert planned(model, 16, 1.0) == Plan(1, True)


def test_what_the_user_fixes_is_kept_and_the_rest_chosen_for_it(model: Any) -> None:
    room = enough_for(model, 4, False)
    assert planned(model, 16, room, micro_batch_size=2) == Plan(2, False)
    assert planned(model, 16, room, micro_batch_size=16) == Plan(16, True)
    assert planned(model, 16, enough_for(model, 7, False)) == Plan(4, False)
    assert planned(model, 16, enough_for(model, 7, False), gradient_checkpointing=True) == Plan(8, True)
    assert planned(model, 16, 1.0, gradient_checkpointing=False) == Plan(1, False)


def test_float32_products_need_more(model: Any) -> None:
    room = enough_for(model, 8, False)
    assert planned(model, 16, room, precision="float32").micro_batch_size < 8


def test_an_adapter_needs_no_moments_for_what_it_does_not_train(tiny_model: str) -> None:
    from peft import LoraConfig, get_peft_model

    whole = load_model(tiny_model, "float32", "cpu")
    parameters = sum(p.numel() for p in whole.parameters())
    assert memory_plan.memory_needs(whole, "bfloat16").fixed == 18 * parameters
    adapted = get_peft_model(whole, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert memory_plan.memory_needs(adapted, "bfloat16").fixed < 9 * parameters


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
