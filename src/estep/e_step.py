"""The E-step (Algorithm 1, line 3): sample rationales ẑ, ŷ ~ q(· | x, y*; θ⁽ᵏ⁻¹⁾), grade them, and filter by r(ŷ, y*).

A sample is graded as soon as it finishes, and an attempt's next draw joins the queue at once, so the engine never waits
for the slowest attempt of a round.

This module neither trains nor writes files, so a preview runs the same code as a run.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from estep import filters as filtering
from estep.config import RunConfig
from estep.engines import DrawQueue, Engine, Sampling
from estep.engines.base import NeverSampledError, replayed
from estep.filters import Candidate, Filter
from estep.metrics import EStepMetrics, distinct_share, mean, total_variation
from estep.progress import Reporter
from estep.proposals import Context, Proposal
from estep.records import (
    NO_HISTORY,
    NO_LOG,
    Attempt,
    Draw,
    History,
    Pair,
    Question,
    RowLog,
    Sample,
    Verdict,
    derive_seed,
)
from estep.scoring import Scorer, ScoreText, sample_scores, sample_texts
from estep.tasks import Task


@dataclass(frozen=True)
class EStepResult:
    """The output of an E-step. `draws`, `samples` and `verdicts` cover all rounds, in the same order."""

    draws: list[Draw]
    samples: list[Sample]
    verdicts: list[Verdict]
    candidates: list[Candidate]
    """The last sample of each attempt."""
    pairs: list[Pair]
    """What passed the filters."""
    dropped: dict[str, int]
    """Number of candidates that each filter dropped."""
    metrics: EStepMetrics


@dataclass(frozen=True)
class EStep:
    """Samples from a proposal, grades, and filters.

    The draws depend on θ⁽ᵏ⁻¹⁾ alone and not on the θ that is optimized, so the gradient moves inside the expectation
    over them (equation 4). n samples per question approximate that expectation; the paper takes one (equation 5).

    Args:
        task: the task, with the proposal's prompts for this iteration (`Task.after_training`).
        proposal: q(z, y | x, y*; θ).
        filters: filters by name, in the order in which they run; the first is the reward r(ŷ, y*).
        engine: samples, with its current weights; None if every sample is already finished.
        sampling: temperature, top_p and the longest response.
        reporter: receives progress.
        history: what earlier iterations tell the proposal.
        scorer: scores the correct samples before they are filtered; None to score nothing.
        served: whether `engine` is a served model in the policy's place.
    """

    task: Task
    proposal: Proposal
    filters: Mapping[str, Filter]
    engine: Engine | None
    sampling: Sampling
    reporter: Reporter
    history: History = NO_HISTORY
    scorer: Scorer | None = None
    served: bool = False

    def run(
        self,
        questions: Sequence[Question],
        seed: int,
        title: str = "E-step",
        kept: RowLog = NO_LOG,
        keep_draws: Callable[[list[Draw]], None] = lambda _: None,
    ) -> EStepResult:
        """Run the E-step on 𝒟.

        Args:
            questions: questions with their answers y*.
            seed: the seed that the seeds of all draws derive from; see `e_step_seed`.
            title: the name of the progress bar.
            kept: stores each sample as it finishes. Samples already in it are not drawn again.
            keep_draws: called with the first draws before anything is sampled, and with all draws at the end.

        Raises:
            NeverSampledError: `engine` is None, and a draw has no finished sample.
        """
        finished = {row["draw_id"]: Sample(**row) for row in kept.read()}
        by_id = {question.id: question for question in questions}
        position = {question.id: index for index, question in enumerate(questions)}
        draws = {draw.id: draw for draw in self.proposal.propose(self.task, questions, seed, self.history)}
        keep_draws(list(draws.values()))
        queue = DrawQueue(draws.values(), finished)
        samples: dict[str, Sample] = {}
        context, verdicts = Context(seed, self.history), defaultdict[Attempt, list[Verdict]](list)
        total = len(draws.keys() | finished.keys())
        with self.reporter.phase(title, total, "draws", len(finished)) as advance:
            for sample in self.engine.generate(queue, self.sampling) if self.engine is not None else replayed(queue):
                is_new = sample.draw_id not in finished
                if is_new:
                    kept.append(asdict(sample))
                samples[sample.draw_id] = sample
                draw = draws[sample.draw_id]
                attempt = Attempt(draw.question_id, draw.index)
                question = by_id[draw.question_id]
                past = verdicts[attempt]
                past.append(judge(self.task, question, draw, sample))
                following = self.proposal.follow(self.task, question, attempt, past, context)
                if following is not None:
                    draws[following.id] = following
                    queue.add(following)
                grows = following is not None and following.id not in finished
                if is_new or grows:
                    advance(int(is_new), int(grows))
        ordered = sorted(draws.values(), key=lambda draw: (draw.round, position[draw.question_id], draw.index))
        keep_draws(ordered)
        return self._result(ordered, samples, verdicts, by_id)

    def _result(
        self,
        draws: list[Draw],
        samples: Mapping[str, Sample],
        verdicts: Mapping[Attempt, Sequence[Verdict]],
        questions: Mapping[str, Question],
    ) -> EStepResult:
        verdict_of = {verdict.draw_id: verdict for of_attempt in verdicts.values() for verdict in of_attempt}
        attempts = dict.fromkeys(Attempt(draw.question_id, draw.index) for draw in draws)
        candidates = [
            Candidate(samples[last.draw_id], last, questions[last.question_id].answer)
            for last in (verdicts[attempt][-1] for attempt in attempts)
        ]
        unscored = 0
        if self.scorer is not None:
            candidates = self._scored(self.scorer, candidates, {draw.id: draw for draw in draws}, questions)
            unscored = sum(_to_score(c) and c.scores is None for c in candidates)
        kept, dropped = filtering.apply(self.filters, candidates)
        pairs = [make_pair(self.task, questions[candidate.verdict.question_id], candidate) for candidate in kept]
        ordered = [samples[draw.id] for draw in draws]
        metrics = e_step_metrics(self.task, ordered, candidates, pairs, dropped, self.history)
        return EStepResult(
            draws=draws,
            samples=ordered,
            verdicts=[verdict_of[draw.id] for draw in draws],
            candidates=candidates,
            pairs=pairs,
            dropped=dropped,
            metrics=replace(metrics, unscored=unscored),
        )

    def _scored(
        self,
        scorer: Scorer,
        candidates: Sequence[Candidate],
        draws: Mapping[str, Draw],
        questions: Mapping[str, Question],
    ) -> list[Candidate]:
        """The candidates, the correct ones with their scores. Texts that the proposal supplied have none."""
        texts: list[ScoreText] = []
        for c in filter(_to_score, candidates):
            question, draw = questions[c.verdict.question_id], draws[c.verdict.draw_id]
            texts += sample_texts(self.task, question, draw, c.sample.text.strip(), self.served)
        parts = scorer(texts, "scores")
        return [c._replace(scores=sample_scores(c.verdict, parts, self.served)) for c in candidates]


def _to_score(candidate: Candidate) -> bool:
    return candidate.verdict.status == "correct" and not candidate.verdict.supplied


def judge(task: Task, question: Question, draw: Draw, sample: Sample) -> Verdict:
    """The verdict on a sample."""
    judgment = task.judge(question, sample.text)
    return Verdict(
        draw_id=draw.id,
        question_id=draw.question_id,
        index=draw.index,
        round=draw.round,
        hinted=draw.hinted,
        supplied=draw.completion is not None,
        **judgment._asdict(),
    )


def make_pair(task: Task, question: Question, candidate: Candidate) -> Pair:
    """A training pair: always with the plain prompt x, whichever prompt the sample was drawn with."""
    completion = candidate.sample.text.strip()
    return Pair(
        question_id=question.id,
        draw_id=candidate.verdict.draw_id,
        prompt=task.prompt(question),
        completion=completion,
        weight=candidate.weight,
        answer_span=task.answer_span(completion),
        index=candidate.verdict.index,
    )


def replayed_or_sampled(kept: RowLog, run: Callable[[bool], EStepResult]) -> EStepResult:
    """An E-step from its finished samples alone if none is missing, so that no engine is needed; otherwise with one.

    Args:
        kept: the log of finished samples.
        run: runs the E-step; the argument says whether it may sample and score.
    """
    if kept.read():
        with suppress(NeverSampledError):
            return run(False)
    return run(True)


def proposal_sampling(config: RunConfig, task: Task) -> Sampling:
    """The sampling settings of a resolved configuration's E-step."""
    structured = getattr(config.engine, "structured", False)
    regex = task.response_regex(config.max_new_tokens) if structured else None
    return Sampling(config.engine.temperature, config.engine.top_p, config.max_new_tokens, regex)


