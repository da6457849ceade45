"""The report's tables."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from estep.config import RunConfig, served_model
from estep.config.files import load_config
from estep.config.names import BASE, arm_name, file_name
from estep.metrics import mean, standard_error
from estep.models.registry import HUB_MODELS
from estep.report.comparisons import OverSettings, Pick, WithinSetting, base, final, highest
from estep.report.published import Published, published
from estep.report.results import Results, Run, Setting
from estep.report.stats import Interval, wilson
from estep.report.terminal import NOTHING, number, p_value

MAJORITY = "most frequent answer"


@dataclass(frozen=True)
class ReportTable:
    """A table whose cells are formatted text."""

    name: str
    """The stem of its file names."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) that are printed in bold."""

    @property
    def text_columns(self) -> set[int]:
        """The columns of names and words, aligned left: the first, and those where a cell begins with a letter."""
        cells = {column: [row[column] for row in self.rows] for column in range(len(self.columns))}
        return {0} | {column for column, texts in cells.items() if any(text[:1].isalpha() for text in texts)}


def setting_table(
    setting: Setting, name: str, title: str, content: tuple[Sequence[str], Sequence[tuple[str, ...]]], note: str
) -> ReportTable:
    """A table about one setting, which its name and title end in.

    Args:
        content: columns and rows.
    """
    columns, rows = content
    return ReportTable(
        file_name(f"{name}-{setting.words}"), f"{title}: {setting.words}", tuple(columns), tuple(rows), note
    )


class Spread(NamedTuple):
    """A measure over seeds."""

    mean: float
    error: float
    """One standard error; NaN for a single seed."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error of the values that are defined."""
    known = [value for value in values if not math.isnan(value)]
    return Spread(mean(known), standard_error(known))


def accuracy(runs: Sequence[Run], pick: Pick) -> Spread:
    """Test accuracy over runs, one per seed."""
    return spread([pick(run).evaluation.accuracy for run in runs])


def confidence(runs: Sequence[Run], pick: Pick) -> Interval:
    """Wilson's 95 % interval of the accuracy.

    Each question counts once, however many seeds and samples answer it. Their answers are correlated, so counting each
    of them would make the interval too narrow; counting the question once makes it too wide, if anything.
    """
    questions = {question for run in runs for question in run.scores(pick(run).iteration)}
    return wilson(round(accuracy(runs, pick).mean * len(questions)), len(questions))


# Cells


