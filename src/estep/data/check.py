"""Checks of a task before anything is sampled, for `estep check`."""

from collections import Counter
from dataclasses import dataclass
from statistics import median

from estep.data.split import Pool, duplicates_across
from estep.models.loading import Chat
from estep.records import Messages, Question
from estep.tasks.base import Task

_PROBE_RATIONALE = "This is a rationale."


@dataclass(frozen=True)
class Lengths:
    """Prompt lengths in tokens over all questions, for one kind of prompt."""

    shortest: int
    median: float
    longest: int
    overlength: int
    """Number of prompts that leave no room for a response in the model's context."""


@dataclass(frozen=True)
class Ratings:
    """How many people rated a question."""

    rated: int
    """Number of questions with at least two ratings."""
    fewest: int
    """The fewest ratings of such a question; 0 if there is none."""
    most: int


@dataclass(frozen=True)
class Check:
    """The result of a check."""

    train: int
    test: int | None
    """None if training and test questions come from one source."""
    invalid_rows: int
    left_out: int
    """Number of rows that lack a value in a field of `data.required_fields`."""
    in_examples: int
    """Number of rows left out because the task shows their text as an example."""
    groups: int | None
    """Number of documents or prompts; None if the task has no `data.group`."""
    ratings: Ratings | None
    """None if the task names no raters."""
    labels: dict[str, int]
    """Number of questions per answer, in the order of the answers, or by frequency if the answers cannot be listed."""
    duplicates: int
    """Number of duplicate questions: across training and test, or within a single source."""
    prompt: Messages
    """The plain prompt of the first question, as the policy sees it."""
    proposal: Messages
    """The plain prompt of the first question, as the proposal sees it."""
    hinted: Messages
    """The hinted prompt of the first question."""
    lengths: dict[str, Lengths]
    """Prompt lengths by kind of prompt; empty without a model."""
    context: int | None
    problems: list[str]
    """What to fix; empty for a sound task."""


def check_task(task: Task, pool: Pool, chat: Chat | None = None, context: int | None = None) -> Check:
    """Check that every gold answer passes its own parser and verifier, count labels, and measure prompts.

    Args:
        chat: a model's chat template and tokenizer; None to measure no prompts.
        context: the model's context length in tokens; None if it is not known.
    """
    questions = [*pool.train.questions, *(pool.test.questions if pool.test else [])]
    problems = [*_gold_problems(task, questions), *_hint_problems(task, questions)]
    counts = Counter(question.answer for question in questions)
    lengths: dict[str, Lengths] = {}
    if chat is not None:
        room = None if context is None else context - task.file.max_new_tokens
        asks = {"policy": task.prompt, "proposal": task.proposal_prompt, "hinted": task.hinted_prompt}
        for kind, ask in asks.items():
            tokens = [len(chat.prompt_ids(ask(question))) for question in questions]
            overlength = 0 if room is None else sum(count > room for count in tokens)
            lengths[kind] = Lengths(min(tokens), median(tokens), max(tokens), overlength)
            if overlength:
                problems.append(
                    f"{overlength} {kind} prompts leave no room for {task.file.max_new_tokens} new tokens in the "
                    f"model's context of {context}"
                )
    duplicates = duplicates_across(task, pool)
    if pool.test is not None and duplicates == len(pool.train.questions):
        problems.append("every training question has the same text as a test question, so nothing is left to train on")
    return Check(
        train=len(pool.train.questions),
        test=None if pool.test is None else len(pool.test.questions),
        invalid_rows=pool.invalid_rows,
        left_out=pool.left_out,
        in_examples=pool.in_examples,
        groups=len({task.group(question) for question in questions}) if task.file.data.group else None,
        ratings=_ratings(questions) if task.file.raters else None,
        labels={answer: counts[answer] for answer in task.answers if answer in counts} or dict(counts.most_common()),
        duplicates=duplicates,
        prompt=task.prompt(questions[0]),
        proposal=task.proposal_prompt(questions[0]),
        hinted=task.hinted_prompt(questions[0]),
        lengths=lengths,
        context=context,
        problems=problems,
    )


def _ratings(questions: list[Question]) -> Ratings:
    given = [sum(rating is not None for rating in question.ratings) for question in questions]
    several = [count for count in given if count > 1]
    return Ratings(len(several), min(several, default=0), max(several, default=0))


def _gold_problems(task: Task, questions: list[Question]) -> list[str]:
    failed = []
    for question in questions:
        responses = (
            task.full_completion(_PROBE_RATIONALE, question.answer),
            task.direct_completion(question),
        )
        if any(task.judge(question, response).status != "correct" for response in responses):
            failed.append(question)
    if not failed:
        return []
    return [
        f"{len(failed)} gold answers do not pass their own verifier; the first: {failed[0].id} with "
        f"'{failed[0].answer}' (the templates `completion` and `direct` must write answers as `answer` reads them)"
    ]


def _hint_problems(task: Task, questions: list[Question]) -> list[str]:
    """The hint must state the answer, and must appear in the hinted prompt and in no other."""
    for question in questions:
        hint = task.hint(question)
        if hint not in task.hinted_prompt(question)[-1]["content"]:
            return ["the hinted prompt lacks the hint: the template `user` must contain {{ hint }}"]
        if question.answer not in hint:
            return ["the hint does not state the answer: its template must contain {{ answer }}"]
        if any(hint in message["content"] for message in task.prompt(question)):
            return [f"the plain prompt of {question.id} contains the hint"]
    return []
