"""The sentences that open a report: each setting's highest arm, and which of the others it beats significantly."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from estep.config.names import BASE
from estep.metrics import mean
from estep.report.comparisons import WithinSetting, base, final, within
from estep.report.results import Results, Run, Setting
from estep.report.stats import holm
from estep.report.tables import accuracy, mean_and_error

_LEVEL = 0.05


class Conclusions(NamedTuple):
    """The opening of a report."""

    sentences: list[str]
    """One per setting."""
    note: str
    """What "significantly" means there, and what it leaves open; empty if nothing is compared."""


@dataclass(frozen=True)
class _Ranking:
    """A setting's arms by their final accuracy, over the seeds that all of them have."""

    setting: Setting
    runs: dict[str, list[Run]]
    """Each arm's runs, the highest arm first."""
    seeds: list[int]
    fewer: bool
    """Whether an arm has seeds that are not used here."""
    bases: list[Run]

    @property
    def highest(self) -> list[str]:
        """The first arm and those that tie with it."""
        means = {arm: accuracy(runs, final).mean for arm, runs in self.runs.items()}
        return [arm for arm in means if round(max(means.values()) - means[arm], 9) == 0]


def conclusions(results: Results, ending: str) -> Conclusions:
    """For each setting, state which arm is highest and which others it is, or is not, significantly above.

    Args:
        ending: the iteration that the runs end in, in words.
    """
    rankings = [_ranked(results, setting) for setting in results.settings]
    compared = [_compared(results, ranking) for ranking in rankings]
    ps = iter(holm([one.p for of_setting in compared for one in of_setting]))
    sentences = [
        f"{ranking.setting.words}: " + _sentence(ranking, [(one, next(ps)) for one in of_setting], ending)
        for ranking, of_setting in zip(rankings, compared, strict=True)
    ]
    return Conclusions(sentences, _note(rankings) if any(compared) else "")


def _note(rankings: Sequence[_Ranking]) -> str:
    text = (
        "In parentheses: the difference in percentage points and its 95 % interval (paired bootstrap over test "
        f'questions). "Significantly" means p below {_LEVEL} by both the bootstrap and an exact two-sided sign test '
        "over the questions on which the two arms differ, with Holm's correction for all comparisons in these "
        "sentences. "
        "The tests apply to these trained models; "
    )
    if any(len(ranking.seeds) > 1 for ranking in rankings):
        text += "the standard errors over seeds show how much training varies."
    else:
        text += "with one seed, how much training varies is unknown."
    if any(len(ranking.runs) > 1 for ranking in rankings):
        text += " The highest arm is chosen on the same questions that it is compared on, which favors it."
    return text


def _ranked(results: Results, setting: Setting) -> _Ranking:
    runs = {arm: of_arm for arm in results.arms if (of_arm := results.of(setting, arm))}
    seeds = sorted(set.intersection(*({run.config.seed for run in of_arm} for of_arm in runs.values())))
    counted = {arm: _with_seeds(of_arm, seeds) for arm, of_arm in runs.items()}
    ranked = sorted(counted, key=lambda arm: -accuracy(counted[arm], final).mean) if seeds else list(counted)
    fewer = any(len(of_arm) > len(seeds) for of_arm in runs.values())
    bases = _with_seeds(results.bases(setting), seeds)
    return _Ranking(setting, {arm: counted[arm] for arm in ranked}, seeds, fewer, bases)


def _with_seeds(runs: Sequence[Run], seeds: Collection[int]) -> list[Run]:
    return [run for run in runs if run.config.seed in seeds]


def _compared(results: Results, ranking: _Ranking) -> list[WithinSetting]:
    """The highest arm against the others and the base model; nothing if no run has been trained."""
    if not ranking.seeds or _untrained(ranking):
        return []
    best, *tied = ranking.highest
    others = [arm for arm in [*ranking.runs, BASE] if arm not in (best, *tied)]
    found = [within(results, ranking.setting, best, other, ranking.seeds) for other in others]
    return [one for one in found if one is not None]


def _untrained(ranking: _Ranking) -> bool:
    return all(len(run.iterations) == 1 for runs in ranking.runs.values() for run in runs)


def _sentence(ranking: _Ranking, compared: Sequence[tuple[WithinSetting, float]], ending: str) -> str:
    if not ranking.seeds:
        return "its arms share no seed, so nothing is compared."
    if _untrained(ranking):
        return f"only the base model has been evaluated: {mean_and_error(accuracy(ranking.bases, base))} %."
    highest = ranking.highest
    reached = f"{mean_and_error(accuracy(ranking.runs[highest[0]], final))} %"
    if len(ranking.runs) == 1:
        text = f"{highest[0]} reaches {reached} in {ending}"
    else:
        text = f"{_and(highest)} {'have' if len(highest) > 1 else 'has'} the highest accuracy in {ending}, {reached}"
    if ranking.fewer:
        seeds = ", ".join(map(str, ranking.seeds))
        text += f" over seed{'s' * (len(ranking.seeds) > 1)} {seeds} (shared by all arms)"
    kinds: dict[str, list[str]] = {"significantly above": [], "significantly below": [], "not significantly above": []}
    for one, p in compared:
        kind = "not significantly above" if p >= _LEVEL else f"significantly {_side(one)}"
        kinds[kind].append(_with_interval(one))
    parts = "; ".join(f"{kind} {_and(names)}" for kind, names in kinds.items() if names)
    of_first = f"; {highest[0]} is " if len(highest) > 1 else ": "
    return text + (of_first + parts if parts else "") + "." + _other_questions(ranking) + _without_training(ranking)


def _side(one: WithinSetting) -> str:
    return "above" if one.difference.mean > 0 else "below"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _with_interval(one: WithinSetting) -> str:
    points = [100 * value for value in (one.difference.mean, one.difference.low, one.difference.high)]
    return "{} ({:+.1f}, {:+.1f} to {:+.1f})".format(one.other, *points)


def _other_questions(ranking: _Ranking) -> str:
    """Name the arms whose test questions differ from the highest arm's: their accuracies are not comparable."""
    asked = {
        arm: {(run.config.seed, question) for run in runs for question in run.scores(run.final.iteration)}
        for arm, runs in ranking.runs.items()
    }
    first = ranking.highest[0]
    names = [
        arm if asked[arm] & asked[first] else f"{arm} (none shared)" for arm in asked if asked[arm] != asked[first]
    ]
    if not names:
        return ""
    return f" Not asked the same questions as {first}, and compared with it on shared ones only: {_and(names)}."


def _without_training(ranking: _Ranking) -> str:
    """Name what needs no training and does at least as well."""
    reached = accuracy(ranking.runs[ranking.highest[0]], final).mean
    before = accuracy(ranking.bases, base).mean
    majority = mean([base(run).evaluation.majority_accuracy for run in ranking.bases])
    text = f" The base model reaches {100 * before:.1f} % without training." if before >= reached else ""
    if majority >= reached:
        text += f" Always giving the most frequent answer would reach {100 * majority:.1f} %."
    return text
