"""A report's figures against values computed by hand, on a study whose answers are given."""

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from estep.config.files import load_config
from estep.errors import ConfigError, StoreError
from estep.report.comparisons import final, highest, over_settings, within, within_settings
from estep.report.conclusions import conclusions
from estep.report.examples import examples_of
from estep.report.formats import csv_of, iterations_csv, latex, markdown
from estep.report.results import Setting, read_results
from estep.report.stats import wilson
from estep.report.tables import ReportTable, accuracy_table, confidence, measures_table, paper_table
from estep.report.write import write_report
from studies import GOLD, make_run, make_study, right

NONE = "----------"
ALL = GOLD


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """On a, two seeds: pps ends at 6 and 8 of ten after 9 and 8, star at 5 and 5. On b, one seed: 4 and 4."""
    return make_study(
        tmp_path / "study",
        {
            ("a", "pps", 1): [right(1), right(9), right(6)],
            ("a", "star", 1): [right(1), right(5), right(5)],
            ("a", "pps", 2): [right(3), right(8), right(8)],
            ("a", "star", 2): [right(3), right(2), right(5)],
            ("b", "pps", 1): [NONE, right(4), right(4)],
            ("b", "star", 1): [NONE, right(4), right(4)],
        },
    )


def test_highest_and_last_accuracy_over_seeds(study: Path) -> None:
    results = read_results(study)
    # a, highest: pps 0.9 and 0.8, mean 0.85, standard error 0.1 / √2 / √2 = 0.05; star 0.5 and 0.5.
    assert accuracy_table(results, highest, "x", "x", "").rows == (
        ("base", "20.0 ± 10.0", "0.0"),
        ("pps", "85.0 ± 5.0", "40.0"),
        ("star", "50.0 ± 0.0", "40.0"),
        ("most frequent answer", "20.0 ± 0.0", "20.0"),
    )
    # a, last: pps 0.6 and 0.8.
    table = accuracy_table(results, final, "x", "x", "")
    assert table.rows[1] == ("pps", "70.0 ± 10.0", "40.0")
    assert table.best == {(1, 1), (1, 2), (2, 2)}  # both are best on b


def test_the_iteration_that_validation_chose_is_neither_the_highest_nor_the_last(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(5), right(9), right(6)], select="validation", validation_size=2)
    for k, accuracy in enumerate([0.0, 0.5, 0.0, 0.0]):
        path = tmp_path / f"run/iteration-{k:02d}/metrics.json"
        content = json.loads(path.read_text())
        content["validation"] = {**content["evaluation"], "accuracy": accuracy}
        path.write_text(json.dumps(content))
    (run,) = read_results(tmp_path / "run").runs
    assert (run.final.iteration, run.highest.iteration) == (1, 2)
    (sentence,) = conclusions(read_results(tmp_path / "run"), "the iteration chosen by validation").sentences
    assert "50.0 %" in sentence


def test_measures_are_of_the_last_iteration(study: Path) -> None:
    results = read_results(study)
    table = measures_table(results, results.settings[0], "the last iteration")
    base, pps, star = table.rows
    low, high = wilson(7, 10)  # 70 % of ten questions, which both seeds ask
    assert pps[:3] == ("pps", "70.0 ± 10.0", f"{100 * low:.1f}–{100 * high:.1f}")
    assert pps[5:] == ("100.0", "4.0", "10.0", "33.3", "15")
    assert base[8] == "–"
    assert star[1] == "50.0 ± 0.0"


def test_a_cell_is_compared_over_its_questions(study: Path) -> None:
    results = read_results(study)
    found = within(results, results.settings[0], "pps", "star")
    assert found is not None
    # pps is right on 6 and 8, star on 5 and 5 of the same ten questions: (1 + 3) / 20.
    assert found.difference.mean == pytest.approx(0.2)
    assert (found.questions, found.answers) == (10, 20)
    # pps is right on questions 0 to 5 and 0 to 7, star on 0 to 4 twice: over both seeds, 5, 6 and 7 are won.
    assert (found.wins, found.losses) == (3, 0)
    assert found.sign_test == pytest.approx(2 / 2**3)
    tie = within(results, results.settings[1], "pps", "star")
    assert tie is not None
    assert tie.difference[:3] == (0, 0, 0)


