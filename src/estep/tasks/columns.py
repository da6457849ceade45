"""What the columns of a table seem to hold: the text, the score, the scores of several raters, an id, a group.

All of it is a proposal for `estep init`, from the names of the columns and from their cells. A person confirms it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from statistics import median
from typing import Any, Literal

from estep.errors import ConfigError, nearest
from estep.sources.rows import Row
from estep.tasks.numbers import decimal

Kind = Literal["text", "number", "label", "other"]

MOST_LABELS = 20
"""A column with more distinct values than this holds no labels."""
_MISSING = frozenset({"n/a", "na", "nan", "none", "null", "-", "--", "?", "."})
"""What people write into a cell without a value, in any case."""
_FEWEST_GROUPS = 10
"""With fewer groups, a random fifth of them is too arbitrary a test set to be proposed."""

# Parts of names in lower case, in English and German.
_TEXTS = (
    *("text", "review", "comment", "sentence", "body", "content", "message", "tweet", "post", "response", "summary"),
    *("feedback", "kommentar", "rezension", "satz", "nachricht", "antwort", "beitrag"),
)
_SCORES = (
    *("score", "rating", "stars", "grade", "gold", "mean", "average", "overall"),
    *("bewertung", "wertung", "punkt", "stern", "note", "durchschnitt", "mittel"),
)
_LABELS = (
    *("label", "class", "categor", "sentiment", "verdict", "gold", "intent"),
    *("klasse", "kategorie", "urteil", "stimmung"),
)
_RATERS = (
    *("rater", "annotator", "judge", "coder", "reviewer", "labeler", "labeller", "expert", "worker", "assessor"),
    *("gutachter", "bewerter", "prüfer", "person"),
)

_RATER_NUMBER = re.compile(rf"({'|'.join(_RATERS)})[\s_.-]*\d+", re.IGNORECASE)
"""In `rater1_clarity` and `rater2_clarity`, what tells the raters apart."""

# Whole words of names.
_IDS = frozenset({"id", "ids", "uuid", "key", "index", "nr", "no", "nummer", "number", "row", "zeile"})
_GROUPS = frozenset(
    {"group", "doc", "document", "prompt", "thread", "conversation", "article", "product", "user", "author", "customer"}
    | {"gruppe", "dokument", "artikel", "produkt", "nutzer", "autor", "kunde"}
)


@dataclass(frozen=True)
class Roles:
    """Which column is what. The answer is that of `score`, or the mean or majority of `raters` without a `score`."""

    text: str
    score: str | None = None
    raters: tuple[str, ...] = ()
    id: str | None = None
    group: str | None = None

    @property
    def golds(self) -> tuple[str, ...]:
        """The columns that the answer is made from."""
        return self.raters if self.score is None else (self.score,)


@dataclass(frozen=True)
class Column:
    """A column of a table; its cells in the order of the rows, None where a row has none."""

    name: str
    cells: tuple[Any, ...]

    @cached_property
    def filled(self) -> list[Any]:
        """The cells that hold a value."""
        return [cell for cell in self.cells if not is_missing(cell)]

    @cached_property
    def distinct(self) -> int:
        """The number of different values."""
        return len({str(cell).strip() for cell in self.filled})

    @property
    def identifies(self) -> bool:
        """Whether every row has a value that no other row has."""
        return self.distinct == len(self.cells)

    @cached_property
    def kind(self) -> Kind:
        """`number` where nine of ten values are numbers; `text` where most values are different and have several words
        (or one, if the column's name says that they are texts); `label` where few values repeat."""
        values = self.filled
        if not values or any(isinstance(value, list | tuple | Mapping | bytes) for value in values):
            return "other"
        if sum(number(value) is not None for value in values) >= 0.9 * len(values):
            return "number"
        half = len(values) / 2
        prose = _has_words if self.named(*_TEXTS) and not self.words & _IDS else _has_several_words
        if self.distinct > half and sum(prose(str(value)) for value in values) > half:
            return "text"
        return "label" if self.distinct <= min(MOST_LABELS, half) else "other"

    def named(self, *parts: str) -> bool:
        """Whether the name contains one of these parts."""
        return any(part in self.name.lower() for part in parts)

    @property
    def words(self) -> frozenset[str]:
        """The words of the name, as in `docId`, `doc_id` and `Doc. ID`."""
        apart = re.sub(r"(?<=[a-zäöüß])(?=[A-ZÄÖÜ])", " ", self.name)
        return frozenset(re.findall(r"[^\W\d_]+", apart.lower()))


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: no value, only space, or NaN."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or str(cell).strip() == ""


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no score or label: it is empty, or says so, as `n/a` does."""
    return is_empty(cell) or str(cell).strip().lower() in _MISSING


def number(cell: Any) -> Decimal | None:
    """The number in a cell, also with a decimal comma; None if there is none.

    >>> number("3,5"), number(" 4 "), number("4 stars")
    (Decimal('3.5'), Decimal('4'), None)
    """
    if isinstance(cell, str) and re.fullmatch(r"\s*[-+]?\d+,\d{1,2}\s*", cell):
        cell = cell.replace(",", ".")
    return decimal(cell)


def columns_of(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns of a table by name, in the order in which they first appear."""
    names = dict.fromkeys(name for _, row in rows for name in row if name.strip())
    return {name: Column(name, tuple(row.get(name) for _, row in rows)) for name in names}


def column(columns: Mapping[str, Column], name: str) -> Column:
    """A column by name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in columns:
        raise ConfigError(f"no column '{name}'; {nearest(name, columns)}")
    return columns[name]


def propose_text(columns: Mapping[str, Column]) -> str | None:
    """The column of texts: the longest texts, where a telling name counts three times. None if there is no text."""
    weights = {
        one.name: (3 if one.named(*_TEXTS) else 1) * median(len(str(cell)) for cell in one.filled)
        for one in columns.values()
        if one.kind == "text"
    }
    return max(weights, key=lambda name: weights[name], default=None)


def propose_raters(columns: Mapping[str, Column], text: str) -> tuple[str, ...]:
    """The columns of several raters, such as `rater1` and `rater2`, or `Gutachter A` and `Gutachter B`: the largest
    such group of one kind."""
    alike: dict[tuple[str, Kind], list[str]] = {}
    for one in columns.values():
        stem = _RATER_NUMBER.sub(r"\1", one.name)
        if stem == one.name:
            stem = re.sub(r"([\s_.-]*\d+|[\s_.-]+[A-Za-z])$", "", one.name)
        rates = stem != one.name and Column(stem, ()).named(*_RATERS, *_SCORES)
        if rates and one.name != text and one.kind in ("number", "label"):
            alike.setdefault((stem.lower(), one.kind), []).append(one.name)
    groups = [tuple(names) for names in alike.values() if len(names) > 1]
    return max(groups, key=lambda names: len(names), default=())


def propose_score(columns: Mapping[str, Column], text: str, raters: Sequence[str]) -> str | None:
    """The column with the score or label. None if there is none, or if the raters' columns serve instead."""
    telling = {name for name, one in columns.items() if one.named(*_SCORES, *_LABELS)}
    kept = [
        one
        for name, one in columns.items()
        if name not in (text, *raters) and (name in telling or (one.distinct > 1 and not one.words & (_IDS | _GROUPS)))
    ]
    numbers = [one for one in kept if one.kind == "number"]
    labels = [one for one in kept if one.kind == "label"]
    named = [one for one in (*numbers, *labels) if one.name in telling]
    if named or raters:
        varied = [one for one in named if one.distinct > 1]
        return next((one.name for one in (*varied, *named)), None)
    numbers.sort(key=lambda one: one.distinct)
    few = [one for one in numbers if one.distinct <= MOST_LABELS]
    return next((one.name for one in (*few, *labels, *numbers)), None)


def propose_id(columns: Mapping[str, Column], used: Sequence[str | None]) -> str | None:
    """The first column that is named as an id and identifies the rows."""
    named = (one for one in columns.values() if one.name not in used and one.words & _IDS)
    return next((one.name for one in named if one.identifies), None)


def propose_group(columns: Mapping[str, Column], used: Sequence[str | None]) -> str | None:
    """The first column that is named as an id or a document and whose values repeat."""
    named = (one for one in columns.values() if one.name not in used and one.words & (_IDS | _GROUPS))
    return next((one.name for one in named if len(one.filled) == len(one.cells) > one.distinct >= _FEWEST_GROUPS), None)


def _has_words(value: str) -> bool:
    return re.search(r"[^\W\d_]", value) is not None


def _has_several_words(value: str) -> bool:
    """Whether a value reads like prose: two words, or some characters of a script that writes no spaces."""
    return len(re.findall(r"[^\W\d_]+", value)) > 1 or len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]", value)) > 3
