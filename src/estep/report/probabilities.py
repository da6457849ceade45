"""What the probabilities of answers say of a judge: expected scores, and how well probabilities are calibrated.

They are in the `eval.jsonl` of runs with `evaluation.probabilities`. An undefined figure is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

from estep.metrics import BINS, Confidence, by_probability, calibration_error, confidence, expected_score, mean
from estep.records import Response
from estep.report.judge import Judge, Judges, Reliability, spearman


class Expected(NamedTuple):
    """Stated and expected scores beside each other, over the predictions that state a score and have probabilities."""

    stated_mae: float
    expected_mae: float
    stated_spearman: float
    expected_spearman: float
    all_mae: float
    """Of the expected scores of all predictions, those that state no score included."""
    completed: int
    """Number of predictions that state no score, so that the task's form was continued for them."""


def expected_of(predictions: Sequence[Response]) -> Expected | None:
    """The figures of predictions; None if none of them has probabilities."""
    known = [(one, expected_score(one.probabilities)) for one in predictions if one.probabilities is not None]
    if not known:
        return None
    stated = [(int(one.gold), int(one.answer), expected) for one, expected in known if one.answer is not None]
    gold = [of for of, _, _ in stated]
    return Expected(
        stated_mae=mean([abs(of - said) for of, said, _ in stated]),
        expected_mae=mean([abs(of - expected) for of, _, expected in stated]),
        stated_spearman=spearman(gold, [said for _, said, _ in stated]),
        expected_spearman=spearman(gold, [expected for _, _, expected in stated]),
        all_mae=mean([abs(int(one.gold) - expected) for one, expected in known]),
        completed=len(known) - len(stated),
    )


def confidences_of(judge: Judge) -> list[Confidence]:
    """The predictions that state an answer, with its probability."""
    return [found for one in judge.predictions if (found := confidence(one)) is not None]


def error_of(judge: Judge) -> float:
    """The expected calibration error over the predictions of all seeds."""
    return calibration_error(confidences_of(judge))


def reliability_of(judge: Judge) -> list[Reliability]:
    """The bins by probability that hold predictions."""
    bins = by_probability(confidences_of(judge))
    return [Reliability.of(index, BINS, of_bin) for index, of_bin in enumerate(bins) if of_bin]


def judges_with_probabilities(judges: Judges) -> list[Judge]:
    """The base model and the arms that have predictions with a probability."""
    return [judge for judge in judges.all if confidences_of(judge)]
