"""Comparisons between the reference arm and the others, with their uncertainty.

Within a setting: the paired bootstrap and an exact sign test over test questions. Over settings: the exact sign test,
as the paper applies it (section 4.2) over tasks and models. `estep.report.stats` implements the tests and cites their
sources.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

from estep.config.names import BASE
from estep.metrics import IterationMetrics, mean
from estep.report.results import Results, Run, Setting
from estep.report.stats import Difference, holm, paired_bootstrap, paired_sign_test, sign_test

_SEED = 257
_ACCURACY_DIGITS = 4
"""Accuracies that agree to a hundredth of a percent tie, as in the paper's tables."""
_SCORE_DIGITS = 9
"""A question's summed scores are rounded to this many digits before comparison: shares such as 1/3 are inexact."""


class WithinSetting(NamedTuple):
    """The reference against another arm in one setting, by the iteration that each run ends in."""

    setting: Setting
    other: str
    questions: int
    """Distinct test questions that both arms answered."""
    answers: int
    """Questions counted once per seed."""
    difference: Difference
    """The reference's accuracy minus the other's."""
    wins: int
    """Questions on which the reference scores higher, summed over seeds and samples."""
    losses: int
    """Questions on which the other arm does."""
    sign_test: float
    """Two-sided exact p-value of `wins` against `losses`."""
    holm: float
    """`p`, corrected for all comparisons of `within_settings`; NaN before correction."""

    @property
    def p(self) -> float:
        """The p-value of both tests together.

        A difference counts only if each test confirms it. Such an intersection-union test (Berger, 1982) has the larger
        of the two p-values. It is 1 where the mean and the majority of questions favor different arms.
        """
        if self.difference.mean * (self.wins - self.losses) < 0:
            return 1.0
        return max(self.difference.p, self.sign_test)


class OverSettings(NamedTuple):
    """The reference against another arm, with each setting as one comparison."""

    other: str
    measure: str
    """`highest` or `final`."""
    wins: int
    losses: int
    ties: int
    p: float
    """One-sided: the probability of at least this many wins if both arms were equal."""


Pick = Callable[[Run], IterationMetrics]
"""Chooses one of a run's iterations."""

base: Pick = attrgetter("base")
highest: Pick = attrgetter("highest")
final: Pick = attrgetter("final")


def within_settings(results: Results) -> list[WithinSetting]:
    """The reference against every other arm, setting by setting."""
    found = []
    for setting in results.settings:
        for other in [BASE, *results.arms]:
            if other != results.reference and (compared := within(results, setting, results.reference, other)):
                found.append(compared)
    return [one._replace(holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def over_settings(results: Results) -> list[OverSettings]:
    """The reference against every other arm over all settings that have both, by both measures."""
    found = []
    for measure, pick in {"highest": highest, "final": final}.items():
        for other in [BASE, *results.arms]:
            cells = [
                pairs for setting in results.settings if (pairs := _pairs(results, setting, results.reference, other))
            ]
            if other == results.reference or not cells:
                continue
            pick_other = base if other == BASE else pick
            gains = []
            for pairs in cells:
                ours, theirs = zip(*pairs, strict=True)
                gains.append(round(_accuracy(ours, pick) - _accuracy(theirs, pick_other), _ACCURACY_DIGITS))
            wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            ties = len(gains) - wins - losses
            found.append(OverSettings(other, measure, wins, losses, ties, sign_test(wins, losses, ties)))
    return found


def _accuracy(runs: Sequence[Run], pick: Pick) -> float:
    return mean([pick(run).evaluation.accuracy for run in runs])


def _pairs(results: Results, setting: Setting, reference: str, other: str) -> list[tuple[Run, Run]]:
    """Pairs of runs with the same seed, one of each arm. The base model's results are those of the reference's runs."""
    ours = {run.config.seed: run for run in results.of(setting, reference)}
    theirs = ours if other == BASE else {run.config.seed: run for run in results.of(setting, other)}
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def within(
    results: Results, setting: Setting, reference: str, other: str, seeds: Collection[int] | None = None
) -> WithinSetting | None:
    """Compare two arms in one setting, without correction for other comparisons.

    Args:
        seeds: the seeds to compare; None for all that both arms have.

    Returns:
        None if the arms share no seed or no question.
    """
    first: list[float] = []
    second: list[float] = []
    questions: list[str] = []
    gain: dict[str, float] = defaultdict(float)
    for run, opponent in _pairs(results, setting, reference, other):
        if seeds is not None and run.config.seed not in seeds:
            continue
        ours = run.scores(run.final.iteration)
        theirs = opponent.scores(0 if other == BASE else opponent.final.iteration)
        for question in (question for question in theirs if question in ours):
            first.append(theirs[question])
            second.append(ours[question])
            questions.append(question)
            gain[question] += ours[question] - theirs[question]
    if not questions:
        return None
    difference = paired_bootstrap(first, second, _SEED, questions)
    gains = [round(value, _SCORE_DIGITS) for value in gain.values()]
    wins, losses = sum(value > 0 for value in gains), sum(value < 0 for value in gains)
    p = paired_sign_test(wins, losses)
    return WithinSetting(setting, other, len(gains), len(questions), difference, wins, losses, p, math.nan)
