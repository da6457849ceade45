"""A table becomes a task: what its columns are taken for, which rows count, and the file that is written."""

import csv
import json
import string
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from estep.data.check import check_task
from estep.data.split import load_pool
from estep.errors import ConfigError, DataError
from estep.sources.rows import Row, read_rows
from estep.tasks import Task, load_task, parse_task
from estep.tasks.columns import (
    Column,
    Roles,
    columns_of,
    number,
    propose_group,
    propose_id,
    propose_raters,
    propose_score,
    propose_text,
)
from estep.tasks.draft import Draft, Scale, draft, far_score, read_scale, why_labels
from estep.tasks.draft_file import data_rows, raters_of, rationale, task_name, task_text, text_field

STARS = Roles("text", "stars")


def table(*rows: dict[str, Any]) -> list[Row]:
    return [(f"t.csv:{line}", row) for line, row in enumerate(rows, 2)]


def starred(*stars: Any) -> list[Row]:
    return table(*({"text": f"text number {n}", "stars": value} for n, value in enumerate(stars)))


def written(found: Draft, folder: Path, rows: list[Row], name: str = "t") -> Task:
    """The task of a draft, read back from the files that belong to it."""
    content = [row for _, row in rows] if found.as_it_is else data_rows(found)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    path = folder / f"{name}.yaml"
    path.write_text(task_text(found, name, f"{name}.jsonl", "t.csv"), encoding="utf-8")
    return load_task(str(path))


def sound(found: Draft, folder: Path, rows: list[Row]) -> Task:
    """The task of a draft, which must be sound and hold every usable row that is no example."""
    task = written(found, folder, rows)
    pool = load_pool(task)
    assert check_task(task, pool).problems == []
    examples = {example.reads for example in found.examples}
    answers = [one.answer for one in found.usable if one.reads not in examples]
    assert [question.answer for question in pool.train.questions] == answers
    return task


# Columns


def roles_of(path: Path) -> tuple[str | None, tuple[str, ...], str | None, str | None, str | None]:
    columns = columns_of(read_rows(path))
    text = propose_text(columns)
    assert text is not None
    raters = propose_raters(columns, text)
    score = propose_score(columns, text, raters)
    id = propose_id(columns, [text, score, *raters])
    return text, raters, score, id, propose_group(columns, [text, score, *raters, id])


def write_csv(path: Path, header: str, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("review_id,title,review,stars,helpful", ("review", (), "stars", "review_id", None)),
        ("Nr,Titel,Kommentar,Bewertung,Jahr", ("Kommentar", (), "Bewertung", "Nr", None)),
        ("key,headline,body,rater1,rater2", ("body", ("rater1", "rater2"), None, "key", None)),
        (
            "Zeile,Titel,Antwort,Gutachter A,Gutachter B",
            ("Antwort", ("Gutachter A", "Gutachter B"), None, "Zeile", None),
        ),
        ("id,a,b,mean rating,x", ("b", (), "mean rating", "id", None)),
        ("x1,a,b,x2,x3", ("b", (), "x2", None, None)),
        ("id,t,essay,Rater1_form,Rater2_form", ("essay", ("Rater1_form", "Rater2_form"), None, "id", None)),
        ("id,t,essay,rater1_form,rater1_style", ("essay", (), "rater1_form", "id", None)),
    ],
)
def test_columns_are_recognized_by_names_and_cells(header: str, expected: tuple[Any, ...], tmp_path: Path) -> None:
    rows = [[n, f"title {n}", f"a longer text, number {n}", n % 4 + 1, n % 7] for n in range(30)]
    assert roles_of(write_csv(tmp_path / "t.csv", header, rows)) == expected


