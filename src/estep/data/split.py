"""Turns the sources of a task into the questions of a run: reads rows, checks them, and draws random splits.

Test questions are never trained on: training questions with the text, document or prompt of a test question are left
out and counted. Rows that read like one of the task's few-shot examples are neither trained nor tested on.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from estep.config import DataConfig
from estep.errors import ConfigError, DataError
from estep.records import Question
from estep.sources.rows import Row, on_the_hub, read_hub, read_rows, resolve_file
from estep.tasks import OnInvalidRow, Rows, Task
from estep.tasks.file import ORIGIN, DataSection, GymGenerator, SumsGenerator
from estep.tasks.reasoning_gym import generated_rows
from estep.tasks.sums import generated_sums

LogLine = Callable[[str], None]
_AS_THE_TASK_SAYS = DataConfig()


class Pool(NamedTuple):
    """All questions of a task."""

    train: Rows
    test: Rows | None
    """None if training and test questions come from one source."""

    @property
    def digest(self) -> str:
        """A hash of all questions, to detect data that changed."""
        parts = [[question.as_row() for question in part.questions] if part else None for part in self]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def invalid_rows(self) -> int:
        return len(self.train.bad) + (len(self.test.bad) if self.test else 0)

    @property
    def left_out(self) -> int:
        """Number of rows that lack a value in a field of `data.required_fields`."""
        return self.train.left_out + (self.test.left_out if self.test else 0)

    @property
    def in_examples(self) -> int:
        """Number of rows left out because the task shows their text as an example."""
        return self.train.in_examples + (self.test.in_examples if self.test else 0)


class Split(NamedTuple):
    """The questions of a run."""

    train: list[Question]
    test: list[Question]
    validation: list[Question]
    overlapping: int
    """Number of training questions left out because a test question has the same text."""
    related: int
    """Number of training questions left out because a test question has the same document or prompt."""
    near_validation: int
    """Number of training questions left out because a validation question has the same text, document or prompt."""


def origin(data: DataSection) -> str:
    """The origin of a built-in task's rows, as `estep tasks` shows it."""
    if data.generator is not None:
        return "generated"
    if data.source is None:
        return "your file"
    return "hub" if on_the_hub(data.source) else "package index"


def with_own_data(task: Task, config: DataConfig) -> Task:
    """The task with the files or the split that a run names.

    Raises:
        ConfigError: a file does not exist, `split` is set for rows that are not on the hub, or `permute_options` for a
            task without options.
    """
    data = task.file.data
    if config.permute_options and task.file.options is None:
        raise ConfigError(f"data.permute_options: task {task.name} has no options")
    for key, name in (("data.train_file", config.train_file), ("data.test_file", config.test_file)):
        if name is not None and not Path(name).is_file():
            raise ConfigError(f"{key}: no such file: {name}")
    if config.train_file is not None:
        data = DataSection(source=config.train_file, **data.model_dump(exclude=set(ORIGIN)))
    if config.test_file is not None:
        data = data.model_copy(update={"test_source": config.test_file, "test_split": None})
    if config.split is not None:
        if not on_the_hub(data.source):
            raise ConfigError(
                f"data.split={config.split} names a split on the hub; this run's rows come from elsewhere"
            )
        data = data.model_copy(update={"split": config.split})
    if data == task.file.data:
        return task
    return replace(task, file=task.file.model_copy(update={"data": data}))


