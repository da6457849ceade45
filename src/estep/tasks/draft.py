"""Drafts a task from a table: reads the answers, counts what cannot be used, and chooses the few-shot examples.

`draft_file` writes the draft as a task file. Refuses tables that nothing can be learned from.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from estep.errors import ConfigError, DataError
from estep.sources.rows import Row
from estep.tasks.answers import ChoiceAnswer, IntegerAnswer, TextAnswer
from estep.tasks.columns import MOST_LABELS, Column, Roles, column, columns_of, is_empty, is_missing, number
from estep.tasks.numbers import decimal

MOST_SCORES = 101
"""A scale has at most this many scores."""
_EXAMPLES = 7
"""Up to this many answers have an example each; of more, five have one."""
_LONGEST_EXAMPLE = 2000
_LONGEST_LABEL = 60
_CONTROL = re.compile(r"<\||\|>|</?s>|\[/?INST\]")


class Scale(NamedTuple):
    """The lowest and the highest score."""

    lowest: int
    highest: int


def read_scale(text: str) -> Scale:
    """A scale as people write it.

    >>> read_scale("0-4"), read_scale("-2 to 2")
    (Scale(lowest=0, highest=4), Scale(lowest=-2, highest=2))

    Raises:
        ConfigError: it is none, or has too many scores.
    """
    match = re.fullmatch(r"\s*(-?\d{1,6})\s*(?:-|–|to|\.\.)\s*(-?\d{1,6})\s*", text)
    scale = Scale(int(match[1]), int(match[2])) if match else None
    if scale is None or not 1 <= scale.highest - scale.lowest < MOST_SCORES:
        raise ConfigError(f"scale '{text}': 0-4 is expected, the lowest and the highest of 2 to {MOST_SCORES} integers")
    return scale


@dataclass(frozen=True)
class Scored:
    """A row that can be used."""

    location: str
    row: Mapping[str, Any]
    text: str
    gold: int | float | str
    """The score before it is rounded, or the label."""
    answer: str
    """The answer in canonical form."""
    spread: float
    """How much the raters differ: the range of their scores, or the share of those who gave another label."""

    @property
    def reads(self) -> str:
        """The text without regard to case and space."""
        return " ".join(self.text.lower().split())


@dataclass(frozen=True)
class Draft:
    """What a table is as a task."""

    roles: Roles
    columns: tuple[str, ...]
    usable: tuple[Scored, ...]
    left_out: dict[str, int]
    """Number of rows that cannot be used, by reason."""
    answer: IntegerAnswer | ChoiceAnswer | TextAnswer
    rounded: bool
    """Whether scores are rounded to integers."""
    as_it_is: bool
    """Whether a task file can read the table itself; otherwise, its usable rows need a file of their own."""
    unanimous: tuple[bool, ...]
    """For each row with at least two ratings, usable or not: whether all its raters say the same."""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of usable rows by answer: in the order of a scale or of letters, or by frequency."""
        found = Counter(one.answer for one in self.usable)
        return {answer: found[answer] for answer in self.answer.values if answer in found} or dict(found.most_common())

    @cached_property
    def contradictory(self) -> frozenset[str]:
        """Texts (see `Scored.reads`) that have different answers in different rows."""
        answers: dict[str, set[str]] = {}
        for one in self.usable:
            answers.setdefault(one.reads, set()).add(one.answer)
        return frozenset(text for text, given in answers.items() if len(given) > 1)

    @cached_property
    def examples(self) -> list[Scored]:
        """A few-shot example for each answer, the outermost first.

        Of the rows with an answer, the one is taken whose raters differ least, whose score needs little rounding, and
        whose length is closest to the median of all texts; 500 characters if the median is longer. Left out are texts
        with several answers, with control tokens or of more than 2,000 characters, and answers with a single text.
        """
        target = min(500, median(len(one.text) for one in self.usable))
        by_answer: dict[str, list[Scored]] = {}
        for one in self.usable:
            if one.reads not in self.contradictory and len(one.text) <= _LONGEST_EXAMPLE:
                by_answer.setdefault(one.answer, []).append(one)
        chosen = []
        for answer in _spread_out(list(self.counts)):
            there = by_answer.get(answer, [])
            clean = [one for one in there if not _CONTROL.search(one.text)]
            if clean and len({one.reads for one in there}) > 1:
                chosen.append(min(clean, key=lambda one: (one.spread, _is_between(one), abs(len(one.text) - target))))
        return chosen

    @property
    def agreement(self) -> float:
        """Of the rows with at least two ratings, the share whose raters all say the same; NaN without such a row."""
        return sum(self.unanimous) / len(self.unanimous) if self.unanimous else math.nan


