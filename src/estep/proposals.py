"""Proposal distributions q(z, y | x, y*; θ): how rationales are sampled in the E-step (paper, section 3).

From the verdicts of an attempt's earlier rounds, and from what earlier iterations found, a proposal decides whether to
draw again and with which prompt. It knows the task and the questions; it never sees an engine, and the loop never asks
which proposal it has.

With n > 1, the n draws of a question are independent repetitions of the whole scheme, each with its own rounds.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from estep.config import (
    AdaptiveProposal,
    ChainProposal,
    DirectProposal,
    GoldProposal,
    MixtureProposal,
    PPSProposal,
    ProposalConfig,
    RejectionProposal,
    STaRProposal,
)
from estep.records import NO_HISTORY, Attempt, Draw, History, Question, Tally, Verdict, derive_seed
from estep.tasks import Task

Kind = Literal["plain", "hinted", "answer_only", "gold"]


class NextDraw(NamedTuple):
    """The next draw of one attempt, as its proposal chooses it."""

    kind: Kind
    proposal: str


class Context(NamedTuple):
    """The E-step that a proposal draws for."""

    seed: int
    """The seed of this iteration's E-step, for proposals that choose at random."""
    history: History = NO_HISTORY


class Proposal(ABC):
    """A sampling scheme.

    Args:
        n: attempts per question, at least 1.
    """

    def __init__(self, n: int = 1):
        self.n = n

    @abstractmethod
    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        """The attempt's next draw, or None when it is finished.

        Args:
            attempt: the attempt to continue.
            past: the verdicts of its earlier rounds.
            context: the E-step: its seed, and what earlier iterations found.
        """

    def propose(
        self, task: Task, questions: Sequence[Question], seed: int, history: History = NO_HISTORY
    ) -> list[Draw]:
        """The first draw of every attempt."""
        context = Context(seed, history)
        attempts = [(question, Attempt(question.id, index)) for question in questions for index in range(self.n)]
        draws = [self.follow(task, question, attempt, (), context) for question, attempt in attempts]
        return [draw for draw in draws if draw is not None]

    def follow(
        self, task: Task, question: Question, attempt: Attempt, past: Sequence[Verdict], context: Context
    ) -> Draw | None:
        """The attempt's next draw, with its prompt and seed, or None when the attempt is finished."""
        next_draw = self.next(attempt, past, context)
        return None if next_draw is None else _draw(task, question, attempt, len(past), next_draw, context.seed)


def _draw(task: Task, question: Question, attempt: Attempt, round: int, next_draw: NextDraw, seed: int) -> Draw:
    messages = task.hinted_prompt(question) if next_draw.kind == "hinted" else task.proposal_prompt(question)
    return Draw(
        id=f"{question.id}#{attempt.index}.{round}",
        question_id=question.id,
        index=attempt.index,
        round=round,
        proposal=next_draw.proposal,
        hinted=next_draw.kind == "hinted",
        messages=messages,
        seed=derive_seed(seed, question.id, attempt.index, round),
        completion=_supplied(task, question, next_draw.kind),
    )


def _supplied(task: Task, question: Question, kind: Kind) -> str | None:
    """The text of a draw that is not sampled."""
    match kind:
        case "answer_only":
            return task.direct_completion(question)
        case "gold":
            return task.gold_completion(question)
        case _:
            return None


class Rejection(Proposal):
    """Rejection sampling with budget M (Algorithm 2).

    Draws from π(z, y | x; θ) until the answer is correct, at most M times. If none is, the last sample is the attempt's
    result.
    """

    def __init__(self, budget: int = 1, n: int = 1):
        super().__init__(n)
        self.budget = budget

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        if len(past) >= self.budget or (past and past[-1].status == "correct"):
            return None
        return NextDraw("plain", "rejection")


class PPS(Proposal):
    """Prompt posterior sampling: one draw with the correct answer in the prompt (section 3, Figure 1)."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        return None if past else NextDraw("hinted", "pps")


class STaR(Proposal):
    """Self-taught reasoner (Algorithm 3; Zelikman et al., 2022): a plain draw, then a hinted one if it failed."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        if not past:
            return NextDraw("plain", "star")
        if len(past) == 1 and past[0].status != "correct":
            return NextDraw("hinted", "star")
        return None


