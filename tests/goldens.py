"""Every prompt of every built-in task on a few rows, as text: `python tests/goldens.py` writes them to tests/goldens.

A change of a prompt is a change of an experiment, so it must show in a diff.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estep.config import DataConfig
from estep.data.split import Pool, load_pool, with_own_data
from estep.records import Messages
from estep.tasks import Task, load_task, task_names

FIXTURES = Path(__file__).parent / "fixtures"
GOLDENS = Path(__file__).parent / "goldens"
ROWS = 3


def fixture(name: str) -> Path | None:
    """A file of the schema that a task's rows have; None for a task that makes its rows."""
    head = name.split("/")[0]
    return None if head in ("gym", "sums") else FIXTURES / f"{head}.jsonl"


def hub_rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split of the data set that a task reads from the hub, where splits differ in their rows."""
    path = fixture(name)
    assert path is not None
    of_split = path.with_name(f"{path.stem}-{split}.jsonl")
    text = (of_split if of_split.is_file() else path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def on_fixture(name: str, hint: str | None = None) -> Task:
    """A built-in task that reads its fixture, or makes a dozen rows."""
    path, task = fixture(name), load_task(name, hint)
    if path is not None:
        return with_own_data(task, DataConfig(train_file=str(path)))
    if name.startswith("gym/"):
        pytest.importorskip("reasoning_gym", reason="estep[gym] needs a C compiler")
    assert task.file.data.generator is not None
    few = task.file.data.generator.model_copy(update={"size": 12})
    return replace(
        task, file=task.file.model_copy(update={"data": task.file.data.model_copy(update={"generator": few})})
    )


def pool_of(name: str) -> Pool:
    return load_pool(on_fixture(name))


def golden(name: str) -> str:
    """A task's prompts: plain, of the proposal, and hinted in every variant."""
    questions = pool_of(name).train.questions[:ROWS]
    parts = []
    for question in questions:
        task = on_fixture(name)
        parts.append(f"{'#' * 30} {question.id}, answer {question.answer}")
        parts.append(_shown("prompt", task.prompt(question)))
        if question is questions[0]:
            parts.append(_shown("proposal_prompt", task.proposal_prompt(question)))
            for variant in task.file.hint.variants:
                parts.append(_shown(f"hinted_prompt, {variant}", on_fixture(name, variant).hinted_prompt(question)))
        else:
            parts.append(_shown("hinted_prompt, last turn", task.hinted_prompt(question)[-1:]))
    return "\n\n".join(parts) + "\n"


def _shown(kind: str, messages: Messages) -> str:
    turns = [f"[{message['role']}]\n{message['content']}" for message in messages]
    return "\n".join([f"{'=' * 20} {kind}", *turns])


def golden_file(name: str) -> Path:
    return GOLDENS / f"{name.replace('/', '-')}.txt"


if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for name in task_names():
        golden_file(name).write_text(golden(name), encoding="utf-8")
