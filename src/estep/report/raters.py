"""How well people agree, and how a model compares with one of them, on tasks whose rows hold several people's ratings.

The human ceiling comes from leaving one rater out. What a rater says is compared with what the others say together:
the score of the mean of their ratings, or their most frequent label. The rater has a part in the task's own answer if
that is the mean of all, so models are measured against the same answers of the others. Every question counts once, and
its raters alike: the figures are those of a rater who is drawn at random for each question. They hold as well where
raters are anonymous and differ from question to question.
"""

import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from estep.errors import EstepError
from estep.records import Rating, Response
from estep.report.judge import Judge, accuracy_of, judges_of
from estep.report.results import Results, Run, Setting, read_results
from estep.report.stats import Array, Interval, resampled_sums
from estep.tasks.raters import Level, RatingReader

_SEED = 257
_MOST_CELLS = 10_000_000
"""If the number of questions times the squared number of distinct ratings is larger, alpha is that of the scores that
the ratings stand for: the library holds several arrays of that size."""
_ROUNDING, _DIGITS = 1e-9, 9


class Estimate(NamedTuple):
    """A measure with its 95 % interval."""

    value: float
    interval: Interval


class Measures(NamedTuple):
    """Agreement with the answers that the others give; NaN where it is undefined."""

    accuracy: Estimate
    """Share of equal answers; where labels tie, each counts in part. No answer counts as wrong."""
    kappa: Estimate
    """Cohen's kappa with quadratic weights, over the answers that were given; NaN for labels."""
    mae: Estimate
    """Mean absolute error in points of the scale, over the answers that were given; NaN for labels."""


class Compared(NamedTuple):
    """A model beside a single rater."""

    measures: Measures
    above: Estimate
    """The model's accuracy minus that of a single rater, on the questions that the model was asked."""


class Alpha(NamedTuple):
    """Krippendorff's alpha."""

    value: float
    """1 if the raters agree, 0 if they agree as by chance; NaN if all ratings are the same."""
    level: Level
    of_scores: bool
    """Whether it is that of the scores which the ratings stand for, since there are too many distinct ratings."""


Consensus = tuple[str, ...]
"""What several raters say together; several labels if they tie."""


@dataclass(frozen=True)
class Rated:
    """The test questions of a setting that at least two people rated, and the models that were asked them."""

    setting: Setting
    reader: RatingReader
    places: Mapping[str, tuple[Rating | None, ...]]
    """What each rater says, by question; None for nothing."""
    base: Judge
    arms: tuple[Judge, ...]

    @property
    def models(self) -> tuple[Judge, ...]:
        """The base model and the arms."""
        return (self.base, *self.arms)

    @cached_property
    def ratings(self) -> dict[str, list[Rating]]:
        """The ratings of each question, without missing ones."""
        return {id: [one for one in given if one is not None] for id, given in self.places.items()}

    @cached_property
    def opinions(self) -> dict[str, list[tuple[str, Consensus]]]:
        """By question, for each of its raters: the answer that the rating stands for, and what the others say."""
        return {
            id: [
                (self.reader.answer(rating), self.reader.consensus([*given[:place], *given[place + 1 :]]))
                for place, rating in enumerate(given)
            ]
            for id, given in self.ratings.items()
        }

    def single_rater(self) -> Measures:
        """A rater against the others."""
        return _measures(numpy.array([self._of_raters(id) for id in self.ratings]))

    def rater(self, place: int) -> tuple[int, Measures] | None:
        """One rater against the others, and on how many questions; None if the rater has rated none. Only where places
        belong to people."""
        sums = []
        for id, given in self.places.items():
            if given[place] is not None:
                said, others = self.opinions[id][sum(one is not None for one in given[:place])]
                sums.append(self._sums([(said, others, 1.0)]))
        return (len(sums), _measures(numpy.array(sums))) if sums else None

    def compared(self, judge: Judge) -> Compared | None:
        """A model against the same answers of the others; None if it was asked no rated question."""
        asked: dict[str, list[Response]] = {}
        for prediction in judge.predictions:
            if prediction.question_id in self.ratings:
                asked.setdefault(prediction.question_id, []).append(prediction)
        if not asked:
            return None
        ours = numpy.array([self._of_model(id, of_question) for id, of_question in asked.items()])
        people = numpy.array([self._of_raters(id) for id in asked])
        both = resampled_sums(numpy.hstack([ours, people]), _SEED)
        differences = _accuracy(both[:, :_SUMS]) - _accuracy(both[:, _SUMS:])
        above = float(_accuracy(ours.sum(axis=0)) - _accuracy(people.sum(axis=0)))
        return Compared(_measures(ours), Estimate(above, _interval(differences)))

    def _of_raters(self, id: str) -> list[float]:
        opinions = self.opinions[id]
        return self._sums([(said, others, 1 / len(opinions)) for said, others in opinions])

    def _of_model(self, id: str, predictions: Sequence[Response]) -> list[float]:
        said = Counter(prediction.answer for prediction in predictions)
        others = Counter(consensus for _, consensus in self.opinions[id])
        whole = said.total() * others.total()
        return self._sums([(answer, label, n * m / whole) for answer, n in said.items() for label, m in others.items()])

    def _sums(self, compared: Iterable[tuple[str | None, Consensus, float]]) -> list[float]:
        """What a question adds to the sums that all measures come from, see `_SUMS`; its weights sum to 1."""
        sums = [0.0] * _SUMS
        for said, others, weight in compared:
            sums[0] += weight
            sums[1] += weight / len(others) if said in others else 0.0
            if said is not None and self.reader.level != "nominal":
                g, p = int(others[0]), int(said)
                for index, value in enumerate((1, g, p, (g - p) ** 2, g**2 + p**2, abs(g - p)), 2):
                    sums[index] += weight * value
        return sums

    # Agreement among raters

    def alpha(self) -> Alpha:
        """Krippendorff's alpha of the ratings (2004), which allows for missing ones; a place in a row says nothing.

        Raises:
            EstepError: the library is not installed.
        """
        try:
            from krippendorff import alpha
        except ImportError:
            raise EstepError("a task with raters needs krippendorff: pip install 'estep[report]'") from None
        level, ratings = self.reader.level, list(self.ratings.values())
        of_scores = (
            level != "nominal" and len(ratings) * len({one for given in ratings for one in given}) ** 2 > _MOST_CELLS
        )
        if of_scores:
            level = "ordinal"
            ratings = [[int(self.reader.answer(one)) for one in given] for given in ratings]
        values = sorted({one for given in ratings for one in given}, key=_in_order)
        if len(values) < 2:
            return Alpha(math.nan, level, of_scores)
        counts = numpy.array([[given.count(value) for value in values] for given in ratings])
        domain = numpy.arange(len(values)) if level == "nominal" else numpy.array(values, dtype=float)
        value = float(alpha(value_counts=counts, value_domain=domain, level_of_measurement=level))
        return Alpha(value, level, of_scores)

    @cached_property
    def spreads(self) -> dict[str, float]:
        """How much the raters of each question differ: the standard deviation of their ratings, or the share of those
        who gave another label than the most frequent one."""
        return {id: _spread(given) for id, given in self.ratings.items()}

    @cached_property
    def cut(self) -> float:
        """Raters agree on a question whose spread is at most this one, which divides the questions most evenly: the
        median, unless many questions have the same spread."""
        values = sorted(round(value, _DIGITS) for value in self.spreads.values())
        half = len(values) / 2
        return min(sorted(set(values))[:-1] or values, key=lambda value: abs(bisect_right(values, value) - half))

    def agree(self, id: str) -> bool:
        """Whether the raters of a question differ by no more than `cut`."""
        return round(self.spreads[id], _DIGITS) <= self.cut

    @property
    def unanimous(self) -> float:
        """Share of the questions whose raters all say the same."""
        return statistics.fmean(len(set(given)) == 1 for given in self.ratings.values())

    def accuracy_where(self, judge: Judge, agree: bool) -> float:
        """A model's accuracy, against the correct answers, on the questions whose raters agree, or on the others."""
        rated = (one for one in judge.predictions if one.question_id in self.ratings)
        return accuracy_of(one for one in rated if self.agree(one.question_id) == agree)

    def rater_where(self, agree: bool) -> float:
        """A single rater's accuracy on the questions whose raters agree, or on the others; NaN without any."""
        sums = [self._of_raters(id) for id in self.ratings if self.agree(id) == agree]
        return float(_accuracy(numpy.array(sums).sum(axis=0))) if sums else math.nan


