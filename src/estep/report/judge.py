"""How a model judges: figures from its answers to the test questions, on tasks with a fixed set of answers.

They are read from the `eval.jsonl`, `test.jsonl` and `task.yaml` of a run. An undefined figure is NaN.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
from scipy.stats import kendalltau, spearmanr

from estep.config.names import BASE
from estep.metrics import mean, voted
from estep.records import Response
from estep.report.comparisons import Pick, base, final
from estep.report.results import Results, Run, Setting

BINS = 5
"""Bins of a reliability table, of equal width."""

Pair = tuple[str, str | None]
"""The correct answer and the predicted one; None if no allowed answer was found."""


class Evaluated(NamedTuple):
    """A run after one iteration."""

    run: Run
    responses: Sequence[Response]
    predictions: Sequence[Response]
    """The responses that count: one per question if they vote."""


@dataclass(frozen=True)
class Judge:
    """An arm in one setting, with all of its seeds."""

    name: str
    pick: Pick
    """The iteration that is looked at."""
    seeds: tuple[Evaluated, ...]

    @property
    def predictions(self) -> list[Response]:
        """The predictions of all seeds together."""
        return [prediction for seed in self.seeds for prediction in seed.predictions]


@dataclass(frozen=True)
class Judges:
    """The arms of a setting whose task has a fixed set of answers."""

    setting: Setting
    answers: tuple[str, ...]
    """All of them, in order."""
    ordinal: bool
    base: Judge
    arms: tuple[Judge, ...]
    words: Mapping[str, int]
    """The number of words of each test question's text."""

    @property
    def all(self) -> tuple[Judge, ...]:
        """The base model and the arms."""
        return (self.base, *self.arms)

    @property
    def golds(self) -> dict[str, str]:
        """The correct answer to each test question."""
        return {one.question_id: one.gold for judge in self.all for one in judge.predictions}


def read_judges(results: Results, setting: Setting) -> Judges | None:
    """The arms of a setting in the iteration that their runs end in; None if the task's answers cannot be listed."""
    runs = [run for run in results.runs if run.setting == setting]
    task = runs[0].task
    if not task.answers:
        return None
    words = {
        question.id: len(run.task.shown(question).split()) for run in runs for question in run.store.questions("test")
    }
    before, arms = judges_of(results, setting)
    return Judges(setting, task.answers, task.ordinal, before, arms, words)


def judges_of(results: Results, setting: Setting) -> tuple[Judge, tuple[Judge, ...]]:
    """The base model and the arms of a setting, in the iteration that their runs end in."""
    arms = tuple(_judge(arm, final, of_arm) for arm in results.arms if (of_arm := results.of(setting, arm)))
    return _judge(BASE, base, results.bases(setting)), arms


def _judge(name: str, pick: Pick, runs: Iterable[Run]) -> Judge:
    return Judge(name, pick, tuple(_evaluated(run, pick(run).iteration) for run in runs))


def _evaluated(run: Run, iteration: int) -> Evaluated:
    responses = run.store.iteration(iteration).responses()
    return Evaluated(run, responses, voted(responses, run.config.evaluation.vote))


# Answers


@dataclass(frozen=True)
class Confusion:
    """How often each answer was predicted where each answer is correct."""

    answers: tuple[str, ...]
    counts: Mapping[Pair, int]

    @classmethod
    def of(cls, predictions: Iterable[Response], answers: Sequence[str]) -> "Confusion":
        """The counts of predictions; one outside `answers` counts as none."""
        allowed = set(answers)
        pairs = ((one.gold, one.answer if one.answer in allowed else None) for one in predictions)
        return cls(tuple(answers), Counter(pairs))

    def row(self, gold: str) -> tuple[int, ...]:
        """How often each answer, and in the last place none, was predicted where `gold` is correct."""
        return tuple(self.counts.get((gold, answer), 0) for answer in (*self.answers, None))

    def gold(self, answer: str) -> int:
        """How many predictions should give this answer."""
        return sum(self.row(answer))

    def predicted(self, answer: str) -> int:
        """How many predictions give this answer."""
        return sum(self.counts.get((gold, answer), 0) for gold in self.answers)

    def precision(self, answer: str) -> float:
        """Share of the predictions of an answer that are right."""
        return _share(self.counts.get((answer, answer), 0), self.predicted(answer))

    def recall(self, answer: str) -> float:
        """Share of the questions with an answer for which it was predicted; a missing prediction counts as wrong."""
        return _share(self.counts.get((answer, answer), 0), self.gold(answer))

    def f1(self, answer: str) -> float:
        """Harmonic mean of precision and recall; 0 if an answer that occurs was never predicted, or the reverse."""
        return _share(2 * self.counts.get((answer, answer), 0), self.predicted(answer) + self.gold(answer))


def _share(part: int, of: int) -> float:
    return part / of if of else math.nan


class RankCorrelations(NamedTuple):
    """How well the order of the predicted scores agrees with that of the correct ones, in [-1, 1]."""

    spearman: float
    """Spearman's rho; tied scores have the mean of their ranks (Spearman, 1904)."""
    kendall: float
    """Kendall's tau-b, which allows for ties (Kendall, 1945)."""