def draft(rows: Sequence[Row], roles: Roles, labels: bool = False, scale: Scale | None = None) -> Draft:
    """Read a table as a task.

    Args:
        rows: all rows, with their locations.
        roles: which column is what.
        labels: take numbers as labels.
        scale: the lowest and highest score, which takes the numbers alone; None for those of the data.

    Raises:
        ConfigError: a column does not exist, or is named twice.
        DataError: nothing can be learned from these rows.
    """
    columns = columns_of(rows)
    _check_roles(columns, roles)
    if scale is None and has_labels(columns, roles, labels):
        found = _read_labels(rows, roles)
    else:
        if not any(_has_numbers(columns[name]) for name in roles.golds):
            raise DataError(f"a scale needs numbers, but {', '.join(roles.golds)} has none")
        raters = [columns[name] for name in roles.raters]
        unlike = [one.name for one in raters if not _has_numbers(one) or (scale is None and one.kind != "number")]
        if unlike:
            raise DataError(f"rater {unlike[0]} gave no numbers, but {roles.golds[0]} has scores")
        found = _read_scores(rows, roles, scale or data_scale(columns, roles))
    if not found.usable:
        raise DataError(f"none of the {len(rows)} rows can be used: {counted(found.left_out)}")
    if len(found.counts) < 2:
        only = found.usable[0].answer
        rest = f"; other rows: {counted(found.left_out)}" if found.left_out else ""
        raise DataError(
            f"all {len(found.usable)} usable rows have the answer {only}, so there is nothing to learn{rest}"
        )
    _check_values(found, roles)
    return found


def has_labels(columns: Mapping[str, Column], roles: Roles, labels: bool) -> bool:
    """Whether the answers are labels and not scores."""
    filled = [one for name in roles.golds if (one := column(columns, name)).filled]
    return labels or not filled or any(one.kind != "number" for one in filled)


def why_labels(columns: Mapping[str, Column], roles: Roles) -> str | None:
    """Why a column that holds mostly numbers is taken as labels; None if there is no such column."""
    for name in roles.golds:
        filled = columns[name].filled
        words = [str(cell).strip() for cell in filled if number(cell) is None]
        if columns[name].kind != "number" and 2 * len(words) <= len(filled) > 0:
            return (
                f"{name} is taken as labels, because {len(words)} of {len(filled)} cells are no numbers, such as "
                f"'{words[0][:_LONGEST_LABEL]}'; --scale takes the numbers alone"
            )
    return None


def data_scale(columns: Mapping[str, Column], roles: Roles) -> Scale:
    """The scale from the lowest to the highest score in the data, rounded outwards to integers.

    Raises:
        DataError: there is one score only, or more than a scale can have.
    """
    numbers = _numbers(columns, roles)
    named = ", ".join(roles.golds)
    if min(numbers) == max(numbers):
        raise DataError(f"{named} has the single value {numbers[0]}, so there is nothing to learn")
    scale = Scale(math.floor(min(numbers)), math.ceil(max(numbers)))
    if scale.highest - scale.lowest >= MOST_SCORES:
        raise DataError(
            f"{named} has scores from {min(numbers)} to {max(numbers)}; a scale has at most {MOST_SCORES} integers, so "
            "divide them into fewer scores first"
        )
    return scale


