"""Scores of samples: under which prompts, split where, and kept."""

import math
from typing import Any

import pytest

from conftest import Listen, questions_of, task_of
from estep.config import FilterConfig
from estep.diagnostics.samples import hint_price
from estep.e_step import EStep
from estep.engines import Sampling
from estep.engines.base import NeverSampledError, ScoreRequest
from estep.engines.scripted import ScriptedEngine
from estep.filters import build_filters, correct
from estep.progress import Silent
from estep.proposals import PPS, STaR
from estep.records import RowLog, Score
from estep.scoring import Parts, SampleScores, Scorer, ScoreText, read_parts, split

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
    texts = [ScoreText(f"t{n}", ({"role": "user", "content": "x"},), "a b", (2, 3)) for n in range(3)]
    engine = ScriptedEngine({})
    first = Scorer(engine, Silent(), kept)(texts[:2], "scores")
    again = Scorer(engine, Silent(), kept)(texts, "scores")
    assert [request.id for request in engine.scored] == ["t0", "t1", "t2"]
    assert {id: again[id] for id in first} == first
    assert Scorer(None, Silent(), kept)(texts, "scores") == again
    with pytest.raises(NeverSampledError, match="t9 was never scored"):
        Scorer(None, Silent(), kept)([ScoreText("t9", (), "a", (0, 1))], "scores")


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


def test_of_what_follows_the_answer_only_the_first_token_belongs_to_it() -> None:
    task = task_of()
    text = "Evaluation: one two three four five six Score: 3\nThat is all"

    def costs(request: ScoreRequest) -> list[float]:
        hinted = "score was" in request.messages[-1]["content"]
        return [-1.0] * 8 + [-2.0] + [-4.0 if hinted else -8.0] * 3 + [-0.5]

    engine, kept = ScriptedEngine({"q0": [text]}, costs), Kept()
    e_step = EStep(task, PPS(), {}, engine, SAMPLING, Silent(), scorer=Scorer(engine, Silent(), kept))
    (candidate,) = e_step.run(questions_of(task, "3"), 7).candidates
    assert candidate.scores is not None
    # Eight words, the answer and the word that ends it, two more words and the end of turn.
    assert candidate.scores.policy == Parts(-8.0, -10.0, 8, 2, -16.5, 3)
    assert candidate.scores.policy.total == -34.5
    assert candidate.scores.policy.tokens == 13
    assert [row["rest"] for row in kept.rows] == [-16.5, -8.5]
    assert read_parts(kept)["policy:q0#0.0"] == candidate.scores.policy


def test_the_token_that_ends_the_answer_belongs_to_it() -> None:
    score = Score("x", (-1.0, -2.0, -4.0), (0, 2, 3))
    assert split(score, (2, 3)) == Parts(-1.0, -6.0, 1, 2)
    assert split(score, (0, 2)) == Parts(0.0, -3.0, 0, 2, -4.0, 1)
    assert split(score, (3, 3)) == Parts(-3.0, -4.0, 2, 1)


def test_a_sample_that_does_not_fit_under_one_prompt_counts_as_the_mean_of_its_question() -> None:
    task = task_of()
    texts = [TEXT, TEXT.replace("six", "eight"), TEXT.replace("six", "seven")]

    def unlike(request: ScoreRequest) -> list[float]:
        """The hinted prompt has no room for the second text; the third is a third as likely without the hint."""
        hinted = "score was" in request.messages[-1]["content"]
        if hinted and "eight" in request.text:
            return []
        found = scores(request)
        if "seven" in request.text and not hinted:
            found[0] -= 1.0986122886681098
        return found

    engine, kept, heard = ScriptedEngine({"q0": texts}, unlike), Kept(), Listen()
    filters = build_filters(FilterConfig(weight_by="importance"), task.file.answer, [])
    samples = Kept()
    questions = questions_of(task, "3")
    e_step = EStep(task, PPS(n=3), filters, engine, SAMPLING, heard, scorer=Scorer(engine, heard, kept))
    found = e_step.run(questions, 7, kept=samples)
    assert [c.scores is None for c in found.candidates] == [False, True, False]
    # The two scored ones have two thirds of the weight, and share it 3 to 1.
    assert [pair.weight for pair in found.pairs] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert found.metrics.unscored == 1
    assert heard.lines == [
        "scores: 1 of 6 texts are not scored, because with prompt and end of turn they exceed the model's context (the "
        "first is proposal:q0#1.0)"
    ]
    row = next(row for row in kept.rows if row["id"] == "proposal:q0#1.0")
    assert (row["rationale"], row["answer"], row["rest"], row["logprobs"]) == (None, None, None, [])
    assert "proposal:q0#1.0" not in read_parts(kept)
    # It is not scored again, and no engine is needed.
    again = EStep(task, PPS(n=3), filters, None, SAMPLING, heard, scorer=Scorer(None, heard, kept))
    assert again.run(questions, 7, kept=samples) == found
    assert len(heard.lines) == 1


def test_nothing_is_unscored_where_nothing_is_scored() -> None:
    task = task_of()
    found = EStep(task, PPS(), {}, ScriptedEngine({"q0": [TEXT]}), SAMPLING, Silent()).run(questions_of(task, "3"), 7)
    assert found.metrics.unscored == 0


@pytest.mark.parametrize("answer", ["3", "1"])
def test_a_served_models_samples_are_scored_under_the_prompt_that_is_trained_alone(answer: str) -> None:
    # STaR draws plainly, and with the hint after a wrong answer.
    task = task_of(few_shot="first")
    engine = ScriptedEngine({"q0": [TEXT.replace("3", answer), TEXT]}, scores)
    scorer = Scorer(engine, Silent())
    e_step = EStep(task, STaR(), {"correct": correct}, engine, SAMPLING, Silent(), scorer=scorer, served=True)
    found = e_step.run(questions_of(task, "3"), 7)
    (candidate,), (pair,), (request,) = found.candidates, found.pairs, engine.scored
    assert candidate.verdict.hinted == (answer == "1")
    assert request.messages == pair.prompt != engine.asked[0].messages
    assert candidate.scores == SampleScores(Parts(-8.0, -2.0, 8, 2), None)
    assert math.isnan(hint_price(found.candidates))
    assert found.metrics.unscored == 0
