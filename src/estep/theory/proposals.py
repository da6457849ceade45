"""Proposals q(z, y | x, y*) as exact tables over the (z, y) that they output, and what a filter keeps of them.

The hinted model, which answers with the hint in its prompt, is a second `LatentVariableModel`: nothing ties it to the
posterior of the first.
"""

from collections.abc import Callable

import numpy as np

from estep.theory.model import Array, LatentVariableModel, normalized

Proposal = Callable[[LatentVariableModel, int], Array]
"""From the policy and the index of y* to the table q(z, y | x, y*). It sums to 1."""


def posterior(model: LatentVariableModel, correct: int) -> Array:
    """π(z, y | x, y*): the posterior of z, always with y*. With this proposal, FEM is EM (equation 3)."""
    table = np.zeros_like(model.joint_ZY)
    table[:, correct] = model.posterior(correct)
    return table


def rejection(budget: int) -> Proposal:
    """Algorithm 2: plain draws until one is right, at most M of them; otherwise the last one.

    What it accepts is the posterior for every M. Only how often it accepts depends on M: 1 − (1 − μ)^M.

    Args:
        budget: M, at least 1.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1, not {budget}")

    def propose(model: LatentVariableModel, correct: int) -> Array:
        wrong = 1 - model.mu(correct)
        # Draw m is reached if the m − 1 before it were wrong; a wrong output is always draw M.
        table = model.joint_ZY * wrong ** (budget - 1)
        table[:, correct] = model.joint_ZY[:, correct] * sum(wrong**m for m in range(budget))
        return table

    return propose


def pps(hinted: LatentVariableModel) -> Proposal:
    """Prompt posterior sampling (section 3): one draw with the hint, whose answer may still be wrong.

    Args:
        hinted: the model with the hint of this y* in its prompt.
    """
    return lambda model, correct: hinted.joint_ZY


def star(hinted: LatentVariableModel) -> Proposal:
    """Algorithm 3: a plain draw; if it is wrong, a hinted one."""

    def propose(model: LatentVariableModel, correct: int) -> Array:
        table = (1 - model.mu(correct)) * hinted.joint_ZY
        table[:, correct] += model.joint_ZY[:, correct]
        return table

    return propose


def verified(hinted: LatentVariableModel) -> Proposal:
    """PPS's rationale with an answer that the plain prompt samples after it: right with probability s(z).

    It accepts in proportion to q(z) s(z). That is the posterior only where q(z) ∝ π(z | x), and a hinted q has already
    counted y* once.
    """
    return lambda model, correct: hinted.rationales_Z[:, None] * model.answers_ZY


def acceptance(proposal_ZY: Array, correct: int) -> float:
    """The data utilization E_q[r]: the probability that the output has the correct answer."""
    return float(proposal_ZY[:, correct].sum())


def accepted(proposal_ZY: Array, correct: int) -> Array:
    """The distribution of accepted rationales, q(z | ŷ = y*): what the M-step is trained on.

    Raises:
        ValueError: the proposal accepts nothing.
    """
    return normalized(proposal_ZY[:, correct])
