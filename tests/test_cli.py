"""The command line as a user meets it: its own process, its exit code, its words."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from conftest import write_task
from estep.inference import run_settings

pytestmark = pytest.mark.slow

TINY = [
    "engine.type=transformers",
    "engine.max_new_tokens=6",
    "engine.batch_size=8",
    "engine.device=cpu",
    "mstep.device=cpu",
]
ANY_TEXT = {"answer": {"type": "python", "function": "verifiers:any_text"}}


def estep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-m", "estep.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONPATH": tests, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"},
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def config(folder: Path, model: str, **changes: object) -> Path:
    path = folder / "run.yaml"
    content = {
        "task": str(folder / "judge.yaml"),
        "model": model,
        "iterations": 1,
        "train_size": 4,
        "test_size": 3,
        "run_dir": str(folder / "run"),
        **changes,
    }
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def test_tasks_are_listed(tmp_path: Path) -> None:
    result = estep("tasks", cwd=tmp_path)
    assert result.returncode == 0
    for domain in ("movies", "tweets", "products", "editorials"):
        assert f"sentiment/{domain}" in result.stdout
    for origin in ("hub", "package index", "made here", "your file"):
        assert origin in result.stdout


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = config(tmp_path, "x", temperature=1)
    assert "unknown key 'temperature'" in refused(estep("train", str(path), cwd=tmp_path))
    path = config(tmp_path, "x")
    line = refused(estep("train", str(path), "mstep.batchsize=8", cwd=tmp_path))
    assert "unknown key 'mstep.batchsize'; did you mean 'batch_size'?" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'sentiment/movies'?" in refused(estep("check", "sentiment/movie", cwd=tmp_path))


def test_a_missing_argument_is_a_usage_error(tmp_path: Path) -> None:
    result = estep("train", cwd=tmp_path)
    assert result.returncode == 2
    assert "Missing argument 'config'" in result.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "x", "text": "no score"}', "rows.jsonl:3: no answer: field 'score' is missing"),
        ('{"id": "x", "text": "t", "score": 9}', "rows.jsonl:3: score = 9 is not allowed: an integer from 0 to 4"),
        ('{"id": "x", "score": 1}', "rows.jsonl:3: no value for text"),
        ("{broken", "rows.jsonl:3: not a JSON object on one line"),
    ],
)
def test_a_bad_row_names_file_line_and_value(line: str, words: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:2], line, *rows[2:]]) + "\n")
    assert words in refused(estep("check", str(task), cwd=tmp_path))
    if not line.startswith("{broken"):
        result = estep("check", str(task), "--on-bad-row", "skip", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "left out 1 bad rows" in result.stderr


def test_empty_data_is_refused(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    assert "rows.jsonl has no rows" in refused(estep("check", str(task), cwd=tmp_path))


def test_a_model_without_a_chat_template_is_refused(tiny_model: str, tmp_path: Path) -> None:
    import shutil

    write_task(tmp_path)
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    for name in ("chat_template.jinja",):
        (plain / name).unlink()
    line = refused(estep("train", str(config(tmp_path, str(plain))), *TINY, cwd=tmp_path))
    assert "has no chat template" in line
    assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context_is_refused(tiny_model: str, tmp_path: Path) -> None:
    write_task(tmp_path, system="x" * 2100)
    line = refused(estep("train", str(config(tmp_path, tiny_model)), *TINY, cwd=tmp_path))
    assert "do not fit the model's context of 2048 tokens" in line
    result = estep("check", str(tmp_path / "judge.yaml"), "--model", tiny_model, cwd=tmp_path)
    assert "leave no room for 12 new tokens in the model's context of 2048" in refused(result)


def test_check_shows_the_prompts_and_the_facts(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    result = estep("check", str(task), "--model", tiny_model, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Hint: Evaluate it as if its score was" in result.stdout
    assert "the task is sound" in result.stdout


def test_train_eval_and_predict_from_end_to_end(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    path = config(tmp_path, tiny_model, filters={"min_rationale_words": 0, "finished": False})
    result = estep("train", str(path), *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "iteration 1: test accuracy" in result.stderr
    assert "run folder:" in result.stdout
    again = estep("train", str(path), *TINY, cwd=tmp_path)
    assert again.returncode == 0
    assert "going on in" in again.stderr
    other = refused(estep("train", str(path), *TINY, "seed=3", cwd=tmp_path))
    assert "another configuration (seed: 257 -> 3)" in other

    out = tmp_path / "eval.jsonl"
    result = estep("eval", str(tmp_path / "run"), str(task), "test_size=3", *TINY[:4], "-o", str(out), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    kept = [json.loads(line) for line in (tmp_path / "run/iteration-01/eval.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["question_id"]: row["text"] for row in found} == {row["question_id"]: row["text"] for row in kept}

    # With no sizes named, a run's model is asked the run's own held-out questions, and none that it was trained on.
    result = estep("eval", str(tmp_path / "run"), str(task), *TINY[:4], "-o", "new/folder/all.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    asked = {json.loads(line)["question_id"] for line in (tmp_path / "new/folder/all.jsonl").read_text().splitlines()}
    assert asked == {row["question_id"] for row in kept}
    result = estep("eval", str(tmp_path / "run"), str(task), "test_size=12", *TINY[:4], "-o", "all.jsonl", cwd=tmp_path)
    assert "left out 4 questions that this model was trained on" in result.stderr
    asked = {json.loads(line)["question_id"] for line in (tmp_path / "all.jsonl").read_text().splitlines()}
    trained = {json.loads(line)["id"] for line in (tmp_path / "run/train.jsonl").read_text().splitlines()}
    assert len(asked) == 8
    assert asked.isdisjoint(trained)

    # What the run asked of its own data is not asked of another task's.
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    stored["data"]["train_file"] = str(tmp_path / "rows.jsonl")
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(stored))
    assert run_settings(str(tmp_path / "run"), str(task))["data"]["train_file"] == str(tmp_path / "rows.jsonl")
    assert "data" not in run_settings(str(tmp_path / "run"), "gsm8k")

    (tmp_path / "new.csv").write_text('name,text\na,"first, text"\nb,second text\n')
    for ending in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"scored.{ending}"
        result = estep("predict", str(tmp_path / "run"), str(task), "new.csv", "-o", str(out), *TINY[:4], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        if ending == "jsonl":
            rows = [json.loads(line) for line in out.read_text().splitlines()]
        elif ending == "csv":
            rows = list(csv.DictReader(io.StringIO(out.read_text())))
        else:
            rows = pyarrow.parquet.read_table(out).to_pylist()
        assert [(row["name"], row["text"]) for row in rows] == [("a", "first, text"), ("b", "second text")]
        assert [row["status"] for row in rows] == ["ok", "ok"]
        assert all(row["prediction"] for row in rows)


def test_predict_refuses_what_it_cannot_do_and_writes_nothing(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "new.csv").write_text("name,words\na,b\n")
    line = refused(estep("predict", tiny_model, str(task), "new.csv", "-o", "out.jsonl", cwd=tmp_path))
    assert "new.csv:2: no value for text; the row has name, words" in line
    line = refused(estep("predict", tiny_model, str(task), "new.csv", "-o", "out.xlsx", cwd=tmp_path))
    assert "allowed endings are .jsonl, .csv, .parquet" in line
    assert not list(tmp_path.glob("out*"))


def test_sample_previews_draws_and_the_acceptance_rate(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    result = estep("sample", str(task), "--model", tiny_model, "--proposal", "star", "-n", "3", *TINY[:4], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("[plain, ") == 3
    assert "accepted 0 of 3 (0%) with 6 draws" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_an_unknown_proposal_names_the_known(tmp_path: Path) -> None:
    line = refused(estep("sample", "sentiment/movies", "--proposal", "ppo", cwd=tmp_path))
    assert "proposal.type: got 'ppo'; known: 'rejection', 'star', 'pps', 'direct', 'mixture'" in line
