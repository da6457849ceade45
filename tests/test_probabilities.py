"""Probabilities of answers: what is scored, how they are normalized and kept, and what is made of them."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import task_of, write_task
from estep.config import EvaluationConfig, TransformersEngineConfig
from estep.config.files import validate
from estep.data.prepare import fit_to_task
from estep.engines.base import ScoreRequest
from estep.engines.scripted import ScriptedEngine
from estep.engines.transformers import TransformersEngine
from estep.errors import ConfigError
from estep.evaluate import Evaluator, evaluation_draws, graded
from estep.inference import evaluate_model, predict
from estep.metrics import Confidence, by_probability, calibration_error, confidence, evaluate_responses, voted
from estep.probabilities import answer_texts, normalized, with_probabilities
from estep.progress import Silent
from estep.records import ModelRef, Question, Response, Sample
from estep.store.run import IterationStore, RunStore
from estep.tasks import Task, load_task
from runs import KillAfter, Killed, Scored, contents, options, right_when_hinted, run, scripted_run, settings
from test_scoring import Kept

STATED = "Evaluation: It is so. Score: 3, and that is final."
WITH = {"probabilities": True}
GIVEN = {"0": 0.1, "1": 0.2, "2": 0.0, "3": 0.3, "4": 0.4}


def likely(request: ScoreRequest) -> list[float]:
    """A score n has the log-probability -n, another word -5, and the end of turn -0.5."""
    words = request.text.split()
    return [-5.0] * (len(words) - 1) + [-float(words[-1]), -0.5]


def graded_response(text: str, gold: int = 3, **changes: Any) -> tuple[Task, Question, Response]:
    task = task_of(**changes)
    question = task.question({"text": "a text"}, gold, "q0")
    engine = ScriptedEngine({"q0": [text]}, likely)
    found = Evaluator(task, engine, EvaluationConfig(), 12, Silent()).run([question], 7)
    return task, question, found[0]


# What is scored


def test_every_answer_takes_the_place_of_the_stated_one_and_ends_the_response() -> None:
    task, question, response = graded_response(STATED)
    texts = answer_texts(task, question, response)
    assert [text.request.text for text in texts] == [f"Evaluation: It is so. Score: {n}" for n in range(5)]
    assert all(text.request.messages == task.prompt(question) for text in texts)
    assert [text.request.text[slice(*text.answer)] for text in texts] == list("01234")
    assert len({text.request.id for text in texts}) == 5


@pytest.mark.parametrize("text", ["It is so", "Evaluation: It is so"])
def test_a_response_without_an_answer_is_continued_in_the_form_of_the_task(text: str) -> None:
    task, question, response = graded_response(text)
    assert response.answer is None
    assert answer_texts(task, question, response)[4].request.text == "Evaluation: It is so Score: 4"


def test_what_ends_the_form_of_an_answer_is_scored_with_it() -> None:
    task, question, response = graded_response(
        "Evaluation: So. (Score: 3)", completion="Evaluation: {{ rationale }} (Score: {{ answer }})"
    )
    assert answer_texts(task, question, response)[1].request.text == "Evaluation: So. (Score: 1)"


def test_a_rationale_behind_the_answer_is_left_out() -> None:
    form = "Score: {{ answer }}. Evaluation: {{ rationale }}"
    task, question, response = graded_response("Score: 3. Evaluation: It is so.", completion=form)
    assert answer_texts(task, question, response)[1].request.text == "Score: 1"


def test_probabilities_are_those_of_the_answers_and_what_ends_them() -> None:
    task, question, response = graded_response(STATED)
    engine = ScriptedEngine({}, likely)
    evaluator = Evaluator(task, engine, EvaluationConfig(**WITH), 12, Silent())
    (found,) = evaluator.with_probabilities([question], [response], "t")
    # In proportion to exp(-n); the words before and the end of turn are the same for all.
    whole = sum(math.exp(-n) for n in range(5))
    assert found.probabilities == pytest.approx({str(n): math.exp(-n) / whole for n in range(5)})
    assert replace(found, probabilities=None) == response
    assert Evaluator(task, engine, EvaluationConfig(), 12, Silent()).with_probabilities(
        [question], [response], "t"
    ) == [response]


def test_very_unlikely_answers_have_probabilities_all_the_same() -> None:
    assert normalized({"a": -2000.0, "b": -2000.0 + math.log(3)}) == pytest.approx({"a": 0.25, "b": 0.75})


def test_a_response_that_does_not_fit_has_no_probabilities() -> None:
    task, question, response = graded_response(STATED)
    engine = ScriptedEngine({}, lambda request: [] if request.text.endswith("4") else likely(request))
    evaluator = Evaluator(task, engine, EvaluationConfig(**WITH), 12, Silent())
    (found,) = evaluator.with_probabilities([question], [response], "t")
    assert found.probabilities is None
    assert with_probabilities(task, {question.id: question}, [response], {}) == [response]


def test_only_the_options_of_a_question_have_probabilities() -> None:
    task = load_task("arc/challenge")
    row = {"question": "Which?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}}
    question = task.question(row, answer="B", id="q0")
    assert task.answers == tuple("ABCDE")
    draw = evaluation_draws(task, [question], 1, 0)[0]
    response = graded(task, question, draw, Sample(draw.id, "Answer: E", "stop", 1, 1, None))
    engine = ScriptedEngine({}, lambda request: [-1.0, -1.0, 0.0])
    evaluator = Evaluator(task, engine, EvaluationConfig(**WITH), 12, Silent())
    (found,) = evaluator.with_probabilities([question], [response], "t")
    assert found.probabilities == pytest.approx(dict.fromkeys("ABC", 1 / 3))
    assert response.answer == "E"
    assert confidence(found) == (0.0, False)


def test_scores_are_kept_without_the_rationale_and_not_computed_again() -> None:
    task, question, response = graded_response(STATED)
    kept, engine = Kept(), ScriptedEngine({}, likely)
    evaluator = Evaluator(task, engine, EvaluationConfig(**WITH), 12, Silent())
    first = evaluator.with_probabilities([question], [response], "t", kept)
    assert [row["logprobs"] for row in kept.rows] == [[-float(n), -0.5] for n in range(5)]
    assert {row["rationale"] for row in kept.rows} == {None}
    kept.rows = kept.rows[:3]
    assert evaluator.with_probabilities([question], [response], "t", kept) == first
    assert [request.id for request in engine.scored[5:]] == ["answer:q0#0:3", "answer:q0#0:4"]


def test_answers_of_several_tokens_are_scored_as_a_whole(tiny_model: str) -> None:
    answer = {"type": "integer", "min": 8, "max": 11, "label": "Score"}
    task, question, response = graded_response("Evaluation: So it is. Score: 10", 9, answer=answer, examples=[])
    engine = TransformersEngine(TransformersEngineConfig(batch_size=2, dtype="float32", device="cpu"))
    engine.load(ModelRef(tiny_model))
    try:
        evaluator = Evaluator(task, engine, EvaluationConfig(**WITH), 12, Silent())
        (found,) = evaluator.with_probabilities([question], [response], "t")
        # The model's tokens are bytes, so 10 and 11 have two. Whole texts share all that precedes the answer.
        whole = {n: engine.score(task.prompt(question), f"Evaluation: So it is. Score: {n}") for n in range(8, 12)}
    finally:
        engine.close()
    highest = max(whole.values())
    total = sum(math.exp(value - highest) for value in whole.values())
    assert found.probabilities == pytest.approx(
        {str(n): math.exp(value - highest) / total for n, value in whole.items()}, abs=1e-4
    )


# Settings


@pytest.mark.parametrize(
    ("task", "engine", "words"),
    [
        (
            {"answer": {"type": "number", "label": "Score"}, "examples": []},
            {},
            r"a fixed set of answers \(integer or choice\); task judge has number",
        ),
        (
            {},
            {"type": "openai", "base_url": "http://localhost:1/v1", "api_key_env": None},
            "engine.type=openai samples from a server",
        ),
    ],
)
def test_what_has_no_probabilities_is_refused(task: dict[str, Any], engine: dict[str, Any], words: str) -> None:
    config = validate({"task": "judge", "model": "m", "evaluation": WITH, "engine": engine})
    with pytest.raises(ConfigError, match=words):
        fit_to_task(config, task_of(**task))


# What is made of them


def response(
    answer: str | None, probabilities: Mapping[str, float] | None, gold: str = "3", question: str = "q"
) -> Response:
    status: Any = "unparseable" if answer is None else "correct" if answer == gold else "wrong"
    given = None if probabilities is None else dict(probabilities)
    return Response(f"{question}#0", question, 0, gold, answer, status, "why", "t", False, "stop", 1, 1, None, given)


def test_votes_have_the_mean_probabilities_of_all_samples() -> None:
    sure = {"0": 0.0, "3": 1.0}
    unsure = {"0": 0.5, "3": 0.5}
    samples = [
        response("0", unsure),
        response("3", sure),
        response("3", unsure),
        response(None, sure),
        response("0", None),
    ]
    for vote in ("majority", "median"):
        (found,) = voted(samples[:4], vote)  # type: ignore[arg-type]
        assert (found.answer, found.probabilities) == ("3", {"0": 0.25, "3": 0.75})
    assert voted([samples[4]], "majority") == [samples[4]]
    assert voted(samples, "none") == samples


def test_expected_scores_and_calibration_are_measured() -> None:
    found = evaluate_responses(
        [
            response("4", GIVEN, question="a"),
            response("3", {"3": 0.65, "0": 0.35}, question="b"),
            response(None, GIVEN, question="c"),
            response("1", None, question="d"),
        ],
        "01234",
        ordinal=True,
    )
    # Expected: 0.2 + 0.9 + 1.6 = 2.7 and 1.95, so errors of 0.3 and 1.05; the last two state no score or have none.
    assert found.expected_mae == pytest.approx((0.3 + 1.05) / 2)
    # In the bins of 0.4 (wrong) and 0.65 (right).
    assert found.calibration_error == pytest.approx((0.4 + 0.35) / 2)
    without = evaluate_responses([response("1", None)], "01234", ordinal=True)
    assert math.isnan(without.expected_mae)
    assert math.isnan(without.calibration_error)


def test_bins_are_of_equal_width() -> None:
    shares = [0.0, 0.09, 0.1, 0.55, 0.99, 1.0]
    bins = by_probability([Confidence(share, True) for share in shares])
    assert [len(of_bin) for of_bin in bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    # 0.8 and 0.85 share a bin: their mean is 0.825, and half are right.
    both = [Confidence(0.8, True), Confidence(0.85, False), Confidence(0.3, False), Confidence(0.3, False)]
    assert calibration_error(both) == pytest.approx((2 * 0.325 + 2 * 0.3) / 4)


# Commands and runs


def test_a_run_keeps_the_probabilities_with_its_responses(tmp_path: Path) -> None:
    engine = Scored(right_when_hinted, likely)
    result = scripted_run(tmp_path, engine, evaluation=WITH)
    responses = RunStore(tmp_path / "run").iteration(1).responses()
    assert all(
        one.probabilities is not None and sum(one.probabilities.values()) == pytest.approx(1) for one in responses
    )
    assert result.last.evaluation.expected_mae > 0
    for k in range(3):
        rows = (tmp_path / f"run/iteration-0{k}/eval_scores.jsonl").read_text().splitlines()
        assert len(rows) == 4 * 5
    plain = scripted_run(tmp_path, engine, run_dir=str(tmp_path / "plain"))
    assert math.isnan(plain.last.evaluation.expected_mae)
    assert not list((tmp_path / "plain").rglob("eval_scores.jsonl"))


def test_responses_of_earlier_versions_are_read(tmp_path: Path) -> None:
    scripted_run(tmp_path, Scored(right_when_hinted))
    path = tmp_path / "run/iteration-01/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "probabilities"}) + "\n" for row in rows))
    assert RunStore(tmp_path / "run").iteration(1).responses()[0].probabilities is None


# Per evaluation, 4 responses and then 5 scores of each.
@pytest.mark.slow
def test_a_run_that_is_killed_between_responses_and_scores_resumes(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    task = write_task(tmp_path)
    changes = {"iterations": 1, "train_size": 3, "evaluation": WITH}
    run(tiny_model, task, settings(tmp_path / "whole", **changes))
    for pieces in (2, 4, 11, 23):
        folder = tmp_path / f"killed-{pieces}"
        with pytest.raises(Killed):
            run(tiny_model, task, settings(folder, **changes), KillAfter(pieces))
        run(tiny_model, task, settings(folder, **changes))
        assert contents(folder) == contents(tmp_path / "whole")
    responses = RunStore(tmp_path / "whole").iteration(0).responses()
    assert all(one.probabilities is not None for one in responses)
    # Killed when eval.jsonl has been replaced, and the iteration is not committed.
    folder = tmp_path / "uncommitted"
    with monkeypatch.context() as patched:
        patched.setattr(IterationStore, "commit", killed)
        with pytest.raises(Killed):
            run(tiny_model, task, settings(folder, **changes))
    assert RunStore(folder).iteration(0).responses()[0].probabilities is not None
    assert not RunStore(folder).committed()
    run(tiny_model, task, settings(folder, **changes))
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[Path, tuple[str, ...], Path]:
    """A task, the options of a scripted engine whose answers are all alike, and a model's folder."""
    task = write_task(tmp_path)
    script = tmp_path / "script.json"
    said = {f"r{n}": ["Evaluation: So. Score: 3"] for n in range(12)}
    script.write_text(json.dumps({**said, "row-1": ["Evaluation: So. Score: 3"], "row-2": ["No idea"]}))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    return task, ("engine.type=scripted", f"engine.script={script}", "evaluation.probabilities=true"), tmp_path / "base"


