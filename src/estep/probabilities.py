"""How likely the policy finds each allowed answer in the place of its own: π(y | x, ẑ), normalized over them.

After a response is sampled, every allowed answer is scored as a whole behind the response's own rationale and label,
with what ends a response in the task's form, and the end of turn. So an answer needs no place among the most likely
tokens, and may have several of them: after a 1, the end competes with the 0 of a 10. What else a response says behind
its answer is left out. A response that states no answer is continued in the task's form, label included; what reads the
probabilities counts such responses apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from estep.records import Question, Response
from estep.scoring import Parts, ScoreText
from estep.tasks import Task

_MARK, _RATIONALE = "estepMARK", "estepRATIONALE"


def answer_texts(task: Task, question: Question, response: Response) -> list[ScoreText]:
    """What to score of a response: its text up to the answer, followed by each allowed answer."""
    prompt, opening, closing = task.prompt(question), _opening(task, response), _closing(task)
    texts = []
    for answer in task.answers_to(question):
        span = (len(opening), len(opening) + len(answer))
        texts.append(ScoreText(_id(response, answer), prompt, f"{opening}{answer}{closing}", span))
    return texts


def _opening(task: Task, response: Response) -> str:
    """A response's text before its answer; if it states none, the text with the label behind it."""
    text = response.text.strip()
    span = task.answer_span(text) if response.answer is not None else None
    if span is not None:
        return text[: span[0]]
    return task.full_completion(response.rationale, _MARK).partition(_MARK)[0]


def _closing(task: Task) -> str:
    """What ends a response in the task's form behind its answer, such as a bracket; nothing if the rationale does."""
    behind = task.full_completion(_RATIONALE, _MARK).partition(_MARK)[2]
    return "" if _RATIONALE in behind else behind


def with_probabilities(
    task: Task, questions: Mapping[str, Question], responses: Sequence[Response], parts: Mapping[str, Parts]
) -> list[Response]:
    """Responses with the probabilities of all answers that their questions allow.

    Args:
        questions: by id.
        parts: the scores of `answer_texts` by id. A response that lacks one, because the text does not fit the model's
            context, has no probabilities.
    """
    found = []
    for response in responses:
        allowed = task.answers_to(questions[response.question_id])
        scores = {answer: parts.get(_id(response, answer)) for answer in allowed}
        known = {answer: score.answer + score.rest for answer, score in scores.items() if score is not None}
        found.append(replace(response, probabilities=normalized(known) if len(known) == len(scores) else None))
    return found


def normalized(logprobs: Mapping[str, float]) -> dict[str, float]:
    """Probabilities that are proportional to exp(logprobs) and sum to 1.

    >>> normalized({"0": -1000.0, "1": -1000.0})
    {'0': 0.5, '1': 0.5}
    """
    highest = max(logprobs.values())
    weights = {answer: math.exp(value - highest) for answer, value in logprobs.items()}
    whole = math.fsum(weights.values())
    return {answer: weight / whole for answer, weight in weights.items()}


def _id(response: Response, answer: str) -> str:
    return f"answer:{response.draw_id}:{answer}"
