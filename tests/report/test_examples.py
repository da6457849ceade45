"""Examples of a run's texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from estep.engines.base import ScoreRequest
from estep.engines.scripted import ScriptedEngine
from estep.records import Draw
from estep.report.examples import examples_of
from estep.report.results import read_results
from runs import Scored, scripted_run

SERVED = {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}


def said(draw: Draw) -> str:
    """Always right when hinted; each sample has its own rationale."""
    gold = int(draw.question_id.removeprefix("r")) % 5
    return f"Evaluation: one two three four five number{draw.index} Score: {gold if draw.hinted else (gold + 1) % 5}"


def after_the_third(request: ScoreRequest) -> list[float]:
    """The answer is all but sure after the third rationale, and unlikely after the others."""
    answer = -0.01 if "number2" in request.text else -20.0
    return [-1.0] * (len(request.text.split()) - 1) + [answer, 0.0]


@pytest.mark.parametrize("model", [None, SERVED])
def test_a_sample_is_shown_as_accepted_if_its_scores_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any] | None
) -> None:
    monkeypatch.setattr("estep.trainer.open_proposer", lambda model: ScriptedEngine(said))
    changes = {
        "proposal": {"type": "pps", "n": 4, "model": model},
        "filters": {"weight_by": "answer", "resample": True},
        "iterations": 1,
    }
    scripted_run(tmp_path, Scored(said, after_the_third), **changes)
    pairs = [json.loads(line) for line in (tmp_path / "run/iteration-01/pairs.jsonl").read_text().splitlines()]
    assert {pair["index"] for pair in pairs} == {2}
    (run,) = read_results(tmp_path / "run").runs
    samples = examples_of(run, 1000).samples
    assert [sample["text"] for sample in samples if sample["accepted"]] == [
        pair["completion"][0]["content"] for pair in pairs
    ]
