"""From sources to the questions of a run: disjoint, repeatable, comparable between sizes."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from conftest import task_of, write_task
from estep.data.split import Pool, Sizes, Split, draw_split, draw_test, duplicates_across, load_pool
from estep.errors import ConfigError, DataError
from estep.records import Question
from estep.tasks import Rows, Task, load_task

TASK = task_of()


def rows_of(prefix: str, *texts: str, task: Task = TASK) -> Rows:
    """A question for every text, with ids such as a0, a1, ..."""
    lines = [
        (f"{prefix}.jsonl:{n + 1}", {"id": f"{prefix}{n}", "text": text, "score": n % 5})
        for n, text in enumerate(texts)
    ]
    return task.rows(lines, prefix, "stop")


def single(count: int) -> Pool:
    """One source with `count` distinct questions."""
    return Pool(rows_of("a", *(f"text {n}" for n in range(count))), None)


def ids(questions: list[Question]) -> list[str]:
    return [question.id for question in questions]


def texts(questions: list[Question]) -> list[str]:
    return [question.fields["text"] for question in questions]


def write_rows(path: Path, *ids: str) -> None:
    path.write_text("".join(json.dumps({"id": i, "text": f"{path.stem} {i}", "score": 1}) + "\n" for i in ids))


def two_files(folder: Path, train: tuple[str, ...], test: tuple[str, ...]) -> Task:
    """A task with a training file and a test file of rows with these ids."""
    source = {"source": "train.jsonl", "test_source": "test.jsonl", "id": "id"}
    path = write_task(folder, data=source)
    write_rows(folder / "train.jsonl", *train)
    write_rows(folder / "test.jsonl", *test)
    return load_task(str(path))


# One source for both


def test_no_question_is_both_trained_and_tested_on() -> None:
    pool = single(20)
    split = draw_split(TASK, pool, Sizes(None, 6), seed=1)
    assert len(split.test) == 6
    assert sorted(ids(split.train) + ids(split.test)) == sorted(ids(pool.train.questions))
    assert split.overlapping == 0


def test_a_split_depends_on_the_seed_alone() -> None:
    pool = single(40)
    assert draw_split(TASK, pool, Sizes(10, 10), seed=1) == draw_split(TASK, pool, Sizes(10, 10), seed=1)
    # That two seeds draw the same ten of forty in the same order has a chance below 1e-14.
    assert draw_split(TASK, pool, Sizes(10, 10), seed=1).test != draw_split(TASK, pool, Sizes(10, 10), seed=2).test


def test_a_subset_is_random_rather_than_the_files_beginning() -> None:
    split = draw_split(TASK, single(200), Sizes(20, 20), seed=1)
    # Of 40 among 200, all from the first half has a chance of about 2**-40.
    assert {int(i.removeprefix("a")) >= 100 for i in ids(split.train)} == {True, False}
    assert {int(i.removeprefix("a")) >= 100 for i in ids(split.test)} == {True, False}


@pytest.mark.parametrize("separate", [False, True])
def test_the_test_set_does_not_depend_on_the_training_size(separate: bool) -> None:
    pool = single(30)
    if separate:
        pool = Pool(pool.train, rows_of("b", *(f"other {n}" for n in range(30))))
    sizes = [1, 5, 20, None]
    splits = [draw_split(TASK, pool, Sizes(size, 10), seed=3) for size in sizes]
    assert all(split.test == splits[0].test for split in splits)
    # Each smaller training set is a part of the next larger one.
    assert [len(split.train) for split in splits] == [1, 5, 20, 30 if separate else 20]
    for smaller, larger in pairwise(splits):
        assert set(ids(smaller.train)) <= set(ids(larger.train))


@pytest.mark.parametrize(("rows", "held_out"), [(2, 1), (4, 1), (9, 1), (10, 2), (13, 2), (15, 3)])
def test_a_fifth_of_a_single_source_is_held_out_and_at_least_one(rows: int, held_out: int) -> None:
    split = draw_split(TASK, single(rows), Sizes(None, None), seed=1)
    assert (len(split.test), len(split.train)) == (held_out, rows - held_out)


@pytest.mark.parametrize("seed", range(5))
def test_a_question_that_reads_like_a_test_question_is_left_out_and_counted(seed: int) -> None:
    # Ten texts, each twice, once with other case and space.
    pool = Pool(rows_of("a", *(f"Text {n}" for n in range(10)), *(f" text  {n} " for n in range(10))), None)
    split = draw_split(TASK, pool, Sizes(None, 6), seed)
    tested = {" ".join(text.lower().split()) for text in texts(split.test)}
    trained = {" ".join(text.lower().split()) for text in texts(split.train)}
    assert not tested & trained
    # Every held-out text stands twice among the rows; what is not itself a test question is left out.
    assert split.overlapping == 2 * len(tested) - 6
    assert len(split.train) == 20 - 6 - split.overlapping


def test_fields_that_the_policy_does_not_read_do_not_make_a_question_another() -> None:
    rows = [(f"r:{n}", {"id": f"r{n}", "text": "same", "score": 1, "note": n}) for n in range(3)]
    with pytest.raises(ConfigError, match="no questions left to train on"):
        draw_split(TASK, Pool(TASK.rows(rows, "train", "stop"), None), Sizes(None, 1), seed=1)


def test_more_questions_than_there_are_is_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"test_size=13, but task judge has 12 questions"):
        draw_split(TASK, single(12), Sizes(None, 13), seed=1)
    # A fifth of 12, 2, is held out, so 10 remain.
    assert len(draw_split(TASK, single(12), Sizes(10, None), seed=1).train) == 10
    with pytest.raises(ConfigError, match=r"train_size=11, but task judge has 10 questions"):
        draw_split(TASK, single(12), Sizes(11, None), seed=1)


def test_a_source_that_is_all_held_out_leaves_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match="task judge has no questions left to train on"):
        draw_split(TASK, single(3), Sizes(None, 3), seed=1)


def test_a_model_that_is_only_asked_needs_no_training_questions() -> None:
    assert draw_test(TASK, single(3), 3, seed=1) == draw_test(TASK, single(3), 3, seed=1)
    assert len(draw_test(TASK, single(3), 3, seed=1)) == 3
    assert draw_test(TASK, single(20), None, seed=1) == draw_split(TASK, single(20), Sizes(None, None), seed=1).test


# A test source of its own


def test_a_test_source_is_used_whole_and_training_keeps_clear_of_it() -> None:
    pool = Pool(rows_of("a", "one", "two", "three", "four"), rows_of("b", " ONE", "three", "six"))
    split = draw_split(TASK, pool, Sizes(None, None), seed=1)
    assert sorted(ids(split.test)) == ["b0", "b1", "b2"]
    # "one" and "three" read like test questions.
    assert sorted(texts(split.train)) == ["four", "two"]
    assert split.overlapping == 2


def test_only_the_drawn_test_questions_are_kept_out_of_training() -> None:
    shared = [f"text {n}" for n in range(10)]
    split = draw_split(TASK, Pool(rows_of("a", *shared), rows_of("b", *shared)), Sizes(None, 3), seed=1)
    assert (len(split.test), len(split.train), split.overlapping) == (3, 7, 3)


def test_a_test_source_is_limited_by_its_own_number() -> None:
    pool = Pool(rows_of("a", "one", "two", "three"), rows_of("b", "four", "five"))
    with pytest.raises(ConfigError, match=r"test_size=3, but task judge has 2 questions"):
        draw_split(TASK, pool, Sizes(None, 3), seed=1)


def test_the_test_file_is_read_beside_the_training_file(tmp_path: Path) -> None:
    pool = load_pool(two_files(tmp_path, ("x", "y"), ("z",)))
    assert ids(pool.train.questions) == ["x", "y"]
    assert pool.test is not None
    assert [(q.id, q.fields["text"]) for q in pool.test.questions] == [("z", "test z")]


def test_a_test_row_with_a_training_rows_id_gets_an_id_of_its_own(tmp_path: Path) -> None:
    task = two_files(tmp_path, ("x", "y"), ("y", "z"))
    pool = load_pool(task)
    assert pool.test is not None
    assert [(q.id, q.fields["text"]) for q in pool.test.questions] == [("test-y", "test y"), ("z", "test z")]
    # The two questions named y differ, so both are used.
    split = draw_split(task, pool, Sizes(None, None), seed=1)
    assert (sorted(ids(split.train)), sorted(ids(split.test))) == (["x", "y"], ["test-y", "z"])


@pytest.mark.parametrize(
    ("train", "test"), [(("x", "test-x"), ("x",)), (("x",), ("x", "test-x")), (("x", "test-x"), ("x", "test-x"))]
)
def test_ids_are_unique_whatever_the_rows_are_called(
    tmp_path: Path, train: tuple[str, ...], test: tuple[str, ...]
) -> None:
    task = two_files(tmp_path, train, test)
    split = draw_split(task, load_pool(task), Sizes(None, None), seed=1)
    assert (len(split.train), len(split.test)) == (len(train), len(test))
    assert len({*ids(split.train), *ids(split.test)}) == len(train) + len(test)


def test_numbered_rows_of_two_files_do_not_clash(tmp_path: Path) -> None:
    two_files(tmp_path, ("x", "y"), ("z",))
    path = write_task(tmp_path, data={"source": "train.jsonl", "test_source": "test.jsonl"})
    pool = load_pool(load_task(str(path)))
    assert pool.test is not None
    assert (ids(pool.train.questions), ids(pool.test.questions)) == (["train-1", "train-2"], ["test-1"])


def test_a_bad_row_of_the_test_file_is_named_or_left_out(tmp_path: Path) -> None:
    task = two_files(tmp_path, ("x",), ("z",))
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"id": "w", "text": "t", "score": 7}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:2: score = 7 is not allowed"):
        load_pool(task)
    said: list[str] = []
    pool = load_pool(task, "skip", said.append)
    assert pool.test is not None
    assert ids(pool.test.questions) == ["z"]
    assert len(said) == 1
    assert "left out 1 invalid rows" in said[0]


def test_duplicates_are_counted_as_the_policy_reads_them() -> None:
    assert duplicates_across(TASK, Pool(rows_of("a", "one", "One ", "two", "one"), None)) == 2
    pool = Pool(rows_of("a", "one", "two", "ONE"), rows_of("b", "one", "three"))
    assert duplicates_across(TASK, pool) == 2


def test_a_split_holds_questions_with_their_answers() -> None:
    pool = single(5)
    split = draw_split(TASK, pool, Sizes(None, 1), seed=1)
    assert isinstance(split, Split)
    by_id = {question.id: question for question in pool.train.questions}
    assert all(by_id[question.id] == question for question in [*split.train, *split.test])


# Validation


def test_validation_questions_are_neither_trained_nor_tested_on() -> None:
    pool = single(30)
    split = draw_split(TASK, pool, Sizes(None, 6, 4), seed=1)
    assert (len(split.test), len(split.validation), len(split.train)) == (6, 4, 20)
    assert sorted(ids(split.train) + ids(split.validation) + ids(split.test)) == sorted(ids(pool.train.questions))


def test_a_training_set_of_a_given_size_is_the_same_with_and_without_validation() -> None:
    with_them, without = (draw_split(TASK, single(30), Sizes(12, 6, size), seed=1) for size in (5, None))
    assert (with_them.train, with_them.test, without.validation) == (without.train, without.test, [])


def test_a_training_question_that_reads_as_a_validation_question_is_left_out() -> None:
    # Sixteen rows in pairs that read the same; one is tested on, so fifteen remain but its twin.
    texts = [f"text {n // 2}" for n in range(16)]
    split = draw_split(TASK, Pool(rows_of("a", *texts), None), Sizes(None, 1, 3), seed=1)
    held_out = {question.fields["text"] for question in [*split.test, *split.validation]}
    assert not held_out & {question.fields["text"] for question in split.train}


def test_validation_takes_whole_documents() -> None:
    # Ten documents of six rows: 12 test questions are two of them, 12 validation questions two others.
    data = {"source": "rows.jsonl", "id": "id", "group": "document"}
    task = task_of(data=data)
    rows = [(f"rows:{n}", {"id": f"a{n}", "text": f"text {n}", "score": 1, "document": n // 6}) for n in range(60)]
    pool = Pool(task.rows(rows, "train", "stop"), None)
    split = draw_split(task, pool, Sizes(None, 12, 12), seed=1)
    parts = [{task.group(question) for question in part} for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10
    assert (len(split.train), split.overlapping, split.related, split.near_validation) == (36, 0, 0, 0)
    # A document and a half: the other half is left out of the training questions.
    cut = draw_split(task, pool, Sizes(None, 12, 9), seed=1)
    assert (len(cut.train), cut.near_validation) == (36, 3)


def test_more_validation_questions_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="validation_size=25, but task judge has 24 questions for it"):
        draw_split(TASK, single(30), Sizes(None, 6, 25), seed=1)


# Examples


def test_rows_that_the_examples_show_are_neither_trained_nor_tested_on(tmp_path: Path) -> None:
    task = two_files(tmp_path, ("a", "b"), ("c", "d"))
    for name, text in (("train", "A  FINE day."), ("test", "A foul day.")):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps({"id": f"shown in {name}", "text": text, "score": 2}) + "\n")
    said: list[str] = []
    pool = load_pool(task, log=said.append)
    assert pool.test is not None
    assert (ids(pool.train.questions), ids(pool.test.questions)) == (["a", "b"], ["c", "d"])
    assert pool.in_examples == 2
    assert said == ["left out 1 rows that the task's examples show"] * 2


def test_a_task_whose_examples_show_every_row_is_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, 1, examples=[{"fields": {"text": "text 0"}, "rationale": "Short.", "answer": 0}])
    with pytest.raises(DataError, match="its examples show all 1 rows, so none is left to ask"):
        load_pool(load_task(str(path)))
