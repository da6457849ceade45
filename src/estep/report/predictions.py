"""Predictions of any tool, read from files of rows or from runs.

Answers are compared plainly: without the whitespace around them, and integers by value, so that `3` equals `3.0`.
Nothing is searched for in a text. Where a tool judges answers in another way, its own verdict can be read instead.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from estep.errors import ConfigError, DataError, StoreError
from estep.metrics import selected, voted
from estep.records import Response
from estep.sources.rows import READABLE, Row, read_rows
from estep.store.run import RunStore
from estep.tasks.rows import value_of

_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,15})(\.0+)?")
_NO_PREDICTION = ("", "[invalid]")
"""Texts that stand for no prediction; the second is what lm-evaluation-harness writes if its pattern finds nothing."""
_VERDICTS = {
    **dict.fromkeys(("1", "true", "c", "correct"), True),
    **dict.fromkeys(("0", "false", "i", "n", "wrong", "unparseable", "gold_invalid"), False),
}
"""Verdicts in lower case: numbers, truth values, inspect_ai's letters, and the statuses of estep's own responses."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read, with dots for nested ones. Of several, the first that a file has is read."""

    id: Sequence[str] = ("id",)
    gold: Sequence[str] = ("gold",)
    prediction: Sequence[str] = ("prediction",)
    correct: str | None = None
    """A column with the tool's own verdict, which replaces the comparison with the gold answer."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Only rows with these values are read, from files that have these columns."""

    def nested(self) -> list[str]:
        """The names with dots."""
        names = [*self.id, *self.gold, *self.prediction, *([self.correct] if self.correct else []), *self.where]
        return [name for name in names if "." in name]


_OF_RESPONSES = Columns(("question_id",), ("gold",), ("answer",), "status")


class Answer(NamedTuple):
    """What a file says of a question; None for what it does not say."""

    prediction: str | None
    gold: str | None
    correct: bool | None
    """The tool's verdict."""
    missing: bool
    """Whether the tool gave no prediction."""


@dataclass(frozen=True)
class Arm:
    """The predictions to compare with others."""

    name: str
    source: str
    """The file, or the run and its iteration."""
    answers: dict[str, Answer]
    """By id."""
    fields: tuple[str, ...]
    """The columns that the file has."""
    judged: bool
    """Whether the tool's verdicts are read."""


def read_arms(sources: Sequence[str], columns: Columns) -> list[Arm]:
    """The predictions of each source: a file of rows, a run folder, or an iteration's `eval.jsonl`.

    Args:
        sources: paths, or NAME=PATH.
        columns: what to read from files of other tools. The columns of estep's own responses are known.

    Raises:
        ConfigError: fewer than two sources, or two with one name.
        DataError: a file that cannot be read, a missing column, or an id with two different predictions.
        StoreError: a folder without a run, or a run that has evaluated nothing.
    """
    if len(sources) < 2:
        raise ConfigError(f"a comparison needs at least two sets of predictions, got {len(sources)}")
    arms: list[Arm] = []
    for source in sources:
        name, path = _named(source)
        if name in (arm.name for arm in arms):
            raise ConfigError(f"two sets of predictions are named '{name}'; name them: NAME={path}")
        arms.append(_read_arm(name, path, columns))
    options = {f"--where {column}=...": column for column in columns.where}
    if columns.correct is not None:
        options[f"--correct {columns.correct}"] = columns.correct
    for option, column in options.items():
        if not any(column in arm.fields for arm in arms):
            raise ConfigError(f"{option}: no file has this column; {listed_fields(arms)}")
    return arms


def listed_fields(arms: Iterable[Arm]) -> str:
    """The columns that each arm's file has, for an error message."""
    return "; ".join(f"{arm.name} has {', '.join(arm.fields)}" for arm in arms)


def _named(source: str) -> tuple[str, Path]:
    """The name and the path of a source. A path that exists may contain an equals sign."""
    path = Path(source).expanduser()
    name, equals, rest = source.partition("=")
    if equals and name and not path.exists():
        return name, Path(rest).expanduser()
    path = path if path.name else path.resolve()
    return (path.stem if path.suffix in READABLE else path.name), path


def _read_arm(name: str, path: Path, columns: Columns) -> Arm:
    found = _responses_of(path)
    if found is not None:
        source, responses = found
        rows: list[Row] = [(f"{source}, question {one.question_id}", asdict(one)) for one in responses]
    else:
        source, rows = str(path), [(place, _flat(row, columns.nested())) for place, row in read_rows(path)]
    fields = tuple(dict.fromkeys(key for _, row in rows for key in row))
    if {"draw_id", "question_id", "gold", "answer", "status"} <= set(fields):
        columns = replace(_OF_RESPONSES, where=columns.where)
    chosen = _chosen(rows, columns.where, fields, source)
    return Arm(name, source, _answers(chosen, columns, fields, source), fields, columns.correct in fields)


def _flat(row: dict[str, Any], nested: Iterable[str]) -> dict[str, Any]:
    """A row that has nested fields as columns, too."""
    found = {name: value_of(row, name) for name in nested}
    return {**row, **{name: value for name, value in found.items() if value is not None}}


