"""Commands on a model that a run trained: they ask it as its run did."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, write_task
from estep.cli.models import check
from estep.config import RunConfig
from estep.inference import evaluate_model, preview
from estep.m_step.base import MStepInput, MStepResult
from estep.records import Draw, Question
from estep.tasks import base, load_task
from estep.trainer import FEMTrainer
from runs import ANY_TEXT, HINTS, VOTES, Scored, a_run, options, pretend, right_when_hinted, run, scripted_run, settings


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judged responses by draw: a run keeps them as they finish."""
    return sorted(rows, key=lambda row: row["draw_id"])


@pytest.mark.slow
def test_a_runs_model_is_evaluated_as_in_the_run_votes_included(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    result = run(tiny_model, task, settings(tmp_path / "run", evaluation=VOTES))
    # The last iteration by the run's folder, the others by their weights, the base model by its own.
    asked = {2: tmp_path / "run", 1: tmp_path / "run/iteration-01/weights"}
    for number, model in asked.items():
        evaluation, responses = evaluate_model(options(task, model), Listen())
        assert in_order(map(asdict, responses)) == in_order(lines(tmp_path / f"run/iteration-{number:02d}/eval.jsonl"))
        assert evaluation == result.iterations[number].evaluation
    assert len(responses) == 4 * 3
    assert max(response.completion_tokens for response in responses) == 8  # the task's own limit is 12
    again = settings(tmp_path / "run", evaluation=VOTES).model_dump()
    config = RunConfig(**{**again, "task": str(task), "model": tiny_model})
    _, responses = evaluate_model(config, Listen())
    assert in_order(map(asdict, responses)) == in_order(lines(tmp_path / "run/iteration-00/eval.jsonl"))
    # Overrides win.
    _, greedy = evaluate_model(options(task, tmp_path / "run", "evaluation={}", "engine.max_new_tokens=3"), Listen())
    assert len(greedy) == 4
    assert max(response.completion_tokens for response in greedy) == 3


def test_mentions_of_the_hint_are_counted_as_in_the_run(tmp_path: Path) -> None:
    task = write_task(tmp_path, hint=HINTS)
    # Every response repeats the wording of the variant `known`, and none that of the default.
    told = "Evaluation: one two three four five six, 1 is what a panel of readers gave it. Score: 1"
    result = scripted_run(tmp_path, Scored(lambda draw: told), proposal={"type": "pps", "hint": "known"})
    script = tmp_path / "script.json"
    script.write_text(json.dumps({f"r{n}": [told] for n in range(12)}))
    scripted = ("engine.type=scripted", f"engine.script={script}")
    (tmp_path / "run/iteration-01/weights").mkdir(exist_ok=True, parents=True)
    (tmp_path / "run/iteration-01/weights/config.json").write_text("{}")
    evaluation, _ = evaluate_model(options(task, tmp_path / "run/iteration-01/weights", *scripted), Listen())
    assert result.iterations[1].evaluation.hint_mentioned == evaluation.hint_mentioned > 0


def test_a_preview_of_a_trained_model_proposes_as_the_runs_next_iteration(tmp_path: Path) -> None:
    folder, task = a_run(tmp_path), tmp_path / "judge.yaml"
    script = tmp_path / "script.json"
    script.write_text(json.dumps({f"r{n}": ["Score: 1"] for n in range(12)}))
    scripted = ("engine.type=scripted", f"engine.script={script}")

    def drawn(model: Path, proposal: str) -> list[dict[str, Any]]:
        found = preview(options(task, model, *scripted, proposal=proposal), 7, Listen()).e_step
        return [
            {"id": draw.id, "seed": draw.seed, "messages": list(draw.messages)}
            for draw in sorted(found.draws, key=lambda draw: draw.id)
        ]

    def kept(iteration: int) -> list[dict[str, Any]]:
        rows = sorted(lines(folder / f"iteration-{iteration:02d}/draws.jsonl"), key=lambda row: row["id"])
        return [{key: row[key] for key in ("id", "seed", "messages")} for row in rows]

    assert drawn(folder / "iteration-01/weights", "pps") == kept(2)
    # A system prompt and the question: the two examples were for the model before it was trained.
    for proposal in ("pps", "rejection"):
        assert {len(draw["messages"]) for draw in drawn(folder, proposal)} == {2}
        assert {len(draw["messages"]) for draw in drawn(tmp_path / "base", proposal)} == {6}
    # A model that was trained on another task is not yet trained on this one.
    other = write_task(tmp_path, name="other", few_shot="first")
    config = options(other, folder, *scripted, proposal="pps")
    assert {len(draw.messages) for draw in preview(config, 3, Listen()).e_step.draws} == {6}


def test_a_preview_knows_what_the_run_accepted(tmp_path: Path) -> None:
    write_task(tmp_path)
    chain = {"proposal": {"type": "chain"}, "m_step": {"replay": "last"}}
    scripted_run(tmp_path, Scored(right_when_hinted), **chain)
    script = tmp_path / "script.json"
    script.write_text(json.dumps({f"r{n}": ["Score: 1"] for n in range(12)}))
    scripted = ("engine.type=scripted", f"engine.script={script}", "m_step.replay=last")
    task = tmp_path / "judge.yaml"
    for model, hinted in ((tmp_path / "run", False), (tmp_path / "base", True)):
        draws = preview(options(task, model, *scripted, proposal="chain"), 7, Listen()).e_step.draws
        assert {draw.hinted for draw in draws} == {hinted}


@pytest.mark.parametrize("command", ["run", "preview"])
def test_weights_that_were_trained_on_the_task_propose_without_examples_from_the_start(
    tmp_path: Path, command: str
) -> None:
    a_run(tmp_path)
    weights, task = tmp_path / "run/iteration-01/weights", tmp_path / "judge.yaml"
    if command == "run":
        engine = Scored(right_when_hinted)
        config = settings(tmp_path / "second", filters={}, iterations=1)
        FEMTrainer(str(weights), str(task), config, engine=engine, m_step=pretend).train()
        drawn = [draw for draw in engine.asked if draw.proposal != "evaluation"]
    else:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({f"r{n}": ["Score: 1"] for n in range(12)}))
        scripted = ("engine.type=scripted", f"engine.script={script}")
        drawn = preview(options(task, weights, *scripted, proposal="pps"), 7, Listen()).e_step.draws
    assert {len(draw.messages) for draw in drawn} == {2}  # a system prompt and the question


