"""Probes: which texts are scored, and what the scores say."""

import math

import pytest

from conftest import questions_of, task_of
from estep.config import EvaluationConfig
from estep.diagnostics.probes import log_mean_exp, probe_figures, probe_texts
from estep.engines.scripted import ScriptedEngine
from estep.evaluate import Evaluator
from estep.metrics import standard_error
from estep.progress import Silent
from estep.records import Question, Response
from estep.scoring import Parts, ScoreText

TASK = task_of()


def responses(questions: list[Question], texts: dict[str, list[str]]) -> list[Response]:
    evaluator = Evaluator(TASK, ScriptedEngine(texts), EvaluationConfig(temperature=1.0, samples=4), 12, Silent())
    return evaluator.run(questions, 0)


def test_each_sample_is_followed_by_the_correct_answer_and_the_first_by_that_of_another_question() -> None:
    questions = questions_of(TASK, "331")
    said = {
        "q0": ["Evaluation: fine. Score: 3", "Evaluation: poor. Score: 0", "well", ""],
        "q1": ["Evaluation: so so. Score: 2"],
        "q2": ["Evaluation: bad. Score: 1"],
    }
    texts = {text.request.id: text for text in probe_texts(TASK, questions, responses(questions, said))}
    # A stated answer is replaced; a response without one is continued in the form that the task asks for, and its label
    # then belongs to the answer.
    assert [texts[f"probe:q0#{n}"].request.text for n in range(4)] == [
        "Evaluation: fine. Score: 3",
        "Evaluation: poor. Score: 3",
        "Evaluation: well Score: 3",
        "Evaluation:  Score: 3",
    ]
    assert [answer_of(texts[f"probe:q0#{n}"]) for n in range(4)] == ["3", "3", " Score: 3", " Score: 3"]
    # q0 and q1 have the answer 3, so q2's rationale goes with that answer, and theirs with the answer to q2.
    assert texts["other:q0#0"].request.text == "Evaluation: bad. Score: 3"
    assert texts["other:q1#0"].request.text == "Evaluation: bad. Score: 3"
    assert texts["other:q2#0"].request.text == "Evaluation: fine. Score: 1"
    assert texts["other:q2#0"].request.messages == TASK.prompt(questions[2])
    assert len(texts) == 3 * 5


def answer_of(text: ScoreText) -> str:
    start, end = text.answer
    return text.request.text[start:end]


def test_only_samples_with_answers_are_compared() -> None:
    # q0's first answer is in its second sample, q1 has none, q2's is in its third.
    questions = questions_of(TASK, "312")
    said = {
        "q0": ["no answer", "Evaluation: fine. Score: 0", "Evaluation: good. Score: 3"],
        "q1": ["no answer"],
        "q2": ["no answer", "none", "Evaluation: bad. Score: 2"],
    }
    texts = {text.request.id: text for text in probe_texts(TASK, questions, responses(questions, said))}
    others = {id: text.request.text for id, text in texts.items() if id.startswith("other:")}
    assert others == {"other:q0#1": "Evaluation: bad. Score: 3", "other:q2#2": "Evaluation: fine. Score: 2"}


def test_what_follows_an_answer_stays_and_is_no_part_of_it() -> None:
    questions = questions_of(TASK, "3")
    said = {"q0": ["Evaluation: fine. Score: 0\nThat is all"]}
    (first, *_) = probe_texts(TASK, questions, responses(questions, said))
    assert first.request.text == "Evaluation: fine. Score: 3\nThat is all"
    assert answer_of(first) == "3"


@pytest.mark.parametrize(
    ("completion", "rationale", "text", "answer"),
    [
        # A rationale that also occurs in the words around it.
        ("Evaluation: {{ rationale }} Score: {{ answer }}", "a", "Evaluation: a Score: 3", " Score: 3"),
        ("Evaluation: {{ rationale }} Score: {{ answer }}", "", "Evaluation:  Score: 3", " Score: 3"),
        ("{{ rationale }}\nScore: {{ answer }}", "", "Score: 3", "Score: 3"),
        ("{{ rationale }}\nScore: {{ answer }}\n(end)", "e", "e\nScore: 3\n(end)", "\nScore: 3"),
        ("{% if rationale %}{{ rationale }} {% endif %}Score: {{ answer }}", "", "Score: 3", "Score: 3"),
        # A task without rationales, and one that states the answer twice.
        ("Score: {{ answer }}", "a", "Score: 3", "Score: 3"),
        ("{{ rationale }} So it is {{ answer }}. Score: {{ answer }}.", "a", "a So it is 3. Score: 3.", None),
    ],
)
def test_a_response_without_an_answer_is_continued(
    completion: str, rationale: str, text: str, answer: str | None
) -> None:
    task = task_of(completion=completion)
    questions = questions_of(task, "3")
    (first, *_) = probe_texts(task, questions, responses(questions, {"q0": [rationale]}))
    assert first.request.text == text
    assert answer_of(first) == (answer or " So it is 3. Score: 3")


def test_the_likelihood_is_the_mean_over_questions_of_the_log_of_the_mean() -> None:
    # s(z) of q0: 0.2, 0.4, 0.6, 0.8, mean 0.5; of q1: 0.1 four times. Means of log 0.5 and log 0.1.
    questions = questions_of(TASK, "31")
    parts = {f"probe:q0#{n}": Parts(0.0, math.log(p), 1, 1) for n, p in enumerate((0.2, 0.4, 0.6, 0.8))}
    parts |= {f"probe:q1#{n}": Parts(0.0, math.log(0.1), 1, 1) for n in range(4)}
    parts |= {"other:q0#0": Parts(0.0, math.log(0.1), 1, 1), "other:q1#2": Parts(0.0, math.log(0.05), 1, 1)}
    found = probe_figures(questions, parts)
    assert found.log_likelihood == pytest.approx((math.log(0.5) + math.log(0.1)) / 2)
    # Differences: log 0.2 − log 0.1 and log 0.1 − log 0.05, both log 2.
    assert found.dependence == pytest.approx(math.log(2))
    assert found.dependence_error == pytest.approx(0)


def test_a_text_without_a_score_is_left_out() -> None:
    # The mean is that of the samples that were scored, and a comparison needs both of its texts.
    questions = questions_of(TASK, "312")
    parts = {f"probe:q0#{n}": Parts(0.0, math.log(p), 1, 1) for n, p in ((1, 0.2), (3, 0.4))}
    parts |= {"probe:q1#0": Parts(0.0, math.log(0.1), 1, 1)}
    parts |= {"other:q0#0": Parts(0.0, math.log(0.1), 1, 1), "other:q1#0": Parts(0.0, math.log(0.05), 1, 1)}
    found = probe_figures(questions, parts)
    assert found.log_likelihood == pytest.approx((math.log(0.3) + math.log(0.1)) / 2)
    assert found.dependence == pytest.approx(math.log(2))


def test_a_task_with_its_own_verifier_cannot_be_probed() -> None:
    task = task_of(answer={"type": "python", "function": "verifiers:any_text"})
    questions = questions_of(task, "31")
    assert probe_texts(task, questions, responses(questions, {"q0": ["a"], "q1": ["b"]})) == []
    assert math.isnan(probe_figures(questions, {}).log_likelihood)


def test_log_mean_exp_survives_small_probabilities() -> None:
    assert log_mean_exp([-2000.0, -2000.0]) == -2000.0


def test_the_standard_error_is_that_of_the_mean() -> None:
    # Values 1 and 3: standard deviation √2, over √2.
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert math.isnan(standard_error([1.0]))
