"""The measures that a model card states, with intervals over the held-out questions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from estep.export.source import Trained
from estep.metrics import Evaluation, shares_right, voted
from estep.records import Response
from estep.report.stats import (
    Difference,
    Interval,
    paired_bootstrap,
    paired_kappa_bootstrap,
    paired_sign_test,
    wilson,
)

_SEED = 257


class Measure(NamedTuple):
    """A measure of the trained model and of its base model."""

    id: str
    """As the hub names it, such as `accuracy`."""
    name: str
    base: float
    trained: float
    interval: Interval
    """95 %, of the trained model; NaN where it is not defined."""
    percent: bool = False

    def shown(self, value: float) -> str:
        """A value of this measure for people."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}"

    @property
    def shown_interval(self) -> str:
        low, high = self.interval
        return "–" if math.isnan(low) else f"{self.shown(low).removesuffix(' %')} to {self.shown(high)}"


class Versus(NamedTuple):
    """The trained model against its base model, question by question."""

    difference: Difference
    """Of accuracies, with a bootstrap interval."""
    wins: int
    losses: int
    p: float
    """Of the exact two-sided sign test."""


class Measures(NamedTuple):
    """What is known about the trained model on the run's held-out questions."""

    questions: int
    rows: tuple[Measure, ...]
    majority: float
    """Accuracy of always giving the most frequent answer."""
    versus: Versus | None
    """None if the base model was not asked the same questions."""


def measures(trained: Trained) -> Measures:
    """The measures of an iteration beside those of the base model."""
    now, before = trained.step.metrics().evaluation, trained.store.iteration(0).metrics().evaluation
    vote = trained.config.evaluation.vote
    predictions = voted(trained.step.responses(), vote)
    base = voted(trained.store.iteration(0).responses(), vote)
    rows = [
        Measure("accuracy", "accuracy", before.accuracy, now.accuracy, _share(now.accuracy, now.questions), True),
        Measure(
            "parse_rate",
            "readable answers",
            before.parse_rate,
            now.parse_rate,
            _share(now.parse_rate, now.questions),
            True,
        ),
    ]
    if trained.task.ordinal:
        rows[1:1] = _ordinal(now, before, predictions)
    return Measures(now.questions, tuple(rows), now.majority_accuracy, _versus(base, predictions))


def _share(share: float, questions: int) -> Interval:
    """Wilson's interval; several samples of a question count as one."""
    return Interval(math.nan, math.nan) if math.isnan(share) else wilson(round(share * questions), questions)


def _ordinal(now: Evaluation, before: Evaluation, predictions: Sequence[Response]) -> list[Measure]:
    parsed = [(float(one.gold), float(one.answer)) for one in predictions if one.answer is not None]
    gold, answers = [one for one, _ in parsed], [other for _, other in parsed]
    kappa, mae = Interval(math.nan, math.nan), Interval(math.nan, math.nan)
    if parsed and len(predictions) == now.questions:  # several samples of a question are not independent
        # A constant prediction has a kappa of 0, so the difference from it is the kappa itself.
        kappa = paired_kappa_bootstrap(gold, [gold[0]] * len(gold), answers, _SEED)
        distances = [abs(one - other) for one, other in parsed]
        error = paired_bootstrap([0.0] * len(distances), distances, _SEED)
        mae = Interval(error.low, error.high)
    return [
        Measure("cohen_kappa", "quadratic kappa", before.kappa, now.kappa, kappa),
        Measure("mae", "mean absolute error, points", before.mae, now.mae, mae),
    ]


def _versus(base: Sequence[Response], predictions: Sequence[Response]) -> Versus | None:
    before, after = shares_right(base), shares_right(predictions)
    if not after or before.keys() != after.keys():
        return None
    first, second = [before[id] for id in after], list(after.values())
    wins = sum(new > old for old, new in zip(first, second, strict=True))
    losses = sum(new < old for old, new in zip(first, second, strict=True))
    return Versus(paired_bootstrap(first, second, _SEED), wins, losses, paired_sign_test(wins, losses))
