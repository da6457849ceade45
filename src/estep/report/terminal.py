"""Metrics of a run as tables for a terminal."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from estep.metrics import Evaluation, IterationMetrics
from estep.report.compare import Comparison
from estep.report.stats import Interval

NOTHING = "–"
"""Printed in place of an undefined value."""


def percent(value: float) -> str:
    """A share in percent, with the sign."""
    return NOTHING if math.isnan(value) else f"{value:.1%}"


def number(value: float, digits: int = 2) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def p_value(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def run_table(iterations: Sequence[IterationMetrics], title: str) -> Table:
    """One row per iteration, with the paper's three measures first."""
    table = _table(title)
    table.add_column("iter.", no_wrap=True)
    for column in ("accuracy", "used", "words", "parsed", "kappa", "MAE", "distinct", "loss", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for metrics in iterations:
        evaluation, e_step, m_step = metrics.evaluation, metrics.e_step, metrics.m_step
        table.add_row(
            "base" if metrics.iteration == 0 else str(metrics.iteration),
            percent(evaluation.accuracy),
            percent(e_step.data_utilization) if e_step else "–",
            number(evaluation.reasoning_words, 1),
            percent(evaluation.parse_rate),
            number(evaluation.kappa),
            number(evaluation.mae),
            percent(evaluation.distinct_rationales),
            number(m_step.mean_loss) if m_step else "–",
            number(sum(metrics.seconds.values()), 0),
        )
    majority = iterations[0].evaluation.majority_accuracy
    table.caption = (
        f"majority class: {percent(majority)} of {iterations[0].evaluation.questions} test questions; "
        "used: share of attempts accepted; words, distinct: length and share of distinct rationales"
    )
    return table


def duration(seconds: float) -> str:
    """A time span in words.

    >>> duration(45), duration(130), duration(7260)
    ('45 s', '2 min', '2 h 1 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """Every measure of one evaluation."""
    table = Table("measure", "value", title=title, title_justify="left")
    table.add_row("accuracy", percent(evaluation.accuracy))
    table.add_row("majority class", percent(evaluation.majority_accuracy))
    table.add_row("parse rate", percent(evaluation.parse_rate))
    table.add_row("kappa (quadratic)", number(evaluation.kappa))
    table.add_row("mean absolute error", number(evaluation.mae))
    if not math.isnan(evaluation.expected_mae):
        table.add_row("mean absolute error of the expected score", number(evaluation.expected_mae))
    if not math.isnan(evaluation.calibration_error):
        table.add_row("expected calibration error", percent(evaluation.calibration_error))
    table.add_row("reasoning words", number(evaluation.reasoning_words, 1))
    table.add_row("distinct rationales", percent(evaluation.distinct_rationales))
    table.add_row("hint mentioned", percent(evaluation.hint_mentioned))
    table.add_row("predicted", histogram(evaluation.predicted))
    table.add_row("gold", histogram(evaluation.gold))
    table.add_row("questions", str(evaluation.questions))
    return table


def histogram(counts: dict[str, int]) -> str:
    """Counts on one line."""
    shown = list(counts.items())[:12]
    return "  ".join(f"{answer}: {count}" for answer, count in shown) + (" …" if len(counts) > len(shown) else "")


def arms_table(comparison: Comparison) -> Table:
    """One row per set of predictions."""
    table = _table(f"{comparison.questions} shared questions")
    table.add_column("arm", overflow="fold")
    for column in ("n", "accuracy", "95 % interval", "unparsed", *(("kappa", "MAE") if comparison.ordinal else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for one in comparison.arms:
        ordinal = [number(one.kappa), number(one.mae)] if comparison.ordinal else []
        accuracy = [percent(one.accuracy), _bounds(one.interval, 100, 1)]
        table.add_row(escape(one.name), str(one.questions), *accuracy, str(one.unparsed), *ordinal)
    return table


def comparisons_table(comparison: Comparison) -> Table:
    """One row per comparison with the reference."""
    table = _table(f"difference from {escape(comparison.reference)}, with a 95 % interval")
    table.add_column("arm", overflow="fold")
    for column in ("accuracy", "won", "lost", "p", *(("kappa",) if comparison.ordinal else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for one in comparison.comparisons:
        kappa = [_with_interval(_signed(one.kappa_difference, 2), one.kappa_interval, 1, 2)]
        table.add_row(
            escape(one.name),
            _with_interval(_signed(100 * one.difference, 1), one.interval, 100, 1),
            str(one.wins),
            str(one.losses),
            p_value(one.holm),
            *(kappa if comparison.ordinal else []),
        )
    table.caption = (
        "won, lost: questions that only the arm, or only the reference, answers correctly; p: McNemar's exact test, "
        "corrected for all comparisons (Holm)"
    )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")


def _signed(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:+.{digits}f}"


def _with_interval(value: str, interval: Interval, scale: float, digits: int) -> str:
    return value if value == NOTHING else f"{value} ({_bounds(interval, scale, digits, ', ')})"


def _bounds(interval: Interval, scale: float, digits: int, between: str = " to ") -> str:
    if math.isnan(interval.low):
        return NOTHING
    return f"{scale * interval.low:.{digits}f}{between}{scale * interval.high:.{digits}f}"