def load_pool(task: Task, on_invalid_row: OnInvalidRow = "stop", log: LogLine = lambda _: None) -> Pool:
    """Read a task's questions.

    Raises:
        DataError: a row is invalid (with `stop`), or a file is empty or unreadable.
        SourceError: a data set cannot be fetched.
    """
    data = task.file.data
    named = {"split": None if data.split == "train" else data.split, "test_split": data.test_split}
    for key, reference in (("split", data.source), ("test_split", data.test_source or data.source)):
        if named[key] is not None and not on_the_hub(reference):
            raise ConfigError(
                f"task {task.name}: data.{key}={named[key]} names a split on the hub, but {reference} is not on the hub"
            )
    train = _without_examples(task, task.rows(_read(task, data.source, data.split, log), "train", on_invalid_row))
    test = None
    if data.test_source is not None or data.test_split is not None:
        reference, split = data.test_source or data.source, data.test_split or data.split
        test = _without_examples(task, task.rows(_read(task, reference, split, log), "test", on_invalid_row))
        known = {question.id for question in train.questions}
        taken = known | {question.id for question in test.questions}
        prefix = "test-"
        while any(f"{prefix}{question.id}" in taken for question in test.questions):
            prefix += "-"
        renamed = [q if q.id not in known else replace(q, id=f"{prefix}{q.id}") for q in test.questions]
        test = test._replace(questions=renamed)
    for rows in (train, *([test] if test else [])):
        if rows.bad:
            log(f"left out {len(rows.bad)} invalid rows; the first: {rows.bad[0].location}: {rows.bad[0].reason}")
        if rows.left_out:
            log(f"left out {rows.left_out} rows without {' or '.join(data.required_fields)}")
        if rows.in_examples:
            log(f"left out {rows.in_examples} rows that the task's examples show")
    return Pool(train, test)


def _without_examples(task: Task, rows: Rows) -> Rows:
    """The questions that do not read like an example of the task, whose answer a prompt shows.

    Raises:
        DataError: all of them do.
    """
    shown = {reads(task, example) for example in task.examples}
    if not shown:
        return rows
    kept = [question for question in rows.questions if reads(task, question) not in shown]
    if not kept:
        raise DataError(f"task {task.name}: its examples show all {len(rows.questions)} rows, so none is left to ask")
    return rows._replace(questions=kept, in_examples=len(rows.questions) - len(kept))


def _read(task: Task, reference: str | None, split: str, log: LogLine) -> list[Row]:
    data = task.file.data
    if data.generator is not None and reference is None:
        name, rows = _generated(task, data.generator)
        return [(f"{name}: row {number}", row) for number, row in enumerate(rows, 1)]
    if reference is None:
        raise ConfigError(f"task {task.name} has no data of its own: name a file with data.train_file=FILE")
    path = resolve_file(reference, task.path.parent if task.path else None, log)
    if path is not None:
        return read_rows(path)
    return read_hub(reference, data.subset, split, data.revision, data.files)


def _generated(task: Task, generator: GymGenerator | SumsGenerator) -> tuple[str, list[dict[str, Any]]]:
    """The name of what a generator makes, and its rows."""
    if isinstance(generator, GymGenerator):
        rows = generated_rows(generator.name, generator.size, generator.seed, generator.settings)
        return generator.name, rows
    shown = [str(example.fields.get("question", "")) for example in task.file.examples]
    return generator.type, generated_sums(generator, shown)


class Sizes(NamedTuple):
    """How many questions a run uses."""

    train: int | None
    """Training questions; None for all that remain."""
    test: int | None
    """Test questions; None for the whole test set, or for a fifth of a single source."""
    validation: int | None = None
    """Questions to hold out of the training questions; None for none."""


