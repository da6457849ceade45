"""What a report says first: which variant ends highest on a task, and how sure that is."""

from collections.abc import Iterator

from estep.metrics import mean
from estep.report.comparisons import BASE, within
from estep.report.results import Results, Setting
from estep.report.sheets import accuracy, base, one_a_seed, percents, selected


def verdicts(results: Results, ending: str) -> Iterator[str]:
    """A sentence or two for each task and model. Of one variant alone, it is compared with the base model."""
    for setting in results.settings:
        where = f"{setting.task} with {setting.model}: "
        ranked = sorted(
            (variant for variant in results.variants if results.of(setting, variant)),
            key=lambda variant: -accuracy(results.of(setting, variant), selected).mean,
        )
        if len(results.of(setting, ranked[0])[0].iterations) == 1:
            alone = accuracy(one_a_seed(results, setting), base)
            yield f"{where}only the base model is evaluated, {percents(alone)} %."
            continue
        best, second = ranked[0], ranked[1] if len(ranked) > 1 else BASE
        reached = percents(accuracy(results.of(setting, best), selected))
        told = f"{best} has the highest accuracy of {ending}, {reached} %"
        yield f"{where}{told}{_against(results, setting, best, second)}{_majority(results, setting, best)}"


def _against(results: Results, setting: Setting, best: str, second: str) -> str:
    compared = within(results, setting, best, second)
    if compared is None:
        return f"; {second} has no run of the same seed to compare with."
    low, high = 100 * compared.difference.low, 100 * compared.difference.high
    interval = f"{100 * compared.difference.mean:+.1f} points, 95 % {low:+.1f} to {high:+.1f}"
    sure = "more than the choice of questions explains" if low > 0 else "too close to tell apart on these questions"
    return f"; against {second}, {interval}: {sure}."


def _majority(results: Results, setting: Setting, best: str) -> str:
    share = mean([base(run).evaluation.majority_accuracy for run in one_a_seed(results, setting)])
    if accuracy(results.of(setting, best), selected).mean > share:
        return ""
    return f" Always giving the most frequent answer would reach {100 * share:.1f} %."
