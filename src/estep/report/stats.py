"""Statistics of runs: how sure a difference between two proposals is.

Exact tests where there are any; no normal approximations. A probability of 1 means that the data say nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
from scipy.stats import binomtest


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """The mean of paired differences, second minus first."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, of no difference."""


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """The confidence interval of a share (Wilson, 1927, equation 7): it stays within [0, 1] and is right for few rows.

    Args:
        successes: right answers, for example.
        total: of so many; an interval of NaN for 0.
        confidence: in (0, 1).

    Example:
        >>> [round(bound, 3) for bound in wilson(8, 10)]
        [0.49, 0.943]
    """
    if total == 0:
        return Interval(math.nan, math.nan)
    found = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def sign_test(wins: int, losses: int, ties: int = 0) -> float:
    """The exact probability of winning at least so often if both were equal (Dixon and Mood, 1946), one-sided.

    A tie is a comparison that was not won, as the paper counts them (section 4.2), which makes a win harder to show;
    leave ties out of the call to drop them, as is common.

    Example:
        >>> round(sign_test(15, 4, 1), 3)
        0.021
    """
    total = wins + losses + ties
    return float(binomtest(wins, total, alternative="greater").pvalue) if total else 1.0


def mcnemar(only_first: int, only_second: int) -> float:
    """Whether two models answer the same questions right equally often: McNemar's test (1947) in its exact form.

    Args:
        only_first: questions that the first model alone gets right.
        only_second: the second model alone.

    Returns:
        The two-sided p-value.
    """
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    groups: Sequence[str] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """How far a difference of means depends on which questions were asked: the percentile bootstrap over questions
    (Efron and Tibshirani, 1993, chapters 13 and 16).

    Args:
        first: the first model's score of each question, in [0, 1] for accuracies.
        second: the second model's, of the same questions in the same order.
        seed: of the resampling.
        groups: what is drawn together, for each score: the question's id where several seeds ask some of the same
            questions. None where every score is of a question of its own.
        resamples: sets of questions drawn with replacement.
        confidence: in (0, 1).

    Raises:
        ValueError: the lengths differ, or are 0.
    """
    groups = [str(place) for place in range(len(first))] if groups is None else groups
    if not len(first) == len(second) == len(groups) or not len(first):
        raise ValueError(
            f"paired scores of the same questions are needed, got {len(first)} and {len(second)} of {len(groups)}"
        )
    differences = numpy.asarray(second, dtype=float) - numpy.asarray(first, dtype=float)
    group_of = numpy.unique(numpy.asarray(groups), return_inverse=True)[1]
    count = int(group_of.max()) + 1
    sums, sizes = numpy.bincount(group_of, weights=differences), numpy.bincount(group_of)
    # Questions with equal outcomes are drawn as one kind: the same distribution, and few kinds.
    kinds, members = numpy.unique(numpy.stack([sums, sizes]), axis=1, return_counts=True)
    drawn = numpy.random.default_rng(seed).multinomial(count, members / count, size=resamples)
    means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(means, [tail, 1 - tail])
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return Difference(float(differences.mean()), float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, raised so that all of them together err with the probability of one (Holm, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def standard_error(values: Sequence[float]) -> float:
    """The standard error of a mean over runs; NaN for fewer than two."""
    return float(numpy.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
