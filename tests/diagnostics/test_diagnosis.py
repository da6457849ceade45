"""The diagnostics of whole runs, with scripted samples and scores."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen, write_task
from estep.engines.base import ScoreRequest
from estep.engines.scripted import ScriptedEngine
from estep.m_step.base import MStepInput
from estep.metrics import metrics_from_json, metrics_to_json
from estep.models.loading import load_chat
from estep.records import Draw
from estep.tasks import load_task
from runs import ANY_TEXT, KillAfter, Killed, Scored, contents, run, scripted_run, settings

FULL = {"diagnostics": "full", "validation_size": 2, "iterations": 2, "train_size": 4, "test_size": 4}


def said(draw: Draw) -> str:
    """Right when hinted; without the hint, wrong. Every rationale is the same."""
    gold = int(draw.question_id.removeprefix("r")) % 5
    return f"Evaluation: the same six words every time. Score: {gold if draw.hinted else (gold + 1) % 5}"


def halves(request: ScoreRequest) -> list[float]:
    """A word has log-probability -1, or -0.5 with a hint; the answer -0.25 after its own rationale, else -1.25."""
    hinted = "score was" in request.messages[-1]["content"]
    answer = -1.25 if request.id.startswith("other:") else -0.25
    return [-0.5 if hinted else -1.0] * (len(request.text.split()) - 1) + [answer, 0.0]


def metrics(folder: Path, k: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"run/iteration-{k:02d}/metrics.json").read_text())
    return content


def test_full_diagnostics_of_a_scripted_run(tmp_path: Path) -> None:
    heard = Listen()
    scripted_run(tmp_path, Scored(said, halves), reporter=heard, **FULL)
    base, first = (metrics(tmp_path, k)["diagnostics"] for k in (0, 1))
    # Four samples of each validation question, each with log π(y* | x, z) = −0.25.
    assert base["log_likelihood"] == first["log_likelihood"] == pytest.approx(-0.25)
    assert first["dependence"] == pytest.approx(1.0)
    # Eight words before the answer cost 4 nats more without the hint.
    assert base["hint_price"] is None
    assert first["hint_price"] == pytest.approx(0.5)
    assert first["commonest_rationale"] == 1.0
    assert first["warnings"] == ["collapsed"]
    warnings = [line for line in heard.lines if "warning:" in line]
    assert len(warnings) == 1  # the second iteration, as collapsed as the first, does not repeat it
    assert "25% of the accepted rationales are distinct; the policy says the same" in warnings[0]
    folder = tmp_path / "run/iteration-01"
    assert len((folder / "probe.jsonl").read_text().splitlines()) == 2 * 4
    # Two requests for each of four accepted samples; ten for the two validation questions.
    assert len((folder / "scores.jsonl").read_text().splitlines()) == 8
    assert len((folder / "probe_scores.jsonl").read_text().splitlines()) == 10


SERVED = {"type": "pps", "n": 2, "model": {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}}


def test_a_served_proposer_has_no_price_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The policy scores the samples under the prompt that it is trained on, without the examples and the hint.
    proposer, policy = ScriptedEngine(said), Scored(lambda draw: said(replace(draw, hinted=False)), halves)
    monkeypatch.setattr("estep.trainer.open_proposer", lambda model: proposer)
    seen: list[MStepInput] = []
    result = scripted_run(tmp_path, policy, seen, **{**FULL, "few_shot": "first"}, proposal=SERVED)
    assert len(proposer.asked) == 2 * 2 * 4
    scored = {request.id: request.messages for request in policy.scored if "probe" not in request.id}
    trained = [pair for work in seen for pair in work.pairs]
    assert len(trained) == 2 * 4  # a question's samples have the same text
    assert all(scored[f"policy:{pair.draw_id}"] == pair.prompt for pair in trained)
    assert {len(messages) for messages in scored.values()} == {2}  # system and question
    assert not any(id.startswith("proposal:") for id in scored)
    for k in (1, 2):
        found = metrics(tmp_path, k)["diagnostics"]
        assert (found["hint_price"], found["effective_samples"], found["several"]) == (None, None, None)
        assert found["log_likelihood"] == pytest.approx(-0.25)
    # The policy's own samples have both.
    (tmp_path / "own").mkdir()
    result = scripted_run(tmp_path / "own", Scored(said, halves), **FULL, proposal={"type": "pps", "n": 2})
    assert result.last.diagnostics is not None
    assert result.last.diagnostics.hint_price == pytest.approx(0.5)
    assert result.last.diagnostics.effective_samples == result.last.diagnostics.several == 2.0


def test_a_text_that_does_not_fit_stops_no_run_and_is_counted(tmp_path: Path) -> None:
    def short(request: ScoreRequest) -> list[float]:
        """No room for one sample's hinted prompt, and for the first probe of each validation question."""
        return [] if request.id == left_out or request.id.endswith("#0") else halves(request)

    left_out, heard = "", Listen()
    scripted_run(tmp_path, Scored(said, halves), **FULL)
    before = contents(tmp_path / "run")
    left_out = json.loads((tmp_path / "run/iteration-01/scores.jsonl").read_text().splitlines()[1])["id"]
    assert left_out.startswith("proposal:")
    folder = tmp_path / "short"
    folder.mkdir()
    scripted_run(folder, Scored(said, short), reporter=heard, **FULL)
    found = metrics(folder, 1)
    assert found["e_step"]["unscored"] == 1
    assert found["diagnostics"]["hint_price"] == pytest.approx(0.5)
    # One probe and the text that it is compared with, for each of two questions.
    assert found["diagnostics"]["unscored_probes"] == 4
    assert found["diagnostics"]["log_likelihood"] == pytest.approx(-0.25)
    assert found["diagnostics"]["dependence"] is None
    # One in each iteration.
    assert sum(line.startswith("scores: 1 of 8 texts are not scored") for line in heard.lines) == 2
    assert sum(line.startswith("probe scores: 4 of 10 texts are not scored") for line in heard.lines) == 3
    pairs = "iteration-01/pairs.jsonl"
    assert contents(folder / "run")[pairs] == before[pairs]
    # A killed run that is resumed has the same records.
    again = tmp_path / "again"
    again.mkdir()
    for pieces in range(5, 100, 17):
        with suppress(Killed):
            scripted_run(again, Scored(said, short), reporter=KillAfter(pieces), **FULL)
    scripted_run(again, Scored(said, short), **FULL)
    assert contents(again / "run") == contents(folder / "run")