def test_eval_measures_expected_scores(scripted: tuple[Path, tuple[str, ...], Path]) -> None:
    task, overrides, model = scripted
    evaluation, responses = evaluate_model(options(task, model, *overrides, "test_size=5"), Silent())
    # Every word has the same log-probability, so every answer has the probability 0.2, and 2 is expected.
    assert {tuple((one.probabilities or {}).values()) for one in responses} == {(0.2,) * 5}
    errors = [abs(int(one.gold) - 2) for one in responses]
    assert evaluation.expected_mae == pytest.approx(sum(errors) / 5)


@pytest.mark.parametrize(
    "several", [(), ("evaluation.samples=3", "evaluation.temperature=1", "evaluation.vote=majority")]
)
def test_predict_adds_the_probability_and_the_expected_score(
    several: tuple[str, ...], scripted: tuple[Path, tuple[str, ...], Path], tmp_path: Path
) -> None:
    task, overrides, model = scripted
    rows = tmp_path / "new.jsonl"
    rows.write_text('{"text": "one"}\n{"text": "two"}\n')
    found = predict(options(task, model, *overrides, *several), rows, "stop", Silent())
    assert [(row["prediction"], row["probability"], row["expected_score"]) for row in found.rows] == [
        (3, 0.2, 2.0),
        (None, None, 2.0),
    ]
    found = predict(options(task, model, *overrides[:2]), rows, "stop", Silent())
    assert "probability" not in found.rows[0]
