"""How people agree, against figures computed by hand and published ones."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import JUDGE, task_of
from estep.records import Rating, Response, Status
from estep.report.judge import Evaluated, Judge
from estep.report.rater_tables import each_rater_table, rater_sentence, rater_tables, where_raters_agree_table
from estep.report.raters import Rated, read_rated, single_rater_of
from estep.report.results import Setting, read_results
from estep.report.stats import resampled_sums
from estep.report.write import write_report
from estep.tasks.raters import RatingReader
from studies import GOLD, make_run, make_study, right

LAST = "the last iteration"
Ratings = Mapping[str, Sequence[Rating | None]]
NOBODY = Judge("nobody", lambda run: run.final, ())
LABELS: dict[str, Any] = {"answer": {"type": "text", "label": "Score"}, "examples": []}


def rated(ratings: Ratings, predictions: Mapping[str, Sequence[str | None]] | None = None, **changes: Any) -> Rated:
    """The raters of a task, and a model with these predictions for each question, whose correct answer is 2."""
    task = task_of(**{"raters": {"fields": "ratings"}, **changes})
    given = [response(id, answer) for id, answers in (predictions or {}).items() for answer in answers]
    model = Judge("model", NOBODY.pick, (Evaluated(None, given, given),))  # type: ignore[arg-type]
    return Rated(Setting("t", "m"), RatingReader(task.file), {id: tuple(of) for id, of in ratings.items()}, model, ())


def response(question: str, answer: str | None) -> Response:
    status: Status = "unparseable" if answer is None else "correct" if answer == "2" else "wrong"
    return Response(f"{question}#0", question, 0, "2", answer, status, "why", "text", False, "stop", 1, 1, None)


# Leaving one rater out

THREE_AND_TWO: Ratings = {"q0": (1, 1, 4), "q1": (2, None, 2)}


def test_a_single_rater_against_the_others() -> None:
    found = rated(THREE_AND_TWO).single_rater()
    # q0: against 1 and 4, whose mean 2.5 is rounded to 3, a 1 is wrong by 2, twice; against 1 and 1, the 4 by 3.
    # q1: both are right. Each question counts once.
    assert found.accuracy.value == pytest.approx((0 + 1) / 2)
    assert found.mae.value == pytest.approx((7 / 3 + 0) / 2)
    # Pairs (others, rater), each of q0 with weight 1/3: (3, 1), (3, 1), (1, 4); and (2, 2). The mean squared error is
    # (17/3 + 0) / 2 = 17/6. Means 13/6 and 2, mean squares (19/3 + 4) / 2 = 31/6 and (6 + 4) / 2 = 5, so by chance
    # 31/6 + 5 - 2 · 13/6 · 2 = 3/2.
    assert found.kappa.value == pytest.approx(1 - (17 / 6) / (3 / 2))
    # Both questions are drawn twice, or each once: the accuracy is 0, 1/2 or 1.
    assert found.accuracy.interval == (0, 1)


def test_a_model_is_measured_against_the_same_answers_of_the_others() -> None:
    found = rated(THREE_AND_TWO, {"q0": "3", "q1": [None], "unrated": "2"})
    compared = found.compared(found.base)
    assert compared is not None
    # q0: the others say 3, 3 and 1. q1 has no answer, which is wrong, and left out of the mean error.
    assert compared.measures.accuracy.value == pytest.approx((2 / 3 + 0) / 2)
    assert compared.measures.mae.value == pytest.approx((0 + 0 + 2) / 3)
    assert compared.above.value == pytest.approx((2 / 3 + 0) / 2 - (0 + 1) / 2)
    assert compared.above.interval == (-1, pytest.approx(2 / 3))


def test_a_model_that_was_asked_a_part_is_compared_with_people_on_that_part() -> None:
    found = rated(THREE_AND_TWO, {"q1": ["2", "1"]})  # two seeds
    compared = found.compared(found.base)
    assert compared is not None
    assert compared.measures.accuracy.value == 0.5
    assert compared.above.value == -0.5  # people are right about q1
    assert rated(THREE_AND_TWO, {"other": "2"}).compared(found.base) is not None
    assert found.compared(rated(THREE_AND_TWO, {"other": "2"}).base) is None


def test_ratings_become_scores_as_the_gold_answer_does() -> None:
    gold = {"field": "score", "thresholds": [-1.5, -0.5, 0.5, 1.5], "range": [-4, 4]}
    found = rated({"q0": (-4, -1, 0), "q1": (3, 3)}, gold=gold)
    # q0: -4 is a 0, and the mean of -1 and 0 a 2; -1 is a 1, and that of -4 and 0 a 0; 0 is a 2, and that of -4 and -1
    # a 0. q1: 3 is a 4 both times.
    assert found.opinions["q0"] == [("0", ("2",)), ("1", ("0",)), ("2", ("0",))]
    assert found.single_rater().mae.value == pytest.approx(((2 + 1 + 2) / 3 + 0) / 2)


def test_labels_that_tie_count_in_part() -> None:
    found = rated({"q0": ("a", "a", "b"), "q1": ("a", "b")}, {"q0": "a", "q1": "a"}, **LABELS)
    # q0: each a is one of the two labels that tie among the others; the b is wrong. q1: nobody agrees.
    single = found.single_rater()
    assert single.accuracy.value == pytest.approx(((1 / 2 + 1 / 2 + 0) / 3 + 0) / 2)
    assert math.isnan(single.kappa.value)
    assert math.isnan(single.mae.value)
    compared = found.compared(found.base)
    assert compared is not None
    # q0: the others say a or b, a or b, and a; q1: b, and a.
    assert compared.measures.accuracy.value == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_each_rater_has_figures_where_places_belong_to_people() -> None:
    found = rated({"q0": (1, 1, None), "q1": (None, 2, 4)}, raters={"fields": ["anna", "ben", "clara"]})
    table = each_rater_table(found)
    assert table is not None
    assert table.columns == ("", "questions", "accuracy", "kappa", "MAE")
    assert [(row[0], row[1], row[2].split()[0], row[4].split()[0]) for row in table.rows] == [
        ("anna", "1", "100.0", "0.00"),
        ("ben", "2", "50.0", "1.00"),
        ("clara", "1", "0.0", "2.00"),
    ]
    assert each_rater_table(rated(THREE_AND_TWO)) is None


def test_a_resample_draws_as_many_questions() -> None:
    import numpy

    drawn = resampled_sums(numpy.array([[1.0, 0.0], [1.0, 4.0], [1.0, 8.0]]), seed=1)
    assert drawn.shape == (2000, 2)
    assert set(drawn[:, 0]) == {3.0}
    assert drawn[:, 1].mean() == pytest.approx(12, abs=0.5)
    assert set(drawn[:, 1]) == set(range(0, 25, 4))


# Krippendorff's alpha

PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Four observers and twelve units: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C."""


