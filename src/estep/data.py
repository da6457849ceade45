"""From a task's sources to the questions of a run: read, check, draw a random subset, split.

A test question is never trained on: where one file serves both, questions that read the same as a test question are
left out of the training set, and counted.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from estep.errors import ConfigError
from estep.records import Question
from estep.sources import Row, read_hub, read_rows, resolve_file
from estep.tasks import Rows, Task
from estep.tasks.base import OnBadRow

Say = Callable[[str], None]


class Pool(NamedTuple):
    """All questions of a task."""

    train: Rows
    test: Rows | None
    """None where the task has one source for both."""


class Split(NamedTuple):
    """The questions of a run."""

    train: list[Question]
    test: list[Question]
    overlapping: int
    """Training questions left out because a test question reads the same."""


def load_pool(task: Task, on_bad_row: OnBadRow = "stop", say: Say = lambda _: None) -> Pool:
    """Read a task's questions.

    Raises:
        DataError: a row that cannot be used (with `stop`), an empty or unreadable file.
        SourceError: a data set that cannot be fetched.
    """
    data = task.file.data
    train = task.rows(_read(task, data.source, data.split, say), "train", on_bad_row)
    test = None
    if data.test_source is not None or data.test_split is not None:
        reference, split = data.test_source or data.source, data.test_split or data.split
        test = task.rows(_read(task, reference, split, say), "test", on_bad_row)
        if data.id is None:
            return Pool(train, test)
        known = {question.id for question in train.questions}
        taken = known | {question.id for question in test.questions}
        prefix = "test-"
        while any(f"{prefix}{question.id}" in taken for question in test.questions):
            prefix += "-"
        renamed = [q if q.id not in known else Question(f"{prefix}{q.id}", q.fields, q.answer) for q in test.questions]
        test = Rows(renamed, test.bad)
    for rows in (train, *([test] if test else [])):
        if rows.bad:
            say(f"left out {len(rows.bad)} bad rows; the first: {rows.bad[0].place}: {rows.bad[0].reason}")
    return Pool(train, test)


def _read(task: Task, reference: str, split: str, say: Say) -> list[Row]:
    path = resolve_file(reference, task.path.parent if task.path else None, say)
    return read_rows(path) if path is not None else read_hub(reference, task.file.data.subset, split)


def draw_split(task: Task, pool: Pool, train_size: int | None, test_size: int | None, seed: int) -> Split:
    """A random subset of a task's questions, disjoint in what the policy reads.

    The test questions depend on the seed and `test_size` alone, and a smaller training set is a part of a larger
    one, so that runs of several sizes can be compared.

    Args:
        train_size: questions to train on; None for all that remain.
        test_size: held-out questions; None for all of the task's test set, or for a fifth of a single source.

    Raises:
        ConfigError: more questions are asked for than there are.
    """
    test = draw_test(task, pool, test_size, seed)
    held_out = {_reads(task, question) for question in test}
    chosen = {question.id for question in test}
    rest = [question for question in _shuffled(pool.train.questions, seed, "train") if question.id not in chosen]
    disjoint = [question for question in rest if _reads(task, question) not in held_out]
    return Split(_first(disjoint, train_size, "train", task.name), test, len(rest) - len(disjoint))


def draw_test(task: Task, pool: Pool, test_size: int | None, seed: int) -> list[Question]:
    """The held-out questions of `draw_split`, for a model that is only asked and may need no others.

    Raises:
        ConfigError: more questions are asked for than there are.
    """
    if pool.test is not None:
        return _first(_shuffled(pool.test.questions, seed, "test"), test_size, "test", task.name)
    questions = _shuffled(pool.train.questions, seed, "train")
    size = test_size if test_size is not None else max(1, len(questions) // 5)
    return _first(questions, size, "test", task.name)


def _shuffled(questions: Sequence[Question], seed: int, split: str) -> list[Question]:
    order = list(questions)
    random.Random(f"{seed}-{split}").shuffle(order)
    return order


def _first(questions: list[Question], size: int | None, split: str, name: str) -> list[Question]:
    if size is not None and size > len(questions):
        raise ConfigError(f"{split}_size={size}, but task {name} has {len(questions)} questions for it; null takes all")
    if not questions:
        raise ConfigError(f"task {name} has no questions left to {split} on")
    return questions[:size]


def _reads(task: Task, question: Question) -> str:
    """What the policy reads of a question, without regard to case and space."""
    return " ".join(task.prompt(question)[-1]["content"].lower().split())


def duplicates_across(task: Task, pool: Pool) -> int:
    """Training rows that read the same as a test row, or, of a single source, as another row."""
    reads = [_reads(task, question) for question in pool.train.questions]
    if pool.test is None:
        return len(reads) - len(set(reads))
    held_out = {_reads(task, question) for question in pool.test.questions}
    return sum(read in held_out for read in reads)