def test_holms_correction_is_over_all_rows(study: Path) -> None:
    compared = within_settings(read_results(study))
    assert [(one.setting.task, one.other) for one in compared] == [
        ("a", "base"),
        ("a", "star"),
        ("b", "base"),
        ("b", "star"),
    ]
    # The sign tests' p-values exceed the bootstraps' in all rows but the tie on b, where both are 1.
    # a against base: pps is right on 6 and 8, base on 1 and 3, so questions 1 to 7 are won: 2 / 2**7; times four.
    assert compared[0].p == pytest.approx(2 / 2**7)
    assert compared[0].holm == pytest.approx(8 / 2**7)
    # b against base: 4 to 0: 2 / 2**4 = 0.125, times the three that remain; a against star: 0.25, times two.
    assert [one.holm for one in compared[1:]] == pytest.approx([0.5, 0.375, 1.0])


def test_the_sign_test_counts_cells(study: Path) -> None:
    found = {(one.other, one.measure): one for one in over_settings(read_results(study))}
    # Against star: a is won, b is tied; of two comparisons one won: 1 - (1/2)**2 = 0.75.
    for measure in ("highest", "final"):
        assert found["star", measure][2:5] == (1, 0, 1)
        assert found["star", measure].p == pytest.approx(0.75)
        assert found["base", measure][2:5] == (2, 0, 0)
        assert found["base", measure].p == pytest.approx(0.25)


def test_shares_of_several_samples_are_compared_question_by_question(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {("a", arm, 1): [NONE, right(4)] for arm in ("pps", "star")})
    results = read_results(folder)
    path = results.runs[0].store.iteration(1).folder / "eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wrong = [{**row, "draw_id": row["draw_id"] + "b", "status": "wrong", "answer": "9"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *wrong]))
    assert set(results.runs[0].scores(1).values()) == {0.0, 0.5}
    found = within(read_results(folder), results.settings[0], "pps", "star")
    assert found is not None
    assert found.difference.mean == pytest.approx(-0.2)
    assert (found.wins, found.losses) == (0, 4)  # half right against right, on the four questions that star answers
    assert found.sign_test == pytest.approx(2 / 2**4)


def said(folder: Path) -> list[str]:
    return conclusions(read_results(folder), "the last iteration").sentences


def test_what_is_said_first(study: Path) -> None:
    on_a, on_b = said(study)
    assert on_a.startswith(
        "a, model: pps has the highest accuracy in the last iteration, 70.0 ± 10.0 %: significantly "
    )
    assert "star (+20.0, " in on_a
    assert on_b.startswith("b, model: pps and star have the highest accuracy in the last iteration, 40.0 %; pps is ")


def test_what_is_significant_is_so_after_correction_for_all_that_is_compared(tmp_path: Path) -> None:
    # Seven questions to none of ten: the sign test's p is 2 / 2**7 = 0.0156. The bootstrap's is lower: 0.3 ** 10 of the
    # resampled sets have none of the seven.
    (alone,) = said(make_study(tmp_path / "alone", {("a", "pps", 1): [NONE, right(7)]}))
    assert alone.startswith("a, model: pps reaches 70.0 % in the last iteration: significantly above base (+70.0, ")
    # Three settings: 3 x 0.0156 = 0.047; four: 0.0625.
    for tasks, above in {"abc": ": significantly above base", "abcd": ": not significantly above base"}.items():
        cells = {(task, "pps", 1): [NONE, right(7)] for task in tasks}
        assert all(f"{above} (+70.0, " in sentence for sentence in said(make_study(tmp_path / tasks, cells)))


