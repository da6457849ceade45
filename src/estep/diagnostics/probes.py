"""Diagnostics from the log-probabilities of plain samples, with the correct answer or another rationale put in.

The samples are drawn at temperature 1, where their distribution is π(z | x) itself: then the mean of π(y* | x, z) over
them estimates π(y* | x) without bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from estep.metrics import mean, standard_error
from estep.records import Question, Response
from estep.scoring import Parts, ScoreText
from estep.tasks import Task

PROBES = 4
"""Samples per validation question: k of the bound on log π(y* | x)."""


def probe_texts(task: Task, questions: Sequence[Question], responses: Sequence[Response]) -> list[ScoreText]:
    """What to score of plain samples z₁ … z₄ of each question: each followed by the correct answer, and the first also
    followed by the answer to the next question that has another one."""
    of: dict[str, list[Response]] = {}
    for response in responses:
        of.setdefault(response.question_id, []).append(response)
    texts = []
    for position, question in enumerate(questions):
        for response in of[question.id]:
            texts += _ending(task, question, response, f"probe:{response.draw_id}")
        others = [*questions[position + 1 :], *questions[:position]]
        other = next((one for one in others if one.answer != question.answer), None)
        if other is not None:
            texts += _ending(task, question, of[other.id][0], f"other:{question.id}")
    return texts


def _ending(task: Task, question: Question, response: Response, id: str) -> list[ScoreText]:
    """A response's rationale, followed by the correct answer to a question; nothing if the task cannot say where the
    answer would stand."""
    text = response.text.strip()
    span = task.answer_span(text)
    if span is not None:
        text, start = text[: span[0]] + question.answer + text[span[1] :], span[0]
    else:
        # A response without an answer is continued in the form that the task asks for. Its label is unlikely there, so
        # it counts as part of the answer.
        text = task.full_completion(response.rationale, question.answer)
        start = text.find(response.rationale) + len(response.rationale)
        if task.answer_span(task.full_completion("", question.answer)) is None:
            return []
    return [ScoreText(id, task.prompt(question), text, start)]


@dataclass(frozen=True)
class ProbeFigures:
    """See the fields of the same names in `estep.metrics.Diagnostics`."""

    log_likelihood: float
    log_likelihood_error: float
    dependence: float
    dependence_error: float


def probe_figures(questions: Sequence[Question], parts: Mapping[str, Parts]) -> ProbeFigures:
    """The figures that come from the scores of `probe_texts`."""
    likelihoods, differences = [], []
    for question in questions:
        own = [parts[id].answer for n in range(PROBES) if (id := f"probe:{question.id}#{n}") in parts]
        if own:
            likelihoods.append(log_mean_exp(own))
        if own and f"other:{question.id}" in parts:
            differences.append(own[0] - parts[f"other:{question.id}"].answer)
    return ProbeFigures(
        log_likelihood=mean(likelihoods),
        log_likelihood_error=standard_error(likelihoods),
        dependence=mean(differences),
        dependence_error=standard_error(differences),
    )


def log_mean_exp(values: Sequence[float]) -> float:
    """log of the mean of exp(values).

    >>> round(log_mean_exp([math.log(0.1), math.log(0.3)]), 6) == round(math.log(0.2), 6)
    True
    """
    highest = max(values)
    return highest + math.log(mean([math.exp(value - highest) for value in values]))
