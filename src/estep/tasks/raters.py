"""The ratings of several people for a row: how a task file says to read them, and which answers they stand for.

Nothing here reaches a prompt. Reports measure with it how well people agree.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from estep.errors import DataError
from estep.records import Rating
from estep.tasks.columns import is_missing, number
from estep.tasks.file import RatersSection, TaskFile

Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True)
class RatingReader:
    """Reads the ratings of a task whose file has `raters`."""

    file: TaskFile

    @property
    def section(self) -> RatersSection:
        """The section `raters` of the task file."""
        assert self.file.raters is not None, "the task file names no raters"
        return self.file.raters

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each person, who has the same place in all rows; empty where one field lists the ratings: a place
        in it may belong to different people."""
        return () if isinstance(self.section.fields, str) else self.section.fields

    @property
    def level(self) -> Level:
        """The level of measurement: labels are nominal. Scores are ordinal; with thresholds their mean counts, which
        takes them as an interval scale."""
        if self.file.answer.type != "integer":
            return "nominal"
        given = self.section.thresholds is not None or self.file.gold.thresholds is not None
        return "interval" if given else "ordinal"

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """What turns a rating into a score; empty for labels."""
        spec = self.file.answer
        if spec.type != "integer":
            return ()
        given = self.section.thresholds or self.file.gold.thresholds
        return given or tuple(score + 0.5 for score in range(spec.min, spec.max))

    @cached_property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest rating that is allowed."""
        if self.section.range is not None:
            return self.section.range
        if self.section.thresholds is None and self.file.gold.thresholds is not None:
            return self.file.gold.range or (-math.inf, math.inf)
        if self.section.thresholds is None and self.file.answer.type == "integer":
            return (self.file.answer.min, self.file.answer.max)
        return (-math.inf, math.inf)

    def read(self, cells: Sequence[Any]) -> tuple[Rating | None, ...]:
        """The ratings of a row; empty if it has none.

        Args:
            cells: the values of the fields that `raters.fields` names.

        Raises:
            DataError: a value is neither a rating nor missing.
        """
        fields = self.section.fields
        if isinstance(fields, str):
            return tuple(self._rating(cell, fields) for cell in _listed(cells[0], fields) if not is_missing(cell))
        ratings = [
            None if is_missing(cell) else self._rating(cell, name) for cell, name in zip(cells, fields, strict=True)
        ]
        return tuple(ratings) if any(rating is not None for rating in ratings) else ()

    def _rating(self, cell: Any, name: str) -> Rating:
        spec = self.file.answer
        if spec.type != "integer":
            label = spec.canonical(cell)
            if label is None:
                raise DataError(f"raters: {name} has the label {cell!r}, which is not allowed")
            return label
        value = number(cell)
        if value is None:
            raise DataError(f"raters: {name} has {cell!r}, which is no number and not empty")
        lowest, highest = self.range
        if not lowest <= value <= highest:
            raise DataError(
                f"raters: {name} has {cell!r}, outside the ratings' range of {lowest:g} to {highest:g} (raters.range); "
                "ratings on another scale need raters.thresholds of their own"
            )
        return int(value) if value == value.to_integral_value() else float(value)

    def answer(self, rating: Rating) -> str:
        """The answer that a single rating stands for."""
        return rating if isinstance(rating, str) else self._score(rating)

    def consensus(self, ratings: Sequence[Rating]) -> tuple[str, ...]:
        """The answer that ratings give together: the score of their mean, or the label that more people gave than any
        other; several labels if they tie.

        Args:
            ratings: at least one.
        """
        numbers = [rating for rating in ratings if not isinstance(rating, str)]
        if numbers:
            return (self._score(fmean(numbers)),)
        counts = Counter(map(str, ratings))
        return tuple(sorted(label for label, count in counts.items() if count == max(counts.values())))

    def _score(self, rating: float) -> str:
        assert self.file.answer.type == "integer"
        return str(self.file.answer.min + sum(rating >= threshold for threshold in self.thresholds))


def _listed(cell: Any, name: str) -> Sequence[Any]:
    """The values in a field that lists them, in a table also as `[1, 2, 2]`."""
    if isinstance(cell, str) and not is_missing(cell):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise DataError(f"raters: {name} has {cell!r}, which is no list such as [1, 2, 2]") from None
    if is_missing(cell):
        return ()
    if not isinstance(cell, list | tuple):
        raise DataError(f"raters: {name} has {cell!r}, which is no list of ratings")
    return cell
