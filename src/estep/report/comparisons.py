"""How sure the differences between a reference arm and the others are.

Within a setting: the paired bootstrap and McNemar's test over test questions. Over settings: the exact sign test, as
the paper has it (section 4.2) over tasks and models. `estep.report.stats` holds the tests and their sources.
"""

import math
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import NamedTuple

from estep.config.names import BASE
from estep.metrics import IterationMetrics, mean
from estep.report.results import Results, Run, Setting
from estep.report.stats import Difference, holm, mcnemar, paired_bootstrap, sign_test

_SEED = 257
_DIGITS = 4
"""Accuracies that agree to a hundredth of a percent tie, as in the paper's tables."""


class WithinSetting(NamedTuple):
    """The reference against another arm in one setting, by what the runs end in."""

    setting: Setting
    other: str
    questions: int
    """Answers of each, over all seeds."""
    difference: Difference
    """Accuracy of the reference minus the other's."""
    only_reference: int
    """Questions that the reference alone got right; of a question of several seeds, the first seed's answers."""
    only_other: int
    mcnemar: float
    """NaN where several samples of a question count, so that an answer is no yes or no."""
    holm: float
    """McNemar's p-value, corrected for all comparisons of `within_settings`."""


class OverSettings(NamedTuple):
    """The reference against another arm, a setting being one comparison."""

    other: str
    measure: str
    """`highest` or `selected`."""
    wins: int
    losses: int
    ties: int
    p: float
    """One-sided: of winning at least so often if both were equal."""


Pick = Callable[[Run], IterationMetrics]
"""Which of a run's iterations is told of."""

base: Pick = attrgetter("base")
highest: Pick = attrgetter("highest")
selected: Pick = attrgetter("selected")


def within_settings(results: Results) -> list[WithinSetting]:
    """The reference against every other arm, setting by setting."""
    found = []
    for setting in results.settings:
        for other in [BASE, *results.arms]:
            if other != results.reference and (compared := within(results, setting, results.reference, other)):
                found.append(compared)
    told = [place for place, one in enumerate(found) if not math.isnan(one.mcnemar)]
    corrected = holm([found[place].mcnemar for place in told])
    for place, p in zip(told, corrected, strict=True):
        found[place] = found[place]._replace(holm=p)
    return found


def over_settings(results: Results) -> list[OverSettings]:
    """The reference against every other arm over all settings that have both, by both measures."""
    found = []
    for measure, pick in {"highest": highest, "selected": selected}.items():
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
                gains.append(round(_accuracy(ours, pick) - _accuracy(theirs, pick_other), _DIGITS))
            wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            ties = len(gains) - wins - losses
            found.append(OverSettings(other, measure, wins, losses, ties, sign_test(wins, losses, ties)))
    return found


def _accuracy(runs: Sequence[Run], pick: Pick) -> float:
    return mean([pick(run).evaluation.accuracy for run in runs])


def _pairs(results: Results, setting: Setting, reference: str, other: str) -> list[tuple[Run, Run]]:
    """The runs of both arms with the same seed. The base model is that of the reference's own runs."""
    ours = {run.config.seed: run for run in results.of(setting, reference)}
    theirs = ours if other == BASE else {run.config.seed: run for run in results.of(setting, other)}
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def within(
    results: Results, setting: Setting, reference: str, other: str, seeds: Collection[int] | None = None
) -> WithinSetting | None:
    """Two arms in one setting, without correction for other comparisons; None where they share no seed.

    Args:
        seeds: that count; None for all that both have.
    """
    first: list[float] = []
    second: list[float] = []
    groups: list[str] = []
    seen: set[str] = set()
    only_reference = only_other = 0
    binary = True
    for run, opponent in _pairs(results, setting, reference, other):
        if seeds is not None and run.config.seed not in seeds:
            continue
        ours = run.scores(run.selected.iteration)
        theirs = opponent.scores(0 if other == BASE else opponent.selected.iteration)
        common = [question for question in theirs if question in ours]
        for question in common:
            if question not in seen:
                only_reference += ours[question] > theirs[question]
                only_other += ours[question] < theirs[question]
            binary = binary and {ours[question], theirs[question]} <= {0.0, 1.0}
            first.append(theirs[question])
            second.append(ours[question])
            groups.append(question)
        seen.update(common)
    if not groups:
        return None
    difference = paired_bootstrap(first, second, _SEED, groups)
    p = mcnemar(only_reference, only_other) if binary else math.nan
    return WithinSetting(setting, other, len(groups), difference, only_reference, only_other, p, math.nan)
