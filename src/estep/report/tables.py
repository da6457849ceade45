"""The report's tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from estep.config import RunConfig, served_model
from estep.config.files import load_config
from estep.config.names import BASE, arm_name, file_name
from estep.metrics import mean
from estep.models.registry import HUB_MODELS
from estep.report.comparisons import OverSettings, Pick, WithinSetting, base, highest, selected
from estep.report.published import Published, published
from estep.report.results import Results, Run, Setting
from estep.report.stats import Interval, standard_error, wilson
from estep.report.terminal import NOTHING, number

MAJORITY = "most frequent answer"


@dataclass(frozen=True)
class Sheet:
    """A table of texts."""

    name: str
    """Of its files."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Places (row, column) that are set in bold."""

    @property
    def text_columns(self) -> set[int]:
        """The columns of names and words, which are set to the left: the first, and those with a cell that begins with
        a letter."""
        cells = {column: [row[column] for row in self.rows] for column in range(len(self.columns))}
        return {0} | {column for column, texts in cells.items() if any(text[:1].isalpha() for text in texts)}


class Spread(NamedTuple):
    """A measure over seeds."""

    mean: float
    error: float
    """One standard error; NaN of a single seed."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error of the values that are defined."""
    known = [value for value in values if not math.isnan(value)]
    return Spread(mean(known), standard_error(known))


def accuracy(runs: Sequence[Run], pick: Pick) -> Spread:
    """Test accuracy over the seeds of a cell."""
    return spread([pick(run).evaluation.accuracy for run in runs])


def confidence(runs: Sequence[Run], pick: Pick) -> Interval:
    """Wilson's 95 % interval of the accuracy. Each question counts once, however many seeds and samples answer it:
    their answers depend on each other, so that the interval is rather too wide than too narrow."""
    questions = {question for run in runs for question in run.scores(pick(run).iteration)}
    return wilson(round(accuracy(runs, pick).mean * len(questions)), len(questions))


# Texts


def percent(value: float, digits: int = 1) -> str:
    return NOTHING if math.isnan(value) else f"{100 * value:.{digits}f}"


def percents(value: Spread) -> str:
    """In percent, with one standard error where there are several seeds."""
    return percent(value.mean) + ("" if math.isnan(value.error) else f" ± {percent(value.error)}")


