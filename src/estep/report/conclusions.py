"""What a report says first: which arm ends highest on a setting, and above which others it is significantly."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from estep.config.names import BASE
from estep.metrics import mean
from estep.report.comparisons import WithinSetting, base, selected, within
from estep.report.results import Results, Run, Setting
from estep.report.stats import holm
from estep.report.tables import accuracy, percents

_LEVEL = 0.05


class Verdicts(NamedTuple):
    """What is said first."""

    sentences: list[str]
    """One for each setting."""
    note: str
    """What they mean by "significantly", and what they leave open; empty where nothing is compared."""


@dataclass(frozen=True)
class _Ranking:
    """A setting's arms by what they end in, over the seeds that all of them have."""

    setting: Setting
    runs: dict[str, list[Run]]
    """Of each arm, the highest first."""
    seeds: list[int]
    fewer: bool
    """Whether an arm has more seeds than count here."""
    bases: list[Run]

    @property
    def highest(self) -> list[str]:
        """The first arm, and those that end as high."""
        means = {arm: accuracy(runs, selected).mean for arm, runs in self.runs.items()}
        return [arm for arm in means if round(max(means.values()) - means[arm], 9) == 0]


def verdicts(results: Results, ending: str) -> Verdicts:
    """Say of each setting which arm is highest, which others it is significantly above, and which it is not."""
    rankings = [_ranked(results, setting) for setting in results.settings]
    compared = [_compared(results, ranking) for ranking in rankings]
    ps = iter(holm([one.difference.p for of_setting in compared for one in of_setting]))
    sentences = [
        f"{ranking.setting.words}: " + _told(ranking, [(one, next(ps)) for one in of_setting], ending)
        for ranking, of_setting in zip(rankings, compared, strict=True)
    ]
    return Verdicts(sentences, _note(rankings) if any(compared) else "")


def _note(rankings: Sequence[_Ranking]) -> str:
    told = (
        "In brackets: points, and their 95 % interval (paired bootstrap over test questions). Significantly: p below "
        f"{_LEVEL} by the same, with Holm's correction for all comparisons in these sentences. This is about the "
        "models that were trained"
    )
    several = any(len(ranking.seeds) > 1 for ranking in rankings)
    told += ": how far training scatters is in the standard errors over seeds." if several else ", with one seed."
    if any(len(ranking.runs) > 1 for ranking in rankings):
        told += " The highest arm is picked by the same questions that compare it, which flatters it."
    return told


def _ranked(results: Results, setting: Setting) -> _Ranking:
    runs = {arm: of_arm for arm in results.arms if (of_arm := results.of(setting, arm))}
    seeds = sorted(set.intersection(*({run.config.seed for run in of_arm} for of_arm in runs.values())))
    counted = {arm: _with_seeds(of_arm, seeds) for arm, of_arm in runs.items()}
    ranked = sorted(counted, key=lambda arm: -accuracy(counted[arm], selected).mean) if seeds else list(counted)
    fewer = any(len(of_arm) > len(seeds) for of_arm in runs.values())
    bases = _with_seeds(results.bases(setting), seeds)
    return _Ranking(setting, {arm: counted[arm] for arm in ranked}, seeds, fewer, bases)


def _with_seeds(runs: Sequence[Run], seeds: Collection[int]) -> list[Run]:
    return [run for run in runs if run.config.seed in seeds]


def _compared(results: Results, ranking: _Ranking) -> list[WithinSetting]:
    """The highest arm against the others and the base model, where anything was trained."""
    if not ranking.seeds or _untrained(ranking):
        return []
    best, *tied = ranking.highest
    others = [arm for arm in [*ranking.runs, BASE] if arm not in (best, *tied)]
    found = [within(results, ranking.setting, best, other, ranking.seeds) for other in others]
    return [one for one in found if one is not None]


def _untrained(ranking: _Ranking) -> bool:
    return all(len(run.iterations) == 1 for runs in ranking.runs.values() for run in runs)


def _told(ranking: _Ranking, compared: Sequence[tuple[WithinSetting, float]], ending: str) -> str:
    if not ranking.seeds:
        return "its arms share no seed, so nothing is compared."
    if _untrained(ranking):
        return f"only the base model is evaluated, {percents(accuracy(ranking.bases, base))} %."
    highest = ranking.highest
    reached = f"{percents(accuracy(ranking.runs[highest[0]], selected))} %"
    if len(ranking.runs) == 1:
        told = f"{highest[0]} reaches {reached} in {ending}"
    else:
        told = f"{_and(highest)} {'have' if len(highest) > 1 else 'has'} the highest accuracy of {ending}, {reached}"
    if ranking.fewer:
        told += f" over seed{'s' * (len(ranking.seeds) > 1)} {', '.join(map(str, ranking.seeds))}, which all arms have"
    kinds: dict[str, list[str]] = {"significantly above": [], "significantly below": [], "not significantly above": []}
    for one, p in compared:
        kind = "not significantly above" if p >= _LEVEL else f"significantly {_side(one)}"
        kinds[kind].append(_with_interval(one))
    parts = "; ".join(f"{kind} {_and(names)}" for kind, names in kinds.items() if names)
    of_first = f"; {highest[0]} is " if len(highest) > 1 else ": "
    return told + (of_first + parts if parts else "") + "." + _unlike(ranking) + _beside(ranking)


def _side(one: WithinSetting) -> str:
    return "above" if one.difference.mean > 0 else "below"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _with_interval(one: WithinSetting) -> str:
    points = [100 * value for value in (one.difference.mean, one.difference.low, one.difference.high)]
    return "{} ({:+.1f}, {:+.1f} to {:+.1f})".format(one.other, *points)


def _unlike(ranking: _Ranking) -> str:
    """Which arms were not asked the same questions as the highest, so that their tables are not to be compared."""
    asked = {
        arm: {(run.config.seed, question) for run in runs for question in run.scores(run.selected.iteration)}
        for arm, runs in ranking.runs.items()
    }
    first = ranking.highest[0]
    names = [
        arm if asked[arm] & asked[first] else f"{arm} (none in common)" for arm in asked if asked[arm] != asked[first]
    ]
    return (
        f" Not asked the same questions as {first}, and compared on common ones alone: {_and(names)}." if names else ""
    )


def _beside(ranking: _Ranking) -> str:
    """What needs no training, where it does as well."""
    reached = accuracy(ranking.runs[ranking.highest[0]], selected).mean
    before = accuracy(ranking.bases, base).mean
    majority = mean([base(run).evaluation.majority_accuracy for run in ranking.bases])
    told = f" The base model reaches {100 * before:.1f} % as it is." if before >= reached else ""
    return told + (
        f" Always giving the most frequent answer would reach {100 * majority:.1f} %." if majority >= reached else ""
    )
