"""The E-step: draw, sample, judge, round after round, until the proposal is satisfied; then filter.

It keeps nothing and trains nothing, so that a preview and a run are the same code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from estep import filters as filtering
from estep.engines import Engine, Sampling
from estep.filters import Candidate, Filter
from estep.progress import Reporter
from estep.proposals import Chain, Proposal
from estep.records import Draw, Pair, Question, Sample, Verdict
from estep.tasks import Task


@dataclass(frozen=True)
class Expectation:
    """What an E-step gives. `draws`, `samples` and `verdicts` are of all rounds, in one order."""

    draws: list[Draw]
    samples: list[Sample]
    verdicts: list[Verdict]
    candidates: list[Candidate]
    """The last sample of every chain."""
    pairs: list[Pair]
    dropped: dict[str, int]
    """How many candidates each filter left out."""


def expect(
    task: Task,
    questions: Sequence[Question],
    proposal: Proposal,
    filters: dict[str, Filter],
    engine: Engine,
    sampling: Sampling,
    seed: int,
    reporter: Reporter,
    title: str = "E-step",
    finished: Mapping[str, Sample] | None = None,
    keep_draws: Callable[[list[Draw]], None] = lambda _: None,
    keep_sample: Callable[[Sample], None] = lambda _: None,
) -> Expectation:
    """Run the E-step on the weights that the engine holds (Algorithm 1, line 3).

    Args:
        finished: samples by draw id that an interrupted run had finished; they are not drawn again.
        keep_draws: called with all draws so far, before a round is sampled.
        keep_sample: called with each new sample as it finishes.
    """
    samples = dict(finished or {})
    by_id = {question.id: question for question in questions}
    history: dict[Chain, list[Verdict]] = {}
    draws: list[Draw] = []
    last: dict[Chain, Candidate] = {}
    while asked := proposal.propose(task, questions, history, seed):
        draws += asked
        keep_draws(draws)
        done = samples.keys() & {draw.id for draw in asked}
        round_title = f"{title}, round {asked[0].round + 1}" if asked[0].round else title
        with reporter.phase(round_title, len(asked), "draws", len(done)) as advance:
            for sample in engine.generate(asked, sampling, done):
                keep_sample(sample)
                samples[sample.draw_id] = sample
                advance()
        for draw in asked:
            verdict = judge(task, by_id[draw.question_id], draw, samples[draw.id])
            chain = Chain(draw.question_id, draw.index)
            history.setdefault(chain, []).append(verdict)
            last[chain] = Candidate(samples[draw.id], verdict)
    verdict_of = {verdict.draw_id: verdict for verdicts in history.values() for verdict in verdicts}
    candidates = list(last.values())
    kept, dropped = filtering.apply(filters, candidates)
    return Expectation(
        draws=draws,
        samples=[samples[draw.id] for draw in draws],
        verdicts=[verdict_of[draw.id] for draw in draws],
        candidates=candidates,
        pairs=[pair(task, by_id[candidate.verdict.question_id], candidate) for candidate in kept],
        dropped=dropped,
    )


def judge(task: Task, question: Question, draw: Draw, sample: Sample) -> Verdict:
    """The verdict on a sample."""
    judgement = task.judge(question, sample.text)
    return Verdict(
        draw_id=draw.id,
        question_id=draw.question_id,
        index=draw.index,
        round=draw.round,
        hinted=draw.hinted,
        given=draw.completion is not None,
        **judgement._asdict(),
    )


def pair(task: Task, question: Question, candidate: Candidate) -> Pair:
    """A training pair: always the plain prompt, whatever the sample was drawn from."""
    return Pair(question.id, candidate.verdict.draw_id, task.prompt(question), candidate.sample.text.strip())
