"""How an arm judges, against figures computed by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from conftest import JUDGE
from estep.records import Response, Status
from estep.report.figure import draw_confusions
from estep.report.judge import (
    Confident,
    Confusion,
    Judges,
    Reliability,
    length_quarters,
    rank_correlations,
    read_judges,
    reliability,
)
from estep.report.judge_tables import (
    agreement_table,
    by_answer_table,
    by_length_table,
    calibration_table,
    confusion_table,
    judge_tables,
    precision_table,
)
from estep.report.results import read_results
from estep.report.tables import ReportTable
from estep.report.write import write_report
from studies import GOLD, make_run, make_study, right

LAST = "the last iteration"
FEW_SAMPLES = {"evaluation": {"samples": 5, "temperature": 1.0, "vote": "majority"}}


def response(gold: str, answer: str | None, question: str = "q", index: int = 0) -> Response:
    status: Status = "unparseable" if answer is None else "correct" if answer == gold else "wrong"
    return Response(
        f"{question}#{index}", question, index, gold, answer, status, "why", "text", False, "stop", 1, 1, None
    )


def judges_of(folder: Path) -> Judges:
    results = read_results(folder)
    found = read_judges(results, results.settings[0])
    assert found is not None
    return found


def as_task(run: Path, **changes: object) -> None:
    (run / "task.yaml").write_text(yaml.safe_dump({**JUDGE, **changes}))


def sampled(run: Path, answers: Mapping[str, str]) -> None:
    """Replace the responses of the last iteration by several per question, such as `{"q0": "001-4"}`."""
    rows = [
        asdict(response(GOLD[int(question[1:])], None if answer == "-" else answer, question, index))
        for question, given in answers.items()
        for index, answer in enumerate(given)
    ]
    path = max(run.glob("iteration-*")) / "eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(table: ReportTable | None, arm: str) -> list[tuple[str, ...]]:
    assert table is not None
    return [row[1:] for row in table.rows if row[0] == arm]


# Answers


def test_precision_recall_and_f1_of_each_answer() -> None:
    pairs = [("0", "0"), ("0", "0"), ("0", "1"), ("0", None), ("1", "1"), ("1", "0"), ("2", "1"), ("2", "9")]
    found = Confusion.of([response(*pair) for pair in pairs], "0123")
    assert [found.row(gold) for gold in "0123"] == [
        (2, 1, 0, 0, 1),
        (1, 1, 0, 0, 0),
        (0, 1, 0, 0, 1),  # 9 is not allowed, so it is none
        (0, 0, 0, 0, 0),
    ]
    # 0: 2 of 3 predictions are right, and 2 of 4 questions; F1 = 2 · 2 / (3 + 4). 1: 1 of 3, and 1 of 2; 2 / 5.
    assert [found.precision(answer) for answer in "01"] == pytest.approx([2 / 3, 1 / 3])
    assert [found.recall(answer) for answer in "01"] == [0.5, 0.5]
    assert [found.f1(answer) for answer in "01"] == pytest.approx([4 / 7, 2 / 5])
    # 2 occurs, and is never predicted. 3 does not occur either.
    assert (found.recall("2"), found.f1("2")) == (0, 0)
    assert all(map(math.isnan, [found.precision("2"), found.precision("3"), found.recall("3"), found.f1("3")]))


def test_rank_correlations_allow_for_ties() -> None:
    # Ranks of the correct scores: 1.5, 1.5, 3, 4; of the predicted ones: 1, 2.5, 2.5, 4. Both have a sum of squares of
    # 4.5 about their mean, and their products sum to 3.75. Of the six pairs, four agree, and one is tied on each side.
    spearman, kendall = rank_correlations([(0, 0), (0, 1), (1, 1), (2, 2)])
    assert spearman == pytest.approx(3.75 / 4.5)
    assert kendall == pytest.approx(4 / math.sqrt(5 * 5))
    assert rank_correlations([(0, 2), (1, 1), (2, 0)]) == pytest.approx((-1, -1))


@pytest.mark.parametrize("pairs", [[], [(1, 1)], [(0, 2), (1, 2)], [(2, 0), (2, 1)]])
def test_a_rank_correlation_of_equal_scores_is_undefined(pairs: list[tuple[int, int]]) -> None:
    assert all(map(math.isnan, rank_correlations(pairs)))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The correct scores are 0123401234. In the last iteration, pps answers the first six right for seed 1, and all but
    the last for seed 2; star says 0 throughout."""
    return make_study(
        tmp_path / "study",
        {
            ("judge", "pps", 1): ["-" * 10, right(10), right(6)],
            ("judge", "pps", 2): ["-" * 10, right(0), GOLD[:9] + "-"],
            ("judge", "star", 1): ["-" * 10, right(10), "0" * 10],
            ("judge", "star", 2): ["-" * 10, right(10), "0" * 10],
        },
    )


