"""Proposal distributions q(z, y | x, y*; θ): how rationales are sampled in the E-step (paper, section 3).

A proposal decides, from what a question's earlier rounds gave, whether to draw once more and with which prompt.
It knows the task and the questions; it never sees an engine, and the loop never asks which proposal it has.

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

Kind = Literal["plain", "hinted", "given"]


@dataclass(frozen=True)
class Chain:
    """One of the n independent draws of a question."""

    question_id: str
    index: int


class Move(NamedTuple):
    """What a proposal does next for one chain."""

    kind: Kind
    proposal: str


class Proposal(ABC):
    """A sampling scheme.

    Args:
        n: draws a question, at least 1.
    """

    def __init__(self, n: int = 1):
        self.n = n

    @abstractmethod
    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        """The chain's next draw, or None when it is finished.

        Args:
            chain: which draw of which question.
            past: the verdicts of its earlier rounds.
            seed: of this iteration's E-step, for proposals that choose at random.
        """

    def propose(self, task: Task, questions: Sequence[Question], seed: int) -> list[Draw]:
        """The first draw of every chain."""
        chains = [(question, Chain(question.id, index)) for question in questions for index in range(self.n)]
        draws = [self.follow(task, question, chain, (), seed) for question, chain in chains]
        return [draw for draw in draws if draw is not None]

    def follow(self, task: Task, question: Question, chain: Chain, past: Sequence[Verdict], seed: int) -> Draw | None:
        """A chain's next draw after the verdicts of its earlier rounds, or None when it is finished."""
        move = self.next(chain, past, seed)
        return None if move is None else _draw(task, question, chain, len(past), move, seed)


def _draw(task: Task, question: Question, chain: Chain, round: int, move: Move, seed: int) -> Draw:
    messages = task.hinted_prompt(question) if move.kind == "hinted" else task.proposal_prompt(question)
    return Draw(
        id=f"{question.id}#{chain.index}.{round}",
        question_id=question.id,
        index=chain.index,
        round=round,
        proposal=move.proposal,
        hinted=move.kind == "hinted",
        messages=messages,
        seed=derive_seed(seed, question.id, chain.index, round),
        completion=task.direct_completion(question) if move.kind == "given" else None,
    )


class Rejection(Proposal):
    """Rejection sampling with budget M (Algorithm 2).

    Draws from π(z, y | x; θ) until the answer is right, at most M times; yields the last sample if none is.
    """

    def __init__(self, budget: int = 1, n: int = 1):
        super().__init__(n)
        self.budget = budget

    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        if len(past) >= self.budget or (past and past[-1].status == "correct"):
            return None
        return Move("plain", "rejection")


class PPS(Proposal):
    """Prompt posterior sampling: one draw with the correct answer in the prompt (section 3, Figure 1)."""

    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        return None if past else Move("hinted", "pps")


class STaR(Proposal):
    """Self-taught reasoner (Algorithm 3; Zelikman et al., 2022): a plain draw, then a hinted one if it failed."""

    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        if not past:
            return Move("plain", "star")
        if len(past) == 1 and past[0].status != "correct":
            return Move("hinted", "star")
        return None


class Direct(Proposal):
    """The answer alone, given and not sampled: plain supervised fine-tuning, the baseline without rationales."""

    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        return None if past else Move("given", "direct")


@dataclass(frozen=True)
class Component:
    """A part of a mixture, with its unnormalised weight."""

    proposal: Proposal
    weight: float


class Mixture(Proposal):
    """A mixture of proposals: every chain is drawn, once and by seed, from one component by its weight."""

    def __init__(self, components: Sequence[Component], n: int = 1):
        super().__init__(n)
        self.components = tuple(components)

    def next(self, chain: Chain, past: Sequence[Verdict], seed: int) -> Move | None:
        # Not a function of the round, so that a chain keeps its component through all its rounds.
        choice = random.Random(derive_seed(seed, chain.question_id, chain.index, "component"))
        weights = [component.weight for component in self.components]
        (component,) = choice.choices(self.components, weights)
        return component.proposal.next(chain, past, seed)


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
