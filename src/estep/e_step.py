"""The E-step: draw, sample, judge, and draw again what the proposal asks for; then filter.

A sample is judged as it finishes, and an attempt's next draw joins the queue at once, so that the engine never waits for
the slowest attempt of a round.

It keeps nothing and trains nothing, so that a preview and a run are the same code.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from estep import filters as filtering
from estep.config import RunConfig
from estep.engines import DrawQueue, Engine, Sampling
from estep.engines.base import replayed
from estep.filters import Candidate, Filter
from estep.metrics import (
    EStepMetrics,
    distinct_share,
    mean,
    total_variation,
)
from estep.progress import Reporter
from estep.proposals import Attempt, Proposal
from estep.records import Draw, Pair, Question, Sample, Verdict, derive_seed
from estep.tasks import Task


@dataclass(frozen=True)
class EStepResult:
    """What an E-step gives. `draws`, `samples` and `verdicts` are of all rounds, in one order."""

    draws: list[Draw]
    samples: list[Sample]
    verdicts: list[Verdict]
    candidates: list[Candidate]
    """The last sample of every attempt."""
    pairs: list[Pair]
    dropped: dict[str, int]
    """How many candidates each filter left out."""


def expect(
    task: Task,
    questions: Sequence[Question],
    proposal: Proposal,
    filters: dict[str, Filter],
    engine: Engine | None,
    sampling: Sampling,
    seed: int,
    reporter: Reporter,
    title: str = "E-step",
    finished: Mapping[str, Sample] | None = None,
    keep_draws: Callable[[list[Draw]], None] = lambda _: None,
    keep_sample: Callable[[Sample], None] = lambda _: None,
) -> EStepResult:
    """Run the E-step on the weights that the engine holds (Algorithm 1, line 3).

    Args:
        engine: None where every sample is finished.
        finished: samples by draw id that an interrupted run had finished; they are not drawn again.
        keep_draws: called with the first draws before anything is sampled, and with all of them at the end.
        keep_sample: called with each new sample as it finishes.
    """
    finished = finished or {}
    by_id = {question.id: question for question in questions}
    position = {question.id: place for place, question in enumerate(questions)}
    draws = {draw.id: draw for draw in proposal.propose(task, questions, seed)}
    keep_draws(list(draws.values()))
    queue = DrawQueue(draws.values(), finished)
    samples: dict[str, Sample] = {}
    history: dict[Attempt, list[Verdict]] = {}
    total = len(draws.keys() | finished.keys())
    with reporter.phase(title, total, "draws", len(finished)) as advance:
        for sample in engine.generate(queue, sampling) if engine is not None else replayed(queue):
            fresh = sample.draw_id not in finished
            if fresh:
                keep_sample(sample)
            samples[sample.draw_id] = sample
            draw = draws[sample.draw_id]
            attempt = Attempt(draw.question_id, draw.index)
            question = by_id[draw.question_id]
            past = history.setdefault(attempt, [])
            past.append(judge(task, question, draw, sample))
            following = proposal.follow(task, question, attempt, past, seed)
            if following is not None:
                draws[following.id] = following
                queue.add(following)
            grown = following is not None and following.id not in finished
            if fresh or grown:
                advance(int(fresh), int(grown))
    ordered = sorted(draws.values(), key=lambda draw: (draw.round, position[draw.question_id], draw.index))
    keep_draws(ordered)
    verdict_of = {verdict.draw_id: verdict for verdicts in history.values() for verdict in verdicts}
    attempts = dict.fromkeys(Attempt(draw.question_id, draw.index) for draw in ordered)
    candidates = [
        Candidate(samples[history[attempt][-1].draw_id], history[attempt][-1], by_id[attempt.question_id].answer)
        for attempt in attempts
    ]
    kept, dropped = filtering.apply(filters, candidates)
    return EStepResult(
        draws=ordered,
        samples=[samples[draw.id] for draw in ordered],
        verdicts=[verdict_of[draw.id] for draw in ordered],
        candidates=candidates,
        pairs=[pair(task, by_id[candidate.verdict.question_id], candidate) for candidate in kept],
        dropped=dropped,
    )


def judge(task: Task, question: Question, draw: Draw, sample: Sample) -> Verdict:
    """The verdict on a sample."""
    judgment = task.judge(question, sample.text)
    return Verdict(
        draw_id=draw.id,
        question_id=draw.question_id,
        index=draw.index,
        round=draw.round,
        hinted=draw.hinted,
        answer_only=draw.completion is not None,
        **judgment._asdict(),
    )


def pair(task: Task, question: Question, candidate: Candidate) -> Pair:
    """A training pair: always the plain prompt, whatever the sample was drawn from."""
    completion = candidate.sample.text.strip()
    return Pair(
        question_id=question.id,
        draw_id=candidate.verdict.draw_id,
        prompt=task.prompt(question),
        completion=completion,
        weight=candidate.weight,
        answer_span=task.answer_span(completion),
    )


def proposal_sampling(config: RunConfig, task: Task) -> Sampling:
    """How a resolved configuration samples from its proposal."""
    structured = getattr(config.engine, "structured", False)
    regex = task.response_regex(config.max_new_tokens) if structured else None
    return Sampling(config.engine.temperature, config.engine.top_p, config.max_new_tokens, regex)


def e_step_seed(seed: int, k: int) -> int:
    """The seed of an iteration's E-step."""
    return derive_seed(seed, "e-step", k)


def e_step_metrics(expectation: EStepResult, task: Task) -> EStepMetrics:
    """The measures of an E-step."""
    gold = {c.verdict.draw_id: c.gold for c in expectation.candidates}
    data_answers = _counts(iter(gold.values())) if task.answers else {}
    accepted_answers = _counts(gold[pair.draw_id] for pair in expectation.pairs)
    weights = dict.fromkeys(data_answers, 0.0)
    for pair in expectation.pairs if task.answers else ():
        weights[gold[pair.draw_id]] += pair.weight
    verdicts = [c.verdict for c in expectation.candidates]
    by_draw = {verdict.draw_id: verdict for verdict in verdicts}
    accepted = [by_draw[pair.draw_id] for pair in expectation.pairs]
    return EStepMetrics(
        questions=len({verdict.question_id for verdict in verdicts}),
        draws=len(expectation.draws),
        attempts=len(verdicts),
        accepted=len(accepted),
        data_utilization=len(accepted) / len(verdicts),
        tokens_per_pair=sum(s.completion_tokens for s in expectation.samples) / len(accepted) if accepted else math.nan,
        status=_counts(verdict.status for verdict in verdicts),
        dropped=expectation.dropped,
        hinted_share=mean([verdict.hinted for verdict in accepted]),
        accepted_answers=accepted_answers,
        data_answers=data_answers,
        answer_shift=total_variation(weights, data_answers),
        reasoning_words=mean([len(verdict.rationale.split()) for verdict in accepted]),
        distinct_rationales=distinct_share([verdict.rationale for verdict in accepted]),
        hint_mentioned=mean([verdict.hint_mentioned for verdict in verdicts]),
    )


def _counts(values: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in sorted(values):
        counts[value] = counts.get(value, 0) + 1
    return counts
