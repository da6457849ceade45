"""How many draws a proposal asks for, from the rates at which draws are accepted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from estep.config import (
    AdaptiveProposal,
    ChainProposal,
    DirectProposal,
    FEMConfig,
    GoldProposal,
    MixtureProposal,
    MStepConfig,
    PPSProposal,
    ProposalConfig,
    RejectionProposal,
    STaRProposal,
)
from estep.proposals import plain_draws


class Rates(NamedTuple):
    """Acceptance rates of draws, in [0, 1]."""

    correct: float
    """Share of draws with the correct answer; rejection sampling and STaR do not draw again after one."""
    accepted: float
    """Share of draws that pass all filters."""


class DrawsPerAttempt(NamedTuple):
    """The expected draws of one attempt of a proposal."""

    plain: float
    """Plain draws."""
    hinted: float
    """Hinted draws."""
    accepted: float
    """Share of attempts that end in a pair."""


def expected_draws(proposal: ProposalConfig, plain: Rates, hinted: Rates) -> DrawsPerAttempt:
    """The expected draws of one attempt.

    Args:
        plain: rates of a draw without the hint.
        hinted: rates of a draw with the hint.

    >>> expected_draws(RejectionProposal(budget=3), Rates(0.5, 0.5), Rates(0.9, 0.9))
    DrawsPerAttempt(plain=1.75, hinted=0.0, accepted=0.875)
    """
    match proposal:
        case RejectionProposal(budget=budget):
            # An attempt continues while its answers are wrong; the filters see its last sample in any case.
            draws = sum((1 - plain.correct) ** tried for tried in range(budget))
            return DrawsPerAttempt(draws, 0.0, min(1.0, plain.accepted * draws))
        case AdaptiveProposal():
            # With the rate of all questions; each question's own rate is not known here.
            tries = plain_draws(plain.correct, proposal.budget, proposal.confidence)
            draws = sum((1 - plain.correct) ** tried for tried in range(tries))
            again = (1 - plain.correct) ** tries
            return DrawsPerAttempt(draws, again, min(1.0, plain.accepted * draws + again * hinted.accepted))
        case STaRProposal():
            again = 1 - plain.correct
            return DrawsPerAttempt(1.0, again, min(1.0, plain.accepted + again * hinted.accepted))
        case PPSProposal() | ChainProposal():  # a chain's plain draws are counted as hinted ones
            return DrawsPerAttempt(0.0, 1.0, hinted.accepted)
        case DirectProposal() | GoldProposal():
            return DrawsPerAttempt(0.0, 0.0, 1.0)
        case MixtureProposal(components=components):
            return _mixed([(c.weight, expected_draws(c.proposal, plain, hinted)) for c in components])


def worst_case_draws(proposal: ProposalConfig) -> DrawsPerAttempt:
    """The maximum number of draws of one attempt; for a mixture, the mean over its components."""
    match proposal:
        case AdaptiveProposal(budget=budget):
            return DrawsPerAttempt(budget, 1.0, 1.0)
        case MixtureProposal(components=components):
            return _mixed([(c.weight, worst_case_draws(c.proposal)) for c in components])
        case _:
            return expected_draws(proposal, Rates(0.0, 0.0), Rates(0.0, 0.0))._replace(accepted=1.0)


def accepted_pairs(config: FEMConfig, draws: DrawsPerAttempt, questions: int) -> float:
    """The expected pairs of one E-step.

    Args:
        draws: of one attempt of the configuration's proposal.
        questions: number of training questions.
    """
    most = 1 if config.filters.resample else config.filters.max_per_question or math.inf
    return min(draws.accepted * getattr(config.proposal, "n", 1), most) * questions


def times_trained(m_step: MStepConfig, draws: DrawsPerAttempt, iterations: int) -> float:
    """How many times the pairs of one E-step are trained on in a run: iteration k trains on the pairs of the last
    `replay` iterations; with `last`, on one pair of every attempt that was ever accepted."""
    if m_step.replay == "last":
        missed = 1 - draws.accepted
        sets = sum((1 - missed**k) / draws.accepted for k in range(1, iterations + 1)) if draws.accepted else 0.0
    else:
        sets = sum(min(k, m_step.replay) for k in range(1, iterations + 1))
    return sets * m_step.epochs


def _mixed(parts: Sequence[tuple[float, DrawsPerAttempt]]) -> DrawsPerAttempt:
    """The mean by weight."""
    whole = sum(weight for weight, _ in parts)
    return DrawsPerAttempt(*(sum(weight / whole * part[n] for weight, part in parts) for n in range(3)))
