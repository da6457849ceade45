"""Diagnostics from the log-probabilities of plain samples, with the correct answer or another rationale put in.

The samples are drawn at temperature 1, where their distribution is π(z | x) itself: then the mean of π(y* | x, z) over
them estimates π(y* | x) without bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from estep.config import EvaluationConfig
from estep.engines import Engine
from estep.evaluate import Evaluator
from estep.metrics import mean, standard_error
from estep.progress import Reporter
from estep.records import NO_LOG, Question, Response, RowLog
from estep.scoring import Parts, Scorer, ScoreText, Span
from estep.tasks import Task

PROBES = 4
"""Samples per validation question: k of the bound on log π(y* | x)."""
_MARK = "estepMARK"


@dataclass(frozen=True)
class Probe:
    """Asks the policy questions several times at temperature 1, and scores what it would answer.

    Args:
        engine: holds the policy.
        max_new_tokens: of a sample.
    """

    task: Task
    engine: Engine
    max_new_tokens: int
    reporter: Reporter

    def __call__(
        self, questions: Sequence[Question], seed: int, samples: RowLog = NO_LOG, scores: RowLog = NO_LOG
    ) -> "ProbeFigures":
        """The figures of the questions.

        Args:
            samples: stores each sample as it finishes; those in it are not drawn again.
            scores: the same for scores.
        """
        sampled = EvaluationConfig(temperature=1.0, samples=PROBES)
        evaluator = Evaluator(self.task, self.engine, sampled, self.max_new_tokens, self.reporter)
        responses = evaluator.run(questions, seed, "probe", samples)
        texts = probe_texts(self.task, questions, responses)
        parts = Scorer(self.engine, self.reporter, scores)(texts, "probe scores")
        return replace(probe_figures(questions, parts), unscored_probes=len(texts) - len(parts))


def probe_texts(task: Task, questions: Sequence[Question], responses: Sequence[Response]) -> list[ScoreText]:
    """What to score of plain samples z₁ … z₄ of each question: each followed by the correct answer; and beside the
    first that states an answer, the rationale of such a sample of the next question that has another one, followed by
    the same answer."""
    of: dict[str, list[Response]] = {}
    for response in responses:
        of.setdefault(response.question_id, []).append(response)
    answered = {id: next((r for r in of[id] if task.answer_span(r.text.strip())), None) for id in of}
    texts = []
    for position, question in enumerate(questions):
        for response in of[question.id]:
            texts += _ending(task, question, response, f"probe:{response.draw_id}")
        own, others = answered[question.id], [*questions[position + 1 :], *questions[:position]]
        swapped = (answered[other.id] for other in others if other.answer != question.answer)
        other = next((response for response in swapped if response is not None), None)
        if own is not None and other is not None:
            texts += _ending(task, question, other, f"other:{own.draw_id}")
    return texts


def _ending(task: Task, question: Question, response: Response, id: str) -> list[ScoreText]:
    """A response's rationale, followed by the correct answer to a question; nothing if the task cannot say where the
    answer would stand."""
    text, answer = response.text.strip(), question.answer
    span = task.answer_span(text)
    if span is not None:
        text, span = text[: span[0]] + answer + text[span[1] :], (span[0], span[0] + len(answer))
    elif task.answer_span(task.full_completion("", answer)) is not None:
        text, span = _continued(task, response.rationale, answer)
    else:
        return []
    return [ScoreText(id, task.prompt(question), text, span)]


def _continued(task: Task, rationale: str, answer: str) -> tuple[str, Span]:
    """A response without an answer, continued in the form that the task asks for, and where its answer stands. The
    label is unlikely there, so it counts as part of the answer."""
    text = task.full_completion(rationale, answer)
    start = task.full_completion(rationale + _MARK, answer).find(_MARK)
    rest = task.full_completion(rationale, answer + _MARK).rpartition(_MARK)[2]
    return text, (max(0, start), len(text) - len(rest))


@dataclass(frozen=True)
class ProbeFigures:
    """See the fields of the same names in `estep.metrics.Diagnostics`."""

    log_likelihood: float
    log_likelihood_error: float
    dependence: float
    dependence_error: float
    unscored_probes: int = 0


def probe_figures(questions: Sequence[Question], parts: Mapping[str, Parts]) -> ProbeFigures:
    """The figures that come from the scores of `probe_texts`. Texts without scores are left out."""
    likelihoods, differences = [], []
    for question in questions:
        draws = [id for n in range(PROBES) if f"probe:{(id := f'{question.id}#{n}')}" in parts]
        if draws:
            likelihoods.append(log_mean_exp([parts[f"probe:{id}"].answer for id in draws]))
        differences += [
            parts[f"probe:{id}"].answer - parts[f"other:{id}"].answer for id in draws if f"other:{id}" in parts
        ]
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
