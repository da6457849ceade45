"""The diagnostics of whole runs, with scripted samples and scores."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Listen
from estep.engines.base import ScoreRequest
from estep.metrics import metrics_from_json, metrics_to_json
from estep.records import Draw
from runs import Scored, scripted_run

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