def two_runs(folder: Path, wins: int, losses: int, questions: int) -> Path:
    """A run whose base model is right on `losses` questions alone, and whose trained model is on `wins` others."""
    make_run(folder, [NONE, NONE])
    for k in (0, 1):
        path = folder / f"iteration-{k:02d}/eval.jsonl"
        row = json.loads(path.read_text().splitlines()[0])
        right_on = range(wins, wins + losses) if k == 0 else range(wins)
        rows = [
            {**row, "draw_id": f"q{n}#0", "question_id": f"q{n}", "status": "correct" if n in right_on else "wrong"}
            for n in range(questions)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = folder / f"iteration-{k:02d}/metrics.json"
        content = json.loads(metrics.read_text())
        content["evaluation"]["accuracy"] = len(right_on) / questions
        metrics.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("wins", "losses", "questions", "p", "kind"),
    [
        (4, 0, 192, 2 / 2**4, ": not significantly above base"),
        (2, 0, 2, 2 / 2**2, ": not significantly above base"),
        # Twice the tail of 30 fair coins, 1 + 30 + 435 + 4060 + 27405 + 142506 = 174437 of 2**30 = 1073741824.
        (25, 5, 192, 2 * 174437 / 2**30, ": significantly above base"),
    ],
)
def test_a_difference_is_significant_only_if_both_tests_say_so(
    tmp_path: Path, wins: int, losses: int, questions: int, p: float, kind: str
) -> None:
    # The bootstrap alone calls all three significant: 4 to 0 of 192 with p = 0.03, 2 of 2 with 0.0002.
    results = read_results(two_runs(tmp_path / "run", wins, losses, questions))
    (found,) = within_settings(results)
    assert found.difference.p < 0.05
    assert (found.wins, found.losses) == (wins, losses)
    assert found.sign_test == pytest.approx(p)
    assert found.holm == found.p == max(found.difference.p, found.sign_test)
    assert kind in conclusions(results, "the last iteration").sentences[0]


def test_a_mean_and_a_majority_that_favor_different_arms_show_nothing(tmp_path: Path) -> None:
    # pps is right on questions 0 to 5 with every seed; star on 6 to 9 with the first seed, and on all with the others.
    # Summed over seeds, pps is ahead by 1 on six questions and behind by 3 on four: (6 - 12) / 30.
    star = ["------" + GOLD[6:], ALL, ALL]
    cells = {("a", "pps", seed): [NONE, right(6)] for seed in (1, 2, 3)}
    cells |= {("a", "star", seed): [NONE, star[seed - 1]] for seed in (1, 2, 3)}
    found = within(read_results(make_study(tmp_path / "s", cells)), Setting("a", "model"), "pps", "star")
    assert found is not None
    assert (found.wins, found.losses) == (6, 4)
    assert found.difference.mean == pytest.approx(-0.2)
    assert found.p == 1.0


def test_arms_are_distinguished_by_significance(tmp_path: Path) -> None:
    cells = {("a", arm, 1): [NONE, ends] for arm, ends in {"pps": ALL, "star": right(9), "direct": NONE}.items()}
    (sentence,) = said(make_study(tmp_path / "s", cells))
    assert sentence.startswith("a, model: pps has the highest accuracy in the last iteration, 100.0 %: ")
    assert sentence.endswith(
        ": significantly above direct (+100.0, +100.0 to +100.0) and base (+100.0, +100.0 to +100.0); not "
        "significantly above star (+10.0, +0.0 to +30.0)."
    )


def test_significance_has_the_direction_of_the_mean_over_seeds(tmp_path: Path) -> None:
    # The first seed says the contrary of the two others.
    ends = {"pps": [NONE, ALL, ALL], "direct": [ALL, right(1), right(1)]}
    cells = {("a", arm, seed): [NONE, ends[arm][seed - 1]] for arm in ends for seed in (1, 2, 3)}
    (sentence,) = said(make_study(tmp_path / "s", cells))
    assert ": significantly above direct (+26.7, " in sentence
    assert sentence.endswith(" and base (+66.7, +66.7 to +66.7).")


