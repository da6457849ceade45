"""`estep init`: from a spreadsheet to a task that passes `estep check`."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from commands import estep, refused
from estep.cli import app
from estep.cli.init import init as command
from estep.errors import EstepError
from estep.tasks import load_task

TEXTS = ['Great, "really" great: 10/10', "Nicht schlecht –\ngar nicht schlecht", "Qualité 😀 moyenne", "Never; again"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> None:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def reviews(name: str = "reviews.csv", rows: int = 20) -> None:
    write(name, ["id", "text", "stars"], [[f"r,{n}", f"{TEXTS[n % 4]} {n}", n % 5 + 1] for n in range(rows)])


def init(*arguments: str, typed: str | None = None) -> str:
    result = CliRunner().invoke(app, ["init", *arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_one_command_makes_a_task_that_passes_check(tmp_path: Path) -> None:
    reviews()
    result = estep("init", "reviews.csv", "--yes", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert "rows: 20 of 20 are usable" in said
    assert "scores with their rows: 1: 4, 2: 4, 3: 4, 4: 4, 5: 4" in said
    assert "15 questions are left to train and test on" in said
    assert said[-5:] == [
        "next:",
        "  estep check reviews.yaml --model smollm2-135m",
        "  estep sample reviews.yaml --proposal pps -n 8",
        "  estep train demo task=reviews.yaml train_size=null test_size=null",
        "  estep predict runs/reviews-smollm2-135m-pps-s257 reviews.yaml new.csv -o scored.csv",
    ]
    checked = estep("check", "reviews.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "the task is sound" in checked.stdout
    assert "rows that the examples show, left out" in checked.stdout
    assert load_task("reviews.yaml").file.data.id == "id"


def test_options_choose_columns_scale_name_and_file() -> None:
    write(
        "t.tsv", ["n", "long text of an article", "a b", "g"], [[n, f"x y {n}", n % 3, n // 2] for n in range(12)], "\t"
    )
    chosen = ["--text", "long text of an article", "--score", "a b", "--id", "n", "--group", "g", "--scale", "0-4"]
    init("t.tsv", *chosen, "--name", "mine", "-o", "sub/my task.yaml", "-y")
    file = load_task("sub/my task.yaml").file
    assert (file.name, file.gold.field, file.data.id, file.data.group) == ("mine", "a b", "n", "g")
    assert file.data.source == "../t.tsv"
    assert file.answer.values == tuple("01234")


def test_a_proposed_column_can_be_declined() -> None:
    reviews()
    init("reviews.csv", "--id", "-", "-y")
    assert load_task("reviews.yaml").file.data.id is None


def test_questions_propose_answers_and_are_asked_again() -> None:
    reviews()
    typed = ["bad name", "mine", "txt", "text", "", "", "", "", "5-1", "1-4", "2-5", "0-5"]
    said = init("reviews.csv", typed="\n".join(typed) + "\n")
    assert "for example" in said
    assert "Name of the task [reviews]" in said
    assert "name 'bad name': letters, digits" in said
    assert "no column 'txt'; did you mean 'text'" in said
    assert "Column with the score or label [stars]" in said
    assert "Column that identifies a row (- for none) [id]" in said
    assert "scale '5-1': 0-4 is expected" in said
    assert "scale '1-4': the data have scores from 1 to 5" in said
    assert "scale '2-5': the data have scores from 1 to 5" in said
    file = load_task("mine.yaml").file
    assert (file.name, file.data.id, file.answer.values) == ("mine", "id", tuple("012345"))


def test_what_an_option_says_is_not_asked() -> None:
    reviews()
    said = init("reviews.csv", "--text", "text", "--name", "n", "--id", "-", "--scale", "1-5", typed="\n\n\n")
    assert "Column with the texts" not in said
    assert "Name of the task" not in said
    assert "Lowest and highest" not in said


def test_raters_get_a_file_of_rows() -> None:
    header = ["Nr", "Freier Text", "Gutachter 1", "Gutachter 2", "Gutachter 3"]
    write("Gutachten.csv", header, [[n, f"Ein Text, Nummer {n}", n % 3, n % 3, (n // 2) % 3] for n in range(18)])
    said = init("Gutachten.csv", "-y")
    assert (
        "Gutachten-rows.jsonl: the usable rows of Gutachten.csv, because the task file cannot combine columns" in said
    )
    assert "answer: mean of Gutachter 1, Gutachter 2, Gutachter 3, rounded" in said
    # n mod 3 equals n // 2 mod 3 for n = 0, 5, 6, 11, 12 and 17.
    assert "raters: 3; on 33% of the 18 rows with at least two ratings they all say the same" in said
    assert load_task("Gutachten.yaml").file.data.source == "Gutachten-rows.jsonl"
    first = json.loads(Path("Gutachten-rows.jsonl").read_text(encoding="utf-8").splitlines()[2])
    assert (first["Freier Text"], first["mean_score"]) == ("Ein Text, Nummer 2", pytest.approx(5 / 3))


def test_raters_who_share_no_row_have_no_agreement() -> None:
    rows = [[f"text number {n}", n % 3 if n % 2 else "", "" if n % 2 else n % 3] for n in range(18)]
    write("t.csv", ["text", "rater1", "rater2"], rows)
    assert "raters: 2; no row has two ratings, so it is unknown how far they agree" in init("t.csv", "-y")


def test_what_cannot_be_used_is_counted() -> None:
    rows = [[f"text number {n}", n % 2] for n in range(10)]
    write("t.csv", ["text", "score"], [*rows, ["", 1], ["no score", ""], ["text number 0", 1]])
    said = init("t.csv", "-y")
    assert "rows: 11 of 13 are usable; no text: 1, no value in score: 1" in said
    assert "note: 1 texts have different answers in different rows; they stay in the data" in said


def test_numbers_that_are_taken_as_labels_are_said_to_be() -> None:
    rows = [[f"text number {n}", "5 Sterne" if n % 8 == 0 else n % 5 + 1] for n in range(40)]
    write("t.csv", ["text", "stars"], rows)
    because = "note: stars is taken as labels, because 5 of 40 cells are no numbers, such as '5 Sterne'; --scale"
    assert because in init("t.csv", "-y")
    assert load_task("t.yaml").file.answer.type == "text"
    said = init("t.csv", "-y", "--force", "--scale", "1-5")
    assert "rows: 35 of 40 are usable; no number in stars: 5" in said
    assert "as labels" not in said
    assert load_task("t.yaml").file.answer.values == tuple("12345")
    assert "as labels" not in init("t.csv", "-y", "--force", "--labels")


def test_a_score_far_from_the_rest_is_doubted_unless_the_scale_is_given() -> None:
    write("t.csv", ["text", "stars"], [[f"text number {n}", 9 if n == 7 else n % 5 + 1] for n in range(20)])
    doubt = "note: 6 to 8 never occur; is the highest score 9 right? If not, --scale finds its row"
    assert doubt in init("t.csv", "-y")
    said = init("t.csv", "--force", typed="\n" * 9)
    assert said.index(doubt) < said.index("Lowest and highest score")
    assert "never occur" not in init("t.csv", "-y", "--force", "--scale", "1-9")
    assert "never occur" not in init("t.csv", "-y", "--force", "--labels")
    with pytest.raises(EstepError, match=r"t\.csv:9: the score 9 is outside the scale from 1 to 5"):
        init("t.csv", "-y", "--force", "--scale", "1-5")


def test_existing_files_are_kept_unless_forced() -> None:
    reviews()
    Path("reviews.yaml").write_text("mine")
    with pytest.raises(EstepError, match=r"reviews\.yaml exists already; --force replaces it"):
        init("reviews.csv", "-y")
    assert Path("reviews.yaml").read_text() == "mine"
    init("reviews.csv", "-y", "--force")
    assert load_task("reviews.yaml").name == "reviews"
    write("r.csv", ["text", "rater1", "rater2"], [[f"text number {n}", n % 2, n % 3] for n in range(12)])
    Path("r-rows.jsonl").write_text("mine")
    with pytest.raises(EstepError, match=r"r-rows\.jsonl exists already"):
        init("r.csv", "-y")
    assert not Path("r.yaml").exists()


def test_a_dialogue_asks_before_it_replaces_a_file() -> None:
    rows = [[f"text number {n}", n % 2, n % 3] for n in range(12)]
    write("r.csv", ["text", "rater1", "rater2"], rows)
    for path in ("r.yaml", "r-rows.jsonl"):
        Path(path).write_text("mine")
    with pytest.raises(EstepError, match=r"r\.yaml exists already; --force replaces it"):
        init("r.csv", typed="\nn\n")
    answers = "\ny\n" + 6 * "\n"
    with pytest.raises(EstepError, match=r"r-rows\.jsonl exists already; --force replaces it"):
        init("r.csv", typed=f"{answers}n\n")
    assert Path("r.yaml").read_text() == Path("r-rows.jsonl").read_text() == "mine"
    said = init("r.csv", typed=f"{answers}y\n")
    assert "r.yaml exists already. Replace it? [y/N]" in said
    assert "r-rows.jsonl exists already. Replace it? [y/N]" in said
    assert load_task("r.yaml").name == "r"
    assert len(Path("r-rows.jsonl").read_text().splitlines()) == 12


class Interrupted(io.StringIO):
    """Somebody presses Ctrl-C."""

    def readline(self, size: int | None = -1, /) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("typed", ["", "\n", "\ny\n"])
def test_input_that_ends_is_refused_in_one_line(typed: str, tmp_path: Path) -> None:
    reviews()
    Path("reviews.yaml").write_text("mine")
    line = refused(estep("init", "reviews.csv", cwd=tmp_path, typed=typed))
    assert line == "error: the input ended before all questions were answered; --yes takes what is proposed"
    assert Path("reviews.yaml").read_text() == "mine"


def test_closed_input_is_refused_and_an_interrupt_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    reviews()
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(EstepError, match="the input ended before all questions were answered; --yes"):
        command(Path("reviews.csv"))
    monkeypatch.setattr("sys.stdin", Interrupted())
    with pytest.raises(typer.Abort):
        command(Path("reviews.csv"))


def test_the_table_is_never_replaced() -> None:
    rows = [{"text": f"text number {n}", "rater1": n % 2, "rater2": n % 3} for n in range(12)]
    Path("r-rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = Path("r-rows.jsonl").read_bytes()
    with pytest.raises(EstepError, match="would replace the table itself"):
        init("r-rows.jsonl", "--name", "r", "-y", "--force")
    assert Path("r-rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("header", "row", "arguments", "words"),
    [
        ("a,b", ["{n}", "{n}"], [], "no column holds texts of several words; --text names one of a, b"),
        ("a,year of birth", ["some words {n}", "x{n}"], [], "no column holds scores or labels; --score names one of"),
        ("text,score", ["text number {n}", "3"], [], "score has the single value 3, so there is nothing to learn"),
        ("text,score", ["", "{n}"], ["--text", "text"], "none of the 6 rows can be used: no text: 6"),
        ("text,score", ["text number {n}", "{n}"], ["--score", "scor"], "no column 'scor'; did you mean 'score'?"),
        ("text,score", ["text number {n}", "{n}"], ["--scale", "1-3"], "t.csv:2: the score 0 is outside the scale"),
        ("text,score", ["text number {n}", "{n}"], ["--scale", "3"], "scale '3': 0-4 is expected"),
        ("text,score", ["text number {n}", "{n}"], ["--scale", "0-5", "--labels"], "labels have no scale"),
        ("text,score", ["text number {n}", "{n}"], ["--name", "a b"], "name 'a b': letters, digits"),
        ("text,score", ["text number {n}", "{n}"], ["-o", "t.txt"], "cannot write t.txt: the extension must be .yaml"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    header: str, row: list[str], arguments: list[str], words: str, tmp_path: Path
) -> None:
    write("t.csv", header.split(","), [[cell.format(n=n) for cell in row] for n in range(6)])
    assert words in refused(estep("init", "t.csv", "-y", *arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["t.csv"]


def test_a_missing_or_foreign_table_is_refused() -> None:
    with pytest.raises(EstepError, match="no such data file"):
        init("none.csv", "-y")
    Path("t.xlsx").write_text("")
    with pytest.raises(EstepError, match=r"cannot read t\.xlsx: allowed extensions are"):
        init("t.xlsx", "-y")


def test_columns_without_a_name_may_repeat_and_others_may_not() -> None:
    write("t.csv", ["text", "score", "", ""], [[f"text number {n}", n % 2, "", ""] for n in range(6)])
    init("t.csv", "-y")
    write("t.csv", ["text", "score", "score"], [[f"text number {n}", n % 2, n % 3] for n in range(6)])
    with pytest.raises(EstepError, match=r"t\.csv:1: two columns are named 'score'"):
        init("t.csv", "-y", "--force")


def test_names_with_markup_are_shown_as_they_are() -> None:
    write("t.csv", ["[bold]text", "score"], [[f"[red]text number {n}", n % 2] for n in range(6)])
    said = init("t.csv", typed="\n" * 9)
    assert "[bold]text" in said
    assert "[red]text number 0" in said
