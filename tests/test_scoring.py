"""Scores of samples: under which prompts, split where, and kept."""

from typing import Any

import pytest

from conftest import questions_of, task_of
from estep.config import FilterConfig
from estep.e_step import EStep
from estep.engines import Sampling
from estep.engines.base import NeverSampledError, ScoreRequest
from estep.engines.scripted import ScriptedEngine
from estep.filters import build_filters
from estep.progress import Silent
from estep.proposals import PPS, STaR
from estep.records import RowLog
from estep.scoring import Parts, Scorer, ScoreText, read_parts

SAMPLING = Sampling(1.0, 1.0, 12)
TEXT = "Evaluation: one two three four five six Score: 3"


class Kept(RowLog):
    """A log in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        return list(self.rows)

    def append(self, row: Any) -> None:
        self.rows.append(dict(row))


def scores(request: ScoreRequest) -> list[float]:
    """With the hint, -0.5 per word, without it -1; the answer costs 0.1 and 2; the end of turn costs nothing."""
    hinted = "score was" in request.messages[-1]["content"]
    words = len(request.text.split())
    return [-0.5 if hinted else -1.0] * (words - 1) + [-0.1 if hinted else -2.0, 0.0]


def test_a_hinted_sample_is_scored_under_both_prompts_and_split_at_its_answer() -> None:
    task = task_of()
    engine, kept = ScriptedEngine({"q0": [TEXT], "q1": [TEXT]}, scores), Kept()
    questions = questions_of(task, "34")  # q1's answer is wrong, so it is not scored
    e_step = EStep(task, PPS(), {}, engine, SAMPLING, Silent(), scorer=Scorer(engine, Silent(), kept))
    found = e_step.run(questions, 7)
    # Eight words before the answer, "Evaluation:" and "Score:" among them; then the answer and the end of turn.
    assert [c.scores is None for c in found.candidates] == [False, True]
    first = found.candidates[0].scores
    assert first is not None
    assert first.policy == Parts(-8.0, -2.0, 8, 2)
    assert first.proposal == Parts(-4.0, pytest.approx(-0.1), 8, 2)
    policy, proposal = engine.scored
    assert policy.messages == task.proposal_prompt(questions[0])
    assert proposal.messages == task.hinted_prompt(questions[0])
    assert [row["id"] for row in kept.rows] == ["policy:q0#0.0", "proposal:q0#0.0"]
    assert [row["rationale"] for row in kept.rows] == [-8.0, -4.0]
    assert read_parts(kept)["policy:q0#0.0"] == first.policy


def test_a_plain_sample_is_its_own_proposal() -> None:
    task = task_of()
    engine = ScriptedEngine({"q0": [TEXT]}, scores)
    e_step = EStep(task, STaR(), {}, engine, SAMPLING, Silent(), scorer=Scorer(engine, Silent()))
    (candidate,) = e_step.run(questions_of(task, "3"), 7).candidates
    assert candidate.scores is not None
    assert candidate.scores.proposal == candidate.scores.policy
    assert len(engine.scored) == 1


def test_finished_scores_are_not_computed_again_and_need_no_engine() -> None:
    kept = Kept()
    texts = [ScoreText(f"t{n}", ({"role": "user", "content": "x"},), "a b", 2) for n in range(3)]
    engine = ScriptedEngine({})
    first = Scorer(engine, Silent(), kept)(texts[:2], "scores")
    again = Scorer(engine, Silent(), kept)(texts, "scores")
    assert [request.id for request in engine.scored] == ["t0", "t1", "t2"]
    assert {id: again[id] for id in first} == first
    assert Scorer(None, Silent(), kept)(texts, "scores") == again
    with pytest.raises(NeverSampledError, match="t9 was never scored"):
        Scorer(None, Silent(), kept)([ScoreText("t9", (), "a", 0)], "scores")


def test_the_weights_of_a_questions_pairs_come_from_its_scores() -> None:
    # Two hinted samples of one question: log-ratios −5.9 and −5.9 − ln 3, for an effective sample size of 1.6 of 2.
    task = task_of()
    other = TEXT.replace("six", "seven")

    def unlike(request: ScoreRequest) -> list[float]:
        found = scores(request)
        if "seven" in request.text and "score was" not in request.messages[-1]["content"]:
            found[0] -= 1.0986122886681098
        return found

    engine = ScriptedEngine({"q0": [TEXT, other]}, unlike)
    filters = build_filters(FilterConfig(weight_by="importance"), task.file.answer, [])
    e_step = EStep(task, PPS(n=2), filters, engine, SAMPLING, Silent(), scorer=Scorer(engine, Silent()))
    found = e_step.run(questions_of(task, "3"), 7)
    assert [pair.weight for pair in found.pairs] == pytest.approx([0.75, 0.25])