def test_a_significant_loss_from_training_is_reported(tmp_path: Path) -> None:
    (sentence,) = said(make_study(tmp_path / "s", {("a", "pps", 1): [right(9), NONE]}))
    assert ": significantly below base (-90.0, " in sentence
    assert "The base model reaches 90.0 % without training." in sentence


def test_a_tie_names_the_arm_that_is_compared(tmp_path: Path) -> None:
    ends = {"pps": "0123401---", "star": "---3401234", "direct": "0---------"}
    (sentence,) = said(make_study(tmp_path / "s", {("a", arm, 1): [NONE, ends[arm]] for arm in ends}))
    assert (
        "pps and star have the highest accuracy in the last iteration, 70.0 %; pps is significantly above " in sentence
    )


def test_a_run_that_has_not_trained_yet_reports_its_base_model(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(3), NONE])
    shutil.rmtree(tmp_path / "run/iteration-01")
    found = conclusions(read_results(tmp_path / "run"), "the last iteration")
    assert found == (["judge, model: only the base model has been evaluated: 30.0 %."], "")


@pytest.mark.parametrize(("asked", "told"), [("q0", "star."), ("q", "star (none shared).")])
def test_an_arm_that_was_asked_other_questions_is_named(study: Path, asked: str, told: str) -> None:
    for path in (study / "runs").glob("a-star-s*/iteration-02/eval.jsonl"):
        path.write_text(path.read_text().replace(f'_id": "{asked}', f'_id": "other-{asked}'))
    on_a, on_b = said(study)
    assert f"Not asked the same questions as pps, and compared with it on shared ones only: {told}" in on_a
    assert "Not asked" not in on_b


def test_a_model_below_the_most_frequent_answer_is_reported_as_such(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {("a", "pps", 1): [NONE, right(2)]})
    (sentence,) = said(folder)
    assert sentence.endswith(" Always giving the most frequent answer would reach 20.0 %.")
    assert "The base model reaches" not in sentence


def test_a_base_model_that_training_made_worse_is_reported(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {("a", "pps", 1): [right(9), right(6)]})
    (sentence,) = said(folder)
    assert "pps reaches 60.0 % in the last iteration: " in sentence
    assert "base (-30.0, " in sentence
    assert sentence.endswith(" The base model reaches 90.0 % without training.")


def test_arms_are_ranked_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    # pps: 2 and 9 of ten for seeds 1 and 2; star: 8 and 8 for seeds 2 and 3. On seed 2, pps is the better.
    ends = [("pps", 1, 2), ("pps", 2, 9), ("star", 2, 8), ("star", 3, 8)]
    cells = {("a", arm, seed): [NONE, right(count)] for arm, seed, count in ends}
    results = read_results(make_study(tmp_path / "s", cells))
    (sentence,) = conclusions(results, "the last iteration").sentences
    assert "pps has the highest accuracy in the last iteration, 90.0 % over seed 2 (shared by all arms): " in sentence
    cells[("a", "direct", 2)] = [NONE, right(5)]
    table = accuracy_table(read_results(make_study(tmp_path / "t", cells)), final, "x", "x", "")
    assert [row[1] for row in table.rows[1:4]] == ["55.0 ± 35.0", "80.0 ± 0.0", "50.0 (1 of 2 seeds)"]


def test_arms_and_settings_are_as_the_study_says(tmp_path: Path) -> None:
    cells = {("a", "pps", 1): [NONE, right(4)], ("a", "star", 1): [NONE, right(5)], ("b", "pps", 1): [NONE, right(6)]}
    folder = make_study(tmp_path / "s", cells)
    content = json.loads((folder / "study.json").read_text())
    for cell, arm in zip(content["cells"], ["pps, hint bare", "star", "pps, hint strict"], strict=True):
        cell |= {"compared_as": arm, "compared_on": "train_size 10"}
    (folder / "study.json").write_text(json.dumps(content))
    results = read_results(folder)
    assert results.settings == [Setting("a", "model", "train_size 10"), Setting("b", "model", "train_size 10")]
    assert results.arms == ["pps, hint bare", "star", "pps, hint strict"]
    assert results.reference == "pps, hint bare"
    assert accuracy_table(results, highest, "x", "x", "").columns == ("", "a, train_size 10", "b, train_size 10")