def test_documents_are_a_group_if_there_are_enough(tmp_path: Path) -> None:
    rows = [[n // 2, f"summary number {n}", n % 3] for n in range(30)]
    assert roles_of(write_csv(tmp_path / "t.csv", "docId,summary,score", rows))[4] == "docId"
    rows = [[n // 10, f"summary number {n}", n % 3] for n in range(30)]  # three documents
    assert roles_of(write_csv(tmp_path / "t.csv", "docId,summary,score", rows))[4] is None


def test_a_lone_column_of_real_numbers_is_a_score_and_labels_come_first(tmp_path: Path) -> None:
    rows = [[f"comment number {n}", n / 30, "ab"[n % 2]] for n in range(30)]
    assert roles_of(write_csv(tmp_path / "t.csv", "comment,toxicity,number", rows))[2] == "toxicity"
    assert roles_of(write_csv(tmp_path / "t.csv", "comment,toxicity,x", rows))[2] == "x"


def test_a_column_of_labels_is_recognized(tmp_path: Path) -> None:
    rows = [[f"comment number {n}", ["very good", "bad"][n % 2], n % 3] for n in range(12)]
    assert roles_of(write_csv(tmp_path / "t.csv", "comment,label,year", rows))[2] == "label"


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", "3,5", " 4 "], "number"),
        (["1", "2", "two", "4"], "other"),  # three of four
        ([*map(str, range(9)), "ten"], "number"),
        (["1", "2", "n/a", "-"], "number"),
        ([True, False, True, True], "label"),
        (["2024-01-02", "2024-01-03"], "other"),
        (["素晴らしい映画でした", "退屈な二時間だった"], "text"),
        ([["a", "b"], ["c"]], "other"),
        ([None, "", float("nan")], "other"),
        (["r1", "r2", "r3"], "other"),
    ],
)
def test_the_kind_of_a_column(cells: list[Any], kind: str) -> None:
    assert Column("x", tuple(cells)).kind == kind


def test_a_telling_name_makes_single_words_texts_but_no_ids() -> None:
    cells = ("good", "bad", "great", "awful")
    assert [Column(name, cells).kind for name in ("word", "review", "review_id")] == ["other", "text", "other"]
    assert Column("post", ("2024-01-02", "2024-01-03")).kind == "other"


def test_a_decimal_comma_is_no_thousands_separator() -> None:
    assert number("3,5") == Decimal("3.5")
    assert number("1,200") is None


# Scores


def test_integers_become_a_scale_from_the_data(tmp_path: Path) -> None:
    rows = starred(*(str(n % 5 + 1) for n in range(15)))
    found = draft(rows, STARS)
    assert (found.answer.type, found.answer.values) == ("integer", tuple("12345"))
    assert found.counts == dict.fromkeys("12345", 3)
    assert found.as_it_is
    assert not found.rounded
    task = sound(found, tmp_path, rows)
    assert task.file.gold.thresholds is None
    for question in load_pool(task).train.questions:
        assert task.prompt(question)[-1]["content"] == f"Text: {question.fields['text']}"


def test_a_given_scale_is_wider_than_the_data_and_never_narrower(tmp_path: Path) -> None:
    rows = starred(*"1231231233")
    found = draft(rows, STARS, scale=Scale(0, 4))
    assert found.answer.values == tuple("01234")
    sound(found, tmp_path, rows)
    with pytest.raises(DataError, match=r"t\.csv:4: the score 3 is outside the scale from 1 to 2"):
        draft(rows, STARS, scale=Scale(1, 2))


def test_real_scores_are_rounded_at_half_points(tmp_path: Path) -> None:
    # Halves are rounded up: 1.5 is 2, and 4.49 is 4. The scale spans from floor(1.2) to ceil(4.9).
    rows = starred(1.2, 1.5, 2.0, 2.49, 2.5, 3.0, 4.49, 4.5, 4.9, 1.3)
    found = draft(rows, STARS)
    assert [one.answer for one in found.usable] == ["1", "2", "2", "2", "3", "3", "4", "5", "5", "1"]
    task = sound(found, tmp_path, rows)
    assert task.file.gold.thresholds == (1.5, 2.5, 3.5, 4.5)
    assert task.file.gold.range == (1, 5)
    assert "at half points" in task_text(found, "t", "t.jsonl", "t.csv")


def test_the_mean_of_the_raters_is_written_to_a_file_of_its_own(tmp_path: Path) -> None:
    ratings = [(1, 1, 2), (2, 3, 4), (5, 5, None), (1, 2, None), (4, 4, 5), (None, None, None), (2, 2, 2)]
    rows = table(*({"text": f"text number {n}", "a": a, "b": b, "c": c} for n, (a, b, c) in enumerate(ratings)))
    found = draft(rows, Roles("text", raters=("a", "b", "c")))
    # Means 4/3, 3, 5, 1.5, 13/3, none, 2; each scale ends with the raters' own scores.
    assert [one.answer for one in found.usable] == ["1", "3", "5", "2", "4", "2"]
    assert found.left_out == {"no value in a, b, c": 1}
    assert not found.as_it_is
    assert [round(row["mean_score"], 3) for row in data_rows(found)] == [1.333, 3.0, 5.0, 1.5, 4.333, 2.0]
    assert data_rows(found)[0]["a"] == 1
    assert (len(found.unanimous), found.agreement) == (6, pytest.approx(2 / 6))  # (5, 5) and (2, 2, 2)
    task = sound(found, tmp_path, rows)
    assert (task.file.gold.field, task.file.gold.range) == ("mean_score", (1, 5))
    assert task.file.raters is not None
    assert task.file.raters.fields == ("a", "b", "c")
    by_text = {question.fields["text"]: question for question in load_pool(task).train.questions}
    assert by_text["text number 3"].ratings == (1, 2, None)
    assert set(by_text["text number 3"].fields) == {"text"}


def test_raters_are_named_where_their_scores_are_on_the_scale_of_the_answer(tmp_path: Path) -> None:
    rows = table(*({"text": f"text number {n}", "mean": n % 3, "a": n % 3, "b": n % 2} for n in range(12)))
    task = sound(draft(rows, Roles("text", "mean", ("a", "b"))), tmp_path, rows)
    assert {question.ratings for question in load_pool(task).train.questions} <= {(n % 3, n % 2) for n in range(12)}
    percents = [(place, {**row, "b": 50 * row["b"]}) for place, row in rows]
    found = draft(percents, Roles("text", "mean", ("a", "b")))
    assert raters_of(found) == ()
    assert sound(found, tmp_path, percents).file.raters is None
    assert raters_of(draft(rows, Roles("text", "mean", ("a",)))) == ()  # of a single one, nothing follows


@pytest.mark.parametrize("labels", [False, True])
def test_cells_of_raters_that_hold_no_rating_are_emptied(labels: bool, tmp_path: Path) -> None:
    said = ["no", "yes"] if labels else [0, 1]
    cells = [{"a": said[n % 2], "b": " n/a " if n == 3 else said[n % 2]} for n in range(12)]
    rows = table(*({"text": f"text number {n}", "mean": said[n % 2], **of} for n, of in enumerate(cells)))
    if not labels:
        rows[4][1]["a"] = "unsure"
    found = draft(rows, Roles("text", "mean", ("a", "b")), scale=None if labels else Scale(0, 1))
    assert found.as_it_is == labels  # a task file reads what says that there is no value, but no other word
    task = sound(found, tmp_path, rows)
    read = {question.fields["text"]: question.ratings for question in load_pool(task).train.questions}
    expected = {f"text number {n}": (said[n % 2], None if n == 3 else said[n % 2]) for n in range(12)}
    if not labels:
        expected["text number 4"] = (None, said[0])
    assert len(read) > 8, "the others are examples"
    assert read == {text: expected[text] for text in read}
    assert data_rows(found)[3]["b"] is None
    if not labels:
        assert data_rows(found)[4]["a"] is None


def test_a_score_beside_raters_is_the_answer_and_the_raters_tell_agreement(tmp_path: Path) -> None:
    rows = table(*({"text": f"text number {n}", "mean": n % 3, "a": n % 3, "b": n % 2} for n in range(12)))
    found = draft(rows, Roles("text", "mean", ("a", "b")))
    assert found.as_it_is
    # n mod 3 equals n mod 2 for n = 0, 1, 6, 7.
    assert found.agreement == pytest.approx(4 / 12)
    assert all(example.spread == 0 for example in found.examples if example.answer != "2")
    sound(found, tmp_path, rows)


@pytest.mark.parametrize("cell", ["3,5", "n/a", "  ", float("nan")])
def test_cells_that_a_task_file_cannot_read_are_mended_in_a_file_of_its_own(cell: Any, tmp_path: Path) -> None:
    rows = starred(*([1.5, 2.5, 3.5] * 6), cell)
    found = draft(rows, STARS)
    assert not found.as_it_is
    assert len(found.usable) == (19 if cell == "3,5" else 18)
    sound(found, tmp_path, rows)


@pytest.mark.parametrize("cell", ["n/a", "NA", " NaN ", "None", "null", "-", "--", "?", ".", "", None])
def test_what_says_that_there_is_no_value_counts_as_missing(cell: Any, tmp_path: Path) -> None:
    rows = starred(*"123123123123", *[cell] * 6)  # a third of the cells
    found = draft(rows, STARS)
    assert found.counts == {"1": 4, "2": 4, "3": 4}
    assert found.left_out == {"no value in stars": 6}
    assert why_labels(columns_of(rows), STARS) is None
    sound(found, tmp_path, rows)
    found = draft(starred(*["good", "bad"] * 4, *[cell] * 6), STARS)
    assert found.counts == {"good": 4, "bad": 4}
    assert found.left_out == {"no value in stars": 6}
    rows = table(*({"text": f"text {n}", "a": n % 3, "b": n % 2 if n % 3 else cell} for n in range(12)))
    found = draft(rows, Roles("text", raters=("a", "b")))
    assert found.answer.type == "integer"
    assert [row["mean_score"] for row in data_rows(found)][:3] == [0, 1, 1]


def test_words_among_numbers_make_labels_with_a_reason_and_a_scale_takes_the_numbers(tmp_path: Path) -> None:
    rows = starred(*"12345" * 7, *["5 Sterne"] * 5)
    assert why_labels(columns_of(rows), STARS) == (
        "stars is taken as labels, because 5 of 40 cells are no numbers, such as '5 Sterne'; "
        "--scale takes the numbers alone"
    )
    assert draft(rows, STARS).answer.type == "text"
    found = draft(rows, STARS, scale=Scale(1, 5))
    assert found.counts == dict.fromkeys("12345", 7)
    assert found.left_out == {"no number in stars": 5}
    sound(found, tmp_path, rows)
    assert why_labels(columns_of(starred(*"12345", *["good", "bad"] * 5)), STARS) is None


@pytest.mark.parametrize(
    ("stars", "doubt"),
    [
        ([1, 2, 3, 4, 5, 9], "6 to 8 never occur; is the highest score 9 right?"),
        ([1, 2, 4, 5, 9], "6 to 8 never occur; is the highest score 9 right?"),
        ([-99, 0, 1, 2], "-98 to -1 never occur; is the lowest score -99 right?"),
        ([1.5, 2.25, 3, 4.75, 9.5], "5 to 9 never occur; is the highest score 9.5 right?"),
        ([1, 2, 3, 4, 5], None),
        ([1, 2, 3, 5], None),  # 4 alone is missing
        ([1, 3, 5, 8], None),  # 3 is less than twice 2
        ([0, 25, 50, 100], "51 to 99 never occur"),
        ([0, 25, 50, 75, 100], None),
        ([0, 10], None),
    ],
)
def test_a_lone_score_far_from_the_others_is_doubted(stars: list[float], doubt: str | None) -> None:
    found = far_score(columns_of(starred(*stars * 2)), STARS)
    assert found is None if doubt is None else found is not None and found.startswith(doubt)


def test_a_rater_without_a_value_is_refused_and_makes_no_labels() -> None:
    rows = table(*({"text": f"text {n}", "a": n % 3, "b": "n/a"} for n in range(12)))
    with pytest.raises(DataError, match="rater b gave no numbers, but a has scores"):
        draft(rows, Roles("text", raters=("a", "b")))


def test_empty_cells_are_left_out_by_the_task_file(tmp_path: Path) -> None:
    rows = [*starred(*"12312312312"), *table({"text": "", "stars": "2"}, {"text": "no score", "stars": None})]
    found = draft(rows, STARS)
    assert found.left_out == {"no text": 1, "no value in stars": 1}
    assert found.as_it_is
    task = sound(found, tmp_path, rows)
    assert load_pool(task).left_out == 2
    assert task.question({"text": "A new row has no score."}).answer == ""


def test_texts_with_several_answers_are_counted_and_are_no_examples(tmp_path: Path) -> None:
    rows = [*starred(*"1212121"), *table({"text": "TEXT  number 0", "stars": "2"})]
    found = draft(rows, STARS)
    assert found.contradictory == {"text number 0"}
    assert "text number 0" not in [example.reads for example in found.examples]
    sound(found, tmp_path, rows)


# Labels


def test_labels_are_compared_as_texts(tmp_path: Path) -> None:
    rows = starred(*["Positive", "negative", "positive ", "no: idea", "1"] * 3)
    found = draft(rows, STARS)
    assert found.counts == {"positive": 6, "negative": 3, "no: idea": 3, "1": 3}
    task = sound(found, tmp_path, rows)
    assert task.file.answer.type == "text"
    assert task.judge(load_pool(task).train.questions[0], "Evaluation: Fine. Label: Positive").status == "correct"


def test_single_letters_are_choices(tmp_path: Path) -> None:
    rows = starred(*"YNYNYN")
    found = draft(rows, STARS)
    assert found.answer.values == ("N", "Y")
    sound(found, tmp_path, rows)


def test_numbers_can_be_labels(tmp_path: Path) -> None:
    rows = starred(*"010711")
    found = draft(rows, STARS, labels=True)
    assert found.answer.type == "text"
    assert found.counts == {"1": 3, "0": 2, "7": 1}
    sound(found, tmp_path, rows)


def test_the_majority_of_the_raters_labels_a_text_and_ties_are_left_out(tmp_path: Path) -> None:
    votes = ["aab", "abb", "ab", "aaa", "bbb", "a", "abc", "bba"]
    rows = table(
        *({"text": f"text number {n}", **dict(zip("xyz", vote, strict=False))} for n, vote in enumerate(votes))
    )
    found = draft(rows, Roles("text", raters=("x", "y", "z")))
    assert [one.answer for one in found.usable] == ["a", "b", "a", "b", "a", "b"]
    assert found.left_out == {"no majority of the raters": 2}
    # Two rows with three equal labels and one with a single label; a third of the raters disagrees elsewhere.
    assert [round(one.spread, 2) for one in found.usable] == [0.33, 0.33, 0, 0, 0, 0.33]
    # Ties count as disagreement, and the single "a" does not count: "aaa" and "bbb" of seven rows.
    assert (len(found.unanimous), found.agreement) == (7, pytest.approx(2 / 7))
    task = sound(found, tmp_path, rows)
    assert task.file.gold.field == "majority_label"
    assert ("a", "a", "b") in {question.ratings for question in load_pool(task).train.questions}


# Refusals


@pytest.mark.parametrize(
    ("stars", "words"),
    [
        ("3333", "stars has the single value 3, so there is nothing to learn"),
        (["+", "+", "-"], "so there is nothing to learn; other rows: no value in stars: 1"),
        (["yes", "yes"], "all 2 usable rows have the answer yes, so there is nothing to learn"),
        ([2.6, 3.4, 3.0], "all 3 usable rows have the answer 3, so there is nothing to learn"),
        ([1, 5000], r"stars has scores from 1 to 5000; a scale has at most 101 integers"),
        ([f"label {n}" for n in range(21)], r"stars has 21 different values, such as 'label 0'; up to 20 labels"),
        (["x" * 61, "y"], r"stars has 2 different values, .*of at most 60 characters"),
        (["", None], r"none of the 2 rows can be used: no value in stars: 2"),
    ],
)
def test_tables_that_teach_nothing_are_refused(stars: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        draft(starred(*stars), STARS)


def test_columns_that_do_not_fit_are_refused() -> None:
    rows = table(*({"text": f"text {n}", "stars": n % 3, "id": n // 2, "doc": "" if n == 4 else "d"} for n in range(9)))
    with pytest.raises(ConfigError, match="no column 'txt'; did you mean 'text'"):
        draft(rows, Roles("txt", "stars"))
    with pytest.raises(ConfigError, match="column 'stars' is named for two purposes"):
        draft(rows, Roles("text", "stars", id="stars"))
    with pytest.raises(ConfigError, match="no column with scores or labels is named"):
        draft(rows, Roles("text"))
    with pytest.raises(DataError, match="column 'id' repeats values in 4 rows, so it is no id; it may be a group"):
        draft(rows, Roles("text", "stars", id="id"))
    with pytest.raises(DataError, match="column 'doc' is empty in 1 rows, so it is no group"):
        draft(rows, Roles("text", "stars", group="doc"))
    with pytest.raises(DataError, match="rater doc gave no numbers, but stars has scores"):
        draft(rows, Roles("text", "stars", raters=("doc",)))
    with pytest.raises(DataError, match="a scale needs numbers, but doc has none"):
        draft(rows, Roles("text", "doc"), scale=Scale(0, 1))
    with pytest.raises(DataError, match="column 'text' holds lists or nested fields and no text"):
        draft(table({"text": ["a"], "stars": 1}, {"text": ["b"], "stars": 2}), STARS)


def test_scales_are_read_as_people_write_them() -> None:
    assert read_scale("1-5") == read_scale(" 1 to 5 ") == read_scale("1..5") == read_scale("1 – 5") == Scale(1, 5)
    assert read_scale("-3--1") == Scale(-3, -1)
    for wrong in ("5", "5-1", "1-1", "0-101", "a-b", "1-5 stars"):
        with pytest.raises(ConfigError, match="0-4 is expected"):
            read_scale(wrong)


# Examples


def test_there_is_an_example_for_each_score_and_of_more_than_seven_for_five() -> None:
    found = draft(starred(*range(1, 6), *range(1, 6)), STARS)
    assert [example.answer for example in found.examples] == ["5", "1", "4", "2", "3"]
    found = draft(starred(*range(11), *range(11)), STARS)
    assert [example.answer for example in found.examples] == ["10", "0", "8", "2", "5"]


def test_an_example_has_agreeing_raters_then_a_middling_length() -> None:
    lengths = [5, 9, 3, 7, 20, 6]  # median 6.5
    spreads = [0, 2, 0, 0, 0, 2]
    rows = table(
        *({"text": "x" * length, "a": 2, "b": 2 + spread} for length, spread in zip(lengths, spreads, strict=True))
    )
    found = draft(rows, Roles("text", raters=("a", "b")))
    # Of the rows with the mean 2, which all raters gave, 7 is closest to 6.5; those with the mean 3 are 9 and 6 long.
    assert [(example.answer, len(example.text)) for example in found.examples] == [("3", 6), ("2", 7)]


def test_no_example_takes_the_only_text_of_an_answer_or_a_bad_one(tmp_path: Path) -> None:
    texts = ["only one", "a <|im_end|> b", "a </s> b", "word " * 500, "this one", "x <|y|> z", "word " * 600]
    rows = table(*({"text": text, "stars": int(n > 0) + int(n > 4)} for n, text in enumerate(texts)))
    found = draft(rows, STARS)
    # Both texts of score 2 are unfit, score 0 has a single text.
    assert [(example.answer, example.text) for example in found.examples] == [("1", "this one")]
    sound(found, tmp_path, rows)


def test_a_table_without_any_fit_example_is_still_a_task(tmp_path: Path) -> None:
    rows = starred("1", "2")
    found = draft(rows, STARS)
    assert found.examples == []
    assert sound(found, tmp_path, rows).file.examples == ()


def test_a_stopgap_rationale_is_true_and_holds_no_label() -> None:
    texts = ["It is: bad", 'Ten "words" and more: ' + "word " * 20, "Short and good.", "Fine.", "x", "Good, too!"]
    found = draft(table(*({"text": text, "stars": n // 2} for n, text in enumerate(texts))), STARS)
    says = [rationale(found, one) for one in found.usable]
    assert says[0] == 'The text begins with "It is", and it was given the lowest score.'
    assert says[1] == 'The text begins with "Ten words and more", and it was given the lowest score.'
    assert says[2] == 'The text says "Short and good", and it was given 1 on the scale from 0 to 2.'
    assert says[5] == 'The text says "Good, too", and it was given the highest score.'


# The file


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("text", "text"),
        ("Größe", "Größe"),
        ("本文", "本文"),
        ("Freier Text", "text"),
        ("hint", "text"),
        ("options", "text"),
        ("self", "text"),
        ("none", "text"),
        ("2nd", "text"),
        ("Große".replace("ß", "o\u0308"), "text"),
        ("info.text", "text"),
    ],
)
def test_a_column_that_templates_cannot_name_is_renamed(column: str, field: str, tmp_path: Path) -> None:
    rows = table(*({column: f"text number {n}", "stars": n % 2, "other": 1} for n in range(6)))
    found = draft(rows, Roles(column, "stars"))
    assert text_field(found) == field
    task = sound(found, tmp_path, rows)
    assert "Text: text number" in task.prompt(task.question(rows[0][1]))[-1]["content"]


def test_a_renamed_column_hides_no_other(tmp_path: Path) -> None:
    rows = table(*({"The text": f"text number {n}", "text": "other", "stars": n % 2} for n in range(6)))
    found = draft(rows, Roles("The text", "stars"))
    assert text_field(found) == "text_"
    sound(found, tmp_path, rows)


def test_the_column_judges_are_told_of_is_the_scores_own() -> None:
    rows = table(*({"text": f"text {n}", "Freundlichkeit": n % 2} for n in range(6)))
    text = task_text(draft(rows, Roles("text", "Freundlichkeit")), "t", "t.csv", "t.csv")
    assert 'Score a text for "Freundlichkeit": an integer from 0 (lowest) to 1 (highest).' in text


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: name.strip())


@given(
    texts=st.lists(st.text(max_size=40).filter(str.strip), min_size=4, max_size=8, unique=True),
    column=NAMES,
    score=NAMES,
)
def test_any_text_and_any_name_survive_the_file(texts: list[str], column: str, score: str) -> None:
    if column == score:
        return
    rows = table(*({column: text, score: n % 2} for n, text in enumerate(texts)))
    found = draft(rows, Roles(column, score))
    file = parse_task(task_text(found, "t", f"{column}.csv", f"{column}.csv"), "t.yaml")
    assert [example.fields[text_field(found)] for example in file.examples] == [one.text for one in found.examples]
    assert file.gold.field == score
    assert file.data.source == f"{column}.csv"
    assert file.data.rename == ({} if text_field(found) == column else {column: text_field(found)})


@given(labels=st.lists(st.text(max_size=20).filter(str.strip), min_size=2, max_size=4, unique=True))
def test_any_label_survives_the_file(labels: list[str]) -> None:
    rows = starred(*labels * 2)
    try:
        found = draft(rows, STARS, labels=True)
    except DataError:
        return  # one label, or none
    task = Task(parse_task(task_text(found, "t", "t.csv", "t.csv"), "t.yaml"))
    assert [example.answer for example in task.examples] == [one.answer for one in found.examples]


def test_the_file_holds_no_tab_and_no_long_comment() -> None:
    text = task_text(draft(starred(*"1212"), STARS), "t", "t.csv", "t.csv")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert set(text) <= set(string.printable) - {"\t"}
    assert yaml.safe_load(text)["few_shot"] == "first"


def test_a_tables_name_becomes_a_tasks_name() -> None:
    assert task_name("Kunden Bewertungen (2024)") == "Kunden-Bewertungen-2024"
    assert task_name("???") == "task"
