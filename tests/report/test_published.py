"""The paper's tables against what its text says of them."""

from collections import Counter

from estep.models.registry import PAPER_MODELS
from estep.report.published import published
from estep.report.stats import sign_test
from estep.tasks import load_task, task_names

CELLS = list(published())


def of_arm(table: int, arm: str) -> dict[tuple[str, str], float]:
    return {(cell.model, cell.task): cell.accuracy for cell in CELLS if (cell.table, cell.arm) == (table, arm)}


def outcomes(table: int) -> tuple[int, int, int]:
    """Wins, losses and ties of PPS against STaR."""
    pps, star = of_arm(table, "pps"), of_arm(table, "star")
    signs = Counter((pps[cell] > star[cell]) - (pps[cell] < star[cell]) for cell in pps)
    return signs[1], signs[-1], signs[0]


def test_the_tables_are_whole() -> None:
    # 5 models x 5 metrics x 4 arms; 5 x 4 x 4; 5 metrics x 6 arms; 5 x 8; 3 sizes x 5 x 4.
    assert Counter(cell.table for cell in CELLS) == {1: 100, 2: 80, 3: 30, 4: 40, 5: 60}
    assert {cell.model for cell in CELLS} == set(PAPER_MODELS)
    assert {cell.task for cell in CELLS} <= set(task_names())
    assert {cell.hint for cell in CELLS} == set(load_task("helpsteer2/coherence").file.hint.variants)
    keys = [cell[:-1] for cell in CELLS]
    assert len(set(keys)) == len(keys)


def test_pps_wins_as_often_as_section_4_2_says() -> None:
    assert outcomes(1) == (22, 3, 0)
    assert outcomes(2) == (15, 4, 1)
    assert sign_test(*outcomes(1)) < 0.01
    assert round(sign_test(*outcomes(2)), 2) == 0.02


def test_figures_that_the_text_names() -> None:
    assert of_arm(1, "pps")["qwen2.5-3b", "helpsteer2/correctness"] == 43.91
    assert of_arm(3, "rejection-5")["qwen2.5-3b", "helpsteer2/helpfulness"] == 34.30
    plain = {cell.task: cell.accuracy for cell in CELLS if (cell.table, cell.arm, cell.hint) == (4, "pps", "plain")}
    assert plain["helpsteer2/coherence"] == 58.88