def test_two_runs_of_one_place_are_refused(study: Path) -> None:
    content = json.loads((study / "study.json").read_text())
    content["cells"][1]["compared_as"] = "pps"
    (study / "study.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="two runs of the study have the same setting, arm and seed: one is a-star-s1"):
        read_results(study)


def test_a_run_whose_folder_was_removed_is_not_finished(study: Path) -> None:
    shutil.rmtree(study / "runs/a-star-s1")
    assert read_results(study).unfinished == ("a-star-s1: waiting",)


def test_the_highest_is_compared_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    # On seed 2, which all have, pps beats star; on seed 1, which direct lacks, it loses by more.
    ends = [("pps", 1, 1), ("pps", 2, 9), ("star", 1, 9), ("star", 2, 8), ("direct", 2, 2)]
    cells = {("a", arm, seed): [NONE, right(count)] for arm, seed, count in ends}
    (sentence,) = said(make_study(tmp_path / "s", cells))
    assert "pps has the highest accuracy in the last iteration, 90.0 % over seed 2" in sentence
    assert "star (+10.0, " in sentence


def test_a_question_that_one_run_lacks_counts_with_the_other_seed(tmp_path: Path) -> None:
    cells = {("a", arm, seed): [NONE, right(5)] for arm in ("pps", "star") for seed in (1, 2)}
    folder = make_study(tmp_path / "s", cells)
    path = folder / "runs/a-pps-s1/iteration-01/eval.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    for seed in (1, 2):
        other = folder / f"runs/a-star-s{seed}/iteration-01/eval.jsonl"
        rows = [json.loads(line) for line in other.read_text().splitlines()]
        other.write_text("".join(json.dumps({**row, "status": "wrong"}) + "\n" for row in rows))
    found = within(read_results(folder), Setting("a", "model"), "pps", "star")
    assert found is not None
    # Seed 1 has five questions of both, seed 2 all ten: pps is right on the first five of them, star on none.
    assert (found.questions, found.answers, found.wins, found.losses) == (10, 15, 5, 0)


def test_an_interval_counts_each_question_once(study: Path) -> None:
    results = read_results(study)
    runs = results.of(results.settings[0], "pps")
    assert confidence(runs, final) == wilson(7, 10)
    assert confidence(runs[:1], final) == wilson(6, 10)


# Beside the paper


_SECTIONS = {"filters", "evaluation", "data", "m_step", "test_size"}
PAPERS = {
    "model": "Qwen/Qwen2.5-3B-Instruct",
    "train_size": 2000,
    "engine": {"max_new_tokens": 8, "temperature": 1.0},
    **load_config("paper/helpsteer2").model_dump(
        mode="json", include={"filters", "evaluation", "data", "m_step", "test_size"}
    ),
}


def of_paper(folder: Path, **changes: Any) -> Path:
    """A study of HelpSteer2's correctness with the paper's settings."""
    answers = [NONE, *[right(4)] * 5]
    cells = {("helpsteer2/correctness", arm, seed): answers for arm in ("pps", "star") for seed in (1, 2)}
    return make_study(folder, cells, **{**PAPERS, **changes})


def test_the_papers_figure_is_shown_beside_ours(tmp_path: Path) -> None:
    table = paper_table(read_results(of_paper(tmp_path / "s")))
    assert table is not None
    assert table.columns[3:7] == ("arm", "paper", "ours", "seeds")  # no setting but task and model
    assert [row[3:7] for row in table.rows] == [
        ("base", "28.38", "0.0 ± 0.0", "2"),
        ("pps", "43.91", "40.0 ± 0.0", "2"),
        ("star", "40.51", "40.0 ± 0.0", "2"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"m_step": {**PAPERS["m_step"], "epochs": 2}},
        {"filters": {**PAPERS["filters"], "balance": "reweight"}},
        {"evaluation": {"samples": 4, "temperature": 1.0}},
        {"data": {"train_file": "own.jsonl"}},
        {"train_size": 500},
    ],
)
def test_a_run_with_other_settings_is_not_shown_beside_the_paper(tmp_path: Path, changes: dict[str, Any]) -> None:
    table = paper_table(read_results(of_paper(tmp_path / "s", **changes)))
    assert table is None or {row[3] for row in table.rows} == {"base"}


