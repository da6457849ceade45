"""The label mix: what an unconstrained M-step does to π(y | x) if a proposal is accepted more often for some labels.

After it, π'(y | x) ∝ p_data(y | x) a(x, y), where a is the acceptance for label y. The hinted acceptance h is held
fixed here; in a run it changes with the weights.
"""

from collections.abc import Callable

import numpy as np

from estep.theory.model import Array, distribution, normalized

LabelAcceptance = Callable[[Array], Array]
"""From the label mix π(y | x) to the acceptance a(x, y) of each label."""


def rejection_acceptance(budget: int) -> LabelAcceptance:
    """Algorithm 2: 1 − (1 − π(y))^M.

    Args:
        budget: M, at least 1.
    """
    return lambda mix: 1 - (1 - mix) ** budget


def pps_acceptance(hinted_Y: Array) -> LabelAcceptance:
    """PPS: h(y), the probability that a draw with the hint y ends in y, held fixed."""
    return lambda mix: hinted_Y


def star_acceptance(hinted_Y: Array) -> LabelAcceptance:
    """Algorithm 3: π(y) + (1 − π(y)) h(y)."""
    return lambda mix: mix + (1 - mix) * hinted_Y


def em_acceptance(mix_Y: Array) -> Array:
    """EM, and every proposal whose (x, y*) count the same: 1 for each label."""
    return np.ones_like(mix_Y)


def label_mix(start_Y: Array, data_Y: Array, acceptance: LabelAcceptance, iterations: int) -> Array:
    """π(y | x) after 0, 1, ... iterations, as an array [iteration, label].

    Args:
        start_Y: the policy's label mix before.
        data_Y: p_data(y | x), how often each label is the correct one.
        acceptance: a(x, y).
        iterations: M-steps, at least 0.

    Raises:
        ValueError: no draw is accepted in an iteration.
    """
    mix, data = [distribution(start_Y, "start_Y", 1)], distribution(data_Y, "data_Y", 1)
    for _ in range(iterations):
        mix.append(normalized(data * acceptance(mix[-1])))
    return np.stack(mix)