def percent_number(value: float, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    return NOTHING if math.isnan(value) else f"{100 * value:.{digits}f}"


def mean_and_error(value: Spread) -> str:
    """In percent without the sign, with one standard error if there are several seeds."""
    return percent_number(value.mean) + ("" if math.isnan(value.error) else f" ± {percent_number(value.error)}")


# Tables


def accuracy_table(results: Results, pick: Pick, name: str, title: str, note: str) -> ReportTable:
    """Mean accuracy and one standard error over seeds, in percent; a row per arm, a column per setting."""
    rows: list[list[str]] = [[BASE], *([arm] for arm in results.arms), [MAJORITY]]
    best = set()
    for column, setting in enumerate(results.settings, 1):
        bases = results.bases(setting)
        of_arms = [results.of(setting, arm) for arm in results.arms]
        most = max(map(len, of_arms))
        cells = [accuracy(bases, base), *(accuracy(runs, pick) for runs in of_arms)]
        top = max(cell.mean for cell in cells if not math.isnan(cell.mean))
        best |= {(row, column) for row, cell in enumerate(cells) if round(cell.mean - top, 9) == 0}
        fewer = ["", *(f" ({len(runs)} of {most} seeds)" if 0 < len(runs) < most else "" for runs in of_arms), ""]
        majority = spread([base(run).evaluation.majority_accuracy for run in bases])
        for row, cell, seeds in zip(rows, [*cells, majority], fewer, strict=True):
            row.append(mean_and_error(cell) + seeds)
    columns = ("", *map(results.name_of, results.settings))
    return ReportTable(name, title, columns, tuple(map(tuple, rows)), note, frozenset(best))


def measures_table(results: Results, setting: Setting, ending: str) -> ReportTable:
    """Every measure of the iteration that the runs end in, on one setting."""
    columns = ("", "accuracy", "95 %", "kappa", "MAE", "parsed", "words", "distinct", "used", "tokens per pair")
    rows = [_measures(BASE, results.bases(setting), base)]
    rows += [_measures(arm, runs, final) for arm in results.arms if (runs := results.of(setting, arm))]
    note = (
        f"Means over seeds, measured in {ending}. Accuracy, parsed, distinct and used are in percent. 95 %: Wilson's "
        "interval, with each question counted once. Kappa: Cohen's, with quadratic weights. MAE: mean absolute error "
        "in points of the scale. Words, distinct: length and share of distinct texts of the test rationales. Used: "
        "data utilization, the share of attempts accepted; retries after a failure belong to the same attempt. Tokens "
        "per pair: new tokens sampled per accepted pair."
    )
    return ReportTable(file_name(f"measures-{setting.words}"), setting.words, columns, tuple(rows), note)


def _measures(arm: str, runs: Sequence[Run], pick: Pick) -> tuple[str, ...]:
    evaluations = [pick(run).evaluation for run in runs]
    steps = [step for run in runs if (step := pick(run).e_step) is not None]
    low, high = confidence(runs, pick)
    return (
        arm,
        mean_and_error(accuracy(runs, pick)),
        f"{percent_number(low)}–{percent_number(high)}",
        number(spread([one.kappa for one in evaluations]).mean),
        number(spread([one.mae for one in evaluations]).mean),
        percent_number(spread([one.parse_rate for one in evaluations]).mean),
        number(spread([one.reasoning_words for one in evaluations]).mean, 1),
        percent_number(spread([one.distinct_rationales for one in evaluations]).mean),
        percent_number(spread([step.data_utilization for step in steps]).mean),
        number(spread([step.tokens_per_pair for step in steps]).mean, 0),
    )


def within_table(compared: Sequence[WithinSetting], reference: str, ending: str) -> ReportTable:
    """The reference against the others, setting by setting."""
    columns = ["task", "model", "setting", "against", "difference", "95 %"]
    columns += ["p (bootstrap)", "won : lost", "p (sign test)", "p (Holm)"]
    rows = [
        (
            *one.setting,
            one.other,
            f"{100 * one.difference.mean:+.1f}",
            f"{100 * one.difference.low:+.1f} to {100 * one.difference.high:+.1f}",
            p_value(one.difference.p),
            f"{one.wins} : {one.losses}",
            p_value(one.sign_test),
            p_value(one.holm),
        )
        for one in compared
    ]
    note = (
        f"Difference: accuracy in {ending}, {reference} minus the other arm, in percentage points, with the 95 % "
        "interval and p-value of the paired bootstrap over test questions (Efron and Tibshirani, 1993); all answers to "
        f"a question are drawn together. Won : lost: questions on which {reference} scores higher : lower, summed over "
        "seeds. Sign test: exact and two-sided over those questions (Dixon and Mood, 1946); with one answer per "
        "question it is McNemar's exact test (1947). Holm: the larger of the two p-values, corrected over all rows "
        "(Holm, 1979), so that a difference is significant only if both tests say so. If the mean and the majority of "
        "questions favor different arms, it is 1. The tests apply to these trained models; only standard errors over "
        "several seeds show how much training varies."
    )
    title = f"{reference} against the others, setting by setting"
    return ReportTable("within-settings", title, *filled(columns, rows), note)


def filled(
    columns: Sequence[str], rows: Sequence[Sequence[str]], empty: Collection[str] = ("",)
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and rows without the columns that are empty in every row."""
    kept = [index for index in range(len(columns)) if not rows or any(row[index] not in empty for row in rows)]
    return tuple(columns[index] for index in kept), tuple(tuple(row[index] for index in kept) for row in rows)


def over_table(compared: Sequence[OverSettings], reference: str, ending: str) -> ReportTable:
    """The reference against the others over all settings."""
    words = {"highest": "highest over iterations", "final": ending}
    rows = tuple(
        (one.other, words[one.measure], str(one.wins), str(one.losses), str(one.ties), p_value(one.p))
        for one in compared
    )
    note = (
        "A setting's accuracy is the mean over seeds. p: exact one-sided sign test (Dixon and Mood, 1946). A tie "
        "counts as not won, as in the paper (Lee et al., 2025, section 4.2)."
    )
    columns = ("against", "accuracy", "won", "lost", "tied", "p")
    return ReportTable("over-settings", f"{reference} against the others, over all settings", columns, rows, note)


def paper_table(results: Results) -> ReportTable | None:
    """The paper's results beside ours; None if no cell of its tables was run."""
    known: dict[tuple[object, ...], Published] = {}
    for one in published():
        known.setdefault(_paper_key(one.model, one.task, one.arm, one.hint, one.train_size), one)
    rows = []
    for setting in results.settings:
        for arm in [BASE, *results.arms]:
            runs = results.bases(setting) if arm == BASE else results.of(setting, arm)
            theirs = known.get(_key_of(runs[0].config, arm == BASE)) if runs else None
            if theirs is not None and _as_published(runs[0].config):
                ours = accuracy(runs, base if arm == BASE else highest)
                cells = (f"{theirs.accuracy:.2f}", mean_and_error(ours), str(len(runs)), str(theirs.table))
                rows.append((setting.task, setting.model, setting.also, str(theirs.train_size), arm, *cells))
    if not rows:
        return None
    note = (
        "Mean over seeds of each run's highest test accuracy over iterations, in percent. Paper: Lee et al., 2025, the "
        "first of its tables with the same model, task, proposal, hint and training size. Runs whose other settings "
        "differ from the paper's are left out."
    )
    columns = ("task", "model", "setting", "trained on", "arm", "paper", "ours", "seeds", "paper's table")
    return ReportTable("paper", "Beside the paper's results", *filled(columns, rows), note)


def _as_published(config: RunConfig) -> bool:
    """Whether a run has the paper's settings, apart from proposal, model, task, training size and seed."""
    preset = load_config("paper/summarize" if config.task.startswith("summarize/") else "paper/helpsteer2")
    same: Any = {
        "iterations": True,
        "filters": True,
        "evaluation": True,
        "test_size": True,
        "few_shot": True,
        "data": True,
        "m_step": {"learning_rate", "epochs", "loss_reduction", "answer_weight", "replay", "init", "lora"},
        "engine": {"temperature", "top_p"},
    }
    return (
        config.model_dump(include=same) == preset.model_dump(include=same)
        and getattr(config.proposal, "n", 1) == 1
        and served_model(config.proposal) is None
    )


def _paper_key(model: str, task: str, arm: str, hint: str, train_size: int | None) -> tuple[object, ...]:
    """What identifies a cell of the paper's tables. Rejection sampling and the base model have no hint."""
    return model, task, arm, hint if arm in ("star", "pps") else None, train_size if arm != BASE else None


def _key_of(config: RunConfig, is_base: bool) -> tuple[object, ...]:
    short = {model.hub_id: name for name, model in HUB_MODELS.items()}
    model = short.get(config.model, config.model)
    hint = getattr(config.proposal, "hint", None) or "strict"  # the default of the paper's tasks
    return _paper_key(model, config.task, BASE if is_base else arm_name(config.proposal), hint, config.train_size)
