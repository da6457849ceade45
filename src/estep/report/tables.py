"""A run's metrics as tables for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from estep.config import served_model, short_task
from estep.grid import Cell
from estep.metrics import Evaluation, IterationMetrics

if TYPE_CHECKING:
    from estep.calibration import Estimate

NOTHING = "–"
"""Stands for what is not defined."""


def percent(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.1%}"


def number(value: float, digits: int = 2) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def run_table(iterations: Sequence[IterationMetrics], title: str) -> Table:
    """One row an iteration; the paper's three measures first."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("iter.", no_wrap=True)
    for column in ("accuracy", "used", "words", "parsed", "kappa", "MAE", "distinct", "loss", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for metrics in iterations:
        evaluation, e_step, m_step = metrics.evaluation, metrics.e_step, metrics.m_step
        table.add_row(
            "base" if metrics.iteration == 0 else str(metrics.iteration),
            percent(evaluation.accuracy),
            percent(e_step.data_utilisation) if e_step else "–",
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
        "used: accepted draws; words, distinct: of the rationales"
    )
    return table


def estimate_table(estimates: Sequence["Estimate"], title: str) -> Table:
    """What a study's cells will cost, and all of them together."""
    table = Table(
        title=f"study {title}: {len(estimates)} run{'s' * (len(estimates) != 1)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    places = [_place(one.cell) for one in estimates]
    several = len({one.cell.config.model for one in estimates}) > 1
    told = [key for key in places[0] if any(place[key] for place in places) and (key != "model" or several)]
    for key in told:
        table.add_column(key, overflow="fold", no_wrap=key in ("arm", "seed"))
    for column in ("draws", "tokens", "about", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for one, place in zip(estimates, places, strict=True):
        names = [place[key] for key in told]
        if one.note:
            table.add_row(*names, *[NOTHING] * 3, one.note)
        else:
            draws, tokens, seconds = one.about
            most = duration(one.at_most.seconds)
            table.add_row(*names, f"{draws:,.0f}", f"{tokens:,.0f}", duration(seconds), most)
    known = [one for one in estimates if not math.isnan(one.about.seconds)]
    if known:
        table.add_section()
        name = "all" if len(known) == len(estimates) else "all that is known"
        about = [sum(one.about[n] for one in known) for n in range(3)]
        whole = duration(sum(one.at_most.seconds for one in known))
        rest = [""] * (len(told) - 1)
        table.add_row(name, *rest, f"{about[0]:,.0f}", f"{about[1]:,.0f}", duration(about[2]), whole)
    caption = (
        "about: with the base model's acceptance rates in every iteration; at most: with every draw and every pair."
    )
    if any(one.about.draws == 0 and not one.note for one in estimates):
        caption += " Without draws: answers alone, or a training that is taken over from another run."
    if any(served_model(one.cell.config.proposal) for one in estimates):
        caption += " Draws of a served model are counted as this model's."
    table.caption = caption
    table.caption_justify = "left"
    return table


def _place(cell: Cell) -> dict[str, str]:
    """Where a cell stands in its grid."""
    config = cell.config
    return {
        "task": short_task(config.task),
        "model": Path(config.model).name,
        "arm": cell.compared_as,
        "setting": cell.compared_on,
        "seed": str(config.seed),
    }


def duration(seconds: float) -> str:
    """For people.

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
