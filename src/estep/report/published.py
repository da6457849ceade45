"""The paper's Tables 1 to 5 as data (Lee et al., 2025): the highest test accuracy over iterations in percent, averaged
over three seeds. The paper does not state whether it averages before or after it takes the highest."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """A cell of one of the paper's tables."""

    table: int
    model: str
    """As `estep.models.registry` names it."""
    task: str
    arm: str
    """`base`, `rejection-1`, `rejection-3`, `rejection-5`, `star` or `pps`."""
    hint: str
    """The hint variant: `strict` (Figure 1), `plain` (PPS2, STaR2) or `bare` (PPS3, STaR3)."""
    train_size: int
    accuracy: float
    """In percent."""


def published() -> Iterator[Published]:
    """All cells, in the order of the tables. Base and RS appear in several tables, with slightly different values."""
    with Path(__file__).with_name("paper_tables.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Published(
                int(row["table"]),
                row["model"],
                row["task"],
                row["arm"],
                row["hint"],
                int(row["train_size"]),
                float(row["accuracy"]),
            )
