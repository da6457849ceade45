"""Tables of the inside of the EM: diagnostics by iteration, and what each arm's likelihood and accuracy cost."""

import math
from collections.abc import Callable, Sequence

from estep.config.names import BASE, file_name
from estep.metrics import Diagnostics, EStepMetrics, IterationMetrics
from estep.report.comparisons import Pick, base, final
from estep.report.results import Results, Run, Setting
from estep.report.tables import ReportTable, accuracy, filled, mean_and_error, percent_number, spread
from estep.report.terminal import NOTHING, number

EMPTY = ("", NOTHING)


def diagnostics_table(results: Results, setting: Setting) -> ReportTable | None:
    """The diagnostics of every arm by iteration, means over seeds; None if no run has any."""
    columns = (
        "",
        "k",
        "used",
        "never",
        "distinct",
        "commonest",
        "copied",
        "steps",
        "price",
        "ESS",
        "log p̂",
        "dependence",
    )
    rows = []
    for arm in results.arms:
        runs = results.of(setting, arm)
        for k in range(1, max((len(run.iterations) for run in runs), default=0)):
            found = [run.iterations[k] for run in runs if k < len(run.iterations)]
            if any(one.diagnostics for one in found):
                rows.append((arm, str(k), *_figures(found), _warnings(found)))
    if not rows:
        return None
    note = (
        "Means over seeds of each iteration k. In percent: used, the share of attempts accepted; never, the questions "
        "from which nothing was accepted so far; distinct and commonest, the share of distinct accepted rationales and "
        "of the most frequent one; copied, the share of their word runs that come from the few-shot examples; steps, "
        "the share of their equations that hold. Price: how much more likely the hint makes a rationale, in nats per "
        "token. ESS: effective samples per question of the importance weights. Log p̂: estimated log-likelihood of the "
        "correct answer on the validation questions, in nats. Dependence: how much less likely the answer is after "
        "another question's rationale, in nats. Warnings: how many of the seeds gave each."
    )
    title = f"Inside the EM: {setting.words}"
    return ReportTable(
        file_name(f"diagnostics-{setting.words}"), title, *filled((*columns, "warnings"), rows, EMPTY), note
    )


def _figures(iterations: Sequence[IterationMetrics]) -> tuple[str, ...]:
    steps = [one.e_step for one in iterations if one.e_step is not None]
    inside = [one.diagnostics for one in iterations if one.diagnostics is not None]

    def share_of_step(figure: Callable[[EStepMetrics], float]) -> str:
        return percent_number(spread([figure(one) for one in steps]).mean, 0)

    def share(figure: Callable[[Diagnostics], float]) -> str:
        return percent_number(spread([figure(one) for one in inside]).mean, 0)

    def nats(figure: Callable[[Diagnostics], float]) -> str:
        return number(spread([figure(one) for one in inside]).mean)

    return (
        share_of_step(lambda one: one.data_utilization),
        share_of_step(lambda one: one.never_accepted),
        share_of_step(lambda one: one.distinct_rationales),
        share(lambda one: one.commonest_rationale),
        share(lambda one: one.example_overlap),
        share(lambda one: one.valid_steps),
        nats(lambda one: one.hint_price),
        nats(lambda one: one.effective_samples),
        nats(lambda one: one.log_likelihood),
        nats(lambda one: one.dependence),
    )


def _warnings(iterations: Sequence[IterationMetrics]) -> str:
    """Such as `starved 3, collapsed 1`."""
    names = [name for one in iterations if one.diagnostics is not None for name in one.diagnostics.warnings]
    return ", ".join(f"{name} {names.count(name)}" for name in dict.fromkeys(names))


def costs_table(results: Results, setting: Setting, ending: str) -> ReportTable:
    """Accuracy and likelihood of each arm, and the draws and seconds of its whole run; means over seeds."""
    columns = ("", "accuracy", "log p̂", "draws", "new tokens", "E-step s", "M-step s")
    rows = [_costs(results, BASE, results.bases(setting), base)]
    rows += [_costs(results, arm, runs, final) for arm in results.arms if (runs := results.of(setting, arm))]
    note = (
        f"Means over seeds. Accuracy, in percent, and log p̂, the estimated log-likelihood of the correct answer in "
        f"nats on the validation questions, in {ending}. Draws, new tokens and seconds: of all iterations together. "
        "Seconds depend on what else the machine did, and of an interrupted iteration only the last session counts. An "
        "arm that differs in its evaluation alone has the seconds of the training that it shares."
    )
    title = f"Costs: {setting.words}"
    return ReportTable(file_name(f"costs-{setting.words}"), title, *filled(columns, rows, EMPTY), note)


def _costs(results: Results, arm: str, runs: Sequence[Run], pick: Pick) -> tuple[str, ...]:
    ends = [pick(run).diagnostics for run in runs]
    likelihood = spread([one.log_likelihood if one is not None else math.nan for one in ends])
    if arm == BASE:
        return (arm, mean_and_error(accuracy(runs, pick)), _with_error(likelihood), *[NOTHING] * 4)

    def total(of: Callable[[IterationMetrics], float], runs: Sequence[Run] = runs) -> str:
        return number(spread([sum(of(one) for one in run.iterations[1:]) for run in runs]).mean, 0)

    trained = [source for run in runs if (source := results.trained_in(run)) is not None]

    return (
        arm,
        mean_and_error(accuracy(runs, pick)),
        _with_error(likelihood),
        total(lambda one: one.e_step.draws if one.e_step else 0),
        total(lambda one: one.tokens.get("e_step_new", 0)),
        total(lambda one: one.seconds.get("e_step", 0.0), trained),
        total(lambda one: one.seconds.get("m_step", 0.0), trained),
    )


def _with_error(value: tuple[float, float]) -> str:
    return number(value[0]) + ("" if math.isnan(value[1]) else f" ± {number(value[1])}")
