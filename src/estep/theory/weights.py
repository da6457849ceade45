"""Importance weights of draws from a proposal: two exact forms, their moments, and tempering for a sample of draws."""

from typing import NamedTuple

import numpy as np

from estep.theory.model import Array, LatentVariableModel


class Moments(NamedTuple):
    """Moments of a weight w under the distribution of the draws."""

    mean: float
    variance: float

    @property
    def ess_share(self) -> float:
        """The limit of ESS / n for many draws: (E w)² / E w², in (0, 1]."""
        return self.mean**2 / (self.variance + self.mean**2)


def rationale_weights(model: LatentVariableModel, hinted: LatentVariableModel, correct: int) -> Array:
    """w(z) = π(z | x) s(z) / q(z) for draws z ~ q(z | x, y*), whatever answer they end in. E_q[w] = μ.

    Raises:
        ValueError: q has no mass where the posterior has some, so weights cannot correct it.
    """
    return _ratio(model.joint_ZY[:, correct], hinted.rationales_Z)


def joint_weights(model: LatentVariableModel, hinted: LatentVariableModel, correct: int) -> Array:
    """w(z, y) = 1[y = y*] π(z, y* | x) / q(z, y* | x, y*), as an array [z, y]. E_q[w] = μ.

    The variance is at least that of `rationale_weights`, which are its means over y given z.

    Raises:
        ValueError: q has no mass where the posterior has some.
    """
    weights = np.zeros_like(hinted.joint_ZY)
    weights[:, correct] = _ratio(model.joint_ZY[:, correct], hinted.joint_ZY[:, correct])
    return weights


def moments(weights: Array, draws: Array) -> Moments:
    """Mean and variance of weights.

    Args:
        weights: per atom, or per (z, y).
        draws: the distribution of the draws, of the same shape.
    """
    mean = float((draws * weights).sum())
    return Moments(mean, float((draws * (weights - mean) ** 2).sum()))


class Tempered(NamedTuple):
    """Weights that were flattened as little as needed."""

    tau: float
    """The exponent τ: 1 leaves the weights as they are, 0 makes them equal."""
    weights_K: Array
    """w^τ, divided by their sum."""


def self_normalized(log_ratios_K: Array) -> Array:
    """w / Σ w of n draws from their log w, in nats.

    Raises:
        ValueError: there is no draw, or a log-ratio is not finite.
    """
    logs = np.asarray(log_ratios_K, dtype=float)
    if logs.ndim != 1 or not logs.size or not np.isfinite(logs).all():
        raise ValueError(f"log-ratios must be a list of one or more finite numbers, not {log_ratios_K}")
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def effective_sample_size(weights_K: Array) -> float:
    """ESS = (Σ w)² / Σ w², from 1 (one draw has all the weight) to n (all weights are equal)."""
    return float(weights_K.sum() ** 2 / (weights_K @ weights_K))


def tempered(log_ratios_K: Array, min_ess: float) -> Tempered:
    """The weights w^τ with the largest τ in [0, 1] whose ESS is at least `min_ess` · n.

    The ESS never rises with τ: d log ESS / dτ = 2 A'(τ) − 2 A'(2τ) with A(τ) = log Σ w^τ, which is convex. So bisection
    finds τ.

    Args:
        log_ratios_K: log w of n draws, in nats, such as log π(z | x) s(z) − log q(z); finite.
        min_ess: a share of n in (0, 1].

    Raises:
        ValueError: `min_ess` is outside (0, 1], or a log-ratio is not finite.
    """
    if not 0 < min_ess <= 1:
        raise ValueError(f"min_ess must be in (0, 1], not {min_ess}")
    logs = np.asarray(log_ratios_K, dtype=float)
    whole = self_normalized(logs)
    enough = min_ess * len(whole)
    if effective_sample_size(whole) >= enough:
        return Tempered(1.0, whole)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if effective_sample_size(self_normalized(middle * logs)) >= enough:
            low = middle
        else:
            high = middle
    return Tempered(low, self_normalized(low * logs))


def _ratio(target: Array, proposal: Array) -> Array:
    if (lost := (target > 0) & (proposal == 0)).any():
        raise ValueError(f"q has no mass at rationale {lost.argmax()}, where the posterior has some")
    return np.divide(target, proposal, out=np.zeros_like(target), where=proposal > 0)