def e_step_seed(seed: int, k: int) -> int:
    """The seed of the E-step in iteration k of a run with this seed."""
    return derive_seed(seed, "e-step", k)


def e_step_metrics(
    task: Task,
    samples: Sequence[Sample],
    candidates: Sequence[Candidate],
    pairs: Sequence[Pair],
    dropped: Mapping[str, int],
    history: History,
) -> EStepMetrics:
    """The metrics of an E-step.

    Args:
        samples: the samples of all rounds.
        candidates: the last sample of each attempt, with its verdict.
        pairs: the pairs that passed the filters.
        dropped: number of candidates that each filter dropped.
        history: what earlier iterations accepted.
    """
    gold = {c.verdict.draw_id: c.gold for c in candidates}
    data_answers = _counts(gold.values()) if task.answers else {}
    weights = dict.fromkeys(data_answers, 0.0)
    for pair in pairs if task.answers else ():
        weights[gold[pair.draw_id]] += pair.weight
    verdicts = [c.verdict for c in candidates]
    by_draw = {verdict.draw_id: verdict for verdict in verdicts}
    accepted = [by_draw[pair.draw_id] for pair in pairs]
    questions = {verdict.question_id for verdict in verdicts}
    ever_accepted = {attempt.question_id for attempt in history.accepted} | {pair.question_id for pair in pairs}
    return EStepMetrics(
        questions=len(questions),
        draws=len(samples),
        attempts=len(verdicts),
        accepted=len(accepted),
        data_utilization=len(accepted) / len(verdicts),
        tokens_per_pair=sum(s.completion_tokens for s in samples) / len(accepted) if accepted else math.nan,
        status=_counts(verdict.status for verdict in verdicts),
        dropped=dict(dropped),
        hinted_share=mean([verdict.hinted for verdict in accepted]),
        accepted_answers=_counts(gold[pair.draw_id] for pair in pairs),
        data_answers=data_answers,
        answer_shift=total_variation(weights, data_answers),
        reasoning_words=mean([len(verdict.rationale.split()) for verdict in accepted]),
        distinct_rationales=distinct_share([verdict.rationale for verdict in accepted]),
        hint_mentioned=mean([verdict.hint_mentioned for verdict in verdicts]),
        never_accepted=mean([id not in ever_accepted for id in questions]),
    )


def _counts(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, in alphabetical order."""
    return dict(sorted(Counter(values).items()))