def test_cells_that_the_paper_lacks_have_no_such_table(study: Path) -> None:
    assert paper_table(read_results(study)) is None


# Files


def test_comparisons_as_numbers(study: Path) -> None:
    write_report(study)
    with (study / "report/tables/comparisons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # pps against base and star, on a and b; on a, pps ends at 14 of 20 and star at 10.
    assert [(row["task"], row["against"]) for row in rows] == [(task, arm) for task in "ab" for arm in ("base", "star")]
    assert [float(row["difference"]) for row in rows] == pytest.approx([0.5, 0.2, 0.4, 0.0])
    assert [(row["questions"], row["answers"]) for row in rows] == [("10", "20")] * 2 + [("10", "10")] * 2
    assert all(float(row["low"]) <= float(row["difference"]) <= float(row["high"]) for row in rows)
    # 7 : 0, 3 : 0, 4 : 0 and 0 : 0, so p = 2 / 2^7, 2 / 2^3, 2 / 2^4 and 1; by Holm, times 4, 2, 3 and 1.
    assert [(row["wins"], row["losses"]) for row in rows] == [("7", "0"), ("3", "0"), ("4", "0"), ("0", "0")]
    assert [float(row["p_sign_test"]) for row in rows] == [1 / 64, 0.25, 0.125, 1.0]
    assert [float(row["p_holm"]) for row in rows] == [1 / 16, 0.5, 0.375, 1.0]
    assert float(rows[0]["p_bootstrap"]) < 0.01 < float(rows[3]["p_bootstrap"])


def test_a_share_of_samples_is_a_loss_against_all_of_them(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {("a", arm, 1): [NONE, right(5)] for arm in ("pps", "star")})
    path = folder / "runs/a-pps-s1/iteration-01/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "status": "wrong", "draw_id": "q0#1"}])
    )
    write_report(folder)
    with (folder / "report/tables/comparisons.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    # Of q0, half of pps's two samples are right. Base has none of five right: 5 : 0; star has q0 wholly right: 0 : 1.
    assert [(row["wins"], row["losses"], row["p_sign_test"]) for row in found] == [
        ("5", "0", "0.0625"),
        ("0", "1", "1.0"),
    ]


def test_a_table_in_three_languages() -> None:
    table = ReportTable("t", "A & B", ("", "x_1"), (("a|b", "50 ± 1 %"), ("<i>", "–")), "100 % #1", frozenset({(0, 1)}))
    assert markdown(table).splitlines() == [
        "### A &amp; B",
        "",
        "|  | x_1 |",
        "|---|---:|",
        "| a\\|b | **50 ± 1 %** |",
        "| &lt;i&gt; | – |",
        "",
        "100 % #1",
    ]
    assert r"\textbf{50 $\pm$ 1 \%} \\" in latex(table)
    assert r"\caption{A \& B. 100 \% \#1}" in latex(table)
    assert r" & x\_1 \\" in latex(table)
    assert csv_of(table.columns, [*table.rows, ("c", math.nan)]) == ",x_1\na|b,50 ± 1 %\n<i>,–\nc,\n"


def test_every_iteration_is_a_line(study: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(iterations_csv(read_results(study)))))
    assert len(rows) == 6 * 3
    second = rows[1]
    assert (second["run"], second["arm"], second["seed"], second["iteration"]) == ("a-pps-s1", "pps", "1", "1")
    assert (second["accuracy"], second["selected"], second["data_utilization"]) == ("0.9", "0", str(1 / 3))
    assert (rows[0]["data_utilization"], rows[0]["validation_accuracy"]) == ("", "")
    assert [row["selected"] for row in rows[:3]] == ["0", "0", "1"]


