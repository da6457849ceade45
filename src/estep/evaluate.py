"""Asking the policy held-out questions, always with the plain prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from estep.config import EvaluationConfig
from estep.engines import DrawQueue, Engine, Sampling
from estep.metrics import Prediction
from estep.progress import Reporter
from estep.records import Draw, Question, Sample, derive_seed
from estep.tasks import Task


def evaluation_draws(task: Task, questions: Sequence[Question], samples: int, seed: int) -> list[Draw]:
    """What the policy is asked: every question `samples` times, with no hint."""
    return [
        Draw(
            id=f"{question.id}#{index}",
            question_id=question.id,
            index=index,
            round=0,
            proposal="evaluation",
            hinted=False,
            messages=task.prompt(question),
            seed=derive_seed(seed, "evaluation", question.id, index),
        )
        for question in questions
        for index in range(samples)
    ]


def judged(task: Task, question: Question, draw: Draw, sample: Sample) -> dict[str, Any]:
    """A line of `eval.jsonl`: the response and its verdict."""
    verdict = task.judge(question, sample.text)
    return {
        "draw_id": draw.id,
        "question_id": question.id,
        "index": draw.index,
        "gold": question.answer,
        "answer": verdict.answer,
        "status": verdict.status,
        "rationale": verdict.rationale,
        "text": sample.text,
        "hint_mentioned": verdict.hint_mentioned,
        "finish_reason": sample.finish_reason,
        "prompt_tokens": sample.prompt_tokens,
        "completion_tokens": sample.completion_tokens,
        "logprob": sample.logprob,
    }


def prediction(row: dict[str, Any]) -> Prediction:
    """The judged response that a line of `eval.jsonl` holds."""
    return Prediction(**{key: row[key] for key in Prediction._fields})


def ask(
    task: Task,
    questions: Sequence[Question],
    engine: Engine,
    config: EvaluationConfig,
    max_new_tokens: int,
    seed: int,
    reporter: Reporter,
    done: Sequence[dict[str, Any]] = (),
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
    title: str = "evaluation",
) -> list[dict[str, Any]]:
    """The judged responses to all questions, in the order of the questions.

    Args:
        done: lines that an interrupted run had finished.
        keep: called with each new line as it finishes.
    """
    draws = evaluation_draws(task, questions, config.samples, seed)
    by_id = {question.id: question for question in questions}
    draw_of = {draw.id: draw for draw in draws}
    finished = {row["draw_id"]: Sample(**{name.name: row[name.name] for name in fields(Sample)}) for row in done}
    rows: dict[str, dict[str, Any]] = {}
    sampling = Sampling(config.temperature, 1.0, max_new_tokens)
    with reporter.phase(title, len(draws), "texts", len(finished)) as advance:
        for sample in engine.generate(DrawQueue(draws, finished), sampling):
            draw = draw_of[sample.draw_id]
            row = rows[draw.id] = judged(task, by_id[draw.question_id], draw, sample)
            if draw.id not in finished:
                keep(row)
                advance()
    return [rows[draw.id] for draw in draws]


def responses(rows: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
    """The judged responses of many lines."""
    return (prediction(row) for row in rows)
