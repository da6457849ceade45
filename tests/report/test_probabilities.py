"""Expected scores and calibrated probabilities in a report, against figures computed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from estep.report.judge import Judges, read_judges
from estep.report.probability_tables import expected_table, probability_tables
from estep.report.results import read_results
from estep.report.write import write_report
from studies import make_run, right

LAST = "the last iteration"


def with_probabilities(run: Path, iteration: int, sure: Sequence[float]) -> None:
    """Give each response this probability of its answer (of 0 if it has none), and the rest to the next score."""
    path = run / f"iteration-{iteration:02d}/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, share in zip(rows, sure, strict=True):
        answer = int(row["answer"] or 0)
        row["probabilities"] = {str(n): 0.0 for n in range(5)}
        row["probabilities"] |= {str(answer): share, str((answer + 1) % 5): 1 - share}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def judges(tmp_path: Path) -> Judges:
    """The correct scores are 0123401234. The base model states none. In the end, the first six are right; the others
    are too high by one, or 0 instead of 4."""
    make_run(tmp_path / "run", ["-" * 10, right(6)])
    with_probabilities(tmp_path / "run", 0, [0.5] * 10)
    with_probabilities(tmp_path / "run", 1, [0.95] * 4 + [0.75] * 6)
    results = read_results(tmp_path / "run")
    found = read_judges(results, results.settings[0])
    assert found is not None
    return found


def test_expected_scores_stand_beside_the_stated_ones(judges: Judges) -> None:
    table = expected_table(judges, LAST)
    assert table is not None
    base, pps = table.rows
    # The base model expects 0.5 everywhere: errors 0.5, 0.5, 1.5, 2.5, 3.5 twice.
    assert base == ("base", "–", "–", "–", "–", "1.70", "10")
    # The last four are 1, 2, 3 and 4, and stated as 2, 3, 4 and 0.
    assert pps[1] == f"{(1 + 1 + 1 + 4) / 10:.2f}"
    # Expected: 0.05, 1.05, 2.05 and 3.05; 4 · 0.75 = 3 instead of 4, and 0.25 instead of 0; for the last four, 2.25,
    # 3.25, 3 and 0.25.
    assert pps[2] == f"{(4 * 0.05 + 1 + 0.25 + 1.25 + 1.25 + 0 + 3.75) / 10:.2f}"
    assert pps[5:] == (pps[2], "0")


def test_the_probability_of_an_answer_is_compared_with_what_is_right(judges: Judges) -> None:
    (_, table) = probability_tables(judges, LAST)
    # Four of 0.95, all right; six of 0.75, of which two are right. The base model states nothing.
    assert table.rows == (
        ("pps", "70–80 %", "6", "75.0", "33.3"),
        ("pps", "90–100 %", "4", "95.0", "100.0"),
    )
    error = (6 * (0.75 - 1 / 3) + 4 * 0.05) / 10
    assert f"pps {100 * error:.1f} %" in table.note


def test_a_report_shows_them_if_they_were_computed(judges: Judges, tmp_path: Path) -> None:
    report = write_report(tmp_path / "run")
    for name in ("expected-score", "probability-calibration"):
        assert {path.suffix for path in report.folder.glob(f"tables/{name}-judge-model.*")} == {".md", ".tex", ".csv"}
    assert (report.folder / "figures/calibration-judge-model.svg").is_file()
    assert "Calibration on judge, model" in report.page.read_text()
    make_run(tmp_path / "plain", ["-" * 10, right(6)])
    plain = write_report(tmp_path / "plain")
    assert not list(plain.folder.glob("*/*calibration*"))
    assert not list(plain.folder.glob("tables/expected-score*"))
