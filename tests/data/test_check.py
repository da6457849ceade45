"""What the check of a task finds: unsound templates and hints, duplicates and the counts of labels."""

from typing import Any

import pytest

from conftest import task_of
from estep.data.check import check_task
from estep.data.split import Pool
from estep.tasks import Task


def pool_of(task: Task, *texts: str, test: tuple[str, ...] | None = None) -> Pool:
    def rows(prefix: str, texts: tuple[str, ...]) -> Any:
        lines = [(f"r:{n}", {"id": f"{prefix}{n}", "text": text, "score": n % 5}) for n, text in enumerate(texts)]
        return task.rows(lines, prefix, "stop")

    return Pool(rows("a", texts), None if test is None else rows("b", test))


def test_a_small_sound_task_has_no_problems() -> None:
    task = task_of()
    assert check_task(task, pool_of(task, "one", "two", "three", "four", "five")).problems == []


@pytest.mark.parametrize(
    "changes", [{"completion": "{{ rationale }} Rating: {{ answer }}"}, {"direct": "{{ answer }}"}]
)
def test_a_template_that_the_parser_cannot_read_is_a_problem(changes: dict[str, Any]) -> None:
    task = task_of(**changes)
    (problem,) = check_task(task, pool_of(task, "one", "two", "three")).problems
    assert problem.startswith("3 gold answers do not pass their own verifier; the first: a0 with '0'")


def test_a_hint_that_does_not_tell_the_answer_is_a_problem() -> None:
    task = task_of(hint={"variants": {"vague": "Judge it kindly."}, "default": "vague"})
    (problem,) = check_task(task, pool_of(task, "one", "two")).problems
    assert problem == "the hint does not state the answer: its template must contain {{ answer }}"


def test_a_hint_that_happens_to_hold_one_answer_is_still_a_problem() -> None:
    task = task_of(hint={"variants": {"fixed": "The score is 0."}, "default": "fixed"})
    assert check_task(task, pool_of(task, "one", "two")).problems == [
        "the hint does not state the answer: its template must contain {{ answer }}"
    ]


def test_a_question_template_that_ignores_the_hint_is_a_problem() -> None:
    task = task_of(user="Text: {{ text }}")
    (problem,) = check_task(task, pool_of(task, "one", "two")).problems
    assert problem == "the hinted prompt lacks the hint: the template `user` must contain {{ hint }}"


def test_a_hint_in_the_plain_prompt_is_a_problem() -> None:
    # The rows themselves hold what the hint would say.
    task = task_of()
    problems = check_task(task, pool_of(task, "good", "bad: Evaluate it as if its score was 1.")).problems
    assert problems == ["the plain prompt of a1 contains the hint"]


def test_duplicates_are_counted_within_a_source_and_across_two() -> None:
    task = task_of()
    # Two distinct texts, without regard to case and space, among five rows: three repeat.
    assert check_task(task, pool_of(task, "one", "One", " one ", "two", "two")).duplicates == 3
    # Of the training rows, both "one" read the same as a test row; "three" is only repeated within the test set.
    check = check_task(task, pool_of(task, "one", "ONE", "two", test=("one", "three", "three")))
    assert (check.duplicates, check.train, check.test) == (2, 3, 3)


def test_the_labels_of_both_sources_are_counted() -> None:
    task = task_of()
    # pool_of answers 0, 1, 2 to the training rows and 0, 1 to the test rows.
    check = check_task(task, pool_of(task, "a", "b", "c", test=("d", "e")))
    assert check.labels == {"0": 2, "1": 2, "2": 1}