def test_confusion_matrices_are_of_the_last_iteration_over_all_seeds(study: Path) -> None:
    table = confusion_table(judges_of(study), LAST)
    assert table.columns == ("", "correct", "0", "1", "2", "3", "4", "none")
    # right(6) gives the next score to the last four questions: 1 → 2, 2 → 3, 3 → 4, 4 → 0.
    assert rows_of(table, "pps") == [
        ("0", "4", "0", "0", "0", "0", "0"),
        ("1", "0", "3", "1", "0", "0", "0"),
        ("2", "0", "0", "3", "1", "0", "0"),
        ("3", "0", "0", "0", "3", "1", "0"),
        ("4", "1", "0", "0", "0", "2", "1"),
    ]
    assert [row[1] for row in rows_of(table, "star")] == ["4"] * 5
    assert {table.rows[row][column] for row, column in table.best} == {"4", "3", "2", "0"}
    assert len(table.best) == 10


def test_precision_and_recall_as_a_table(study: Path) -> None:
    table = precision_table(judges_of(study), LAST)
    assert table.columns == ("", "score", "correct", "predicted", "precision", "recall", "F1")
    # From the matrix above. 0: 4 of 5 predictions, 4 of 4 questions, 8 / 9. 4: 2 of 3, 2 of 4, 4 / 7.
    assert rows_of(table, "pps")[0] == ("0", "4", "5", "80.0", "100.0", "88.9")
    assert rows_of(table, "pps")[4] == ("4", "4", "3", "66.7", "50.0", "57.1")
    # 0: 4 of 20 predictions, 4 of 4 questions, 8 / 24. The others are never predicted.
    assert rows_of(table, "star")[:2] == [
        ("0", "4", "20", "20.0", "100.0", "33.3"),
        ("1", "4", "0", "–", "0.0", "0.0"),
    ]


def test_accuracy_by_score(study: Path) -> None:
    table = by_answer_table(judges_of(study), LAST)
    assert table.columns == ("", "0", "1", "2", "3", "4")
    assert table.rows == (
        ("base", "0.0", "0.0", "0.0", "0.0", "0.0"),
        ("pps", "100.0", "75.0", "75.0", "75.0", "50.0"),
        ("star", "100.0", "0.0", "0.0", "0.0", "0.0"),
    )
    assert "Distinct questions per column: 2, 2, 2, 2, 2." in table.note


def test_agreement_is_averaged_over_seeds(tmp_path: Path) -> None:
    swapped = GOLD[:8] + "43"
    folder = make_study(
        tmp_path / "study",
        {
            ("judge", "pps", 1): ["-" * 10, GOLD],
            ("judge", "pps", 2): ["-" * 10, GOLD],
            ("judge", "pps", 3): ["0" * 10, swapped],
        },
    )
    table = agreement_table(judges_of(folder), LAST)
    assert table.columns == ("", "kappa", "Spearman", "Kendall", "MAE", "parsed")
    # Seeds 1 and 2 are perfect. Seed 3:
    # Kappa: the mean squared error is 0.2, and by chance twice the variance 2, so 1 - 0.2 / 4 = 0.95.
    # Spearman: the ranks 1.5, 3.5, ... 9.5 occur twice each, and their squared distances from 5.5 sum to 80. Two are
    # off by 2, so (80 + 80 - 8) / 2 / 80 = 0.95.
    # Kendall: of 45 pairs, 3 are tied on both sides and 2 on either side alone; of the other 38, the swapped one alone
    # disagrees: (37 - 1) / √(40 · 40) = 0.9.
    assert rows_of(table, "pps") == [("0.98", "0.98", "0.97", "0.07", "100.0")]
    # The base model states no score for seeds 1 and 2, and always 0 for seed 3, so its ranks are undefined.
    assert rows_of(table, "base") == [("0.00", "–", "–", "2.00", "33.3")]


# Length