def test_a_report_is_the_same_from_the_same_folder(study: Path, tmp_path: Path) -> None:
    def written(out: Path) -> dict[str, bytes]:
        write_report(study, out)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    first = written(tmp_path / "one")
    assert first == written(tmp_path / "two")
    assert {"index.html", "report.md", "tables/highest.tex", "tables/iterations.csv"} <= set(first)
    assert {"figures/accuracy.svg", "figures/a-model.png", "figures/b-model.svg"} <= set(first)


def test_an_unfinished_study_is_reported_as_far_as_it_goes(study: Path) -> None:
    content = json.loads((study / "study.json").read_text())
    content["cells"][1] |= {"status": "failed", "error": "a bad row"}
    content["cells"][2]["status"] = "waiting"
    (study / "study.json").write_text(json.dumps(content))
    results = read_results(study)
    assert len(results.runs) == 4
    assert results.unfinished == ("a-star-s1: a bad row", "a-pps-s2: waiting")
    page = write_report(study).page.read_text()
    assert "a-star-s1: a bad row" in page
    # Of a, pps has seed 1 and star seed 2.
    assert "a, model: its arms share no seed, so nothing is compared." in page
    assert "- a-star-s1: a bad row" in (study / "report/report.md").read_text()


def test_what_cannot_be_reported_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--reference: the arms are pps, star; got 'ppo'"):
        write_report(study, reference="ppo")
    with pytest.raises(StoreError, match=r"holds neither a run .* nor a study"):
        write_report(tmp_path / "nowhere")
    content = json.loads((study / "study.json").read_text())
    for cell in content["cells"]:
        cell["status"] = "waiting"
    (study / "study.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"no run of the study in .* is finished yet"):
        write_report(study)


def test_a_single_run_has_a_report_too(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(9)])
    report = write_report(tmp_path / "run")
    sentence, note = report.sentences
    assert (
        sentence
        == "judge, model: pps reaches 90.0 % in the last iteration: significantly above base (+80.0, +50.0 to +100.0)."
    )
    assert '"Significantly" means p below 0.05 by both the bootstrap and an exact two-sided sign test' in note
    assert "with one seed, how much training varies is unknown." in note
    assert "Run run" in report.page.read_text()


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [right(1), right(5)], iterations=3)
    report = write_report(tmp_path / "run")
    assert "- run: 1 of 3 iterations" in (report.folder / "report.md").read_text()


def test_names_do_no_harm(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {("a", "pps", 1): [NONE, right(5)]}, model="$\\frac$ <b>my (1)")
    report = write_report(folder)
    assert "<b>" not in (report.folder / "report.md").read_text()
    assert "figures/a-frac-b-my-1-.png" in (report.folder / "report.md").read_text()
    assert (report.folder / "figures/a-frac-b-my-1-.svg").is_file()


def test_a_vote_is_shown_as_it_was_counted(tmp_path: Path) -> None:
    voted = {"samples": 3, "temperature": 1.0, "vote": "majority"}
    make_run(tmp_path / "run", [right(0), right(10)], evaluation=voted)
    path = tmp_path / "run/iteration-01/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # The first sample of every question is wrong, the two others are right.
    wrong = [{**row, "status": "wrong", "answer": "9", "text": "lost"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*wrong, *rows, *rows]))
    (run,) = read_results(tmp_path / "run").runs
    assert set(run.scores(1).values()) == {1.0}
    assert {test["after"]["status"] for test in examples_of(run, 10).tests} == {"correct"}
    assert "lost" not in {test["after"]["text"] for test in examples_of(run, 10).tests}
