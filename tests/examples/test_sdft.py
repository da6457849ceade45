"""Self-distillation as an arm of a small study, with a tiny model."""

import itertools
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from conftest import script
from estep.errors import ConfigError
from estep.m_step.base import read_m_step
from estep.progress import Silent
from estep.report.results import Run, read_results
from estep.report.write import write_report
from estep.store.files import JsonlFile
from estep.study.grid import Grid
from estep.study.run import run_study
from studies import ARMS, grid_of, make_study, right


@pytest.fixture(scope="module")
def sdft() -> ModuleType:
    return script("sdft", "examples")


@pytest.fixture
def grid(tmp_path: Path, tiny_model: str) -> Grid:
    """A finished study of one PPS run: two iterations on eight questions, in batches of four."""
    grid = grid_of(tmp_path, tiny_model, seed=[1], train_size=8, arms={"pps": ARMS["pps"]}, few_shot="first")
    run_study(grid, Silent())
    return grid


@pytest.fixture
def study(grid: Grid) -> Path:
    return grid.folder


def texts(run: Run, k: int) -> list[dict[str, Any]]:
    return JsonlFile(run.store.iteration(k).folder / "sdft.jsonl").read()


@pytest.mark.slow
def test_sdft_joins_the_study_that_it_is_compared_with(
    grid: Grid, sdft: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    sdft.main([str(grid.folder), "m_step.learning_rate=0.01", "m_step.batch_size=3"])
    run_study(grid, Silent())  # which keeps the new arm
    pps, ours = read_results(grid.folder).runs
    assert (pps.arm, ours.arm, ours.name) == ("pps", "sdft", "judge-tiny-model0-sdft-s1")
    assert pps.setting == ours.setting
    for split in ("train", "test"):
        assert pps.store.questions(split) == ours.store.questions(split)
    assert pps.base.evaluation == ours.base.evaluation
    # Two batches of three in each iteration, and two questions are left out.
    assert "leaves out 2 of 8 questions" in capfd.readouterr().err
    for k in (1, 2):
        assert len({text["question_id"] for text in texts(ours, k)}) == 6
        m_step = ours.iterations[k].m_step
        assert (m_step.pairs, m_step.steps, m_step.learning_rate) == (6, 2, 0.01)
        assert ours.iterations[k].e_step is None
        assert ours.iterations[k].tokens["e_step_new"] == sum(text["tokens"] for text in texts(ours, k)) > 0
    assert "| sdft |" in write_report(grid.folder).folder.joinpath("report.md").read_text()


@pytest.mark.slow
def test_only_the_teacher_reads_hints_and_examples_only_in_the_first_iteration(
    study: Path, sdft: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    build = sdft.HintedTeacher.build

    def kept(self: Any, prompts: Any, ids: Any, *completions: Any) -> Any:
        batch = build(self, prompts, ids, *completions)
        read = [self.trainer.processing_class.decode(row) for row in batch["teacher_input_ids"]]
        seen.extend(zip(prompts, read, [self.questions[id].answer for id in ids], strict=True))
        return batch

    monkeypatch.setattr(sdft.HintedTeacher, "build", kept)
    sdft.main([str(study)])
    assert len(seen) == 16
    for number, (student, teacher, answer) in enumerate(seen):
        assert [message["role"] for message in student] == ["system", "user"]
        assert "as if its score" not in str(student)
        assert f"as if its score was {answer}." in teacher.rpartition("Text:")[2]
        assert ("A fine day." in teacher) == (number < 8)


@pytest.mark.slow
def test_the_policy_approaches_its_hinted_self(study: Path, sdft: ModuleType) -> None:
    sdft.main([str(study), "iterations=1", "m_step.epochs=10", "m_step.learning_rate=0.003"])
    (_, ours) = read_results(study).runs
    losses = read_m_step(ours.store.iteration(1).weights).losses
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.slow
def test_a_run_resumes_and_other_settings_need_another_name(study: Path, sdft: ModuleType) -> None:
    sdft.main([str(study)])
    first = read_results(study)
    assert first.arms == ["pps", "sdft"]
    (study / "runs/judge-tiny-model0-sdft-s1/iteration-02/iteration.json").unlink()  # as if it had been killed
    (study / "study.json").write_text((study / "study.json").read_text().replace('"sdft"', '"gone"'))
    with pytest.raises(ConfigError, match="--name"):
        sdft.main([str(study), "--trl", "distillation_alpha=1.0"])
    sdft.main([str(study)])
    again = read_results(study)
    assert again.arms == ["pps", "sdft"]
    assert [one.evaluation for one in again.runs[1].iterations] == [one.evaluation for one in first.runs[1].iterations]
    sdft.main([str(study), "--trl", "distillation_alpha=1.0", "--name", "sdft-reverse"])
    results = read_results(study)
    assert results.arms == ["pps", "sdft", "sdft-reverse"]
    assert results.runs[1].iterations[1].m_step.first_loss != results.runs[2].iterations[1].m_step.first_loss


@pytest.mark.slow
def test_equal_seconds_stops_at_the_time_of_the_arm(
    study: Path, sdft: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # every look at the clock, and so every step, takes one
    monkeypatch.setattr(sdft, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    path = study / "runs/judge-tiny-model0-pps-s1/iteration-{:02d}/metrics.json"
    for k, spent in ((1, 0.0), (2, 3.0)):
        metrics = json.loads(Path(str(path).format(k)).read_text())
        Path(str(path).format(k)).write_text(json.dumps({**metrics, "seconds": {"e_step": spent, "m_step": 0.0}}))
    sdft.main([str(study), "--equal", "seconds"])
    ours = read_results(study).runs[1]
    assert ours.arm == "sdft-seconds"
    assert ours.iterations[1].m_step.steps == 1  # a step that has begun is finished
    assert ours.iterations[2].m_step.steps == 3  # a pass has two


def test_no_finished_run_is_an_error(tmp_path: Path, sdft: ModuleType) -> None:
    folder = make_study(tmp_path / "study", {("judge", "star", 1): [right(1), right(2)]})
    with pytest.raises(ConfigError, match="'arm': 'pps'"):
        sdft.main([str(folder)])
