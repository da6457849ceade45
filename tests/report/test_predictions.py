"""Reading predictions: every form of a file that is read, and every one that is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from estep.errors import ConfigError, DataError, StoreError
from estep.report.compare import compare
from estep.report.predictions import Answer, Arm, Columns, plain, read_arms
from estep.store.files import write_rows
from studies import make_run, right

FIXTURES = Path(__file__).parents[1] / "fixtures/compare"


def rows_file(path: Path, *rows: dict[str, Any]) -> str:
    write_rows(path, rows)
    return str(path)


def csv_file(path: Path, text: str) -> str:
    path.write_text(text.replace(" ", "\n") + "\n")
    return str(path)


def answers(*sources: str, **columns: Any) -> list[dict[str, Answer]]:
    return [arm.answers for arm in read_arms(sources, Columns(**columns))]


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (3, "3"),
        (3.0, "3"),
        (" 3\n", "3"),
        ("3.00", "3"),
        ("+3", "3"),
        ("-03.0", "-3"),
        ("-0", "0"),
        (1e20, "100000000000000000000"),
        ("3.5", "3.5"),
        ("3.", "3."),
        ("1e3", "1e3"),
        ("B ", "B"),
        (True, "True"),
        (["B"], "B"),
        ([["7.0"]], "7"),
        ([], None),
        ("  ", None),
        (None, None),
        (float("nan"), None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_answers_are_compared_plainly(value: object, answer: str | None) -> None:
    assert plain(value) == answer


def test_the_same_rows_in_every_format_are_the_same_predictions(tmp_path: Path) -> None:
    table = {"id": ["a", "b", "c"], "gold": [0, 1, 2], "prediction": [0.0, 1.0, None]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "p.parquet")
    (tmp_path / "t.tsv").write_text("id\tgold\tprediction\na\t0\t0\nb\t1\t1\nc\t2\t\n")
    sources = [
        csv_file(tmp_path / "c.csv", "id,gold,prediction a,0,0 b,1,1.0 c,2,"),
        str(tmp_path / "t.tsv"),
        rows_file(
            tmp_path / "j.jsonl",
            {"id": "a", "gold": 0, "prediction": 0},
            {"id": "b", "gold": "1", "prediction": ["1"]},
            {"id": "c", "gold": 2},
        ),
        str(tmp_path / "p.parquet"),
    ]
    first, *others = answers(*sources)
    assert first == {
        "a": Answer("0", "0", None, missing=False),
        "b": Answer("1", "1", None, missing=False),
        "c": Answer(None, "2", None, missing=True),
    }
    assert others == [first] * 3


def test_ids_are_text_and_numbers_of_any_kind_agree(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [7.0], "gold": ["x"], "prediction": ["x"]}), tmp_path / "p.parquet"
    )
    source = csv_file(tmp_path / "c.csv", "id,gold,prediction 7,x,x")
    assert [list(one) for one in answers(str(tmp_path / "p.parquet"), source)] == [["7"], ["7"]]


def test_names_are_stems_folders_or_given(tmp_path: Path) -> None:
    text = "id,gold,prediction a,0,0"
    make_run(tmp_path / "runs/pps.2", [right(1), right(2)])
    (tmp_path / "x=1").mkdir()
    sources = (
        csv_file(tmp_path / "one.v2.csv", text),
        f"new={csv_file(tmp_path / 'two.csv', text)}",
        csv_file(tmp_path / "x=1/three.csv", text),
        str(tmp_path / "runs/pps.2"),
    )
    assert [arm.name for arm in read_arms(sources, Columns())] == ["one.v2", "new", "three", "pps.2"]


def test_of_several_column_names_the_first_that_a_file_has_counts(tmp_path: Path) -> None:
    one = csv_file(tmp_path / "one.csv", "key,label,guess a,0,1")
    two = csv_file(tmp_path / "two.csv", "key,label,prediction,guess a,0,2,1")
    columns: dict[str, Any] = {"id": ["id", "key"], "gold": ["label"], "prediction": ["prediction", "guess"]}
    first, second = answers(one, two, **columns)
    assert (first["a"].prediction, second["a"].prediction) == ("1", "2")


# Runs of estep


def test_a_run_is_read_in_the_iteration_that_it_ends_in(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(9), "01234----"[:9] + "4"])
    run, before = read_arms([str(tmp_path / "run"), str(tmp_path / "run/iteration-01/eval.jsonl")], Columns())
    assert sum(bool(answer.correct) for answer in before.answers.values()) == 9
    assert [answer.correct for answer in run.answers.values()] == [True] * 5 + [False] * 4 + [True]
    assert [answer.missing for answer in run.answers.values()] == [False] * 5 + [True] * 4 + [False]
    assert run.source == f"{tmp_path / 'run'}, iteration 2"
    assert (run.name, before.name, run.judged) == ("run", "eval", True)


def test_the_validated_iteration_and_an_unfinished_run_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(9)])
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("iterations: 1", "iterations: 3"))
    (arm, _) = read_arms([str(tmp_path / "run"), f"same={tmp_path / 'run'}"], Columns())
    assert arm.source == f"{tmp_path / 'run'}, iteration 1 (the run is not finished: 1 of 3 iterations)"


def test_options_for_columns_leave_a_runs_own_records_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(9)])
    own = tmp_path / "copy.jsonl"
    own.write_bytes((tmp_path / "run/iteration-01/eval.jsonl").read_bytes())
    columns: dict[str, Any] = {"id": ["doc"], "gold": ["target"], "prediction": ["guess"]}
    assert answers(str(tmp_path / "run"), str(own), **columns) == answers(str(own), str(tmp_path / "run"))


def test_several_samples_count_by_the_runs_vote_or_are_refused(tmp_path: Path) -> None:
    for name, vote in (("majority", "majority"), ("none", "none")):
        make_run(tmp_path / name, [right(1), right(9)], evaluation={"samples": 3, "temperature": 1.0, "vote": vote})
        path = tmp_path / name / "iteration-01/eval.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        wrong = [{**row, "index": 1, "answer": "x", "status": "wrong"} for row in rows]
        write_rows(path, [*rows, *wrong, *({**row, "index": 2} for row in rows)])
    majority, none = str(tmp_path / "majority"), str(tmp_path / "none")
    (found, _) = answers(majority, f"again={majority}")
    assert sum(bool(answer.correct) for answer in found.values()) == 9
    with pytest.raises(DataError, match=r"none, iteration 1, question .*: question_id '.*' repeats with another pred"):
        answers(none, majority)
    assert answers(none, majority, where={"index": "0"})[0] == found


# Files of other tools


def test_samples_of_lm_evaluation_harness() -> None:
    # --log_samples writes one row per question and filter, and [invalid] where a filter finds nothing.
    sources = [str(FIXTURES / f"lm_eval_{size}.jsonl") for size in ("small", "large")]
    columns = Columns(["doc_id"], ["target"], ["filtered_resps"], where={"filter": "strict-match"})
    found = compare(read_arms(sources, columns))
    small, large = found.arms
    assert (small.name, small.questions, small.accuracy, small.unparsed) == ("lm_eval_small", 7, 3 / 7, 1)
    assert (large.accuracy, large.unparsed) == (1, 0)
    (versus,) = found.comparisons
    assert (versus.wins, versus.losses, versus.p) == (4, 0, pytest.approx(2 / 2**4))
    assert found.ordinal
    with pytest.raises(
        DataError, match=r"lm_eval_small.jsonl:13: doc_id '8' repeats with another prediction: None, th"
    ):
        read_arms(sources, replace(columns, where={}))
    judged = compare(read_arms(sources, replace(columns, correct="exact_match")))
    assert [one.accuracy for one in judged.arms] == [3 / 7, 1]


def test_multiple_choice_of_lm_evaluation_harness_is_read_by_its_metric() -> None:
    # Its responses are the log-likelihoods of the choices, which are no answer.
    sources = [str(FIXTURES / f"lm_eval_choice_{size}.jsonl") for size in ("small", "large")]
    with pytest.raises(DataError, match=r"small.jsonl:1: filtered_resps has 3 values, .*--correct NAME"):
        read_arms(sources, Columns(["doc_id"], ["target"], ["filtered_resps"]))
    found = compare(read_arms(sources, Columns(["doc_id"], correct="acc")))
    assert [one.accuracy for one in found.arms] == [1 / 6, 4 / 6]
    assert (found.comparisons[0].wins, found.comparisons[0].p) == (3, pytest.approx(2 / 2**3))
    assert (found.ordinal, found.why) == (False, "6 questions have no gold answer")


def test_nested_fields_are_columns() -> None:
    # The harness keeps the row of the data as `doc`: with an id of the data, its samples pair with other tools'.
    sources = [str(FIXTURES / f"lm_eval_{size}.jsonl") for size in ("small", "large")]
    columns = Columns(["doc.question"], ["target"], ["filtered_resps"], where={"filter": "strict-match"})
    arm, _ = read_arms(sources, columns)
    assert next(iter(arm.answers)) == "What is 5 + 3?"
    with pytest.raises(DataError, match=r"has no column 'doc\.id'; it has doc_id, doc, target"):
        read_arms(sources, replace(columns, id=["doc.id"]))


@pytest.mark.parametrize("correct", [None, "score_match"])
def test_samples_of_inspect(correct: str | None) -> None:
    # samples_df(logs, columns=SampleSummary + SampleScores).to_csv(...); texts have line breaks, one answer is empty.
    sources = [str(FIXTURES / f"inspect_{size}.csv") for size in ("small", "large")]
    columns = Columns(gold=["target"], prediction=["score_match_answer"], correct=correct)
    found = compare(read_arms(sources, columns))
    assert [(one.questions, one.accuracy, one.unparsed) for one in found.arms] == [(12, 5 / 12, 1), (12, 8 / 12, 1)]
    assert found.ordinal
    assert (found.comparisons[0].wins, found.comparisons[0].losses) == (3, 0)


# What is refused


def test_too_few_or_equal_names_are_refused(tmp_path: Path) -> None:
    source = csv_file(tmp_path / "a.csv", "id,gold,prediction a,0,0")
    with pytest.raises(ConfigError, match="needs at least two sets of predictions, got 1"):
        answers(source)
    with pytest.raises(ConfigError, match=r"two sets of predictions are named 'a'; name them: NAME=.*a\.csv"):
        answers(source, source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,gold,prediction a,0,0", r"b\.csv has no column 'id'; it has key, gold, prediction \(add --id NAME; "),
        ("id,gold,guess a,0,0", r"b\.csv has no column 'prediction'; it has id, gold, guess \(add --prediction NAME; "),
        ("id,gold,prediction ,0,0", r"b\.csv:2: no id"),
        ("id,gold,prediction a,0,0 a,0,1", r"b\.csv:3: id 'a' repeats with another prediction: '0', then '1'; one row"),
        ("id,gold,prediction a,0,0 a,1,0", r"b\.csv:3: id 'a' repeats with another gold: '0', then '1'"),
    ],
)
def test_a_file_that_cannot_be_paired_is_refused(text: str, words: str, tmp_path: Path) -> None:
    good = csv_file(tmp_path / "a.csv", "id,gold,prediction a,0,0")
    with pytest.raises(DataError, match=words):
        answers(good, csv_file(tmp_path / "b.csv", text))


def test_a_repeated_row_that_says_the_same_counts_once(tmp_path: Path) -> None:
    text = "id,gold,prediction a,0,0 b,0,1 a,0.0,0"
    one, two = csv_file(tmp_path / "a.csv", text), csv_file(tmp_path / "b.csv", text)
    assert [list(found) for found in answers(one, two)] == [["a", "b"], ["a", "b"]]


def test_values_that_are_no_answer_or_no_verdict_are_refused(tmp_path: Path) -> None:
    good = rows_file(tmp_path / "good.jsonl", {"id": 1, "gold": "x", "prediction": "x"})
    several = rows_file(tmp_path / "several.jsonl", {"id": 1, "gold": "x", "prediction": ["x", "y"]})
    nested = rows_file(tmp_path / "nested.jsonl", {"id": 1, "gold": {"a": 1}, "prediction": "x"})
    share = rows_file(tmp_path / "share.jsonl", {"id": 1, "ok": 0.5})
    with pytest.raises(DataError, match=r"several.jsonl:1: prediction has 2 values, one text or number is allowed"):
        answers(good, several)
    with pytest.raises(DataError, match=r"nested.jsonl:1: gold has an object, one text or number is allowed"):
        answers(good, nested)
    with pytest.raises(DataError, match=r"share.jsonl:1: ok = '0.5' is no verdict: 1, true or C, and 0, false, I or N"):
        answers(good, share, correct="ok")


def test_an_option_that_no_file_can_follow_is_refused(tmp_path: Path) -> None:
    one = csv_file(tmp_path / "a.csv", "id,gold,prediction a,0,0")
    two = csv_file(tmp_path / "b.csv", "id,gold,prediction,filter a,0,0,strict")
    with pytest.raises(
        ConfigError, match=r"--where epoch=\.\.\.: no file has this column; a has id, gold, prediction; b"
    ):
        answers(one, two, where={"epoch": "1"})
    with pytest.raises(ConfigError, match="--correct ok: no file has this column; a has id, gold, prediction; b has"):
        answers(one, two, correct="ok")
    with pytest.raises(DataError, match=r"b\.csv has no row with filter=loose; it has strict"):
        answers(one, two, where={"filter": "loose"})


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(2)])
    run = str(tmp_path / "run")
    with pytest.raises(StoreError, match=r"holds no run \(config.yaml\); name a run folder or a file of predictions"):
        answers(run, str(tmp_path))
    with pytest.raises(DataError, match=r"no such data file: .*nothing\.csv"):
        answers(run, str(tmp_path / "nothing.csv"))
    (tmp_path / "run/iteration-01/iteration.json").unlink()
    with pytest.raises(StoreError, match=r"iteration-01/eval.jsonl: the iteration is not finished yet"):
        answers(run, str(tmp_path / "run/iteration-01/eval.jsonl"))
    (tmp_path / "run/iteration-00/iteration.json").unlink()
    with pytest.raises(StoreError, match="has not evaluated its base model yet"):
        answers(run, run)


# Verdicts


@pytest.mark.parametrize(
    ("value", "correct", "missing"),
    [
        (1, True, False),
        (1.0, True, False),
        (True, True, False),
        ("True", True, False),
        ("C", True, False),
        (0, False, False),
        (False, False, False),
        ("I", False, False),
        ("N", False, False),
        (None, False, True),
    ],
)
def test_a_tools_verdict_is_read(value: object, correct: bool, missing: bool, tmp_path: Path) -> None:
    one = rows_file(tmp_path / "a.jsonl", {"id": 1, "ok": value})
    two = rows_file(tmp_path / "b.jsonl", {"id": 1, "ok": 1})
    assert answers(one, two, correct="ok")[0] == {"1": Answer(None, None, correct, missing)}


def test_an_arm_knows_its_columns(tmp_path: Path) -> None:
    one = rows_file(tmp_path / "a.jsonl", {"id": 1, "prediction": 2}, {"id": 2, "prediction": 2, "gold": 1})
    arm, _ = read_arms([one, f"b={one}"], Columns())
    assert arm == Arm("a", one, arm.answers, ("id", "prediction", "gold"), judged=False)
