"""Chains (TRICE, Phan et al., 2023): each question keeps a rationale until a plain draw is right and replaces it."""

import numpy as np

from estep.theory.model import Array, LatentVariableModel


def transition(model: LatentVariableModel, correct: int) -> Array:
    """The probability to go from one rationale to another in a step, as an array [before, after].

    With probability 1 − μ the draw is wrong and the rationale stays. Otherwise it is replaced by the one drawn, which
    comes from the posterior, as every right plain draw does.
    """
    mu = model.mu(correct)
    return np.asarray((1 - mu) * np.eye(len(model.rationales_Z)) + model.joint_ZY[:, correct])


def after_steps(model: LatentVariableModel, correct: int, start_Z: Array, steps: int) -> Array:
    """The distribution of the kept rationale after some steps under fixed weights θ.

    Its distance to the posterior is that of the start times (1 − μ)^steps.

    Args:
        start_Z: the distribution of the first kept rationale, such as PPS's accepted ones.
        steps: plain draws since then, at least 0.
    """
    return np.asarray(start_Z @ np.linalg.matrix_power(transition(model, correct), steps))
