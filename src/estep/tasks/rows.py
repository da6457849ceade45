"""Turns data rows into questions: fields, options, correct answer and worked solution."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jinja2.meta

from estep.errors import DataError
from estep.records import Question, Rating
from estep.sources.rows import Row
from estep.tasks.file import OptionsSection, TaskFile
from estep.tasks.raters import RatingReader
from estep.tasks.templates import JINJA

OnInvalidRow = Literal["stop", "skip"]


class InvalidRow(NamedTuple):
    """A row that cannot become a question."""

    location: str
    reason: str


class Rows(NamedTuple):
    """The questions of one source, and the rows that were left out."""

    questions: list[Question]
    bad: list[InvalidRow]
    left_out: int = 0
    """Number of rows that lack a value in a field of `data.required_fields`."""
    in_examples: int = 0
    """Number of rows whose text one of the task's examples shows."""


@dataclass(frozen=True)
class RowReader:
    """Reads rows according to a task file."""

    file: TaskFile

    @cached_property
    def needed_fields(self) -> frozenset[str]:
        """The fields that the prompt needs from a row."""
        seen = {name for source in self._asking for name in jinja2.meta.find_undeclared_variables(JINJA.parse(source))}
        return frozenset(seen) - {"hint", *self.file.parameters} - ({"options"} if self.file.options else set())

    @property
    def _asking(self) -> tuple[str, ...]:
        """The templates that a prompt is rendered from."""
        return (self.file.user, *self.file.parameters.values())

    @cached_property
    def _raters(self) -> RatingReader | None:
        return None if self.file.raters is None else RatingReader(self.file)

    def question(self, row: Mapping[str, Any], answer: Any = None, id: str = "") -> Question:
        """The question of a row.

        Args:
            row: its fields, with the names that they have in the data.
            answer: the value of the gold field; None if the answer is not known.
            id: the id of the question.

        Raises:
            DataError: a field that the prompt needs is missing, or the answer is not allowed.
        """
        row = self._renamed(row)
        wanted = set(self.file.data.required_fields) - {self.file.gold.field}
        empty = sorted(field for field in wanted if value_of(row, field) in (None, ""))
        if empty:
            raise DataError(f"no value for {', '.join(empty)}; {_has(row)}")
        return self._question(row, answer, id)

    def _question(self, row: dict[str, Any], answer: Any, id: str) -> Question:
        gold = self.file.gold
        missing = sorted(field for field in self.needed_fields if row.get(field) is None)
        if missing:
            raise DataError(f"no value for {', '.join(missing)}; {_has(row)}")
        fields = _without(row, gold.field)
        ratings: tuple[Rating | None, ...] = ()
        if self._raters is not None:
            named = self._raters.section.named
            if answer is not None:  # a new row is scored whatever its ratings say
                ratings = self._raters.read([value_of(row, field) for field in named])
            for field in named:
                fields = _without(fields, field)
        solution = ""
        if gold.solution is not None:
            solution = str(value_of(row, gold.solution) or "")
            fields = _without(fields, gold.solution)
        if answer is not None:
            answer, in_gold = self._read_gold(answer)
            solution = solution or in_gold
        if self.file.options is not None:
            options = _options(row, self.file.options, self.file.answer.values)
            fields["options"] = [{"letter": letter, "text": text} for letter, text in options.items()]
            answer = answer if answer is None else self._letter(answer, row, options, self.file.options)
        return Question(id, fields, "" if answer is None else self._gold(answer), solution, ratings)

    def rows(
        self, rows: list[Row], prefix: str, on_invalid_row: OnInvalidRow, ask: Callable[[Question], object]
    ) -> Rows:
        """Questions of the rows of one source.

        Args:
            rows: the location (`file:line`) and the fields of each row.
            prefix: the start of the ids of rows without an id field.
            on_invalid_row: `stop` raises at the first row that cannot be used; `skip` lists them all.
            ask: renders a prompt; called on each question to find rows that cannot be rendered.

        Raises:
            DataError: a bad row with `stop`, no usable row, or a `gold.field` that no row has.
        """
        self._check_gold_field(rows)
        questions: dict[str, Question] = {}
        bad: list[InvalidRow] = []
        left_out = 0
        for number, (location, row) in enumerate(rows, 1):
            row = self._renamed(row)
            if any(value_of(row, field) in (None, "") for field in self.file.data.required_fields):
                left_out += 1
                continue
            try:
                question = self._asked_by(row, f"{prefix}-{number}")
                if question.id in questions:
                    raise DataError(f"a second row with the id '{question.id}'")
                ask(question)
                questions[question.id] = question
            except DataError as error:
                if on_invalid_row == "stop":
                    way_out = " (--on-invalid-row skip leaves such rows out)" if questions else ""
                    raise DataError(f"{location}: {error}{way_out}") from error
                bad.append(InvalidRow(location, str(error)))
        if not questions:
            why = f"the first: {bad[0].location}: {bad[0].reason}" if bad else self._nothing_there(rows)
            raise DataError(f"task {self.file.name}: no usable row among {len(rows)}; {why}")
        return Rows(list(questions.values()), bad, left_out)

    def _check_gold_field(self, rows: list[Row]) -> None:
        """Refuse a `gold.field` that no row has: the task file is wrong then, and not the rows."""
        field = self.file.gold.field
        if rows and not any(_holds(self._renamed(row), field) for _, row in rows):
            location, first = rows[0]
            raise DataError(
                f"task {self.file.name}: gold.field: the field '{field}' is in no row; the rows have "
                f"{', '.join(map(str, first)) or 'no fields'} (the first: {location})"
            )

    def _renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {self.file.data.rename.get(key, key): value for key, value in row.items()}

    def _asked_by(self, row: dict[str, Any], number: str) -> Question:
        """The question of a row with an answer."""
        gold, id_field = self.file.gold.field, self.file.data.id
        answer = value_of(row, gold)
        if answer is None or str(answer).strip() == "":
            there = "is empty" if gold in row else f"is missing; {_has(row)}"
            raise DataError(f"no answer: field '{gold}' {there}")
        id = number if id_field is None else value_of(row, id_field)
        if id is None:
            raise DataError(f"no id: field '{id_field}' is missing; {_has(row)}; data.id=null numbers the rows")
        if self.file.data.group is not None and value_of(row, self.file.data.group) is None:
            raise DataError(f"no group: field '{self.file.data.group}' is missing")
        return self._question(row, answer, str(id))

    def _nothing_there(self, rows: list[Row]) -> str:
        """Why every row was left out: a field that no row has, or fields that no row has together."""
        fields = self.file.data.required_fields
        renamed = [self._renamed(row) for _, row in rows]
        nowhere = [field for field in fields if all(value_of(row, field) in (None, "") for row in renamed)]
        missing = f"a value for {' or '.join(nowhere)}" if nowhere else f"a value for each of {', '.join(fields)}"
        return f"no row has {missing}; the rows have {', '.join(map(str, rows[0][1])) or 'no fields'}"

    def _read_gold(self, value: Any) -> tuple[Any, str]:
        """The answer and the worked solution in a gold field."""
        gold = self.file.gold
        if gold.remove is not None:
            value = re.sub(gold.remove, "", str(value), flags=re.DOTALL)
        if gold.pattern is None:
            return value, ""
        match = re.fullmatch(gold.pattern, str(value).strip(), re.DOTALL)
        if match is None:
            raise DataError(f"{gold.field} = {_short(value)} does not hold an answer (gold.pattern)")
        return match["answer"].strip(), (match.groupdict().get("solution") or "").strip()

    def _letter(self, answer: Any, row: dict[str, Any], options: Mapping[str, str], section: OptionsSection) -> str:
        """The letter of the option that a gold field names."""
        letters = list(options)
        if section.gold == "index":
            known = [str(index) for index in range(len(letters))]
        elif section.gold == "text":
            known = list(options.values())
        else:
            labels = letters if section.labels is None else value_of(row, section.labels)
            known = [str(label).strip() for label in labels or ()]
        if str(answer).strip() not in known or len(known) != len(letters):
            raise DataError(
                f"{self.file.gold.field} = {_short(answer)} is none of the row's options {', '.join(known)}"
            )
        return letters[known.index(str(answer).strip())]

    def _gold(self, value: Any) -> str:
        if self.file.gold.thresholds is not None and self.file.answer.type == "integer":
            try:
                rating = float(value)
            except (TypeError, ValueError):
                rating = float("nan")
            if not math.isfinite(rating) or isinstance(value, bool):
                raise DataError(f"{self.file.gold.field} = {_short(value)} is not a number")
            lowest, highest = self.file.gold.range or (-math.inf, math.inf)
            if not lowest <= rating <= highest:
                raise DataError(
                    f"{self.file.gold.field} = {_short(value)} is outside the ratings' range of {lowest:g} to "
                    f"{highest:g} (gold.range); another scale needs a task file with its own thresholds"
                )
            return str(self.file.answer.min + sum(rating >= threshold for threshold in self.file.gold.thresholds))
        answer = self.file.answer.canonical(value)
        if answer is None:
            raise DataError(f"{self.file.gold.field} = {_short(value)} is not allowed: {self.allowed}")
        return answer

    @property
    def allowed(self) -> str:
        """The allowed answers, for messages."""
        spec = self.file.answer
        if spec.type == "integer":
            return f"an integer from {spec.min} to {spec.max}"
        if spec.type == "choice":
            return f"one of {', '.join(spec.choices)}"
        named = {"number": "a number", "math": "a number or an expression"}
        return named.get(spec.type, "some text")