def draw_split(task: Task, pool: Pool, sizes: Sizes, seed: int, config: DataConfig = _AS_THE_TASK_SAYS) -> Split:
    """A random subset of a task's questions, in which no two splits share a text.

    Test questions depend only on the seed and `sizes.test`; validation questions also depend on `sizes.validation`. A
    smaller training set is a subset of a larger one. Runs of different sizes can therefore be compared.

    Raises:
        ConfigError: a size exceeds the number of questions.
    """
    test = draw_test(task, pool, sizes.test, seed, config)
    held_out = {reads(task, question) for question in test}
    groups = groups_of(task, test, config)
    chosen = {question.id for question in test}
    rest = [question for question in _shuffled(pool.train.questions, seed, "train") if question.id not in chosen]
    unrelated = [question for question in rest if not groups or task.group(question) not in groups]
    disjoint = [question for question in unrelated if reads(task, question) not in held_out]
    overlapping, related = len(unrelated) - len(disjoint), len(rest) - len(unrelated)
    validation: list[Question] = []
    near_validation = 0
    if sizes.validation is not None:
        # Taken from the end, so that ungrouped training questions are the same as without validation.
        candidates = disjoint[::-1]
        if groups_of(task, candidates, config):
            candidates = _side_by_side(task, candidates)
        validation = _first(candidates, sizes.validation, "validation", task.name)
        apart = apart_from(task, disjoint, validation, config)
        near_validation = len(disjoint) - len(validation) - len(apart)
        disjoint = apart
    train = _first(disjoint, sizes.train, "train", task.name)
    if config.permute_options:
        train = [task.permuted(question, seed) for question in train]
    return Split(train, test, validation, overlapping, related, near_validation)


def draw_test(
    task: Task,
    pool: Pool,
    test_size: int | None,
    seed: int,
    config: DataConfig = _AS_THE_TASK_SAYS,
) -> list[Question]:
    """The test questions of `draw_split`, for commands that need no others.

    Raises:
        ConfigError: a size exceeds the number of questions.
    """
    if pool.test is not None:
        return _first(_shuffled(pool.test.questions, seed, "test"), test_size, "test", task.name)
    questions = _shuffled(pool.train.questions, seed, "train")
    size = test_size if test_size is not None else max(1, len(questions) // 5)
    if groups_of(task, questions, config):
        questions = _side_by_side(task, questions)
    return _first(questions, size, "test", task.name)


def groups_of(task: Task, questions: Sequence[Question], config: DataConfig) -> set[str | None]:
    """The groups (documents or prompts) of some questions; empty if a group may be on both sides of a split."""
    return {task.group(question) for question in questions} - {None} if config.split_by_group else set()


def apart_from(
    task: Task, questions: Sequence[Question], held_out: Sequence[Question], config: DataConfig
) -> list[Question]:
    """The questions that share neither text nor document nor prompt with a held-out question."""
    read, groups = {reads(task, question) for question in held_out}, groups_of(task, held_out, config)
    return [q for q in questions if reads(task, q) not in read and task.group(q) not in groups]


def _side_by_side(task: Task, questions: Sequence[Question]) -> list[Question]:
    """Questions with each group together, ordered by the first question of each group."""
    of_group: dict[str | None, list[Question]] = {}
    for question in questions:
        of_group.setdefault(task.group(question), []).append(question)
    return [question for group in of_group.values() for question in group]


def _shuffled(questions: Sequence[Question], seed: int, split: str) -> list[Question]:
    order = list(questions)
    random.Random(f"{seed}-{split}").shuffle(order)
    return order


def _first(questions: list[Question], size: int | None, split: str, name: str) -> list[Question]:
    if size is not None and size > len(questions):
        raise ConfigError(f"{split}_size={size}, but task {name} has {len(questions)} questions for it; null uses all")
    if not questions:
        raise ConfigError(
            f"task {name} has no questions left to {split} on: there are none, or all of them are test questions"
        )
    return questions[:size]


def reads(task: Task, question: Question) -> str:
    """What the policy reads of a question, ignoring case, whitespace and the order of options."""
    return " ".join(task.prompt(task.in_order(question))[-1]["content"].lower().split())


def duplicates_across(task: Task, pool: Pool) -> int:
    """Number of training questions with the text of a test question; in a single source, of repeated texts."""
    texts = [reads(task, question) for question in pool.train.questions]
    if pool.test is None:
        return len(texts) - len(set(texts))
    held_out = {reads(task, question) for question in pool.test.questions}
    return sum(text in held_out for text in texts)