def read_rated(results: Results, setting: Setting) -> Rated | None:
    """The rated test questions of a setting; None if no question has at least two ratings."""
    runs = [run for run in results.runs if run.setting == setting]
    places = rated_questions(runs)
    if not places:
        return None
    return Rated(setting, RatingReader(runs[0].task.file), places, *judges_of(results, setting))


def rated_questions(runs: Iterable[Run]) -> dict[str, tuple[Rating | None, ...]]:
    """What the raters say of the test questions of runs that at least two of them rated, by question."""
    return {
        question.id: question.ratings
        for run in runs
        if run.task.file.raters is not None
        for question in run.store.questions("test")
        if sum(rating is not None for rating in question.ratings) > 1
    }


def single_rater_of(run: Path) -> float | None:
    """The accuracy of a single rater on the test questions of a run folder; None if no question has two ratings."""
    results = read_results(run)
    rated = read_rated(results, results.settings[0])
    return None if rated is None else rated.single_rater().accuracy.value


def _in_order(rating: Rating) -> tuple[str, float]:
    return (rating, 0.0) if isinstance(rating, str) else ("", rating)


def _spread(given: Sequence[Rating]) -> float:
    numbers = [one for one in given if not isinstance(one, str)]
    if numbers:
        return statistics.pstdev(numbers)
    return 1 - max(Counter(given).values()) / len(given)


# Measures from sums

_SUMS = 8
"""How many sums over questions there are, all by weight: of the weight; of what is right; and, over the answers that
were given, of the weight, g, p, (g - p)², g² + p² and |g - p|, where g is the others' score and p the one compared."""


def _measures(of_question: Array) -> Measures:
    """The measures of questions by sums, with percentile bootstrap intervals over questions."""
    drawn, whole = resampled_sums(of_question, _SEED), of_question.sum(axis=0)
    return Measures(
        *(Estimate(float(measure(whole)), _interval(measure(drawn))) for measure in (_accuracy, _kappa, _mae))
    )


def _accuracy(sums: Array) -> Any:
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 1] / sums[..., 0]


def _kappa(sums: Array) -> Any:
    """1 - E[(g - p)²] / E[(g - p')²], where p' belongs to an independent question."""
    with numpy.errstate(divide="ignore", invalid="ignore"):
        g, p, squared, squares = (sums[..., index] / sums[..., 2] for index in (3, 4, 5, 6))
        by_chance = squares - 2 * g * p
        return numpy.where(by_chance > _ROUNDING, 1 - squared / by_chance, math.nan)


def _mae(sums: Array) -> Any:
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 7] / sums[..., 2]


def _interval(values: Array) -> Interval:
    known = values[~numpy.isnan(values)]
    return Interval(*map(float, numpy.quantile(known, [0.025, 0.975]))) if len(known) else Interval(math.nan, math.nan)
