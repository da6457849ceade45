"""The ratings of several people: how they are read, and that no prompt, hint or pair contains them."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import JUDGE, task_of, write_task
from estep.data.check import check_task
from estep.data.split import load_pool
from estep.engines.scripted import ScriptedEngine
from estep.errors import DataError
from estep.records import Question
from estep.store.files import JsonlFile
from estep.store.run import RunStore
from estep.tasks import load_task, parse_task
from estep.tasks.raters import RatingReader
from runs import Scored, right_when_hinted, scripted_run

LIST = {"raters": {"fields": "ratings"}}
NAMED = {"raters": {"fields": ["anna", "ben", "clara"]}}
HALVES = {"field": "score", "thresholds": [-1.5, -0.5, 0.5, 1.5], "range": [-4, 4]}
LABELS = {"answer": {"type": "text", "label": "Score"}, "examples": []}


def reader(**changes: Any) -> RatingReader:
    return RatingReader(task_of(**changes).file)


def asked(row: dict[str, Any], **changes: Any) -> Question:
    return task_of(**changes).question({"text": "t", **row}, 1)


@pytest.mark.parametrize(
    ("cells", "ratings"),
    [
        ([1, 4, 2], (1, 4, 2)),
        ([1.5, "2", " 3,5 "], (1.5, 2, 3.5)),
        ([0, None, "n/a", float("nan")], (0,)),  # nobody has a place, so nothing is missing
        ("[1, null, 2]", (1, 2)),
        ([], ()),
        (None, ()),
        ("", ()),
    ],
)
def test_a_field_that_lists_ratings(cells: Any, ratings: tuple[float, ...]) -> None:
    question = asked({"ratings": cells}, **LIST)
    assert question.ratings == ratings
    assert question.fields == {"text": "t"}


def test_a_field_for_each_rater_keeps_their_places() -> None:
    assert asked({"anna": 3, "ben": "", "clara": "1"}, **NAMED).ratings == (3, None, 1)
    assert asked({"anna": None, "clara": "-"}, **NAMED).ratings == ()
    assert asked({"anna": 3, "ben": 3, "clara": 3}, **NAMED).fields == {"text": "t"}
    nested = {"raters": {"fields": ["by.anna", "by.ben"]}}
    question = asked({"by": {"anna": 1, "ben": 2, "year": 1999}}, **nested)
    assert (question.ratings, question.fields) == ((1, 2), {"text": "t", "by": {"year": 1999}})


def test_labels_are_ratings_in_canonical_form() -> None:
    assert asked({"ratings": [" Good.", "bad", None]}, **LABELS, **LIST).ratings == ("good", "bad")


@pytest.mark.parametrize(
    ("row", "changes", "words"),
    [
        ({"ratings": 3}, LIST, "ratings has 3, which is no list of ratings"),
        ({"ratings": "3 4"}, LIST, r"ratings has '3 4', which is no list such as \[1, 2, 2\]"),
        ({"ratings": [1, "x"]}, LIST, "ratings has 'x', which is no number and not empty"),
        ({"ratings": [1, 5]}, LIST, "ratings has 5, outside the ratings' range of 0 to 4"),
        ({"ben": -4.5}, {**NAMED, "gold": HALVES}, "ben has -4.5, outside the ratings' range of -4 to 4"),
        ({"ratings": ["Z"]}, {**LIST, "answer": {"type": "choice"}, "examples": []}, "the label 'Z', which is not"),
    ],
)
def test_what_is_no_rating_is_refused(row: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    task = task_of(**changes)
    with pytest.raises(DataError, match=words):
        task.question({"text": "t", **row}, answer=1)
    # A new row is scored whatever its ratings say, which no prompt shows.
    question = task.question({"text": "t", **row})
    assert (question.ratings, set(question.fields) & set(row)) == ((), set())


def test_a_bad_rating_stops_at_its_row_or_leaves_it_out() -> None:
    rows = [("f:1", {"id": "a", "text": "t", "score": 1, "ratings": [1, 9]})]
    rows.append(("f:2", {"id": "b", "text": "u", "score": 1, "ratings": [1, 2]}))
    with pytest.raises(DataError, match="f:1: raters: ratings has 9"):
        task_of(**LIST).rows(rows, "x", "stop")
    found = task_of(**LIST).rows(rows, "x", "skip")
    assert ([question.id for question in found.questions], len(found.bad)) == (["b"], 1)


@pytest.mark.parametrize(
    ("raters", "words"),
    [
        ({"fields": ["a"]}, "at least two different fields, got \\['a'\\]"),
        ({"fields": ["a", "a"]}, "at least two different fields"),
        ({"fields": "score"}, "raters.fields names score, which is gold.field"),
        ({"fields": "r", "thresholds": [1, 2]}, "raters.thresholds needs 4 rising thresholds, got \\[1.0, 2.0\\]"),
        ({"fields": "r", "range": [4, 0]}, "raters.range is the lowest and highest rating"),
        ({"feilds": "r"}, "fields"),
    ],
)
def test_raters_that_do_not_fit_the_task_are_refused(raters: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        task_of(raters=raters)


def test_only_scores_and_labels_have_raters() -> None:
    with pytest.raises(DataError, match="raters is for integer, choice and text answers, got number answers"):
        task_of(answer={"type": "number"}, **LIST)


# Answers


def test_ratings_become_scores_by_the_thresholds_of_the_gold_answer() -> None:
    found = reader(gold=HALVES, **LIST)
    assert [found.answer(rating) for rating in (-4, -1.5, -1.6, 0, 0.5, 4)] == ["0", "1", "0", "2", "3", "4"]
    assert found.consensus([-1, 0]) == ("2",)  # the mean of -0.5 reaches the second threshold
    assert (found.level, found.names) == ("interval", ())


def test_without_thresholds_a_rating_is_rounded_and_a_half_goes_up() -> None:
    found = reader(**NAMED)
    assert [found.answer(rating) for rating in (0, 0.4, 0.5, 3.5)] == ["0", "0", "1", "4"]
    assert found.consensus([1, 2]) == ("2",)
    assert (found.level, found.range, found.names) == ("ordinal", (0, 4), ("anna", "ben", "clara"))


def test_ratings_on_another_scale_have_thresholds_of_their_own() -> None:
    found = reader(raters={"fields": "r", "thresholds": [20, 40, 60, 80], "range": [0, 100]}, gold=HALVES)
    assert [found.answer(rating) for rating in (0, 19.9, 20, 100)] == ["0", "0", "1", "4"]
    with pytest.raises(DataError, match="range of 0 to 100"):
        found.read([[101]])


def test_labels_agree_by_majority_or_tie() -> None:
    found = reader(**LABELS, **LIST)
    assert found.consensus(["a", "b", "a"]) == ("a",)
    assert found.consensus(["b", "a"]) == ("a", "b")
    assert found.level == "nominal"


# What nobody may see

SECRET = 2.71828


def secretive(folder: Path) -> Path:
    """A judge task in which one of two raters gave a rating that occurs nowhere else."""
    path = write_task(folder, raters={"fields": ["anna", "ben"]})
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows = [{**row, "anna": SECRET, "ben": row["score"]} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("proposal", [{"type": "pps"}, {"type": "star"}, {"type": "rejection"}, {"type": "direct"}])
def test_no_prompt_hint_or_pair_of_a_run_contains_a_rating(proposal: dict[str, Any], tmp_path: Path) -> None:
    path = secretive(tmp_path)
    engine = Scored(right_when_hinted)
    scripted_run(tmp_path, engine, proposal=proposal)
    assert not any(str(SECRET) in str(draw.messages) for draw in engine.asked)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    holding = {file.name for file in files if str(SECRET) in file.read_text()}
    assert holding == {"test.jsonl", "train.jsonl"}
    task = load_task(str(path))
    for question in load_pool(task).train.questions:
        assert question.ratings[0] == SECRET
        assert str(SECRET) not in task.hint(question) + str(task.hinted_prompt(question)) + task.shown(question)


@pytest.mark.parametrize("domain", ["movies", "tweets", "products", "editorials"])
def test_the_built_in_tasks_with_raters_show_none(domain: str) -> None:
    task = load_task(f"sentiment/{domain}")
    row = {"id": "x", "rating": 1.25, "ratings": [3.125, -2.875], "text": "A film."}
    question = task.question(row, row["rating"])
    assert (question.ratings, set(question.fields)) == ((3.125, -2.875), {"id", "text"})
    for prompt in (task.prompt, task.proposal_prompt, task.hinted_prompt):
        assert "3.125" not in str(prompt(question))
        assert "2.875" not in str(prompt(question))


def test_a_template_that_asks_for_a_rating_is_refused() -> None:
    task = task_of(user="{{ text }} {{ anna }} {% if hint %}{{ hint }}{% endif %}", examples=[], **NAMED)
    question = task.question({"text": "t", "anna": 3, "ben": 3, "clara": 3}, 3)
    with pytest.raises(DataError, match="'anna' is undefined"):
        task.prompt(question)


# Records


def test_ratings_are_kept_with_the_questions_of_a_run(tmp_path: Path) -> None:
    secretive(tmp_path)
    scripted_run(tmp_path, Scored(right_when_hinted))
    store = RunStore(tmp_path / "run")
    assert all(question.ratings == (SECRET, int(question.answer)) for question in store.questions("test"))
    engine = ScriptedEngine(right_when_hinted)
    scripted_run(tmp_path, engine)  # resumes, although JSON knows no tuples
    assert not engine.asked


def test_questions_without_raters_are_kept_as_ever(tmp_path: Path) -> None:
    scripted_run(tmp_path, Scored(right_when_hinted))
    rows = JsonlFile(tmp_path / "run/test.jsonl").read()
    assert set(rows[0]) == {"id", "fields", "answer", "solution"}
    assert "raters" not in (tmp_path / "run/task.yaml").read_text()
    assert RunStore(tmp_path / "run").questions("test")[0].ratings == ()
    question = Question("q", {}, "1", ratings=("a", None))
    assert Question.from_row(json.loads(json.dumps(question.as_row()))) == question
    assert question.as_row() == {**asdict(question)}


# Check and tables


def test_a_check_counts_the_ratings(tmp_path: Path) -> None:
    path = write_task(tmp_path, **LIST)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        given = ["[1, 2]", "[1, 2, 2]", "[3]", ""]
        csv.writer(file).writerows(
            [["id", "text", "score", "ratings"], *([n, f"t {n}", n, r] for n, r in enumerate(given))]
        )
    content = {**JUDGE, **LIST, "data": {"source": "rows.csv", "id": "id"}}
    path.write_text(yaml.safe_dump(content))
    task = load_task(str(path))
    found = check_task(task, load_pool(task))
    assert found.problems == []
    assert found.ratings is not None
    assert (found.ratings.rated, found.ratings.fewest, found.ratings.most) == (2, 2, 3)
    task = load_task(str(write_task(tmp_path)))
    assert check_task(task, load_pool(task)).ratings is None


def test_a_task_file_without_raters_reads_as_before() -> None:
    file = parse_task(yaml.safe_dump(JUDGE), "judge.yaml")
    assert "raters" not in file.model_dump(mode="json")
    assert "raters" in task_of(**LIST).file.model_dump(mode="json")
