"""Statistics that compare runs: intervals and tests for differences between arms.

Tests are exact where an exact form exists; none relies on a normal approximation. A test without data returns p = 1.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy
from scipy.stats import binomtest

Array = numpy.ndarray[Any, Any]


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
    """Two-sided p-value of the hypothesis that the means are equal."""


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's confidence interval for a proportion (1927, equation 7).

    It stays within [0, 1] and holds for small samples.

    Args:
        successes: for example, the number of correct answers.
        total: the number of trials; 0 gives an interval of NaN.
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
    """One-sided exact sign test (Dixon and Mood, 1946): the probability of at least this many wins by chance.

    Ties count against a win, as in the paper (section 4.2), which makes the test stricter. To drop ties, as is common,
    leave them out of the call.

    Example:
        >>> round(sign_test(15, 4, 1), 3)
        0.021
    """
    total = wins + losses + ties
    return float(binomtest(wins, total, alternative="greater").pvalue) if total else 1.0


def paired_sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test (Dixon and Mood, 1946) over the questions on which two models differ.

    If a question's answers could come from either model alike, each question that differs is won with probability 1/2,
    however many seeds and samples answered it. With one answer per question, the test is McNemar's (1947) in its exact
    form. Questions without a difference carry no information and are not counted.

    Args:
        wins: questions on which the first model scores higher, summed over seeds and samples.
        losses: questions on which the second model does.

    Example:
        >>> paired_sign_test(4, 0)  # 2 / 2**4
        0.125
    """
    differing = wins + losses
    return float(binomtest(wins, differing).pvalue) if differing else 1.0


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    groups: Sequence[str] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two means with a percentile bootstrap interval over questions (Efron and Tibshirani, 1993,
    chapters 13 and 16).

    On few questions, or few that differ, its p-value is too small: 4 wins and no loss among 192 questions give about
    0.03. Pair it with `paired_sign_test`.

    Args:
        first: the first model's score for each question, in [0, 1] for accuracies.
        second: the second model's scores for the same questions in the same order.
        seed: seeds the resampling.
        groups: a label for each score; scores with the same label are resampled together. Pass question ids when
            several seeds ask the same questions. None treats every score as a separate question.
        resamples: how many sets of questions to draw with replacement.
        confidence: in (0, 1).

    Raises:
        ValueError: the lengths differ or are 0.
    """
    groups = [str(index) for index in range(len(first))] if groups is None else groups
    if not len(first) == len(second) == len(groups) or not len(first):
        raise ValueError(
            f"expected paired scores of the same questions, got {len(first)} and {len(second)} in {len(groups)} groups"
        )
    differences = numpy.asarray(second, dtype=float) - numpy.asarray(first, dtype=float)
    group_of = numpy.unique(numpy.asarray(groups), return_inverse=True)[1]
    count = int(group_of.max()) + 1
    sums, sizes = numpy.bincount(group_of, weights=differences), numpy.bincount(group_of)
    # Questions with equal outcomes are drawn as one kind, which is faster and gives the same distribution.
    kinds, members = numpy.unique(numpy.stack([sums, sizes]), axis=1, return_counts=True)
    drawn = numpy.random.default_rng(seed).multinomial(count, members / count, size=resamples)
    means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(means, [tail, 1 - tail])
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))
    return Difference(float(differences.mean()), float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm, 1979). Rejecting those below a level keeps the probability of any false
    rejection below that level.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def quadratic_kappa_by_value(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Cohen's kappa with quadratic weights (1968) of the questions whose prediction is not NaN.

    It equals `estep.metrics.quadratic_kappa` on a scale of all integers, but needs no list of them: with weights
    (g - p)², kappa is 1 - E[(g - p)²] / E[(g - p')²], where p' is the prediction for an independent question. NaN if it
    is undefined.

    Example:
        >>> quadratic_kappa_by_value([0, 0, 2, 2], [0, 2, 2, 2])
        0.5
    """
    values, counts = _kappa_kinds(gold, predicted)
    return float(_kappas(counts[None], values[0], values[1])[0])


def paired_kappa_bootstrap(
    gold: Sequence[float],
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """A percentile bootstrap interval over questions (Efron and Tibshirani, 1993) for the difference of two quadratic
    kappas, second minus first.

    Args:
        gold: the correct answer of each question.
        first: the first model's predictions in the same order; NaN for none.
        second: the second model's.
        seed: seeds the resampling.

    Returns:
        The interval over the resamples in which both kappas are defined; NaN if there are none.
    """
    values, counts = _kappa_kinds(gold, first, second)
    generator = numpy.random.default_rng(seed)
    at_a_time = max(1, _RESAMPLED_COUNTS // len(counts))
    found = []
    for start in range(0, resamples, at_a_time):
        size = min(at_a_time, resamples - start)
        drawn = generator.multinomial(int(counts.sum()), counts / counts.sum(), size=size)
        found.append(_kappas(drawn, values[0], values[2]) - _kappas(drawn, values[0], values[1]))
    differences = numpy.concatenate(found)
    differences = differences[~numpy.isnan(differences)]
    if not len(differences):
        return Interval(math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(differences, [tail, 1 - tail])
    return Interval(float(low), float(high))


def resampled_sums(of_question: Array, seed: int, resamples: int = 2_000) -> Array:
    """Sums over as many questions, drawn with replacement: a bootstrap (Efron and Tibshirani, 1993) of any measure that
    is a function of such sums.

    Args:
        of_question: what each question adds to each sum; questions by sums.
        seed: seeds the resampling.

    Returns:
        Resamples by sums.
    """
    generator, count = numpy.random.default_rng(seed), len(of_question)
    at_a_time = max(1, _RESAMPLED_COUNTS // count)
    found = []
    for start in range(0, resamples, at_a_time):
        size = min(at_a_time, resamples - start)
        found.append(generator.multinomial(count, numpy.full(count, 1 / count), size=size) @ of_question)
    return numpy.concatenate(found)


_RESAMPLED_COUNTS = 4_000_000
"""The counts that a bootstrap holds in memory at a time."""


def _kappa_kinds(*columns: Sequence[float]) -> tuple[Array, Array]:
    """The distinct rows of the columns, and how often each occurs. The first column's mean is subtracted, which changes
    no kappa and keeps the sums of squares small."""
    table = numpy.asarray(columns, dtype=float)
    table -= table[0].mean()
    values, counts = numpy.unique(numpy.nan_to_num(table, nan=math.inf), axis=1, return_counts=True)
    return numpy.where(numpy.isinf(values), math.nan, values), counts


def _kappas(drawn: Array, gold: Array, predicted: Array) -> Array:
    """Quadratic kappa in each resample, from the answers of each kind of question.

    Args:
        drawn: how often each resample has each kind; resamples by kinds.
    """
    parsed = ~numpy.isnan(predicted)
    counts, gold, predicted = drawn[:, parsed], gold[parsed], predicted[parsed]
    with numpy.errstate(divide="ignore", invalid="ignore"):
        totals = counts.sum(axis=1)
        gold_mean, predicted_mean = counts @ gold / totals, counts @ predicted / totals
        observed = counts @ (gold - predicted) ** 2 / totals
        by_chance = counts @ (gold**2 + predicted**2) / totals - 2 * gold_mean * predicted_mean
        return numpy.where(by_chance > _ROUNDING, 1 - observed / by_chance, math.nan)


_ROUNDING = 1e-9
"""A squared distance of answers below this is a rounding error."""
