"""The latent-variable model of equation 1, as tables: π(z | x) and π(y | x, z) of one question."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LatentVariableModel:
    """π(z, y | x) = π(z | x) π(y | x, z) of one question: the model x → z → y* of equation 1.

    Raises:
        ValueError: a table has another shape, a negative entry, or does not sum to 1.
    """

    rationales_Z: Array
    """π(z | x)."""
    answers_ZY: Array
    """π(y | x, z): each row sums to 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rationales_Z", distribution(self.rationales_Z, "rationales_Z", 1))
        object.__setattr__(self, "answers_ZY", distribution(self.answers_ZY, "answers_ZY", 2))
        if len(self.rationales_Z) != len(self.answers_ZY):
            raise ValueError(
                f"answers_ZY has {len(self.answers_ZY)} rows; rationales_Z has {len(self.rationales_Z)} rationales"
            )

    @property
    def joint_ZY(self) -> Array:
        """π(z, y | x)."""
        return self.rationales_Z[:, None] * self.answers_ZY

    @property
    def marginal_Y(self) -> Array:
        """π(y | x): the label mix of the policy."""
        return self.rationales_Z @ self.answers_ZY

    def s(self, correct: int) -> Array:
        """s(z) = π(y* | x, z): how well each rationale tells the correct answer."""
        return self.answers_ZY[:, correct]

    def mu(self, correct: int) -> float:
        """μ = π(y* | x), the probability that a plain draw is right."""
        return float(self.marginal_Y[correct])

    def posterior(self, correct: int) -> Array:
        """p(z) = π(z | x, y*) = π(z | x) s(z) / μ: the E-step's distribution over rationales.

        Raises:
            ValueError: μ = 0.
        """
        return normalized(self.rationales_Z * self.s(correct))


def binary_model(rationales_Z: ArrayLike, s_Z: ArrayLike) -> LatentVariableModel:
    """A model with two answers, of which answer 0 is correct.

    Args:
        rationales_Z: π(z | x).
        s_Z: π(y* | x, z), each in [0, 1].
    """
    s = np.asarray(s_Z, dtype=float)
    return LatentVariableModel(np.asarray(rationales_Z, dtype=float), np.stack([s, 1 - s], axis=1))


def distribution(table: Any, name: str, dimensions: int) -> Array:
    """`table` as floats whose last axis sums to 1.

    Raises:
        ValueError: `table` has another number of axes, a negative entry, or does not sum to 1 within 1e-9.
    """
    array = np.asarray(table, dtype=float)
    if array.ndim != dimensions or not array.size:
        raise ValueError(f"{name} must have {dimensions} axes and no empty one; its shape is {array.shape}")
    if not (array >= 0).all():
        raise ValueError(f"{name} must be probabilities; its smallest entry is {array.min()}")
    sums = array.sum(axis=-1)
    if np.abs(sums - 1).max() > 1e-9:
        raise ValueError(f"{name} must sum to 1; it sums to {sums.ravel()[np.abs(sums - 1).argmax()]:.6g}")
    return array


def normalized(masses: Array) -> Array:
    """Masses divided by their sum.

    Raises:
        ValueError: they sum to 0, for example because no rationale leads to y*.
    """
    total = masses.sum()
    if not total > 0:
        raise ValueError("the masses sum to 0: no rationale leads to the correct answer")
    return np.asarray(masses / total)


def kl(p_A: Array, q_A: Array) -> float:
    """KL(p ‖ q) in nats; infinite where q has no mass and p has some."""
    there = p_A > 0
    with np.errstate(divide="ignore"):
        return float(p_A[there] @ (np.log(p_A[there]) - np.log(q_A[there])))


def total_variation(p_A: Array, q_A: Array) -> float:
    """Half the sum of absolute differences, in [0, 1]."""
    return float(np.abs(p_A - q_A).sum() / 2)