@pytest.mark.parametrize(
    ("level", "changes", "alpha"),
    [
        ("nominal", LABELS, 0.743),
        ("ordinal", {}, 0.815),
        ("interval", {"raters": {"fields": "ratings", "thresholds": [1.5, 2.5, 3.5, 4.5]}}, 0.849),
    ],
)
def test_alpha_is_krippendorffs(level: str, changes: dict[str, Any], alpha: float) -> None:
    task = {"answer": {"type": "integer", "min": 1, "max": 5}, "examples": [], **changes}
    say = str if level == "nominal" else int
    units = {
        f"u{n}": [None if r is None else say(r) for r in unit] for n, unit in enumerate(zip(*PUBLISHED, strict=True))
    }
    found = rated(units, **task).alpha()
    assert (round(found.value, 3), found.level) == (alpha, level)


def test_alpha_of_equal_ratings_is_undefined() -> None:
    assert math.isnan(rated({"q0": (1, 1), "q1": (1, 1, 1)}).alpha().value)


def test_alpha_of_very_many_distinct_ratings_is_that_of_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    raters = {"fields": "ratings", "thresholds": [1.5, 2.5, 3.5, 4.5]}
    ratings = {"q0": (1.25, 1.5), "q1": (3.125, 3.25), "q2": (0.5, 4.75)}
    exact, monkey = rated(ratings, raters=raters).alpha(), "estep.report.raters._MOST_CELLS"
    monkeypatch.setattr(monkey, 10)
    rounded = rated(ratings, raters=raters).alpha()
    assert (exact.level, rounded.level) == ("interval", "ordinal")
    assert rounded == rated({"q0": (0, 1), "q1": (2, 2), "q2": (0, 4)}).alpha()


# Where raters agree


def test_accuracy_where_raters_agree_and_where_they_differ() -> None:
    # Standard deviations 0, 0.5, 1 and 2: the split at 0.5 is even.
    ratings = {"q0": (2, 2), "q1": (2, 3), "q2": (1, 3), "q3": (0, 4)}
    found = rated(ratings, {"q0": "2", "q1": "2", "q2": "1", "q3": "2"})
    assert [found.agree(id) for id in ratings] == [True, True, False, False]
    table = where_raters_agree_table(found, LAST)
    assert table.columns == ("", "raters agree", "raters differ")
    assert table.rows == (("a single rater", "50.0", "0.0"), ("model", "100.0", "50.0"))
    assert "at most 0.50" in table.note
    assert "per column: 2, 2." in table.note


@pytest.mark.parametrize(
    ("ratings", "agree"),
    [
        ([(1, 1), (2, 2), (3, 3), (1, 2)], [True, True, True, False]),  # the median would be no spread at all
        ([(1, 1), (1, 2), (2, 3), (3, 4)], [True, False, False, False]),
        ([(1, 2), (2, 3)], [True, True]),  # all differ alike
    ],
)
def test_questions_with_the_same_spread_stay_together(ratings: list[tuple[int, int]], agree: list[bool]) -> None:
    found = rated({f"q{n}": of for n, of in enumerate(ratings)})
    assert [found.agree(f"q{n}") for n in range(len(ratings))] == agree