def far_score(columns: Mapping[str, Column], roles: Roles) -> str | None:
    """A doubt about the lowest or highest score, as about a 9 among scores from 1 to 5; None if there is none.

    It is doubted if at least two integers between it and the next score never occur, and the distance is at least twice
    that of any other neighbors.
    """
    values = sorted(set(_numbers(columns, roles)))
    gaps = [above - below for below, above in pairwise(values)]
    if len(gaps) < 2:
        return None
    for which, value, gap, rest, (below, above) in (
        ("highest", values[-1], gaps[-1], gaps[:-1], values[-2:]),
        ("lowest", values[0], gaps[0], gaps[1:], values[:2]),
    ):
        if gap >= max(Decimal(3), 2 * max(rest)):
            never = f"{math.floor(below) + 1} to {math.ceil(above) - 1} never occur"
            return f"{never}; is the {which} score {value} right? If not, --scale finds its row"
    return None


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers of rows, for a message."""
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) or "none"


def _check_roles(columns: Mapping[str, Column], roles: Roles) -> None:
    used = [name for name in (roles.text, roles.score, *roles.raters, roles.id, roles.group) if name is not None]
    for name in used:
        column(columns, name)
    twice = [name for name, count in Counter(used).items() if count > 1]
    if twice:
        raise ConfigError(f"column '{twice[0]}' is named for two purposes")
    if not roles.golds:
        raise ConfigError("no column with scores or labels is named")
    if any(isinstance(cell, list | tuple | Mapping | bytes) for cell in columns[roles.text].filled):
        raise DataError(f"column '{roles.text}' holds lists or nested fields and no text")


def _check_values(found: Draft, roles: Roles) -> None:
    """Ids must identify the usable rows, and groups must be given."""
    for kind, name in (("id", roles.id), ("group", roles.group)):
        if name is None:
            continue
        values = [one.row.get(name) for one in found.usable]
        if any(map(is_empty, values)):
            raise DataError(f"column '{name}' is empty in {sum(map(is_empty, values))} rows, so it is no {kind}")
        repeated = len(values) - len(set(map(str, values)))
        if kind == "id" and repeated:
            raise DataError(f"column '{name}' repeats values in {repeated} rows, so it is no id; it may be a group")


# Scores


def _read_scores(rows: Sequence[Row], roles: Roles, scale: Scale) -> Draft:
    """The rows with their scores: of the column, or the mean of the raters."""
    read: list[tuple[Row, str, Decimal, float]] = []
    unanimous: list[bool] = []
    left_out: Counter[str] = Counter()
    as_it_is = roles.score is not None
    for location, row in rows:
        text = row.get(roles.text)
        ratings = [value for name in roles.golds if (value := number(row.get(name))) is not None]
        for value in ratings:
            if not scale.lowest <= value <= scale.highest:
                raise DataError(
                    f"{location}: the score {value} is outside the scale from {scale.lowest} to {scale.highest}"
                )
        opinions = [value for name in roles.raters if (value := number(row.get(name))) is not None]
        if len(opinions) > 1:
            unanimous.append(min(opinions) == max(opinions))
        reason = _reason(row, roles, "no number", bool(ratings))
        if reason is not None:
            left_out[reason] += 1
            as_it_is &= text in (None, "") or row.get(roles.golds[0]) in (None, "")
            continue
        spread = float(max(opinions) - min(opinions)) if opinions else 0.0
        as_it_is &= decimal(row[roles.golds[0]]) is not None  # a task file reads no decimal comma
        as_it_is &= all(is_missing(row.get(name)) or number(row.get(name)) is not None for name in roles.raters)
        read.append(((location, row), str(text), sum(ratings, Decimal()) / len(ratings), spread))
    rounded = roles.score is None or any(value != value.to_integral_value() for _, _, value, _ in read)
    usable = []
    for (location, row), text, value, spread in read:
        gold = float(value) if rounded else int(value)
        answer = scale.lowest + sum(gold >= threshold for threshold in thresholds(scale)) if rounded else gold
        usable.append(Scored(location, row, text, gold, str(answer), spread))
    spec = IntegerAnswer(type="integer", min=scale.lowest, max=scale.highest, label="Score")
    names = tuple(columns_of(rows))
    return Draft(roles, names, tuple(usable), dict(left_out), spec, rounded, as_it_is, tuple(unanimous))


def thresholds(scale: Scale) -> list[float]:
    """Half points: ratings are rounded to the nearest score, and a half is rounded up."""
    return [score + 0.5 for score in range(scale.lowest, scale.highest)]


def _is_between(one: Scored) -> bool:
    """Whether a score is far from the integer that it is rounded to."""
    return not isinstance(one.gold, str) and abs(one.gold - int(one.answer)) > 0.25


def _reason(row: Mapping[str, Any], roles: Roles, unreadable: str, readable: bool) -> str | None:
    """Why a row cannot be used; None if it can."""
    if is_empty(row.get(roles.text)):
        return "no text"
    if readable:
        return None
    missing = all(is_missing(row.get(name)) for name in roles.golds)
    return f"{'no value' if missing else unreadable} in {', '.join(roles.golds)}"


def _numbers(columns: Mapping[str, Column], roles: Roles) -> list[Decimal]:
    """All scores in the data."""
    return [value for name in roles.golds for cell in columns[name].cells if (value := number(cell)) is not None]


def _has_numbers(column: Column) -> bool:
    return any(number(cell) is not None for cell in column.filled)


# Labels


def _read_labels(rows: Sequence[Row], roles: Roles) -> Draft:
    """The rows with their labels: of the column, or the one that more raters gave than any other."""
    golds = {str(row[name]).strip() for _, row in rows for name in roles.golds if not is_missing(row.get(name))}
    spec: ChoiceAnswer | TextAnswer = TextAnswer(type="text", label="Label")
    if len(golds) > 1 and all(re.fullmatch("[A-Z]", gold) for gold in golds):
        spec = ChoiceAnswer(type="choice", choices="".join(sorted(golds)), label="Label")
    known = {label for gold in golds if (label := spec.canonical(gold)) is not None}
    if len(known) > MOST_LABELS or any(len(label) > _LONGEST_LABEL for label in known):
        raise DataError(
            f"{', '.join(roles.golds)} has {len(known)} different values, such as '{min(golds)[:_LONGEST_LABEL]}'; "
            f"up to {MOST_LABELS} labels of at most {_LONGEST_LABEL} characters are allowed"
        )
    usable = []
    unanimous: list[bool] = []
    left_out: Counter[str] = Counter()
    as_it_is = roles.score is not None
    for location, row in rows:
        text = row.get(roles.text)
        votes = _votes(row, roles.golds, spec).most_common()
        opinions = _votes(row, roles.raters, spec)
        if opinions.total() > 1:
            unanimous.append(len(opinions) == 1)
        reason = _reason(row, roles, "no label", bool(votes))
        if reason is None and len(votes) > 1 and votes[0][1] == votes[1][1]:
            reason = "no majority of the raters"
        if reason is not None:
            left_out[reason] += 1
            as_it_is &= text in (None, "") or row.get(roles.golds[0]) in (None, "")
            continue
        as_it_is &= all(is_missing(row.get(name)) or spec.canonical(row[name]) is not None for name in roles.raters)
        spread = 1 - opinions[votes[0][0]] / opinions.total() if opinions else 0.0
        usable.append(Scored(location, row, str(text), votes[0][0], votes[0][0], spread))
    names = tuple(columns_of(rows))
    return Draft(roles, names, tuple(usable), dict(left_out), spec, False, as_it_is, tuple(unanimous))


def _votes(row: Mapping[str, Any], names: Sequence[str], spec: ChoiceAnswer | TextAnswer) -> Counter[str]:
    """How many of these columns have which label."""
    given = [spec.canonical(row[name]) for name in names if not is_missing(row.get(name))]
    return Counter(label for label in given if label is not None)


# Examples


def _spread_out(answers: list[str]) -> list[str]:
    """Up to seven answers, or five of more, from the outermost inwards: 5, 1, 4, 2, 3."""
    if len(answers) > _EXAMPLES:
        answers = [answers[round(step * (len(answers) - 1) / 4)] for step in range(5)]
    ordered = []
    while answers:
        ordered.append(answers.pop())
        answers.reverse()
    return ordered
