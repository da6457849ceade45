"""Two lower bounds: Lemma 1's of the expected reward μ, and the importance-weighted one (IWAE) of log μ."""

from typing import NamedTuple

import numpy as np

from estep.theory.model import Array
from estep.theory.resampling import counts_of_draws


class Lemma1(NamedTuple):
    """The sides of Lemma 1: `reward` ≥ `log_term` + `constant`."""

    reward: float
    """E_π[r] = μ."""
    log_term: float
    """E_q[r log π(z, y | x; θ)], which the M-step maximizes, in nats."""
    constant: float
    """C = E_q[r (1 − log q)], at least 0 and independent of θ."""

    @property
    def bound(self) -> float:
        """The right-hand side of the inequality."""
        return self.log_term + self.constant


def lemma_1(policy_ZY: Array, proposal_ZY: Array, correct: int) -> Lemma1:
    """Both sides of Lemma 1 for any q.

    The bound is tight exactly where q(z, y*) = π(z, y* | x) for every z, as for one plain draw.

    Args:
        policy_ZY: π(z, y | x; θ).
        proposal_ZY: q(z, y | x, y*).
    """
    policy, q = policy_ZY[:, correct], proposal_ZY[:, correct]
    there = q > 0
    with np.errstate(divide="ignore"):
        log_term = float(q[there] @ np.log(policy[there]))
    return Lemma1(float(policy.sum()), log_term, float(q[there] @ (1 - np.log(q[there]))))


def iwae(draws_A: Array, weights_A: Array, k: int) -> float:
    """E[log mean of k weights], in nats: a lower bound of log E[w] that rises with k (Burda et al., 2016).

    With plain draws and w = s(z), or draws from q and w = π(z | x) s(z) / q(z), it bounds log μ.

    Args:
        draws_A: the distribution that the k draws come from, independently.
        weights_A: the weight of each atom, at least 0.
        k: at least 1. The cost grows as k^(atoms − 1).

    Returns:
        −inf if all k weights can be 0.
    """
    counts, probabilities = counts_of_draws(draws_A, k)
    with np.errstate(divide="ignore"):
        return float(probabilities @ np.log(counts @ weights_A / k))