@pytest.mark.parametrize(
    ("lengths", "names"),
    [
        ([8, 1, 7, 2, 6, 3, 5, 4], ["1–2 words", "3–4 words", "5–6 words", "7–8 words"]),
        # The cuts are the second, fourth and sixth of eight: 3, 3 and 4.
        ([3, 3, 3, 3, 4, 4, 9, 12], ["3 words", "4 words", "9–12 words"]),
        # The second, third and fifth of six: a cut is always one of the lengths.
        ([1, 2, 3, 4, 5, 6], ["1–2 words", "3 words", "4–5 words", "6 words"]),
        ([3, 3], ["3 words"]),
        ([], []),
    ],
)
def test_quarters_of_lengths_keep_equal_texts_together(lengths: list[int], names: list[str]) -> None:
    assert [quarter.name for quarter in length_quarters(lengths)] == names


def test_accuracy_by_length_of_the_text(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    path = tmp_path / "run/test.jsonl"
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    for question, words in zip(questions, [1, 9, 2, 9, 3, 9, 4, 9, 5, 9], strict=True):
        question["fields"]["text"] = "word " * words
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    table = by_length_table(judges_of(tmp_path / "run"), LAST)
    # The cuts are the third, fifth and eighth of ten: 3, 5 and 9. The first six questions are right: of those with up
    # to 3 words, all (1, 2 and 3); of 4 and 5, none; of the five with 9, the first three.
    assert table.columns == ("", "1–3 words", "4–5 words", "9 words")
    assert table.rows == (("base", "0.0", "0.0", "0.0"), ("pps", "100.0", "0.0", "60.0"))
    assert "Distinct questions per column: 3, 2, 5." in table.note


# Calibration


def test_reliability_in_bins_of_vote_shares() -> None:
    shares = [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (1, 3), (3, 7), (0, 5)]
    found = [Confident(votes, samples, right=samples == 5) for votes, samples in shares]
    assert [one.bin for one in found[:-1]] == [0, 1, 2, 3, 4, 1, 2]
    assert reliability(found) == [
        pytest.approx(Reliability(0, 0.2, 1, 0.2, 1)),
        pytest.approx(Reliability(0.2, 0.4, 2, (2 / 5 + 1 / 3) / 2, 0.5)),
        pytest.approx(Reliability(0.4, 0.6, 2, (3 / 5 + 3 / 7) / 2, 0.5)),
        pytest.approx(Reliability(0.6, 0.8, 1, 0.8, 1)),
        pytest.approx(Reliability(0.8, 1, 1, 1, 1)),
    ]


VOTES = {
    "q0": "00000",  # 0: 5 of 5, right
    "q1": "1112-",  # 1: 3 of 5, right; a text without an answer does not vote, but counts as a sample
    "q2": "00012",  # 0: 3 of 5, wrong
    "q3": "40123",  # 4, the earliest of five: 1 of 5, wrong
    "q4": "-----",  # no answer
}


def test_calibration_compares_vote_shares_with_what_is_right(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)], **FEW_SAMPLES)
    sampled(tmp_path / "run", VOTES)
    table = calibration_table(judges_of(tmp_path / "run"), LAST)
    assert table is not None
    assert table.columns == ("", "vote share", "predictions", "mean share", "right")
    assert rows_of(table, "pps") == [
        ("0–20 %", "1", "20.0", "0.0"),
        ("20–40 %", "0", "–", "–"),
        ("40–60 %", "2", "60.0", "50.0"),
        ("60–80 %", "0", "–", "–"),
        ("80–100 %", "1", "100.0", "100.0"),
        ("none", "1", "0.0", "0.0"),
    ]


@pytest.mark.parametrize(
    ("vote", "right_share", "predicted"),
    [
        ("none", "0.0", ("0", "0", "2", "2", "1", "0")),  # each sample counts; the most frequent and earliest is 2
        ("majority", "0.0", ("0", "0", "1", "0", "0", "0")),
        ("median", "100.0", ("0", "0", "0", "1", "0", "0")),  # of 22334
    ],
)
def test_the_prediction_is_the_one_that_counts(
    vote: str, right_share: str, predicted: tuple[str, ...], tmp_path: Path
) -> None:
    evaluation = {"samples": 5, "temperature": 1.0, "vote": vote}
    make_run(tmp_path / "run", ["-" * 10, right(6)], evaluation=evaluation)
    sampled(tmp_path / "run", {"q3": "42233"})
    judges = judges_of(tmp_path / "run")
    assert rows_of(calibration_table(judges, LAST), "pps")[1] == ("20–40 %", "1", "40.0", right_share)
    assert rows_of(confusion_table(judges, LAST), "pps")[3] == ("3", *predicted)


def test_single_samples_have_no_calibration(study: Path) -> None:
    assert calibration_table(judges_of(study), LAST) is None