def p_value(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# Tables


def accuracy_sheet(results: Results, pick: Pick, name: str, title: str, note: str) -> Sheet:
    """Arms down, settings across: mean accuracy and one standard error over seeds, in percent."""
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
            row.append(percents(cell) + seeds)
    columns = ("", *map(results.name_of, results.settings))
    return Sheet(name, title, columns, tuple(map(tuple, rows)), note, frozenset(best))


def measures_sheet(results: Results, setting: Setting, ending: str) -> Sheet:
    """Every measure of the iteration that the runs end in, on one setting."""
    columns = ("", "accuracy", "95 %", "kappa", "MAE", "parsed", "words", "distinct", "used", "new tokens a pair")
    rows = [_measures(BASE, results.bases(setting), base)]
    rows += [_measures(arm, runs, selected) for arm in results.arms if (runs := results.of(setting, arm))]
    note = (
        f"Of {ending}; means over seeds. Accuracy, parsed, distinct and used in percent. 95 %: Wilson's interval, each "
        "question counted once. Kappa: Cohen's, with quadratic weights; MAE: points of the scale. Words, distinct: of "
        "the test rationales. Used: data utilization, the share of the questions' draws that were accepted."
    )
    return Sheet(file_name(f"measures-{setting.words}"), setting.words, columns, tuple(rows), note)


def _measures(arm: str, runs: Sequence[Run], pick: Pick) -> tuple[str, ...]:
    evaluations = [pick(run).evaluation for run in runs]
    steps = [step for run in runs if (step := pick(run).e_step) is not None]
    low, high = confidence(runs, pick)
    return (
        arm,
        percents(accuracy(runs, pick)),
        f"{percent(low)}–{percent(high)}",
        number(spread([one.kappa for one in evaluations]).mean),
        number(spread([one.mae for one in evaluations]).mean),
        percent(spread([one.parse_rate for one in evaluations]).mean),
        number(spread([one.reasoning_words for one in evaluations]).mean, 1),
        percent(spread([one.distinct_rationales for one in evaluations]).mean),
        percent(spread([step.data_utilization for step in steps]).mean),
        number(spread([step.tokens_per_pair for step in steps]).mean, 0),
    )


def within_sheet(compared: Sequence[WithinSetting], reference: str, ending: str) -> Sheet:
    """The reference against the others, setting by setting."""
    columns = ["task", "model", "setting", "against", "difference", "95 %"]
    columns += ["p (bootstrap)", "only", "p (McNemar)", "p (Holm)"]
    rows = [
        (
            *one.setting,
            one.other,
            f"{100 * one.difference.mean:+.1f}",
            f"{100 * one.difference.low:+.1f} to {100 * one.difference.high:+.1f}",
            p_value(one.difference.p),
            f"{one.only_reference} : {one.only_other}" if not math.isnan(one.mcnemar) else NOTHING,
            p_value(one.mcnemar),
            p_value(one.holm),
        )
        for one in compared
    ]
    note = (
        f"Accuracy of {ending}, {reference} minus the other, in points. Paired bootstrap over test questions (Efron "
        "and Tibshirani, 1993), all answers to a question drawn together. Only: questions that one alone answered "
        f"right, {reference} first, each counted once. McNemar's exact test (1947), two-sided; Holm's correction "
        "(1979) over all rows. These tests hold for the trained models at hand: how far training itself scatters is in "
        "the standard errors over seeds."
    )
    title = f"{reference} against the others, setting by setting"
    return Sheet("within-settings", title, *_filled(columns, rows), note)


def _filled(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """A table without the columns that are empty in all rows."""
    kept = [place for place in range(len(columns)) if not rows or any(row[place] for row in rows)]
    return tuple(columns[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in rows)


def over_sheet(compared: Sequence[OverSettings], reference: str, ending: str) -> Sheet:
    """The reference against the others over all settings."""
    words = {"highest": "highest over iterations", "selected": ending}
    rows = tuple(
        (one.other, words[one.measure], str(one.wins), str(one.losses), str(one.ties), p_value(one.p))
        for one in compared
    )
    note = (
        "A setting's accuracy is the mean over seeds. The exact sign test (Dixon and Mood, "
        "1946), one-sided, with a tie counted as not won, as in the paper (Lee et al., 2025, section 4.2)."
    )
    columns = ("against", "accuracy", "won", "lost", "tied", "p")
    return Sheet("over-settings", f"{reference} against the others, over all settings", columns, rows, note)


def paper_sheet(results: Results) -> Sheet | None:
    """The paper's figures beside ours; None where no cell of its tables was run."""
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
                told = (f"{theirs.accuracy:.2f}", percents(ours), str(len(runs)), str(theirs.table))
                rows.append((setting.task, setting.model, setting.also, str(theirs.train_size), arm, *told))
    if not rows:
        return None
    note = (
        "Highest test accuracy over iterations in percent, mean over seeds. Paper: Lee et al., 2025, the first of its "
        "tables that has the cell: the same model, task, proposal, hint and training size. Runs with other settings "
        "than the paper's are left out."
    )
    columns = ("task", "model", "setting", "trained on", "arm", "paper", "ours", "seeds", "paper's table")
    return Sheet("paper", "Beside the paper's results", *_filled(columns, rows), note)


def _as_published(config: RunConfig) -> bool:
    """Whether a run does what the paper's runs do, but for its proposal, model, task, sizes and seed."""
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
    """What a cell of the paper's tables depends on: rejection sampling and the base model have no hint."""
    return model, task, arm, hint if arm in ("star", "pps") else None, train_size if arm != BASE else None


def _key_of(config: RunConfig, is_base: bool) -> tuple[object, ...]:
    short = {model.hub_id: name for name, model in HUB_MODELS.items()}
    model = short.get(config.model, config.model)
    hint = getattr(config.proposal, "hint", None) or "strict"  # the default of the paper's tasks
    return _paper_key(model, config.task, BASE if is_base else arm_name(config.proposal), hint, config.train_size)
