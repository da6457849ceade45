"""Commands on a model that a run trained: they ask it as its run did."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Listen, write_task
from estep.cli import OnInvalidRow, _config, check
from estep.config import RunConfig, STaRProposal, TransformersEngineConfig, VLLMEngineConfig, hint_variant
from estep.inference import evaluate_model, preview
from estep.store.model import run_settings, settings_line
from estep.tasks import base, load_task
from estep.trainer import FEMTrainer
from runs import ANY_TEXT, Scored, pretend, right_when_hinted, run, scripted_run, settings

VOTES = {"temperature": 1.0, "samples": 3, "vote": "majority"}


def options(
    task: Path | str,
    model: Path | str,
    *overrides: str,
    proposal: str | None = None,
    on_invalid_row: OnInvalidRow | None = None,
) -> RunConfig:
    """The configuration of `estep eval MODEL TASK`, or of `estep sample` with a proposal."""
    return _config(str(task), str(model), on_invalid_row, list(overrides), proposal)


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


def a_run(folder: Path, sampled_with: dict[str, object] | None = None, **changes: object) -> Path:
    """A scripted run's folder, whose configuration says that it was sampled with another engine."""
    write_task(folder, few_shot="first")
    scripted_run(folder, Scored(right_when_hinted), **changes)
    for weights in folder.glob("run/iteration-*/weights"):
        (weights / "config.json").write_text("{}")
    path = folder / "run/config.yaml"
    content = yaml.safe_load(path.read_text())
    content["engine"] = sampled_with or content["engine"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "run"


def test_another_task_inherits_no_setting_of_the_runs_own_task(tmp_path: Path) -> None:
    engine = {"type": "transformers", "dtype": "float32", "max_model_len": 900, "max_new_tokens": 8, "device": "cpu"}
    folder = a_run(tmp_path, engine, evaluation=VOTES)
    own = options(tmp_path / "judge.yaml", folder)
    assert (own.evaluation.samples, own.engine.max_new_tokens, own.test_size) == (3, 8, 4)
    other = options("sentiment/movies", folder)
    assert (other.evaluation.samples, other.engine.max_new_tokens, other.test_size) == (1, None, None)
    assert isinstance(other.engine, TransformersEngineConfig)
    assert (other.engine.dtype, other.engine.max_model_len) == ("float32", 900)


HINTS = {
    "default": "strict",
    "variants": {"strict": "The score is {{ answer }}.", "known": "{{ answer }} is what a panel of readers gave it."},
}


def test_the_hint_variant_and_the_rules_for_unusable_rows_are_inherited(tmp_path: Path) -> None:
    task = write_task(tmp_path, hint=HINTS)
    skip = {"on_invalid_row": "skip", "on_overlength": "skip"}
    scripted_run(tmp_path, Scored(right_when_hinted), proposal={"type": "pps", "hint": "known"}, **skip)
    folder = tmp_path / "run"
    inherited = options(task, folder)
    assert hint_variant(inherited.proposal) == "known"
    assert (inherited.on_invalid_row, inherited.on_overlength) == ("skip", "skip")
    # Options and overrides win.
    assert options(task, folder, on_invalid_row=OnInvalidRow.stop).on_invalid_row == "stop"
    assert hint_variant(options(task, folder, "proposal.hint=strict").proposal) == "strict"
    # A proposal of another type inherits the hint if it uses one.
    assert options(task, folder, proposal="star").proposal == STaRProposal(hint="known")
    for found in (options(task, folder, proposal="direct"), options(task, folder, "proposal.type=rejection")):
        assert hint_variant(found.proposal) is None
    other = options("sentiment/movies", folder)
    assert hint_variant(other.proposal) is None
    assert (other.on_invalid_row, other.on_overlength) == ("stop", "stop")


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


def test_an_engine_of_another_type_inherits_the_settings_that_it_shares(tmp_path: Path) -> None:
    engine = {"type": "transformers", "dtype": "float32", "max_model_len": 900, "max_new_tokens": 8, "batch_size": 3}
    folder = a_run(tmp_path, engine)
    found = options(tmp_path / "judge.yaml", folder, "engine.type=vllm", "engine.max_model_len=800").engine
    assert found == VLLMEngineConfig(dtype="float32", max_model_len=800, max_new_tokens=8)
    server = ("engine.type=openai", "engine.base_url=http://127.0.0.1:9/v1", "engine.api_key_env=null")
    assert options(tmp_path / "judge.yaml", folder, *server).engine.max_new_tokens == 8


def test_one_line_says_what_was_inherited_from_the_run(tmp_path: Path) -> None:
    folder, task = a_run(tmp_path, seed=5, evaluation=VOTES), str(tmp_path / "judge.yaml")
    taken = run_settings(str(folder), task)
    config = options(task, folder, "evaluation.samples=5", "engine.batch_size=2")
    assert settings_line(taken, config) == (
        "settings of the run: seed=5, test_size=4, evaluation.temperature=1.0, evaluation.vote=majority, "
        "engine.max_new_tokens=8, engine.type=transformers, engine.device=cpu"
    )
    assert run_settings("smollm2-135m", task) == {}


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
