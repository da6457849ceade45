"""The small example of docs/theory.md: five rationales, two answers, and a hint that favors rationales that tell y*."""

import numpy as np

from estep.theory.model import LatentVariableModel, binary_model

CORRECT = 0
"""The index of y*."""
LABELS_OF_FILMS = np.array([0.32, 0.16, 0.05, 0.13, 0.34])
"""How often the film reviews of the demo have each of the scores 0 to 4."""


def plain() -> LatentVariableModel:
    """π(z | x) and s(z). Rare rationales tell the answer."""
    return binary_model([0.40, 0.30, 0.15, 0.10, 0.05], [0.2, 0.1, 0.6, 0.8, 0.9])


def hinted() -> LatentVariableModel:
    """q(z) and q(y* | z), with the hint in the prompt."""
    return binary_model([0.1, 0.1, 0.2, 0.2, 0.4], [0.5, 0.5, 0.9, 0.95, 1.0])
