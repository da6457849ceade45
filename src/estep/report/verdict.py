"""What a report says first: which arm ends highest on a task, and how sure that is."""

from collections.abc import Iterator, Sequence

from estep.grid import BASE
from estep.metrics import mean
from estep.report.comparisons import base, selected, within
from estep.report.results import Results, Run, Setting
from estep.report.sheets import accuracy, percents


def verdicts(results: Results, ending: str) -> Iterator[str]:
    """A sentence or two for each setting. One arm alone is compared with the base model."""
    for setting in results.settings:
        yield f"{setting.words}: {_verdict(results, setting, ending)}"


def _verdict(results: Results, setting: Setting, ending: str) -> str:
    of_arms = {arm: runs for arm in results.arms if (runs := results.of(setting, arm))}
    if all(len(run.iterations) == 1 for runs in of_arms.values() for run in runs):
        return f"only the base model is evaluated, {percents(accuracy(results.bases(setting), base))} %."
    seeds = _common_seeds(list(of_arms.values()))
    if not seeds:
        return "its arms share no seed, so nothing is compared."
    reached = {arm: accuracy(_with_seeds(runs, seeds), selected) for arm, runs in of_arms.items()}
    ranked = sorted(reached, key=lambda arm: -reached[arm].mean)
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else BASE
    told = f"{best} has the highest accuracy of {ending}, {percents(reached[best])} %"
    fewer = any(len(runs) > len(seeds) for runs in of_arms.values())
    on = f" over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, which all arms have" if fewer else ""
    return (
        told
        + on
        + _against(results, setting, best, second, seeds)
        + _beside(results, setting, seeds, reached[best].mean)
    )


def _common_seeds(of_arms: Sequence[Sequence[Run]]) -> list[int]:
    return sorted(set.intersection(*({run.config.seed for run in runs} for runs in of_arms)))


def _with_seeds(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    return [run for run in runs if run.config.seed in seeds]


def _against(results: Results, setting: Setting, best: str, second: str, seeds: Sequence[int]) -> str:
    compared = within(results, setting, best, second, seeds)
    if compared is None:
        return "."
    low, high = 100 * compared.difference.low, 100 * compared.difference.high
    interval = f"{100 * compared.difference.mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
    apart = low > 0 or high < 0
    sure = "more than the choice of questions explains" if apart else "too close to tell apart on these questions"
    return f"; against {second}, {interval}: {sure}."


def _beside(results: Results, setting: Setting, seeds: Sequence[int], reached: float) -> str:
    """What needs no training, where it does as well."""
    bases = _with_seeds(results.bases(setting), seeds)
    before = accuracy(bases, base).mean
    majority = mean([base(run).evaluation.majority_accuracy for run in bases])
    told = f" The base model reaches {100 * before:.1f} % as it is." if before >= reached else ""
    return told + (
        f" Always giving the most frequent answer would reach {100 * majority:.1f} %." if majority >= reached else ""
    )