def _responses_of(path: Path) -> tuple[str, list[Response]] | None:
    """The responses of a run, or of one of its iterations, with the run's vote; None for any other file."""
    inside = re.fullmatch(r"iteration-(\d+)", path.resolve().parent.name)
    store = RunStore(path if path.is_dir() else path.resolve().parent.parent)
    found = (store.folder / "config.yaml").is_file()
    if path.is_dir():
        if not found:
            raise StoreError(f"{path} holds no run (config.yaml); name a run folder or a file of predictions")
        committed = [step.metrics() for step in store.committed()]
        if not committed:
            raise StoreError(f"the run in {path} has not evaluated its base model yet")
        number = selected(committed, store.config().select).iteration
        ends, wanted = committed[-1].iteration, store.config().iterations
        unfinished = f" (the run is not finished: {ends} of {wanted} iterations)" if ends < wanted else ""
    elif found and inside is not None and path.name == "eval.jsonl":
        number, unfinished = int(inside[1]), ""
        if not store.iteration(number).committed:
            raise StoreError(f"{path}: the iteration is not finished yet")
    else:
        return None
    responses = voted(store.iteration(number).responses(), store.config().evaluation.vote)
    return f"{store.folder}, iteration {number}{unfinished}", responses


def _chosen(rows: list[Row], where: Mapping[str, str], fields: Sequence[str], source: str) -> list[Row]:
    for column, wanted in where.items():
        if column in fields:
            values = [str(plain(row.get(column), column, place)) for place, row in rows]
            rows = [row for row, value in zip(rows, values, strict=True) if value == str(plain(wanted))]
            if not rows:
                there = ", ".join(list(dict.fromkeys(values))[:8])
                raise DataError(f"{source} has no row with {column}={wanted}; it has {there}")
    return rows


def _answers(rows: Iterable[Row], columns: Columns, fields: Sequence[str], source: str) -> dict[str, Answer]:
    def column(names: Sequence[str], option: str) -> str:
        found = next((name for name in names if name in fields), None)
        if found is None:
            named, listed = " or ".join(map(repr, names)), ", ".join(fields)
            raise DataError(
                f"{source} has no column {named}; it has {listed} (add {option} NAME; for files that differ, give it "
                "several times)"
            )
        return found

    judged = columns.correct if columns.correct in fields else None
    id_column = column(columns.id, "--id")
    gold_column = next((name for name in columns.gold if name in fields), None)
    if judged is None:
        column(columns.prediction, "--prediction")
    prediction_column = next((name for name in columns.prediction if name in fields), "")
    answers: dict[str, Answer] = {}
    for place, row in rows:
        key = _text(row.get(id_column), id_column, place)
        if key is None:
            raise DataError(f"{place}: no {id_column}")
        gold = plain(row[gold_column], gold_column, place) if gold_column in row else None
        given = plain(row.get(prediction_column), prediction_column, place)
        prediction = None if given in _NO_PREDICTION else given
        verdict = _verdict(row.get(judged), judged, place) if judged is not None else None
        missing = prediction is None if prediction_column else verdict is None
        answer = Answer(prediction, gold, bool(verdict) if judged is not None else None, missing)
        if answers.setdefault(key, answer) != answer:
            raise DataError(_repeats(place, f"{id_column} '{key}'", answers[key], answer))
    return answers


def _repeats(place: str, question: str, first: Answer, second: Answer) -> str:
    kind, one, other = next(
        (kind, one, other) for kind, one, other in zip(Answer._fields, first, second, strict=True) if one != other
    )
    return (
        f"{place}: {question} repeats with another {kind}: {one!r}, then {other!r}; one row per id is allowed "
        "(--where COLUMN=VALUE chooses rows, --id NAME another column)"
    )


def _verdict(value: Any, column: str, place: str) -> bool | None:
    text = plain(value, column, place)
    if text is None:
        return None
    verdict = _VERDICTS.get(text.lower())
    if verdict is None:
        raise DataError(f"{place}: {column} = {text!r} is no verdict: 1, true or C, and 0, false, I or N are allowed")
    return verdict


def plain(value: Any, column: str = "", place: str = "") -> str | None:
    """An answer as it is compared: without whitespace around it, an integer without `.0`; None if there is none.

    >>> plain(" 3.0 "), plain(3), plain(["+3"]), plain("3.5"), plain(" ")
    ('3', '3', '3', '3.5', None)
    """
    text = _text(value, column, place)
    integer = _INTEGER.fullmatch(text) if text is not None else None
    if integer is None:
        return text
    sign = "-" if integer[1] == "-" and integer[2] != "0" else ""
    return sign + integer[2]


def integer(answer: str) -> int | None:
    """The value of an answer that is an integer, as `plain` returns it; None for any other."""
    return int(answer) if re.fullmatch("-?[0-9]{1,15}", answer) else None


def _text(value: Any, column: str, place: str) -> str | None:
    """A value of a row as text; None if it is empty. A list of one element counts as the element."""
    if isinstance(value, list | tuple) and len(value) <= 1:
        return _text(value[0], column, place) if value else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | tuple | dict):
        kind = "an object" if isinstance(value, dict) else f"{len(value)} values"
        raise DataError(
            f"{place}: {column} has {kind}, one text or number is allowed (--correct NAME reads a column with the "
            "tool's own verdict instead)"
        )
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip() or None
