"""What is made of a finished run."""

from pathlib import Path

from rich.console import Console

from estep.records import Draw
from estep.report.figure import draw_run
from estep.report.rationales import before_and_after
from estep.report.terminal import run_table
from estep.store.run import RunStore
from runs import Scored, right_when_hinted, scripted_run


def test_the_figure_is_a_picture_of_some_size(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, Scored(right_when_hinted))
    for ending, magic in {"png": b"\x89PNG", "svg": b"<?xml"}.items():
        out = draw_run(result.iterations, "title", tmp_path / f"new/figure.{ending}")
        assert out.read_bytes().startswith(magic)
        assert out.stat().st_size > 10_000


def test_the_table_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, Scored(right_when_hinted))
    console = Console(width=80, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(run_table(result.iterations, "a run"))
    console.file.close()
    lines = (tmp_path / "out").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    assert [line.split()[0] for line in lines if line.startswith((" base", " 1 ", " 2 "))] == ["base", "1", "2"]


def test_before_and_after_is_a_question_that_was_mended(tmp_path: Path) -> None:
    asked: list[str] = []

    def improves(draw: Draw) -> str:
        answer = int(draw.question_id.removeprefix("r")) % 5
        if draw.proposal != "evaluation":
            return f"Evaluation: one two three four five six. Score: {answer}"
        asked.append(draw.question_id)
        later = asked.count(draw.question_id) > 1
        same = "the same for two" if draw.question_id in asked[:2] else f"only of {draw.question_id}"
        return f"Evaluation: {same}. Score: {answer if later else (answer + 1) % 5}"

    result = scripted_run(tmp_path, Scored(improves))
    pair = before_and_after(RunStore(result.run_dir))
    assert pair is not None
    assert (pair.before["status"], pair.after["status"]) == ("wrong", "correct")
    assert pair.after["rationale"] == f"only of {pair.question['id']}."


def test_no_question_was_mended(tmp_path: Path) -> None:
    result = scripted_run(tmp_path, Scored(lambda draw: "nothing"))
    assert before_and_after(RunStore(result.run_dir)) is None
