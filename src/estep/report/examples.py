"""Examples of a run's texts: answers to test questions before and after training, and samples with their fate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from estep.config import served_model
from estep.filters import Candidate, Filter, build_filters, left_out_by
from estep.metrics import voted
from estep.records import Question, Sample, Verdict
from estep.report.results import Run
from estep.scoring import read_parts, sample_scores
from estep.store.files import JsonlFile
from estep.tasks import Task

REASONS = {
    "correct": "wrong",
    "graded": "too far off",
    "drop_truncated": "cut off at max_new_tokens",
    "min_rationale_words": "rationale too short",
    "check_steps": "an untrue step, or none",
    "drop_hint_mentions": "mentions the hint",
    "dedup": "duplicate text",
    "max_per_question": "more than max_per_question",
    "balance": "dropped for balance",
}
"""Why each filter rejects a sample, in words."""


@dataclass(frozen=True)
class Examples:
    """A selection of a run's texts, as plain data."""

    tests: list[dict[str, Any]]
    """Test questions with the responses of the base model and of the iteration that the run ends in."""
    samples: list[dict[str, Any]]
    """Samples from the E-steps, accepted and rejected."""
    all_tests: int
    """How many test questions the run has."""
    all_samples: int
    """How many attempts of samples the run has."""


def examples_of(run: Run, count: int) -> Examples:
    """The first test questions, and from each iteration the first accepted and the first rejected samples.

    Questions are in random order, so the first ones are a random selection.

    Args:
        count: how many test questions to take, and about how many samples over all iterations.
    """
    of_split = {split: run.store.questions(split) for split in ("train", "test")}
    tests = _tests(run, run.task, of_split["test"])
    filters = build_filters(run.config.filters, run.task.file.answer, of_split["train"])
    by_id = {question.id: question for question in of_split["train"]}
    samples, total = [], 0
    trained = [metrics.iteration for metrics in run.iterations if metrics.e_step is not None]
    for k in trained:
        found = _samples(run, k, run.task, by_id, filters)
        total += len(found)
        share = max(1, count // (2 * len(trained)))
        for accepted in (True, False):
            samples += [sample for sample in found if sample["accepted"] == accepted][:share]
    return Examples(tests[:count], samples, len(tests), total)


def _tests(run: Run, task: Task, questions: Sequence[Question]) -> list[dict[str, Any]]:
    before, after = (_by_question(run, k) for k in (0, run.final.iteration))
    return [
        {
            "id": question.id,
            "question": task.shown(question),
            "gold": question.answer,
            "before": before[question.id],
            "after": after[question.id],
        }
        for question in questions
        if question.id in before and question.id in after
    ]


def _by_question(run: Run, iteration: int) -> dict[str, dict[str, Any]]:
    """One response per test question: the first that gives the answer that counts, which a vote may have chosen."""
    responses = run.store.iteration(iteration).responses()
    chosen = {one.question_id: one.answer for one in reversed(voted(responses, run.config.evaluation.vote))}
    found: dict[str, dict[str, Any]] = {}
    for response in responses:
        if response.answer == chosen[response.question_id]:
            shown = {"text": response.text, "answer": response.answer, "status": response.status}
            found.setdefault(response.question_id, shown)
    return found


def _samples(
    run: Run, iteration: int, task: Task, questions: dict[str, Question], filters: dict[str, Filter]
) -> list[dict[str, Any]]:
    """The last sample of each attempt of an E-step, as the filters saw it."""
    step, served = run.store.iteration(iteration), served_model(run.config.proposal) is not None
    samples = {row["draw_id"]: Sample(**row) for row in step.samples.read()}
    verdicts = [Verdict(**row) for row in JsonlFile(step.folder / "verdicts.jsonl").read()]
    last = {(verdict.question_id, verdict.index): verdict for verdict in verdicts}
    parts = read_parts(step.scores)
    candidates = [
        Candidate(
            sample=samples[verdict.draw_id],
            verdict=verdict,
            gold=questions[verdict.question_id].answer,
            scores=sample_scores(verdict, parts, served),
        )
        for verdict in last.values()
    ]
    reasons = left_out_by(filters, candidates)
    return [
        {
            "id": candidate.verdict.question_id,
            "iteration": step.number,
            "question": task.shown(questions[candidate.verdict.question_id]),
            "gold": candidate.gold,
            "hinted": candidate.verdict.hinted,
            "text": candidate.sample.text,
            "supplied": candidate.verdict.supplied,
            "accepted": candidate.verdict.draw_id not in reasons,
            "reason": _reason(reasons.get(candidate.verdict.draw_id), candidate.verdict),
        }
        for candidate in candidates
    ]


def _reason(left_out: str | None, verdict: Verdict) -> str:
    if left_out is None:
        return "accepted"
    if left_out in ("correct", "graded") and verdict.status != "wrong":
        return "no answer found" if verdict.status == "unparseable" else verdict.status.replace("_", " ")
    return REASONS.get(left_out, left_out)
