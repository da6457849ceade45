"""Gradient steps that run out of memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from estep.config import MStepConfig
from estep.errors import EstepError
from estep.m_step.base import MStepInput, MStepResult
from estep.m_step.batches import Collator
from estep.m_step.job import Row
from estep.m_step.sft import SFTMStep
from estep.m_step.steps import gradient_steps
from estep.models.loading import load_model
from estep.records import ModelRef, Pair

PAIRS = [
    Pair(f"q{n}", f"q{n}#0.0", ({"role": "user", "content": "Text: " + "word " * n},), f"Evaluation: fine. Score: {n}")
    for n in range(5)
]


def train(path: str, folder: Path, told: list[str], **config: Any) -> MStepResult:
    step = SFTMStep(MStepConfig(precision="float32", batch_size=4, device="cpu", **config), 2048, "stop", "float32")
    found = step(
        MStepInput(ModelRef(path), 1, PAIRS, 1e-3, 5, folder, lambda *_: -1.0, lambda count: None, log=told.append)
    )
    assert found is not None
    return found


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out as on a GPU, twice, in forward passes of several pairs."""
    collate = Collator.__call__
    failures = iter(
        [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    )

    def failing(self: Collator, rows: Sequence[Row]) -> dict[str, Any]:
        if len(rows) > 1 and (error := next(failures, None)) is not None:
            raise error
        return collate(self, rows)

    monkeypatch.setattr(Collator, "__call__", failing)


@pytest.mark.usefixtures("little_memory")
def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_parts(tiny_model: str, tmp_path: Path) -> None:
    told: list[str] = []
    # Four pairs do not fit, then two; one does.
    cut = train(tiny_model, tmp_path / "cut", told)
    assert told == ["  note: training ran out of memory; each forward pass now takes half as many tokens"] * 2
    plain = train(tiny_model, tmp_path / "one", [], micro_batch_size=1)
    assert cut.losses == plain.losses
    one, other = (load_model(str(tmp_path / name), "float32", "cpu") for name in ("cut", "one"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_single_pair_that_does_not_fit_stops_the_run(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estep.m_step.steps.batches_of_ranks", _no_memory)
    with pytest.raises(EstepError, match=r"a single pair per forward pass \(the longest has \d+ tokens\)"):
        train(tiny_model, tmp_path / "weights", [])
    assert list(tmp_path.iterdir()) == []


def _no_memory(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_memory_that_runs_out_before_the_first_step_is_a_clear_error(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("estep.m_step.whole.load_model", _no_memory)
    with pytest.raises(EstepError, match=r"ran out of memory beside its gradient steps: CUDA .*; see estep plan"):
        train(tiny_model, tmp_path / "weights", [])


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Collator, rows: Sequence[Row]) -> dict[str, Any]:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(Collator, "__call__", failing)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        train(tiny_model, tmp_path / "weights", [])


def test_every_epoch_has_its_own_order_and_every_pair_in_it() -> None:
    rows: list[Row] = [{"input_ids": [n], "weights": [1.0]} for n in range(10)]
    orders = [[row["input_ids"][0] for step in gradient_steps(rows, 4, 3, epoch) for row in step] for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    assert [len(step) for step in gradient_steps(rows, 4, 3, 0)] == [4, 4, 2]
