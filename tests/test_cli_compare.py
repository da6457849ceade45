"""`estep compare` as a user meets it: its words, its exit code, and the examples of its page."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from estep.cli import main
from studies import GOLD, make_run, right

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests/fixtures/compare"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """old.csv is right on 4 of 12 questions, new.csv on all, and other.tsv says nothing of the last two."""
    monkeypatch.chdir(tmp_path)
    gold = [0, 1, 2, 3] * 3
    lines = [f"q{n},{g},{g if n < 4 else (g + 1) % 4}" for n, g in enumerate(gold)]
    Path("old.csv").write_text("\n".join(["id,gold,prediction", *lines]) + "\n")
    lines = [f"q{n},{g}.0" for n, g in enumerate(gold)]
    Path("new.csv").write_text("\n".join(["id,prediction", *lines]) + "\n")
    lines = [f"q{n}\t{g if n < 10 else ''}" for n, g in enumerate(gold)]
    Path("other.tsv").write_text("\n".join(["id\tprediction", *lines]) + "\n")
    return tmp_path


def compare(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["estep", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("files")
def test_tables_for_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(monkeypatch, "old.csv", "new.csv", "[b]=other.tsv") == 0
    out = capsys.readouterr().out
    assert "\n12 ids are shared by all, and are compared\nanswers are ordinal: every answer is an integer\n" in out
    assert "Kappa and MAE leave out unparsed predictions" in " ".join(out.split())
    lines = [line.split() for line in out.splitlines()]
    assert ["new:", "12", "ids", "in", "new.csv"] in lines
    # old: the mean squared error is (6 · 1² + 2 · 3²) / 12 = 2; that of two uniform scores from 0 to 3 is 2.5.
    assert ["old", "12", "33.3%", "13.8", "to", "60.9", "0", "0.20", "1.00"] in lines
    assert ["[b]", "12", "83.3%", "55.2", "to", "95.3", "2", "1.00", "0.00"] in lines
    found = {line[0]: line for line in lines if line[:1] in (["new"], ["[b]"]) and line[1][0] == "+"}
    # 8 to none: p = 2/2⁸ = 0.0078, times 2. [b] wins 6 and loses none: 2/2⁶ = 0.031.
    assert found["new"][1:7] == ["+66.7", "(41.7,", "91.7)", "8", "0", "0.016"]
    assert found["[b]"][4:7] == ["6", "0", "0.031"]


@pytest.mark.usefixtures("files")
def test_plain_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("old.csv", "new.csv", "--reference", "new", "--nominal", "--json")
    assert compare(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    content = json.loads(text)
    assert (content["questions"], content["reference"], content["ordinal"]) == (12, "new", False)
    assert [one["accuracy"] for one in content["arms"]] == [pytest.approx(4 / 12), 1]
    (versus,) = content["comparisons"]
    assert (versus["name"], versus["wins"], versus["losses"], versus["kappa_difference"]) == ("old", 0, 8, None)
    assert versus["p"] == versus["holm"] == pytest.approx(2 / 256)
    assert compare(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("old.csv", "a comparison needs at least two sets of predictions, got 1"),
        ("old.csv old.csv", "two sets of predictions are named 'old'; name them: NAME=old.csv"),
        ("old.csv new.csv --id key", "old.csv has no column 'key'; it has id, gold, prediction (add --id NAME; "),
        ("new.csv other.tsv", "no gold answer for 'q0': new has id, prediction; other has id, prediction (--gold NAME"),
        ("old.csv new.csv --reference n", "--reference: got 'n'; "),
        ("old.csv new.csv --where filter", "--where filter: COLUMN=VALUE is expected, such as --where filter=strict-"),
        ("old.csv new.txt", "cannot read new.txt: allowed extensions are .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
@pytest.mark.usefixtures("files")
def test_bad_input_gets_one_line_and_exit_code_2(
    arguments: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(monkeypatch, *arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {words}")


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pps", "star"):
        make_run(tmp_path / f"runs/{name}", [right(1), right(5)])
    for size in ("small", "large"):
        folder = tmp_path / "results" / size
        folder.mkdir(parents=True)
        shutil.copy(FIXTURES / f"lm_eval_{size}.jsonl", folder / "samples_sums.jsonl")
        shutil.copy(FIXTURES / f"lm_eval_choice_{size}.jsonl", folder / "samples_choice.jsonl")
        shutil.copy(FIXTURES / f"inspect_{size}.csv", tmp_path / f"{size}.csv")
    own = tmp_path / "runs/pps/iteration-00/eval.jsonl"
    questions = [json.loads(line)["question_id"] for line in own.read_text().splitlines()]
    for name in ("forest", "judge"):
        rows = [f"{question},{gold},1" for question, gold in zip(questions, GOLD, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,gold,prediction", *rows]))
    rows = [f"{question},Fine.,{gold},,,unparseable,Hm" for question, gold in zip(questions, GOLD, strict=True)]
    head = "id,text,score,prediction,rationale,status,response"
    (tmp_path / "pps.csv").write_text("\n".join([head, *rows]))
    page = (ROOT / "docs/compare.md").read_text()
    shown = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in shown if line.startswith("estep compare")]
    assert len(commands) >= 6
    for command in commands:
        assert compare(monkeypatch, *command[2:]) == 0, (command, capsys.readouterr().err)
