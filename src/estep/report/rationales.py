"""The same held-out question before and after training (paper, Figure 3)."""

import math
from collections import Counter
from typing import Any, NamedTuple

from estep.metrics import selected
from estep.store.files import JsonlFile
from estep.store.run import RunStore


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
    committed = store.committed()
    ends = selected([step.metrics() for step in committed], store.config().select).iteration
    before, after = committed[0].eval.read(), {row["draw_id"]: row for row in committed[ends].eval.read()}
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
