"""A finished study on the disk, made by hand: what each run answered is given, so that every figure can be computed by
hand."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from conftest import JUDGE, questions_of, task_of, write_task
from estep.config import RunConfig
from estep.config.files import validate
from estep.metrics import EStepMetrics, IterationMetrics, evaluate_responses
from estep.records import Response, Sample
from estep.store.files import write_rows
from estep.store.run import IterationStore, RunStore
from estep.study.grid import Grid, load_grid
from runs import ANY_TEXT

TASK = task_of()
Answers = Sequence[str]
"""After each iteration, an answer to every test question: a digit, or `-` for a text without one."""

GOLD = "0123401234"
SAMPLES = ("0", "1", "-")
"""The E-step's answers to three training questions of score 0: the first is accepted."""


def make_run(folder: Path, answers: Answers, say: str = "one two three four", **changes: Any) -> RunConfig:
    """A finished run.

    Args:
        answers: of the base model and of each iteration, to ten questions with the scores of `GOLD`.
        say: what every rationale says.
    """
    content = {
        "task": "judge",
        "model": "some/model",
        "iterations": len(answers) - 1,
        "engine": {"max_new_tokens": 8},
        "filters": {"min_rationale_words": 0},
        **changes,
    }
    config = validate(content)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"run_dir"})))
    (folder / "task.yaml").write_text(yaml.safe_dump({**JUDGE, "name": "judge"}))
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "python": "3.11.7",
        "platform": "Linux",
        "cpus": 2,
        "versions": {"estep": "0.1.0"},
        "git_revision": "abc",
        "engine": {"engine": "scripted"},
    }
    (folder / "run.json").write_text(json.dumps({"sessions": [session]}))
    test, train = questions_of(TASK, GOLD), questions_of(TASK, "000")
    write_rows(folder / "test.jsonl", map(asdict, test))
    write_rows(folder / "train.jsonl", map(asdict, train))
    for k, of_iteration in enumerate(answers):
        step = RunStore(folder).iteration(k)
        step.folder.mkdir()
        rows = [
            _row(question.id, question.answer, given, say) for question, given in zip(test, of_iteration, strict=True)
        ]
        write_rows(step.folder / "eval.jsonl", rows)
        evaluation = evaluate_responses([Response(**row) for row in rows], TASK.answers, ordinal=True)
        e_step = _e_step(step, [question.id for question in train], say) if k else None
        step.commit(IterationMetrics(k, evaluation, e_step, tokens={"m_step": 7}), {"weights_of_iteration": 0})
    return config


def _row(question: str, gold: str, given: str, say: str) -> dict[str, Any]:
    return {
        "draw_id": f"{question}#0",
        "question_id": question,
        "gold": gold,
        "answer": None if given == "-" else given,
        "status": "unparseable" if given == "-" else "correct" if given == gold else "wrong",
        "rationale": say,
        "text": f"{say} Score: {given}",
        "hint_mentioned": False,
        "index": 0,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "logprob": -1.0,
    }


def _e_step(step: IterationStore, questions: Sequence[str], say: str) -> EStepMetrics:
    rows = [_row(question, "0", given, say) for question, given in zip(questions, SAMPLES, strict=True)]
    write_rows(
        step.folder / "samples.jsonl",
        (asdict(Sample(row["draw_id"], row["text"], "stop", 10, 5, -1.0)) for row in rows),
    )
    kept = ("draw_id", "question_id", "status", "answer", "rationale", "hint_mentioned")
    more = {"index": 0, "round": 0, "hinted": True, "supplied": False}
    write_rows(step.folder / "verdicts.jsonl", ({**{key: row[key] for key in kept}, **more} for row in rows))
    mix = {"0": 3}
    return EStepMetrics(3, 3, 3, 1, 1 / 3, 15.0, {"correct": 1}, {"correct": 2}, 1.0, {"0": 1}, mix, 0.0, 4.0, 1.0, 0.0)


def make_study(
    folder: Path, runs: dict[tuple[str, str, int], Answers], say: str = "one two three four", **changes: Any
) -> Path:
    """A study of runs by task, arm and seed."""
    cells = []
    for (task, arm, seed), answers in runs.items():
        name = re.sub(r"[^\w.-]+", "-", f"{task}-{arm}-s{seed}")
        proposal = {"type": arm} if arm in ("pps", "star", "direct") else {"type": "rejection"}
        make_run(folder / "runs" / name, answers, say, task=task, seed=seed, **{"proposal": proposal, **changes})
        axes = {"task": task, "seed": str(seed)}
        cells.append({"name": name, "arm": arm, "axes": axes, "status": "finished", "error": None})
    (folder / "study.json").write_text(json.dumps({"name": "made", "cells": cells}))
    (folder / "study.yaml").write_text("name: made\n")
    return folder


def right(count: int) -> str:
    """The first `count` of ten questions answered right, the others with the next score."""
    return GOLD[:count] + "".join(str((int(gold) + 1) % 5) for gold in GOLD[count:])


ARMS = {
    "pps": {"proposal": {"type": "pps"}},
    "vote": {"proposal": {"type": "pps"}, "evaluation": {"samples": 3, "temperature": 1.0, "vote": "majority"}},
    "rejection-2": {"proposal": {"type": "rejection", "budget": 2}},
}


def grid_of(folder: Path, model: str, *overrides: str, name: str = "study", **changes: Any) -> Grid:
    """A study of three arms and two seeds on a task whose every text is right."""
    if not (folder / "judge.yaml").exists():
        write_task(folder, **ANY_TEXT)
    content = {
        "task": str(folder / "judge.yaml"),
        "model": model,
        "seed": [1, 2],
        "arms": ARMS,
        "engine": {"type": "transformers", "max_new_tokens": 6, "batch_size": 4, "device": "cpu"},
        "m_step": {"learning_rate": [1e-3, 1e-4], "batch_size": 4, "device": "cpu"},
        "filters": {"min_rationale_words": 0, "drop_truncated": False},
        "iterations": 2,
        "train_size": 5,
        "test_size": 4,
        "run_dir": str(folder / name),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_grid(path, list(overrides))