def rank_correlations(pairs: Sequence[tuple[int, int]]) -> RankCorrelations:
    """The correlations of (correct, predicted) scores; NaN if all scores on one side are equal.

    Example:
        >>> [round(value, 3) for value in rank_correlations([(0, 1), (1, 1), (2, 3)])]
        [0.866, 0.816]
    """
    gold, predicted = [one for one, _ in pairs], [other for _, other in pairs]
    if len(set(gold)) < 2 or len(set(predicted)) < 2:
        return RankCorrelations(math.nan, math.nan)
    return RankCorrelations(spearman(gold, predicted), float(kendalltau(gold, predicted, variant="b").statistic))


def spearman(gold: Sequence[int], other: Sequence[float]) -> float:
    """Spearman's rho; NaN if all values on one side are equal."""
    rounded = numpy.round(numpy.asarray(other, dtype=float), 9)  # sums of probabilities are inexact
    if len(set(gold)) < 2 or len(set(rounded.tolist())) < 2:
        return math.nan
    return float(spearmanr(gold, rounded).statistic)


def score_pairs(predictions: Iterable[Response]) -> list[tuple[int, int]]:
    """The correct and the predicted score wherever one was predicted."""
    return [(int(one.gold), int(one.answer)) for one in predictions if one.answer is not None]


def accuracy_of(predictions: Iterable[Response]) -> float:
    """Share of correct predictions; a missing one counts as wrong."""
    return mean([one.status == "correct" for one in predictions])


# Length


@dataclass(frozen=True)
class Lengths:
    """A range of text lengths in words, both ends included."""

    low: int
    high: int

    def __contains__(self, length: int) -> bool:
        return self.low <= length <= self.high

    @property
    def name(self) -> str:
        """Such as `3–12 words`."""
        return f"{self.low} words" if self.low == self.high else f"{self.low}–{self.high} words"


def length_quarters(lengths: Sequence[int]) -> list[Lengths]:
    """Ranges that hold about a quarter of the texts each. Texts of equal length are never separated, so there may be
    fewer than four ranges.

    Example:
        >>> [quarter.name for quarter in length_quarters([1, 2, 3, 4, 5, 6, 9, 9])]
        ['1–2 words', '3–4 words', '5–6 words', '9 words']
    """
    if not lengths:
        return []
    cuts = numpy.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf")
    parts: dict[int, list[int]] = {}
    for length in sorted(lengths):
        parts.setdefault(int(numpy.searchsorted(cuts, length)), []).append(length)
    return [Lengths(part[0], part[-1]) for part in parts.values()]


# Calibration


class Confident(NamedTuple):
    """A prediction with what its model's samples say of it."""

    votes: int
    """How many samples of the question give the predicted answer."""
    samples: int
    """How many samples the question has, with those that state no answer."""
    right: bool

    @property
    def confidence(self) -> float:
        """The prediction's vote share."""
        return self.votes / self.samples

    @property
    def bin(self) -> int:
        """The bin of the vote share, from 0; a share on a boundary is in the lower bin, as 2 of 5 in the second."""
        return -(-BINS * self.votes // self.samples) - 1


def confidences(judge: Judge) -> list[Confident]:
    """The prediction for each question that has several samples, for each seed.

    It is the one that counts, or the most frequent one where samples do not vote. Where no sample states an answer, it
    has no votes.
    """
    found = []
    for seed in judge.seeds:
        votes: dict[str, Counter[str | None]] = {}
        for response in seed.responses:
            votes.setdefault(response.question_id, Counter())[response.answer] += 1
        vote = seed.run.config.evaluation.vote
        for one in voted(seed.responses, "majority" if vote == "none" else vote):
            of_question = votes[one.question_id]
            if of_question.total() > 1:
                given = of_question[one.answer] if one.answer is not None else 0
                found.append(Confident(given, of_question.total(), one.status == "correct"))
    return found


class Reliability(NamedTuple):
    """A bin of a reliability table: well calibrated if its two shares agree."""

    low: float
    high: float
    predictions: int
    confidence: float
    """Their mean vote share, or probability."""
    right: float
    """The share of them that is right."""

    @classmethod
    def of(cls, index: int, bins: int, predictions: Sequence[tuple[float, bool]]) -> "Reliability":
        """A bin of predictions, each with its confidence and whether it is right.

        Args:
            index: which of the bins, from 0.
            bins: how many there are.
        """
        confidence, right = mean([of for of, _ in predictions]), mean([right for _, right in predictions])
        return cls(index / bins, (index + 1) / bins, len(predictions), confidence, right)


def reliability(predictions: Sequence[Confident]) -> list[Reliability]:
    """Bins of equal width over (0, 1]. Predictions without votes are in none of them."""
    bins: list[list[Confident]] = [[] for _ in range(BINS)]
    for one in predictions:
        if one.votes:
            bins[one.bin].append(one)
    return [
        Reliability.of(index, BINS, [(one.confidence, one.right) for one in of_bin])
        for index, of_bin in enumerate(bins)
    ]
