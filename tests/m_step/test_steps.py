"""Gradient steps that run out of memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from estep.config import MStepConfig
from estep.errors import EstepError
from estep.m_step.base import MStepInput, MStepResult
from estep.m_step.batches import Budget, Collator
from estep.m_step.job import Row, TrainingJob
from estep.m_step.sft import SFTMStep
from estep.m_step.steps import GradientSteps, Ranks, gradient_steps, is_out_of_memory
from estep.m_step.training import _planned
from estep.m_step.whole import WholeModel
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


def steps_of(ranks: int, budget: Budget, told: list[str]) -> GradientSteps:
    """The gradient steps of the first of several ranks, whose model is never called."""
    job = TrainingJob(MStepConfig(device="cpu"), "", [], 1e-3, 0, Path("weights"), [], "float32", False)
    place = Ranks(0, ranks, torch.device("cpu"))
    return GradientSteps(torch.nn.Linear(1, 1), job, place, Collator(False, 0), budget, None, told.append)


def test_memory_that_runs_out_is_halved_until_the_passes_are_smaller() -> None:
    # Eight pairs may share a forward pass, and there are four: two halvings make passes of two.
    told: list[str] = []
    rows: list[Row] = [{"input_ids": [n, 1], "weights": [1.0]} for n in range(4)]
    steps = steps_of(1, Budget(10**9, 10**9, 8), told)
    steps._halve(rows)
    assert steps.halvings == 2
    assert len(told) == 1


def test_a_rank_that_has_a_single_pair_does_not_start_again() -> None:
    # Each of two ranks has one of the two pairs, although a forward pass might take both.
    rows: list[Row] = [{"input_ids": [n, 1], "weights": [1.0]} for n in range(2)]
    with pytest.raises(EstepError, match="a single pair per forward pass"):
        steps_of(2, Budget(10**9, 10**9, 8), [])._halve(rows)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("MPS backend out of memory (MPS allocated: 8 GB)", True),
        ("NCCL error: unhandled cuda error: Cuda failure 2 'out of memory'", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_each_library_says(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == expected


def test_a_model_whose_size_is_unknown_is_trained_all_the_same(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tiny_model, tmp_path / "plain", [])

    def unknown(config: object) -> None:
        raise AttributeError("'MambaConfig' object has no attribute 'num_attention_heads'")

    monkeypatch.setattr("estep.m_step.training.measured", unknown)
    told: list[str] = []
    assert train(tiny_model, tmp_path / "unknown", told).losses == plain.losses
    assert "the memory that training needs is unknown ('MambaConfig' object has no" in told[0]


def test_the_forward_passes_of_a_rank_are_counted_and_not_those_of_all(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model, "float32", "cpu")
    rows: list[Row] = [{"input_ids": [n, 7, 8], "weights": [1.0]} for n in range(4)]
    config = MStepConfig(device="cpu", batch_size=4)
    job = TrainingJob(config, "", rows, 1e-3, 0, Path("weights"), [], "float32", False)
    trained = WholeModel(config, model, torch.device("cpu"))
    monkeypatch.setattr("estep.m_step.training.device_memory", lambda device: 1.0)  # one pair per forward pass
    told: dict[int, list[str]] = {1: [], 4: []}
    for size, lines in told.items():
        _planned(trained, job, Collator(False, 0), Ranks(0, size, torch.device("cpu")), lines.append)
    assert "a gradient step takes 4 forward passes" in told[1][0]
    assert not any("forward passes" in line for line in told[4])


def test_every_epoch_has_its_own_order_and_every_pair_in_it() -> None:
    rows: list[Row] = [{"input_ids": [n], "weights": [1.0]} for n in range(10)]
    orders = [[row["input_ids"][0] for step in gradient_steps(rows, 4, 3, epoch) for row in step] for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    assert [len(step) for step in gradient_steps(rows, 4, 3, 0)] == [4, 4, 2]
