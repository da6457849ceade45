"""Fits settings to the task, and questions to the model, before a run or command starts."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from estep.config import RunConfig, hint_variant, served_model
from estep.data.split import LogLine
from estep.engines import Engine
from estep.errors import ConfigError, DataError
from estep.filters import check_filters
from estep.models.registry import HUB_MODELS, by_id
from estep.records import Messages, Question
from estep.tasks import Task, load_task
from estep.tasks.answers import PythonAnswer


def fit_to_task(config: RunConfig, task: Task) -> RunConfig:
    """The configuration with the defaults of the task and of a known model filled in.

    Raises:
        ConfigError: a setting does not fit the task or the kind of its answers.
    """
    if config.evaluation.vote == "median" and not task.ordinal:
        raise ConfigError(f"evaluation.vote=median needs integer answers; task {task.name} has {task.file.answer.type}")
    if config.evaluation.probabilities:
        if not task.answers:
            raise ConfigError(
                "evaluation.probabilities needs a fixed set of answers (integer or choice); task "
                f"{task.name} has {task.file.answer.type}"
            )
        if config.engine.type == "openai":
            raise ConfigError(
                "evaluation.probabilities: engine.type=openai samples from a server, which scores no texts"
            )
    if config.m_step.answer_weight != 1.0 and isinstance(task.file.answer, PythonAnswer):
        raise ConfigError(
            f"m_step.answer_weight: the verifier of task {task.name} does not report the position of the answer"
        )
    check_filters(config.filters, task.file.answer)
    proposer = served_model(config.proposal)
    reshaped = config.engine.temperature not in (0, 1) or config.engine.top_p < 1
    if config.filters.rank_by == "logprob" and proposer is not None and (reshaped or not proposer.logprobs):
        raise ConfigError(
            "filters.rank_by=logprob: a server reports log-probabilities only at temperature 0 or 1, without top_p, "
            "and with logprobs on"
        )
    if getattr(config.engine, "structured", False):
        if task.file.answer.regex is None:
            raise ConfigError(f"engine.structured needs answers of a known form; task {task.name} has its own verifier")
        if proposer is not None:
            raise ConfigError("engine.structured constrains the policy's samples; proposal.model samples from a server")
    defaults: dict[str, Any] = {"max_new_tokens": task.file.max_new_tokens}
    known = HUB_MODELS.get(config.model) or by_id(config.model)
    if known is not None and hasattr(config.engine, "max_model_len"):
        defaults["max_model_len"] = known.context
    missing = {key: value for key, value in defaults.items() if getattr(config.engine, key) is None}
    return config.model_copy(update={"engine": config.engine.model_copy(update=missing)})


Prompt = Callable[[Question], Messages]
"""One of a task's prompts: `Task.prompt`, `Task.proposal_prompt` or `Task.hinted_prompt`."""


def within_context(
    engine: Engine, questions: list[Question], prompts: Sequence[Prompt], config: RunConfig, split: str, log: LogLine
) -> list[Question]:
    """The questions whose prompts leave room for a response in the model's context, with spaces inserted
    into control tokens in their texts.

    Args:
        prompts: all kinds of prompts that the questions will be asked with.
        split: the name of this set of questions, for messages.

    Raises:
        DataError: a question does not fit and `on_overlength` is `stop`, or no question fits.
    """
    questions = without_control_tokens(questions, engine.control_tokens, log)
    if engine.context is None:
        return questions
    room = engine.context - config.max_new_tokens
    lengths = [engine.prompt_lengths([prompt(question) for question in questions]) for prompt in prompts]
    fits = [max(of_question) <= room for of_question in zip(*lengths, strict=True)]
    kept = [question for question, fit in zip(questions, fits, strict=True) if fit]
    if len(kept) == len(questions):
        return kept
    message = (
        f"{len(questions) - len(kept)} of {len(questions)} {split} questions do not fit the model's context of "
        f"{engine.context} tokens with {config.max_new_tokens} new tokens; the first: {questions[fits.index(False)].id}"
    )
    if config.on_overlength == "stop" or not kept:
        raise DataError(message + ("; on_overlength=skip leaves them out" if kept else ""))
    log(f"left out: {message}")
    return kept


def open_task(config: RunConfig) -> tuple[Task, RunConfig]:
    """The task that a configuration names, and the configuration with the task's defaults filled in."""
    task = load_task(config.task, hint_variant(config.proposal), config.few_shot)
    return task, fit_to_task(config, task)


def announce(task: Task, log: LogLine) -> None:
    """Log a task's notices before it is used, such as which functions it runs."""
    for line in task.notices:
        log(line)


def without_control_tokens(questions: Sequence[Question], tokens: Collection[str], log: LogLine) -> list[Question]:
    """Questions with a space inserted into each control token of the model that their texts contain.

    Args:
        tokens: texts that the model's tokenizer reads as control tokens.
        log: receives the number of questions that contained one.
    """
    if not tokens:
        return list(questions)
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    changed = 0
    harmless = []
    for question in questions:
        broken = replace(
            question,
            fields=_broken(question.fields, pattern),
            answer=_broken(question.answer, pattern),
            solution=_broken(question.solution, pattern),
        )
        changed += broken != question
        harmless.append(broken)
    if changed:
        log(f"{changed} questions contain control tokens of the model; a space is inserted into each: < |...")
    return harmless


def _broken(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda token: f"{token[0][0]} {token[0][1:]}", value)
    if isinstance(value, dict):
        return {key: _broken(inner, pattern) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(inner, pattern) for inner in value]
    return value