class Chain(Proposal):
    """One Markov chain per attempt, whose state is its last accepted pair (TRICE; Phan et al., 2023).

    A hinted draw starts the chain, as in PPS. From the iteration after it was accepted, plain draws from π(z, y | x; θ)
    propose the next state: a correct one replaces the pair, and otherwise the former pair stays
    (`m_step.replay: last`). This is Metropolis-Hastings with independent proposals, so for a fixed θ the chain forgets
    the hint at the rate 1 − π(y* | x; θ) per iteration and converges to the posterior π(z | x, y*; θ).
    """

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        if past:
            return None
        return NextDraw("plain" if attempt in context.history.accepted else "hinted", "chain")


class Adaptive(Proposal):
    """STaR with a budget of plain draws for each question, from the previous iteration's acceptance.

    A question gets the fewest plain draws that are correct with a probability of `confidence` at least once, and after
    as many failures a hinted one. If that takes more than `budget` draws, it is hinted at once: plain draws on hopeless
    questions are what rejection sampling wastes. The first iteration tries one plain draw, as STaR does.

    Args:
        budget: the most plain draws per attempt.
        confidence: the probability of a correct plain draw that is worth trying for, in (0, 1).
    """

    def __init__(self, budget: int = 3, confidence: float = 0.5, n: int = 1):
        super().__init__(n)
        self.budget = budget
        self.confidence = confidence

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        if past and (past[-1].hinted or past[-1].status == "correct"):
            return None
        plain = len(past) < self.plain_draws(attempt.question_id, context.history)
        return NextDraw("plain" if plain else "hinted", "adaptive")

    def plain_draws(self, question_id: str, history: History) -> int:
        """M of a question: its plain draws before the hint.

        The question's rate is its share of correct plain draws in the previous iteration, shrunk towards the rate of
        all questions as if one more draw had had that rate.
        """
        overall = history.plain_rate
        if math.isnan(overall):
            return 1
        tally = history.plain.get(question_id, Tally(0, 0))
        return plain_draws((tally.correct + overall) / (tally.draws + 1), self.budget, self.confidence)


def plain_draws(rate: float, budget: int, confidence: float) -> int:
    """The fewest draws of which at least one is correct with a probability of `confidence`; 0 if that takes more than
    `budget`.

    Args:
        rate: the probability that a draw is correct.

    >>> [plain_draws(rate, budget=3, confidence=0.5) for rate in (0.6, 0.3, 0.21, 0.2)]
    [1, 2, 3, 0]
    """
    if rate >= confidence:
        return 1
    needed = math.ceil(math.log(1 - confidence) / math.log1p(-rate) - 1e-9) if rate > 0 else math.inf
    return int(needed) if needed <= budget else 0


class Direct(Proposal):
    """The correct answer alone, written by the proposal and not sampled: plain supervised fine-tuning, the baseline
    without rationales."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        return None if past else NextDraw("answer_only", "direct")


class Gold(Proposal):
    """The rationale that comes with the data, written by the proposal and not sampled: supervised fine-tuning on worked
    solutions, the baseline with rationales of people or of a program."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        return None if past else NextDraw("gold", "gold")


@dataclass(frozen=True)
class Component:
    """One proposal of a mixture, with its unnormalized weight."""

    proposal: Proposal
    weight: float


class Mixture(Proposal):
    """A mixture of proposals: each attempt is assigned to one component at random, in proportion to the weights."""

    def __init__(self, components: Sequence[Component], n: int = 1):
        super().__init__(n)
        self.components = tuple(components)

    def next(self, attempt: Attempt, past: Sequence[Verdict], context: Context) -> NextDraw | None:
        # The seed does not depend on the round, so an attempt keeps its component in all rounds.
        choice = random.Random(derive_seed(context.seed, attempt.question_id, attempt.index, "component"))
        weights = [component.weight for component in self.components]
        (component,) = choice.choices(self.components, weights)
        return component.proposal.next(attempt, past, context)


def build_proposal(config: ProposalConfig) -> Proposal:
    """The proposal that a config section describes."""
    match config:
        case RejectionProposal():
            return Rejection(config.budget, config.n)
        case PPSProposal():
            return PPS(config.n)
        case STaRProposal():
            return STaR(config.n)
        case ChainProposal():
            return Chain(config.n)
        case AdaptiveProposal():
            return Adaptive(config.budget, config.confidence, config.n)
        case DirectProposal():
            return Direct()
        case GoldProposal():
            return Gold()
        case MixtureProposal():
            parts = [Component(build_proposal(part.proposal), part.weight) for part in config.components]
            return Mixture(parts, config.n)