def test_a_run_whose_texts_fill_the_context_goes_on(tiny_model: str, tmp_path: Path) -> None:
    # Responses are cut off at eight tokens, and that of the longest prompt where the context ends: it has no room for
    # the end of turn.
    task = write_task(tmp_path, **ANY_TEXT)
    engine = {"type": "transformers", "max_new_tokens": 8, "batch_size": 4, "device": "cpu"}
    longest = max(_lengths(tiny_model, task))
    changes = {**FULL, "iterations": 1, "engine": {**engine, "max_model_len": longest + 8}}
    found = run(tiny_model, task, settings(tmp_path / "run", **changes)).last
    assert found.e_step is not None
    assert found.e_step.unscored > 0
    assert found.m_step is not None


def _lengths(model: str, task: Path) -> list[int]:
    chat, loaded = load_chat(model), load_task(str(task))
    rows = [json.loads(line) for line in (task.parent / "rows.jsonl").read_text().splitlines()]
    questions = [loaded.question(row, row["score"]) for row in rows]
    return [len(chat.prompt_ids(loaded.hinted_prompt(question))) for question in questions]


def test_cheap_diagnostics_score_nothing(tmp_path: Path) -> None:
    engine = Scored(said)
    result = scripted_run(tmp_path, engine, iterations=1)
    assert engine.scored == []
    found = result.last.diagnostics
    assert found is not None
    assert found.warnings == ("collapsed",)
    assert not (tmp_path / "run/iteration-01/scores.jsonl").exists()


def test_diagnostics_can_be_off(tmp_path: Path) -> None:
    heard = Listen()
    result = scripted_run(tmp_path, Scored(said), reporter=heard, diagnostics="off", iterations=1)
    assert result.last.diagnostics is None
    assert not any("warning:" in line for line in heard.lines)


def test_diagnostics_survive_the_way_to_json_and_back(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, Scored(said, halves), **FULL)
    stored = metrics(tmp_path, 1)
    assert json.loads(json.dumps(metrics_to_json(metrics_from_json(stored)))) == stored
    # As text, because NaN equals nothing.
    assert repr(metrics_from_json(stored).diagnostics) == repr(result.iterations[1].diagnostics)


def test_diagnostics_change_nothing_that_a_run_computes(tmp_path: Path) -> None:
    runs = {}
    for level in ("off", "cheap", "full"):
        folder = tmp_path / level
        folder.mkdir()
        changes = {**FULL, "diagnostics": level, "select": "validation"}
        scripted_run(folder, Scored(said, halves), **changes)
        runs[level] = {
            path.relative_to(folder): path.read_text()
            for name in ("draws", "samples", "verdicts", "pairs", "eval", "validation")
            for path in folder.rglob(f"iteration-*/{name}.jsonl")
        }
    assert runs["off"] == runs["cheap"] == runs["full"]
    assert len(runs["off"]) == 3 * 2 + 2 * 4
