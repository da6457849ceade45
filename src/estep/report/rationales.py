"""The same held-out question before and after training (paper, Figure 3)."""

from typing import Any, NamedTuple

from estep.store import Log, RunStore


class BeforeAfter(NamedTuple):
    """A question of `test.jsonl`, and its lines of `eval.jsonl`: the base model's and the last iteration's."""

    question: dict[str, Any]

    before: dict[str, Any]
    after: dict[str, Any]


def before_and_after(store: RunStore) -> BeforeAfter | None:
    """The first test question that the base model got wrong and the last iteration right, with a rationale.

    None where there is none.
    """
    committed = store.committed()
    before, after = committed[0].eval.read(), {row["draw_id"]: row for row in committed[-1].eval.read()}
    for row in before:
        later = after[row["draw_id"]]
        if row["status"] != "correct" and later["status"] == "correct" and later["rationale"]:
            question = next(q for q in Log(store.folder / "test.jsonl").read() if q["id"] == row["question_id"])
            return BeforeAfter(question, row, later)
    return None
