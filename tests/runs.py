"""Small runs for tests: with a tiny real model, or with a scripted engine and no training."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from conftest import write_task
from estep.cli.app import OnInvalidRow
from estep.cli.models import config_of
from estep.config import FEMConfig, RunConfig
from estep.engines.scripted import ScriptedEngine
from estep.m_step.base import MStepInput, MStepResult, write_m_step
from estep.m_step.canary import Canary
from estep.progress import Advance, Reporter, Silent
from estep.records import Draw, ModelRef
from estep.trainer import FEMTrainer, TrainResult

ANY_TEXT = {"answer": {"type": "python", "function": "verifiers:any_text"}}
"""A task whose every text is right: a random model then has pairs to train on."""

VOTES = {"temperature": 1.0, "samples": 3, "vote": "majority"}

HINTS = {
    "default": "strict",
    "variants": {"strict": "The score is {{ answer }}.", "known": "{{ answer }} is what a panel of readers gave it."},
}


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


class KillAfter(Silent):
    """Reports nothing, and kills the run when the given number of pieces of work are finished."""

    def __init__(self, pieces: int):
        self.left = pieces

    @contextmanager
    def phase(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        def advance(count: int = 1, more: int = 0) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed(title)

        yield advance


def settings(folder: Path, **changes: object) -> FEMConfig:
    content = {
        "engine": {"type": "transformers", "max_new_tokens": 8, "batch_size": 4, "device": "cpu"},
        "m_step": {"learning_rate": [1e-3, 1e-4], "batch_size": 4, "device": "cpu"},
        "filters": {"min_rationale_words": 0, "drop_truncated": False},
        "iterations": 2,
        "train_size": 7,
        "test_size": 4,
        "run_dir": str(folder),
    }
    return FEMConfig.model_validate({**content, **changes})


def run(model: str, task: Path, config: FEMConfig, reporter: Reporter | None = None) -> TrainResult:
    return FEMTrainer(model, str(task), config, reporter=reporter).train()


def contents(folder: Path) -> dict[str, object]:
    """Every record of a run, and the bytes of its weights, but for times and versions."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            # Samples are kept in the order in which they finish, which a repeated batch changes.
            found[name] = sorted(lines, key=json.dumps)
        elif path.name == "metrics.json":
            content = json.loads(path.read_text())
            found[name] = {key: value for key, value in content.items() if key != "seconds"}
        elif path.name in ("config.json", "iteration.json") or path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def pretend(work: MStepInput) -> MStepResult:
    """An M-step that writes what it was asked, and trains nothing."""
    work.folder.mkdir()
    canary = Canary(((work.pairs[0].prompt, work.pairs[0].completion),), -10.0, -20.0, tokens=9)
    model = ModelRef(str(work.folder), work.iteration)
    trained = MStepResult(model, len(work.pairs), 1, 9, 5, (1.0,), work.learning_rate, 0, canary)
    write_m_step(trained, work.folder)
    return trained


class Scored(ScriptedEngine):
    """A scripted engine that scores what the pretended M-step expects."""

    def score(self, messages: object, text: str) -> float:
        return -10.0


def scripted_run(
    tmp_path: Path,
    engine: ScriptedEngine,
    seen: list[MStepInput] | None = None,
    reporter: Reporter | None = None,
    **changes: object,
) -> TrainResult:
    def m_step(work: MStepInput) -> MStepResult:
        if seen is not None:
            seen.append(work)
        return pretend(work)

    task = tmp_path / "judge.yaml"
    if not task.exists():
        write_task(tmp_path)
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    changes = {"filters": {}, **changes}
    run_settings = settings(tmp_path / "run", **changes)
    return FEMTrainer(str(base), str(task), run_settings, engine=engine, m_step=m_step, reporter=reporter).train()


def right_when_hinted(draw: Draw) -> str:
    answer = int(draw.question_id.removeprefix("r")) % 5
    return f"Evaluation: one two three four five six. Score: {answer if draw.hinted else (answer + 1) % 5}"


def a_run(folder: Path, sampled_with: dict[str, object] | None = None, **changes: object) -> Path:
    """A scripted run's folder, whose configuration says that it was sampled with another engine."""
    write_task(folder, few_shot="first")
    scripted_run(folder, Scored(right_when_hinted), **changes)
    for weights in folder.glob("run/iteration-*/weights"):
        (weights / "config.json").write_text("{}")
    path = folder / "run/config.yaml"
    content = yaml.safe_load(path.read_text())
    content["engine"] = sampled_with or content["engine"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "run"


def options(
    task: Path | str,
    model: Path | str,
    *overrides: str,
    proposal: str | None = None,
    on_invalid_row: OnInvalidRow | None = None,
) -> RunConfig:
    """The configuration of `estep eval MODEL TASK`, or of `estep sample` with a proposal."""
    return config_of(str(task), str(model), on_invalid_row, list(overrides), proposal)