# Reports


def names(tables: Sequence[ReportTable]) -> list[str]:
    return [table.name.removesuffix("-judge-model") for table in tables]


def test_labels_without_an_order_have_no_rank_correlations(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    as_task(tmp_path / "run", answer={"type": "choice", "choices": "ABC", "label": "Score"}, examples=[])
    lettered = str.maketrans("01234", "ABCAB")
    for path in (tmp_path / "run").glob("iteration-*/eval.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.update(gold=row["gold"].translate(lettered), answer=row["answer"] and row["answer"].translate(lettered))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judges = judges_of(tmp_path / "run")
    tables = judge_tables(judges, LAST)
    assert names(tables) == ["precision", "accuracy-by-answer", "confusion", "accuracy-by-length"]
    assert confusion_table(judges, LAST).columns == ("", "correct", "A", "B", "C", "none")
    assert "Precision and recall of each answer" in tables[0].title


def test_long_scales_have_no_figures_of_each_score(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    as_task(tmp_path / "run", answer={"type": "integer", "min": 0, "max": 100, "label": "Score"})
    assert names(judge_tables(judges_of(tmp_path / "run"), LAST)) == ["agreement", "accuracy-by-length"]
    report = write_report(tmp_path / "run")
    assert not list(report.folder.glob("figures/confusion-*"))
    assert '<section id="judge">' in report.page.read_text()


def test_answers_that_cannot_be_listed_have_no_judge_report(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    as_task(tmp_path / "run", answer={"type": "number", "label": "Score"})
    report = write_report(tmp_path / "run")
    assert "judge" not in sections(report.page)
    assert "Judge report" not in report.folder.joinpath("report.md").read_text()
    assert not list(report.folder.glob("*/confusion-*"))


def sections(page: Path) -> list[str]:
    text = page.read_text()
    return [part.split('"')[0] for part in text.split('<section id="')[1:]]


def test_a_report_has_the_tables_and_a_figure_of_each_setting(study: Path) -> None:
    report = write_report(study)
    tables = {path.name for path in report.folder.glob("tables/*-judge-model.*")}
    for name in ("agreement", "precision", "accuracy-by-score", "confusion", "accuracy-by-length"):
        assert {f"{name}-judge-model.{kind}" for kind in ("md", "tex", "csv")} <= tables
    assert (report.folder / "figures/confusion-judge-model.png").read_bytes().startswith(b"\x89PNG")
    assert sections(report.page)[2:5] == ["tables", "judge", "rationales"]
    text = (report.folder / "report.md").read_text()
    assert text.index("## Judge report") < text.index("(figures/confusion-judge-model.png)")
    assert text.index("## Judge report") < text.index("### Confusion matrix: judge, model")


def test_the_figure_has_a_panel_per_arm_with_its_numbers(study: Path, tmp_path: Path) -> None:
    drawn = draw_confusions(judges_of(study), tmp_path / "figure.svg").read_text()
    written = [part.split("<")[0] for part in drawn.split(">") if part.split("<")[0].strip()]
    assert [name for name in written if name in ("pps", "star")] == ["pps", "star"]
    assert written.count("none") == 2
    # The axes of both panels, and their cells: see the matrices above.
    assert written.count("4") == 2 * 2 + 1 + 5
    assert written.count("3") == 2 * 2 + 3


def test_long_tables_are_folded(tmp_path: Path) -> None:
    one_arm = make_study(tmp_path / "one", {("judge", "pps", 1): ["-" * 10, right(6)]})
    arms = {("judge", arm, 1): ["-" * 10, right(6)] for arm in ("pps", "star", "direct")}
    three_arms = make_study(tmp_path / "three", arms)
    for folder, folded in ((one_arm, False), (three_arms, True)):
        text = write_report(folder).page.read_text()
        assert ("<summary><h3>Confusion matrix: judge, model</h3></summary>" in text) == folded
        assert "<h3>Confusion matrix: judge, model</h3>" in text


def test_a_run_that_was_not_trained_has_a_judge_report_of_its_base_model(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(6)], iterations=3)
    table = by_answer_table(judges_of(tmp_path / "run"), LAST)
    assert table.rows[0][1:] == table.rows[1][1:] == ("100.0", "50.0", "50.0", "50.0", "50.0")


def test_a_fixed_number_of_words_is_one_column(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    table = by_length_table(judges_of(tmp_path / "run"), LAST)
    assert table.columns == ("", "3 words")  # text number 0
    assert table.rows[1] == ("pps", "60.0")
