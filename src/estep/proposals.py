"""Proposal distributions q(z, y | x, y*; θ): how rationales are sampled in the E-step (paper, section 3).

From the verdicts of an attempt's earlier rounds, a proposal decides whether to draw again and with which prompt. It
knows the task and the questions; it never sees an engine, and the loop never asks which proposal it has.

With n > 1, the n draws of a question are independent repetitions of the whole scheme, each with its own rounds.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from estep.config import DirectProposal, MixtureProposal, PPSProposal, ProposalConfig, RejectionProposal, STaRProposal
from estep.records import Draw, Question, Verdict, derive_seed
from estep.tasks import Task

Kind = Literal["plain", "hinted", "answer_only"]


@dataclass(frozen=True)
class Attempt:
    """One of the n independent draws of a question."""

    question_id: str
    index: int


class NextDraw(NamedTuple):
    """The next draw of one attempt, as its proposal chooses it."""

    kind: Kind
    proposal: str


class Proposal(ABC):
    """A sampling scheme.

    Args:
        n: attempts per question, at least 1.
    """

    def __init__(self, n: int = 1):
        self.n = n

    @abstractmethod
    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        """The attempt's next draw, or None when it is finished.

        Args:
            attempt: the attempt to continue.
            past: the verdicts of its earlier rounds.
            seed: the seed of this iteration's E-step, for proposals that choose at random.
        """

    def propose(self, task: Task, questions: Sequence[Question], seed: int) -> list[Draw]:
        """The first draw of every attempt."""
        attempts = [(question, Attempt(question.id, index)) for question in questions for index in range(self.n)]
        draws = [self.follow(task, question, attempt, (), seed) for question, attempt in attempts]
        return [draw for draw in draws if draw is not None]

    def follow(
        self, task: Task, question: Question, attempt: Attempt, past: Sequence[Verdict], seed: int
    ) -> Draw | None:
        """The attempt's next draw, with its prompt and seed, or None when the attempt is finished."""
        next_draw = self.next(attempt, past, seed)
        return None if next_draw is None else _draw(task, question, attempt, len(past), next_draw, seed)


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
        completion=task.direct_completion(question) if next_draw.kind == "answer_only" else None,
    )


class Rejection(Proposal):
    """Rejection sampling with budget M (Algorithm 2).

    Draws from π(z, y | x; θ) until the answer is correct, at most M times. If none is, the last sample is the attempt's
    result.
    """

    def __init__(self, budget: int = 1, n: int = 1):
        super().__init__(n)
        self.budget = budget

    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        if len(past) >= self.budget or (past and past[-1].status == "correct"):
            return None
        return NextDraw("plain", "rejection")


class PPS(Proposal):
    """Prompt posterior sampling: one draw with the correct answer in the prompt (section 3, Figure 1)."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        return None if past else NextDraw("hinted", "pps")


class STaR(Proposal):
    """Self-taught reasoner (Algorithm 3; Zelikman et al., 2022): a plain draw, then a hinted one if it failed."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        if not past:
            return NextDraw("plain", "star")
        if len(past) == 1 and past[0].status != "correct":
            return NextDraw("hinted", "star")
        return None


class Direct(Proposal):
    """The correct answer alone, written by the proposal and not sampled: plain supervised fine-tuning, the baseline
    without rationales."""

    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        return None if past else NextDraw("answer_only", "direct")


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

    def next(self, attempt: Attempt, past: Sequence[Verdict], seed: int) -> NextDraw | None:
        # The seed does not depend on the round, so an attempt keeps its component in all rounds.
        choice = random.Random(derive_seed(seed, attempt.question_id, attempt.index, "component"))
        weights = [component.weight for component in self.components]
        (component,) = choice.choices(self.components, weights)
        return component.proposal.next(attempt, past, seed)


def build_proposal(config: ProposalConfig) -> Proposal:
    """The proposal that a config section describes."""
    match config:
        case RejectionProposal():
            return Rejection(config.budget, config.n)
        case PPSProposal():
            return PPS(config.n)
        case STaRProposal():
            return STaR(config.n)
        case DirectProposal():
            return Direct()
        case MixtureProposal():
            parts = [Component(build_proposal(part.proposal), part.weight) for part in config.components]
            return Mixture(parts, config.n)
