"""Rationales before and after training: one held-out question (paper, Figure 3), and the share of true equations."""

import math
from collections import Counter
from typing import Any, NamedTuple

from estep.metrics import selected
from estep.store.files import JsonlFile
from estep.store.run import IterationStore, RunStore
from estep.tasks.steps import valid_steps_share


class BeforeAfter(NamedTuple):
    """A test question with its answers before and after training."""

    question: dict[str, Any]
    """Its line in `test.jsonl`."""
    before: dict[str, Any]
    """The base model's line in `eval.jsonl`."""
    after: dict[str, Any]
    """The line of the iteration that the run ends in."""


def before_and_after(store: RunStore) -> BeforeAfter | None:
    """A test question that the base model answers wrong and the final model answers right.

    Prefers the question whose rationale the fewest others share, since small models repeat themselves; of equals, the
    first.

    Returns:
        None if there is no such question.
    """
    base, final = _first_and_last(store)
    before, after = base.eval.read(), {row["draw_id"]: row for row in final.eval.read()}
    shared = Counter(row["rationale"] for row in after.values())
    mended = [
        (row, after[row["draw_id"]])
        for row in before
        if row["status"] != "correct" and after[row["draw_id"]]["status"] == "correct"
    ]
    if not mended:
        return None
    earlier, later = min(mended, key=lambda rows: shared[rows[1]["rationale"]] if rows[1]["rationale"] else math.inf)
    question = next(q for q in JsonlFile(store.folder / "test.jsonl").read() if q["id"] == earlier["question_id"])
    return BeforeAfter(question, earlier, later)


def valid_steps(store: RunStore) -> tuple[float, float]:
    """The share of true equations in the answers to the test questions, before and after training.

    NaN where the answers contain no equation.
    """
    base, final = _first_and_last(store)
    before, after = (valid_steps_share(row["rationale"] for row in step.eval.read()) for step in (base, final))
    return before, after


def _first_and_last(store: RunStore) -> tuple[IterationStore, IterationStore]:
    """The iteration of the base model, and the one that the run ends in."""
    committed = store.committed()
    ends = selected([step.metrics() for step in committed], store.config().select).iteration
    return committed[0], committed[ends]