def test_check_reads_its_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, read = write_task(tmp_path), []

    def parse(*arguments: Any) -> Any:
        read.append(arguments[1])
        return load(*arguments)

    load = base.parse_task
    monkeypatch.setattr(base, "parse_task", parse)
    check(str(task), [])
    assert read == [str(task)]
    assert load_task(str(task)).name == "judge"


@pytest.mark.parametrize("few_shot", ["first", "proposal"])
def test_a_model_of_short_sums_is_asked_longer_ones_with_the_prompt_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_shot: str
) -> None:
    def gold(draw: Draw) -> str:
        return f"Reasoning: 1 + 1 = 2, 2 + 2 = 4. Answer: {sum(map(int, numbers_of(draw).split(' + ')))}"

    def numbers_of(draw: Draw) -> str:
        return draw.messages[-1]["content"].splitlines()[0]

    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    seen: list[MStepInput] = []

    def m_step(work: MStepInput) -> MStepResult:
        seen.append(work)
        return pretend(work)

    config = settings(tmp_path / "run", filters={}, iterations=1, few_shot=few_shot, seed=8)
    FEMTrainer(str(tmp_path / "base"), "sums/4", config, engine=Scored(gold), m_step=m_step).train()
    (tmp_path / "run/iteration-01/weights/config.json").write_text("{}")

    later = Scored(gold)
    monkeypatch.setattr("estep.inference.open_engine", lambda *arguments: later)
    heard = Listen()
    asked = options("sums/6", tmp_path / "run", "test_size=4")
    assert (asked.seed, asked.few_shot) == (8, few_shot)
    evaluation, _ = evaluate_model(asked, heard)
    assert evaluation.accuracy == 1.0
    assert not any("different prompt" in line for line in heard.lines)
    (system,) = load_task("sums/4").prompt(Question("q", {"question": "?"}, ""))[:-1]
    assert all(pair.prompt[:-1] == (system,) for work in seen for pair in work.pairs)
    assert all(draw.messages[:-1] == (system,) for draw in later.asked)
    assert {numbers_of(draw).count("+") for draw in later.asked} == {5}
    assert all(draw.messages[-1]["content"] == numbers_of(draw) for draw in later.asked)
