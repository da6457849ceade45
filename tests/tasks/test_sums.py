"""The tasks `sums/...`: what is generated, what is refused, and that every length is asked in the same words."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from conftest import write_task
from estep.data.split import Sizes, draw_split, load_pool
from estep.errors import ConfigError, DataError
from estep.records import Question
from estep.sources.models import resolve_model
from estep.tasks import Task, load_task, parse_task, task_names
from estep.tasks.file import SumsGenerator
from estep.tasks.steps import read_steps
from estep.tasks.sums import _row, generated_sums

NAMES = [name for name in task_names() if name.startswith("sums/")]


def rows(shown: tuple[str, ...] = (), **settings: Any) -> list[dict[str, Any]]:
    return generated_sums(SumsGenerator.model_validate(settings), shown)


def test_rows_depend_on_seed_and_settings_alone() -> None:
    # Pinned: these rows are the questions of studies, and must be the same in every version of Python.
    assert [row["question"] for row in rows(terms=4, size=3)] == ["7 + 7 + 5 + 5", "3 + 5 + 3 + 3", "7 + 8 + 8 + 2"]
    assert rows(terms=4, size=5) == rows(terms=4, size=9)[:5]
    assert rows(terms=4, size=5, seed=1) != rows(terms=4, size=5, seed=2)
    assert rows(terms=4, size=5) == rows(terms=[4], size=5)


def test_a_row_has_the_partial_sums_as_its_solution() -> None:
    (row, _) = rows(terms=4, smallest=9, largest=10, size=2)
    assert row == {
        "id": "s0",
        "question": "10 + 10 + 9 + 9",
        "numbers": "9 9 10 10",
        "terms": 4,
        "sum": 38,
        "solution": "10 + 10 = 20, 20 + 9 = 29, 29 + 9 = 38",
    }


def test_all_sums_that_there_are_can_be_drawn_and_no_more() -> None:
    # Three numbers out of 2, 3: 2 * 2 * 2 = 8 sums.
    every = {" + ".join(map(str, numbers)) for numbers in itertools.product((2, 3), repeat=3)}
    assert {row["question"] for row in rows(terms=3, smallest=2, largest=3, size=8)} == every
    with pytest.raises(ConfigError, match=r"size=9, but there are 8 sums of 3 numbers from 2 to 3$"):
        rows(terms=3, smallest=2, largest=3, size=9)


def test_the_numbers_of_an_example_are_drawn_in_no_order() -> None:
    # Without 2 + 2 + 3, 2 + 3 + 2 and 3 + 2 + 2, five sums of eight remain; the other examples are none of these sums.
    shown = ("3 + 2 + 2", "2 + 2", "2 + 2 + 9", "What is 3 + 3 + 3?")
    drawn = rows(shown, terms=3, smallest=2, largest=3, size=5)
    assert {row["question"] for row in drawn} == {"2 + 2 + 2", "2 + 3 + 3", "3 + 2 + 3", "3 + 3 + 2", "3 + 3 + 3"}
    with pytest.raises(ConfigError, match=r"there are 5 sums of 3 numbers from 2 to 3 apart from those of the ex"):
        rows(shown, terms=3, smallest=2, largest=3, size=6)


def test_several_lengths_are_mixed_in_equal_parts() -> None:
    lengths = Counter(row["terms"] for row in rows(terms=[4, 8], size=1000))
    assert set(lengths) == {4, 8}
    assert 400 < lengths[4] < 600
    # 2^2 + 2^3 = 12 sums of two or three numbers.
    assert len(rows(terms=[2, 3], smallest=2, largest=3, size=12)) == 12
    with pytest.raises(ConfigError, match="there are 12 sums of 2 or 3 numbers"):
        rows(terms=[2, 3], smallest=2, largest=3, size=13)


def test_every_number_is_drawn_about_as_often() -> None:
    # 8,000 numbers, 1,000 of each of eight, with a standard deviation of 30.
    drawn = Counter(n for row in rows(terms=4, size=2000) for n in row["numbers"].split())
    assert set(drawn) == set("23456789")
    assert all(850 < count < 1150 for count in drawn.values())


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("{type: sum, terms: 4}", "data.generator.type: got 'sum'; known: 'reasoning_gym', 'sums'"),
        ("{type: sums}", "data.generator.terms: Field required"),
        ("{type: sums, terms: four}", "data.generator.terms: Input should be a valid integer.*got 'four'"),
        ("{type: sums, terms: 1}", "terms is a number from 2 to 100, or a list of different ones, got 1"),
        ("{type: sums, terms: []}", r"or a list of different ones, got \[\]"),
        ("{type: sums, terms: [4, 4]}", r"or a list of different ones, got \[4, 4\]"),
        ("{type: sums, terms: [4, 101]}", r"or a list of different ones, got \[4, 101\]"),
        ("{type: sums, terms: 4, smallest: 9, largest: 2}", "largest is at least smallest, got smallest=9 and larg"),
        ("{type: sums, terms: 4, digits: 2}", "unknown key 'data.generator.digits' for type sums; known: "),
        ("{name: leg_counting, terms: 4}", "unknown key 'data.generator.terms' for type reasoning_gym"),
    ],
)
def test_a_generator_that_cannot_be_is_refused(tmp_path: Path, generator: str, message: str) -> None:
    write_task(tmp_path)
    with pytest.raises(DataError, match=message):
        parse_task(f"extends: judge.yaml\ndata: {{generator: {generator}}}\n", "own.yaml", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_are_on_one_side_and_no_example_is_drawn(name: str) -> None:
    task = load_task(name)
    split = draw_split(task, load_pool(task), Sizes(192, 128), 257)
    assert (len(split.train), len(split.test)) == (192, 128)
    examples = {task.group(Question("e", {"numbers": in_order(e.fields["question"])}, "")) for e in task.file.examples}
    sides = [{task.group(question) for question in side} for side in (split.train, split.test)]
    assert sides[0].isdisjoint(sides[1])
    assert examples.isdisjoint(sides[0] | sides[1])
    assert len(examples) == 4


def in_order(question: str) -> str:
    return " ".join(sorted(question.split(" + ")))


@pytest.mark.parametrize("name", NAMES)
def test_the_gold_completion_is_right_and_fits_the_tokens_of_the_task(name: str) -> None:
    task = load_task(name)
    for question in load_pool(task).train.questions[:20]:
        verdict = task.judge(question, task.gold_completion(question))
        assert verdict.status == "correct"
        terms = question.fields["terms"]
        assert read_steps(verdict.rationale) == (terms - 1, terms - 1)
        assert not verdict.hint_mentioned
    for example in task.file.examples:
        shown = task.question(example.fields, example.answer)
        assert example.rationale == example.solution
        assert task.judge(shown, task.full_completion(example.rationale, str(example.answer))).status == "correct"
        assert read_steps(example.rationale).valid == terms - 1


def test_gold_completions_need_solutions() -> None:
    question = Question("r7", {"text": "Dull."}, "1")
    with pytest.raises(DataError, match=r"sentiment/movies: question 'r7' has no worked solution \(gold.solution"):
        load_task("sentiment/movies").gold_completion(question)
    solved = Question("q", {"problem": "6 * 8 - 19?"}, "29", "It is 6 * 8 - 19 = 29.")
    assert load_task("gsm8k").gold_completion(solved) == "Reasoning: It is 6 * 8 - 19 = 29. Answer: 29"


def test_every_length_is_asked_in_the_same_words() -> None:
    # So that `estep eval RUN sums/6` shows a model of sums/4 the prompt that it was trained with.
    first, *others = [load_task(name) for name in NAMES]

    def asked(task: Task, numbers: str = "2 + 3 + 4") -> Any:
        return task.prompt(task.question({"question": numbers}))

    assert all(asked(task) == asked(first) for task in others)
    assert [message["role"] for message in asked(first)] == ["system", "user"]


def test_the_solution_reaches_a_prompt_as_a_hint_alone() -> None:
    task = load_task("sums/4", "solution")
    question = load_pool(task).train.questions[0]
    assert question.solution in task.hinted_prompt(question)[-1]["content"]
    assert not any(question.solution in message["content"] for message in task.proposal_prompt(question))
    assert {"sum", "solution"}.isdisjoint(question.fields)


@pytest.mark.slow
def test_the_longest_solution_fits_with_slack() -> None:
    from estep.models.loading import load_chat, tokenizer_path

    chat = load_chat(tokenizer_path(resolve_model("smollm2-135m")))
    for name in NAMES:
        task = load_task(name)
        nines = _row(0, [9] * int(name.removeprefix("sums/")))
        longest = task.full_completion(nines["solution"], nines["sum"])
        assert 1.2 < task.file.max_new_tokens / len(chat.completion_ids(longest)) < 1.4
