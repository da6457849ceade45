"""How many draws a proposal asks for, from the rates at which draws are accepted."""

from typing import NamedTuple

from estep.config import (
    DirectProposal,
    MixtureProposal,
    PPSProposal,
    ProposalConfig,
    RejectionProposal,
    STaRProposal,
)


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
        case STaRProposal():
            again = 1 - plain.correct
            return DrawsPerAttempt(1.0, again, min(1.0, plain.accepted + again * hinted.accepted))
        case PPSProposal():
            return DrawsPerAttempt(0.0, 1.0, hinted.accepted)
        case DirectProposal():
            return DrawsPerAttempt(0.0, 0.0, 1.0)
        case MixtureProposal(components=components):
            whole = sum(component.weight for component in components)
            parts = [(c.weight / whole, expected_draws(c.proposal, plain, hinted)) for c in components]
            return DrawsPerAttempt(*(sum(weight * part[n] for weight, part in parts) for n in range(3)))
