"""The command line as a user meets it: its own process, its exit code, its words."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from commands import SOURCE, estep, refused
from conftest import write_task
from estep.store.model import run_settings

TINY = [
    "engine.type=transformers",
    "engine.max_new_tokens=6",
    "engine.batch_size=8",
    "engine.device=cpu",
    "m_step.device=cpu",
]
ANY_TEXT = {"answer": {"type": "python", "function": "verifiers:any_text"}}


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
    for origin in ("hub", "package index", "generated", "your file"):
        assert origin in result.stdout


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = config(tmp_path, "x", temperature=1)
    assert "unknown key 'temperature'" in refused(estep("train", str(path), cwd=tmp_path))
    path = config(tmp_path, "x")
    line = refused(estep("train", str(path), "m_step.batchsize=8", cwd=tmp_path))
    assert "unknown key 'm_step.batchsize'; did you mean 'batch_size'?" in line
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
        result = estep("check", str(task), "--on-invalid-row", "skip", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "left out 1 invalid rows" in result.stderr


def test_empty_data_is_refused(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    assert "rows.jsonl has no rows" in refused(estep("check", str(task), cwd=tmp_path))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_is_refused(tiny_model: str, tmp_path: Path) -> None:
    write_task(tmp_path, system="x" * 2100)
    line = refused(estep("train", str(config(tmp_path, tiny_model)), *TINY, cwd=tmp_path))
    assert "do not fit the model's context of 2048 tokens" in line
    result = estep("check", str(tmp_path / "judge.yaml"), "--model", tiny_model, cwd=tmp_path)
    assert "leave no room for 12 new tokens in the model's context of 2048" in refused(result)


@pytest.mark.slow
def test_check_shows_the_prompts_and_the_counts(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    result = estep("check", str(task), "--model", tiny_model, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Hint: Evaluate it as if its score was" in result.stdout
    kinds = ("plain prompt of the policy", "plain prompt of the proposal", "hinted prompt of the proposal")
    places = [result.stdout.index(kind) for kind in kinds]
    assert places == sorted(places)
    # Two examples in both of the proposal's prompts, which the policy is not shown.
    assert result.stdout[places[0] : places[1]].count("[assistant]") == 0
    assert result.stdout[places[1] : places[2]].count("[assistant]") == 2
    same = estep("check", str(write_task(tmp_path, few_shot="both")), cwd=tmp_path)
    assert "plain prompt of the policy" in same.stdout
    assert "plain prompt of the proposal" not in same.stdout
    assert "the task is sound" in result.stdout


@pytest.mark.slow
def test_train_eval_and_predict_from_end_to_end(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path, **ANY_TEXT)
    path = config(tmp_path, tiny_model, filters={"min_rationale_words": 0, "drop_truncated": False})
    result = estep("train", str(path), *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "iteration 1: test accuracy" in result.stderr
    assert "run folder:" in result.stdout
    again = estep("train", str(path), *TINY, cwd=tmp_path)
    assert again.returncode == 0
    assert "resuming in" in again.stderr
    other = refused(estep("train", str(path), *TINY, "seed=3", cwd=tmp_path))
    assert "another configuration (seed: 257 -> 3)" in other

    out = tmp_path / "eval.jsonl"
    result = estep("eval", str(tmp_path / "run"), str(task), "test_size=3", *TINY[:4], "-o", str(out), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    kept = [json.loads(line) for line in (tmp_path / "run/iteration-01/eval.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["question_id"]: row["text"] for row in found} == {row["question_id"]: row["text"] for row in kept}

    # With no sizes named, a run's model is asked the run's own held-out questions, and none that it was trained on.
    # Its engine and its number of new tokens are the run's, too.
    result = estep("eval", str(tmp_path / "run"), str(task), "-o", "new/folder/all.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "settings of the run: test_size=3, engine.max_new_tokens=6, engine.type=transformers, " in " ".join(
        result.stderr.split()
    )
    found = [json.loads(line) for line in (tmp_path / "new/folder/all.jsonl").read_text().splitlines()]
    assert {row["question_id"]: row["text"] for row in found} == {row["question_id"]: row["text"] for row in kept}
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


@pytest.mark.slow
def test_predict_refuses_what_it_cannot_do_and_writes_nothing(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "new.csv").write_text("name,words\na,b\n")
    line = refused(estep("predict", tiny_model, str(task), "new.csv", "-o", "out.jsonl", cwd=tmp_path))
    assert "new.csv:2: no value for text; the row has name, words" in line
    line = refused(estep("predict", tiny_model, str(task), "new.csv", "-o", "out.xlsx", cwd=tmp_path))
    assert "allowed extensions are .jsonl, .csv, .parquet" in line
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_sample_previews_draws_and_the_acceptance_rate(tiny_model: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    result = estep("sample", str(task), "--model", tiny_model, "--proposal", "star", "-n", "3", *TINY[:4], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("[plain, ") == 3
    assert "accepted 0 of 3 (0%) with 6 draws" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_an_unknown_proposal_names_the_known(tmp_path: Path) -> None:
    line = refused(estep("sample", "sentiment/movies", "--proposal", "ppo", cwd=tmp_path))
    assert "proposal.type: got 'ppo'; known: 'rejection', 'star', 'pps', 'chain', 'adaptive', 'direct', 'gold'," in line


def test_eval_prints_its_measures_as_plain_data(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    # Right for every score but 4, and without a score for that one.
    texts = {row["id"]: ["A fine text. " + (f"Score: {row['score']}" if row["score"] < 4 else "Good!")] for row in rows}
    (tmp_path / "script.json").write_text(json.dumps(texts))
    scripted = ["engine.type=scripted", "engine.script=script.json", "test_size=5"]
    result = estep("eval", "base", str(task), *scripted, "--json", "-o", "all.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    gold = [json.loads(line)["gold"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    right = sum(score != "4" for score in gold) / 5
    assert 0 < right < 1
    assert found["model"] == "base"
    assert found["task"] == str(task)
    assert found["questions"] == 5
    assert found["accuracy"] == found["parse_rate"] == pytest.approx(right)
    assert found["gold"] == {score: gold.count(score) for score in "01234"}
    assert found["predicted"]["unparseable"] == gold.count("4")
    assert "evaluation" in result.stderr
    table = estep("eval", "base", str(task), *scripted, cwd=tmp_path).stdout
    assert f"{right:.1%}" in table


# Studies


def study(folder: Path, model: str, **changes: object) -> Path:
    """A study of two arms and two seeds on a task whose every text is right."""
    write_task(folder, **ANY_TEXT)
    path = folder / "grid.yaml"
    content = {
        "task": str(folder / "judge.yaml"),
        "model": model,
        "seed": [1, 2],
        "arms": {"pps": {"proposal": {"type": "pps"}}, "direct": {"proposal": {"type": "direct"}}},
        "engine": {"type": "transformers", "max_new_tokens": 6, "batch_size": 8, "device": "cpu"},
        "m_step": {"device": "cpu", "batch_size": 4, "learning_rate": 1e-3},
        "filters": {"min_rationale_words": 0, "drop_truncated": False},
        "iterations": 1,
        "train_size": 4,
        "test_size": 3,
        "run_dir": str(folder / "study"),
        **changes,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
def test_a_study_is_costed_run_and_reported(tmp_path: Path, tiny_model: str) -> None:
    path = study(tmp_path, tiny_model)
    dry = estep("study", str(path), "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "study grid: 4 runs" in dry.stdout
    rows = [line.split() for line in dry.stdout.splitlines()]
    assert [row[:3] for row in rows if row[:1] == ["judge"]] == [
        ["judge", arm, seed] for seed in ("1", "2") for arm in ("pps", "direct")
    ]
    assert not (tmp_path / "study").exists()
    result = estep("study", str(path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "4 of 4 runs finished" in result.stdout
    report = estep("report", "study", "--examples", "3", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "the highest accuracy in the last iteration" in report.stdout
    assert (tmp_path / "study/report/index.html").is_file()
    assert "--reference: the arms are pps, direct; got 'star'" in refused(
        estep("report", "study", "--reference", "star", cwd=tmp_path)
    )
    assert "holds neither a run (config.yaml) nor a study (study.json)" in refused(estep("report", ".", cwd=tmp_path))


@pytest.mark.slow
def test_a_study_with_a_failed_run_names_it_and_ends_with_1(tmp_path: Path, tiny_model: str) -> None:
    arms = {"pps": {}, "all-too-long": {"engine": {"max_model_len": 20}}}
    result = estep("study", str(study(tmp_path, tiny_model, seed=1, arms=arms)), cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "1 of 2 runs finished" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: judge-tiny-model0-all-too-long-s1: ")
    assert "do not fit the model's context of 20 tokens" in line
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_study_that_cannot_be_is_refused_on_one_line(tmp_path: Path, tiny_model: str) -> None:
    path = study(tmp_path, tiny_model)
    assert "unknown key 'arm.pps'; did you mean 'arms'?" in refused(
        estep("study", str(path), "arm.pps=1", cwd=tmp_path)
    )
    assert "cell pps, seed=x: seed:" in refused(estep("study", str(path), "seed=[1,x]", cwd=tmp_path))
    assert "arms and lists of values need a study: estep study" in refused(estep("train", str(path), cwd=tmp_path))
    assert "could not read the config nothing" in refused(estep("study", "nothing", cwd=tmp_path))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_study_killed_for_good_three_times_ends_in_the_same_report(tmp_path: Path, tiny_model: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        study(folder, tiny_model)
    assert estep("study", "grid.yaml", cwd=whole).returncode == 0
    for commits in (1, 3, 6):
        kill_after(commits, "study", "grid.yaml", cwd=killed)
    assert len(list(killed.rglob("iteration.json"))) < len(list(whole.rglob("iteration.json"))) == 8
    assert estep("study", "grid.yaml", cwd=killed).returncode == 0
    for folder in (whole, killed):
        assert estep("report", "study", cwd=folder).returncode == 0
    for path in sorted((whole / "study/report").rglob("*")):
        if path.is_file() and path.suffix != ".html":
            assert (killed / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def kill_after(commits: int, *arguments: str, cwd: Path) -> None:
    """Start a command, and kill it with SIGKILL once the given number of iterations is committed."""
    command = [sys.executable, "-m", "estep.cli", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PYTHONPATH": SOURCE}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(cwd.rglob("iteration.json"))) < commits:
        assert process.poll() is None, "the command ended before it was killed"
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given: str | None, used: str) -> None:
    # OpenMP reads the variable when torch is loaded, so the command must have set it before.
    code = "import estep.cli, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == [used, "False"]


def test_predictions_do_not_replace_their_input(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "A fine film."}\n')
    result = estep("predict", "smollm2-135m", "sentiment/movies", "rows.jsonl", "-o", "./rows.jsonl", cwd=tmp_path)
    assert result.returncode == 2
    assert "--out rows.jsonl would replace the input" in result.stderr
    assert rows.read_text() == '{"text": "A fine film."}\n'
