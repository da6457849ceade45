"""The demos: which one runs, and what it prints at its end."""

from pathlib import Path
from typing import Any

import pytest

from conftest import write_task
from estep import FEMConfig, FEMTrainer
from estep.cli import runs
from estep.config import RunConfig
from estep.engines.scripted import ScriptedEngine
from estep.errors import ConfigError
from estep.records import Draw
from estep.trainer import TrainResult
from runs import Scored, pretend


def scripted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, engine: ScriptedEngine, task: str | None = None
) -> list[Any]:
    """Let the next demo sample with this engine and train nothing; the list receives its configuration."""
    given: list[RunConfig] = []

    def train(config: RunConfig) -> TrainResult:
        given.append(config)
        content = config.model_dump(mode="json", exclude={"task", "model"})
        args = FEMConfig.model_validate({**content, "run_dir": str(folder / "run"), "train_size": 4, "test_size": 2})
        (folder / "base").mkdir()
        (folder / "base/config.json").write_text("{}")
        where = str(folder / "base")
        return FEMTrainer(where, task or config.task, args, engine=engine, m_step=pretend).train()

    monkeypatch.setattr(runs, "_train", train)
    return given


def learns_to_add(draw: Draw) -> str:
    """Right in the E-step. In evaluations, the base model bends its last step, and the trained one adds up."""
    numbers = [int(n) for n in draw.messages[-1]["content"].split(" + ")]
    steps = [f"{sum(numbers[:k])} + {numbers[k]} = {sum(numbers[: k + 1])}" for k in (1, 2, 3)]
    right = f"Reasoning: {', '.join(steps)}. Answer: {sum(numbers)}"
    bent = right.replace(f"= {sum(numbers)}.", f"= {sum(numbers) + 1}.").replace(f"Answer: {sum(numbers)}", "Answer: 1")
    if draw.proposal != "evaluation":
        return right
    learns_to_add.asked.append(draw.question_id)  # type: ignore[attr-defined]
    return right if learns_to_add.asked.count(draw.question_id) > 1 else bent  # type: ignore[attr-defined]


def test_the_demo_of_sums_ends_in_a_question_true_steps_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learns_to_add.asked = []  # type: ignore[attr-defined]
    (config,) = [scripted(monkeypatch, tmp_path, Scored(learns_to_add))]
    runs.demo(["sums", "seed=8"])
    assert (config[0].task, config[0].seed, config[0].iterations) == ("sums/4", 8, 2)
    shown = capsys.readouterr().out
    assert "A test question that the base model got wrong, with correct answer " in shown
    lines = [line.strip() for line in shown.splitlines()]
    assert [line.split(":")[0] for line in lines if line.startswith(("question", "numbers", "terms", "id"))] == [
        "question"
    ]
    assert any(line.startswith("before: Reasoning: ") and line.endswith("Answer: 1") for line in lines)
    # Of three steps, the base model bends one.
    assert "true steps: 100.0% of the equations in the answers, 66.7% before training" in lines
    assert (tmp_path / "run/figure.png").is_file()
    assert f"estep eval {tmp_path / 'run'} sums/6 test_size=128" in lines


@pytest.mark.parametrize("arguments", [None, ["movies"]])
def test_the_demo_without_a_name_is_that_of_film_reviews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str] | None
) -> None:
    engine = Scored(lambda draw: "Evaluation: one two three four five six. Score: 1")
    given = scripted(monkeypatch, tmp_path, engine, str(write_task(tmp_path)))
    runs.demo(arguments)
    assert (given[0].task, given[0].proposal.type) == ("sentiment/movies", "pps")
    shown = capsys.readouterr().out
    assert "Rationales alone do not help here." in shown
    assert "true steps" not in shown


def test_settings_may_follow_a_demos_name_or_stand_alone() -> None:
    assert runs._which_demo(["iterations=1", "seed=2"]) == ("movies", ["iterations=1", "seed=2"])
    assert runs._which_demo(["sums", "seed=2"]) == ("sums", ["seed=2"])
    assert runs._which_demo([]) == ("movies", [])


def test_an_unknown_demo_is_refused_with_the_allowed_names() -> None:
    with pytest.raises(ConfigError, match=r"^unknown demo 'nonsense'; known: movies, sums$"):
        runs.demo(["nonsense"])
    with pytest.raises(ConfigError, match=r"^unknown demo 'sum'; did you mean 'sums'\? known: movies, sums$"):
        runs.demo(["sum", "seed=1"])
