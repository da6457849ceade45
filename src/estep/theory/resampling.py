"""Sampling-importance-resampling (SIR), exactly: a sum over how often each rationale occurs among the n draws."""

from itertools import combinations

import numpy as np

from estep.theory.model import Array, distribution


def counts_of_draws(draws_A: Array, n: int) -> tuple[Array, Array]:
    """All counts that n independent draws can have, and their multinomial probabilities.

    Args:
        draws_A: a distribution over atoms.
        n: at least 1. There are C(n + atoms − 1, n) counts: 4,845 for 16 draws of 5 atoms.

    Returns:
        The counts [outcome, atom], and the probability of each outcome, above 0.
    """
    if n < 1:
        raise ValueError(f"the number of draws must be at least 1, not {n}")
    probabilities = distribution(draws_A, "draws_A", 1)
    atoms = len(probabilities)
    # Stars and bars: the gaps between atoms − 1 bars among n + atoms − 1 places are the counts.
    bars = np.array(list(combinations(range(n + atoms - 1), atoms - 1)), dtype=int).reshape(-1, atoms - 1)
    counts = np.diff(bars, axis=1, prepend=-1, append=n + atoms - 1) - 1
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    ways = np.exp(log_factorial[n] - log_factorial[counts].sum(axis=1))
    chances = ways * np.prod(probabilities**counts, axis=1)
    possible = chances > 0
    return counts[possible].astype(float), chances[possible]


def resampled(draws_A: Array, weights_A: Array, n: int) -> Array:
    """The distribution of one rationale that is resampled from n draws in proportion to their weights.

    With n = 1 it is the distribution of the draws. As n grows, it converges to draws × weights, normalized, which is
    the posterior for w = π(z | x) s(z) / q(z).

    Args:
        draws_A: the distribution of each draw.
        weights_A: the weight of each atom, above 0.
        n: draws per resampled rationale, at least 1.

    Raises:
        ValueError: a weight is not positive, so nothing could be resampled from draws that all have it.
    """
    if not (weights_A > 0).all():
        raise ValueError(f"weights must be above 0; the smallest is {weights_A.min()}")
    counts, probabilities = counts_of_draws(draws_A, n)
    masses = counts * weights_A
    return np.asarray(probabilities @ (masses / masses.sum(axis=1, keepdims=True)))