def value_of(row: Mapping[str, Any], field: str) -> Any:
    """The value of a field, with dots for nested fields; None if the row does not have it."""
    if field in row:
        return row[field]
    head, _, rest = field.partition(".")
    inner = row.get(head)
    return value_of(inner, rest) if rest and isinstance(inner, Mapping) else None


def _holds(row: Mapping[str, Any], field: str) -> bool:
    """Whether a row has a field, with dots for nested fields, even if its value is null."""
    if field in row:
        return True
    head, _, rest = field.partition(".")
    inner = row.get(head)
    return bool(rest) and isinstance(inner, Mapping) and _holds(inner, rest)


def _without(row: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A copy of a row without one field, with dots for nested fields."""
    head, _, rest = field.partition(".")
    if rest and field not in row and isinstance(row.get(head), Mapping):
        return {**row, head: _without(row[head], rest)}
    return {key: value for key, value in row.items() if key != field}


def _options(row: Mapping[str, Any], section: OptionsSection, letters: Sequence[str]) -> dict[str, str]:
    """The texts of a row's options by letter."""
    if isinstance(section.texts, str):
        texts = value_of(row, section.texts)
        if not isinstance(texts, list | tuple):
            raise DataError(f"field '{section.texts}' is no list of options, got {_short(texts)}")
    else:
        texts = [value_of(row, field) for field in section.texts]
    if not 2 <= len(texts) <= len(letters) or any(text is None for text in texts):
        raise DataError(f"2 to {len(letters)} options are allowed, got {_short(list(texts))}")
    return dict(zip(letters, map(str, texts), strict=False))


def reordered(question: Question, order: Sequence[int]) -> Question:
    """A question with its options in another order. Letters keep their order, and the answer follows its text."""
    if not order:
        return question
    options = question.fields["options"]
    letters = [option["letter"] for option in options]
    moved = [{"letter": letter, "text": options[index]["text"]} for letter, index in zip(letters, order, strict=True)]
    answer = letters[order.index(letters.index(question.answer))] if question.answer else ""
    return replace(question, fields={**question.fields, "options": moved}, answer=answer)


def _has(row: Mapping[str, Any]) -> str:
    return f"the row has {', '.join(map(str, row)) or 'no fields'}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