def test_labels_differ_by_the_share_of_other_labels() -> None:
    found = rated({"q0": ("a", "a", "a"), "q1": ("a", "b", "a"), "q2": ("a", "b", "c")}, **LABELS)
    assert found.spreads == pytest.approx({"q0": 0, "q1": 1 / 3, "q2": 2 / 3})
    assert found.unanimous == pytest.approx(1 / 3)


# Reports


def with_ratings(run: Path, ratings: Sequence[Sequence[Rating | None]], fields: str | list[str] = "ratings") -> None:
    rows = [json.loads(line) for line in (run / "test.jsonl").read_text().splitlines()]
    kept = [{**row, "ratings": list(given)} for row, given in zip(rows, ratings, strict=True)]
    (run / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (run / "task.yaml").write_text(yaml.safe_dump({**JUDGE, "raters": {"fields": fields}}))


AROUND = [(int(gold), int(gold), min(4, int(gold) + 1)) for gold in GOLD]
"""Two raters say the correct score, and the third one more, up to 4."""


def test_a_report_shows_the_ceiling(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "study",
        {("judge", "pps", seed): ["-" * 10, right(8)] for seed in (1, 2)} | {("judge", "star", 1): ["-" * 10, GOLD]},
    )
    for run in (folder / "runs").iterdir():
        with_ratings(run, AROUND)
    results = read_results(folder)
    found = read_rated(results, results.settings[0])
    assert found is not None
    # Eight of ten questions have ratings g, g, g + 1: against g and g + 1, whose mean is rounded up, g is wrong, and so
    # is g + 1 against g and g. The other two, of score 4, are unanimous.
    assert found.single_rater().accuracy.value == pytest.approx(2 / 10)
    assert single_rater_of(folder / "runs/judge-pps-s1") == pytest.approx(2 / 10)
    names = [table.name.removesuffix("-judge-model") for table in rater_tables(found, LAST)]
    assert names == ["human-ceiling", "raters", "accuracy-by-agreement"]
    report = write_report(folder)
    page, text = report.page.read_text(), (report.folder / "report.md").read_text()
    # pps is right about the first eight, but says 0 instead of a 4, and 4 instead of a 3. For seven of the eight, the
    # others say g + 1 twice and g once, and the eighth is a 4; the ninth has 3, 3, 4, of which the others say 4 twice.
    share = f"{100 * (7 * 1 / 3 + 1 + 2 / 3 + 0) / 10:.1f}"
    sentence = next(line for line in report.sentences if "a single rater" in line)
    assert "a single rater agrees with the others on 20.0 % of the questions (95 % interval" in sentence
    assert f"by the same measure, pps on {share} %, star on {100 * (8 / 3 + 2) / 10:.1f} %." in sentence
    assert "### Human ceiling" in text
    assert "Dotted: a single rater against the other raters; the table" in text
    assert page.count("Human ceiling: judge, model") >= 1
    for suffix in ("md", "tex", "csv"):
        assert (report.folder / f"tables/human-ceiling-judge-model.{suffix}").is_file()


def test_the_figures_show_the_ceiling_where_there_are_raters(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    plain = (write_report(tmp_path / "run").folder / "figures/judge-model.svg").read_text()
    with_ratings(tmp_path / "run", AROUND)
    shown = (write_report(tmp_path / "run").folder / "figures/judge-model.svg").read_text()
    assert "a single rater" not in plain
    assert "a single rater" in shown
    accuracies = (tmp_path / "run/report/figures/accuracy.svg").read_text()
    assert "stroke-dasharray: 1.2,1.98" in accuracies  # a dotted line of this width


def test_a_report_of_labels_has_the_ceiling_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    with_ratings(tmp_path / "run", [[str(one) for one in given] for given in AROUND], ["anna", "ben", "clara"])
    content = {**JUDGE, **LABELS, "raters": {"fields": ["anna", "ben", "clara"]}}
    (tmp_path / "run/task.yaml").write_text(yaml.safe_dump(content))
    report = write_report(tmp_path / "run")
    found = {path.stem.removesuffix("-judge-model") for path in report.folder.glob("tables/*-judge-model.md")}
    assert found >= {"human-ceiling", "raters", "accuracy-by-agreement", "each-rater"}
    assert "confusion" not in found
    assert "Judge report" in report.page.read_text()


def test_questions_with_fewer_than_two_ratings_make_no_ceiling(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    assert read_rated(read_results(tmp_path / "run"), Setting("judge", "model")) is None
    with_ratings(tmp_path / "run", [[1, None]] * 10, ["anna", "ben"])
    assert single_rater_of(tmp_path / "run") is None
    with_ratings(tmp_path / "run", [[1, 2], *[[1, None]] * 9], ["anna", "ben"])
    results = read_results(tmp_path / "run")
    found = read_rated(results, results.settings[0])
    assert found is not None
    assert list(found.ratings) == ["q0"]
    assert "0.0 %" in rater_sentence(found)
