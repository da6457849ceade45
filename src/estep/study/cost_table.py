"""A study's estimated cost as a table for a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from estep.config import served_model, short_task
from estep.report.terminal import NOTHING, duration
from estep.study.grid import Cell

if TYPE_CHECKING:
    from estep.study.cost import Estimate


def estimate_table(estimates: Sequence["Estimate"], title: str) -> Table:
    """The estimated cost of each cell of a study, and the total."""
    table = Table(
        title=f"study {title}: {len(estimates)} run{'s' * (len(estimates) != 1)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    coordinates = [_coordinates(one.cell) for one in estimates]
    several = len({one.cell.config.model for one in estimates}) > 1
    columns = [key for key in coordinates[0] if any(at[key] for at in coordinates) and (key != "model" or several)]
    for key in columns:
        table.add_column(key, overflow="fold", no_wrap=key in ("arm", "seed"))
    for column in ("draws", "tokens", "about", "at most"):
        table.add_column(column, justify="right", no_wrap=True)
    for one, at in zip(estimates, coordinates, strict=True):
        names = [at[key] for key in columns]
        if one.note:
            table.add_row(*names, *[NOTHING] * 3, one.note)
        else:
            draws, tokens, seconds = one.about
            most = duration(one.at_most.seconds)
            table.add_row(*names, f"{draws:,.0f}", f"{tokens:,.0f}", duration(seconds), most)
    known = [one for one in estimates if not math.isnan(one.about.seconds)]
    if known:
        table.add_section()
        name = "total" if len(known) == len(estimates) else "total of those known"
        about = [sum(one.about[n] for one in known) for n in range(3)]
        whole = duration(sum(one.at_most.seconds for one in known))
        rest = [""] * (len(columns) - 1)
        table.add_row(name, *rest, f"{about[0]:,.0f}", f"{about[1]:,.0f}", duration(about[2]), whole)
    caption = (
        "about: with the base model's acceptance rates in every iteration. at most: with every possible draw and pair."
    )
    if any(one.about.draws == 0 and not one.note for one in estimates):
        caption += " No draws: the run trains on answers alone, or reuses the training of another run."
    if any(served_model(one.cell.config.proposal) for one in estimates):
        caption += " Draws from a served model are counted as draws from the trained model."
    table.caption = caption
    table.caption_justify = "left"
    return table


def _coordinates(cell: Cell) -> dict[str, str]:
    """The values of a cell on the axes of its grid."""
    config = cell.config
    return {
        "task": short_task(config.task),
        "model": Path(config.model).name,
        "arm": cell.compared_as,
        "setting": cell.compared_on,
        "seed": str(config.seed),
    }
