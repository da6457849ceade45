"""The YAML file of a task, field by field, and how it is read."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from estep.config.strict_yaml import read_yaml
from estep.config.validation import one_line
from estep.errors import DataError, nearest
from estep.shipped import CATALOG, task_names
from estep.tasks.answers import AnswerSpec
from estep.tasks.templates import template

FewShot = Literal["first", "both", "proposal"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{key}: '{pattern}' is no regular expression: {error}") from error


class GymGenerator(_Section):
    """Rows that reasoning-gym generates."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """The name of a reasoning-gym data set, such as `leg_counting`."""
    size: int = Field(5000, ge=2)
    """Number of rows to generate."""
    seed: int = Field(257, ge=0)
    """Seeds the rows, which depend only on it and on the settings."""
    settings: dict[str, Any] = {}
    """Settings of the data set, such as `max_animals`."""


class SumsGenerator(_Section):
    """Rows that estep generates: sums of several numbers, with their partial sums (`tasks/sums`)."""

    type: Literal["sums"] = "sums"
    terms: int | tuple[int, ...]
    """How many numbers a sum has, from 2 to 100; a list mixes several lengths in equal parts."""
    smallest: int = Field(2, ge=0)
    """The smallest number."""
    largest: int = Field(9, ge=0)
    """The largest number."""
    size: int = Field(2000, ge=2)
    """Number of rows to generate."""
    seed: int = Field(257, ge=0)
    """Seeds the rows, which depend only on it and on the settings."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """`terms` as a tuple."""
        return (self.terms,) if isinstance(self.terms, int) else self.terms

    @model_validator(mode="after")
    def _something_to_draw(self) -> "SumsGenerator":
        if self.smallest > self.largest:
            raise ValueError(f"largest is at least smallest, got smallest={self.smallest} and largest={self.largest}")
        if (
            not self.lengths
            or len(set(self.lengths)) < len(self.lengths)
            or not set(self.lengths) <= set(range(2, 101))
        ):
            received = list(self.terms) if isinstance(self.terms, tuple) else self.terms
            raise ValueError(f"terms is a number from 2 to 100, or a list of different ones, got {received}")
        return self


GeneratorSection = Annotated[GymGenerator | SumsGenerator, Field(discriminator="type")]


class DataSection(_Section):
    """Where rows come from: a packaged data set's file, a local file, a data set on the hub, or a generator. Nested
    fields are named with dots, as in `info.id`."""

    source: str | None = None
    """The training rows, and the test rows if neither `test_source` nor `test_split` is given. Without a source or a
    generator, a run must name its own files."""
    test_source: str | None = None
    """Test rows from another file."""
    subset: str | None = None
    """The hub's configuration name."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    files: str | None = None
    """A pattern for the files of a split on the hub that contains `{split}`, for layouts that the hub does not
    expect."""
    split: str = "train"
    """The hub's split for the training rows."""
    test_split: str | None = None
    """The hub's split for the test rows."""
    generator: GeneratorSection | None = None
    """Generates the rows instead of a source."""
    id: str | None = None
    """The field with the id of a row; without it, rows are numbered."""
    group: str | None = None
    """The field that identifies the document or prompt of a row. Rows that share it stay on one side of the split
    between training and test."""
    rename: dict[str, str] = {}
    """Fields to rename, for copies of the data with other names: from the name in the data to the one used here."""
    required_fields: tuple[str, ...] = ()
    """Rows that lack a value in any of these fields are left out and counted."""

    @field_validator("generator", mode="before")
    @classmethod
    def _default_type(cls, value: Any) -> Any:
        """A generator without a `type` is reasoning-gym's."""
        return {"type": "reasoning_gym", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "DataSection":
        if self.generator is not None and self.source is not None:
            raise ValueError("a generator and a source: only one can give the rows")
        if self.files is not None and "{split}" not in self.files:
            raise ValueError(f"files is a pattern with {{split}} in it, got '{self.files}'")
        return self


ORIGIN = frozenset({"source", "test_source", "generator", "subset", "revision", "files", "split", "test_split"})
"""The keys of a `DataSection` that say where rows come from."""


class OptionsSection(_Section):
    """The options of a multiple-choice question. Templates see them as `options`, each with `letter` and `text`."""

    texts: str | tuple[str, ...]
    """A field that lists the options, or one field per option."""
    labels: str | None = None
    """A field that lists the labels that the gold field uses; without it, the labels are A, B, C and so on."""
    gold: Literal["label", "index", "text"] = "label"
    """What the gold field contains: the label of the correct option, its index from 0, or its text."""


class GoldSection(_Section):
    """Which field contains the correct answer y*. Templates never see that field."""

    field: str
    thresholds: tuple[float, ...] | None = None
    """For integer answers: thresholds that turn a real rating into a score. The score is `min` plus the
    number of thresholds that the rating reaches."""
    range: tuple[float, float] | None = None
    """For `thresholds`: the lowest and the highest rating of the data. A rating outside is refused, because thresholds
    made for one scale give wrong scores on another."""
    remove: str | None = None
    """A regex for text to remove from the field first."""
    pattern: str | None = None
    """A regex for the whole field with a group `answer` and optionally a group `solution`."""
    solution: str | None = None
    """The field with a worked solution that a hint may contain. Question templates never see it."""

    @model_validator(mode="after")
    def _patterns_are_regexes(self) -> "GoldSection":
        if self.remove is not None:
            _regex(self.remove, "remove")
        if self.pattern is not None and "answer" not in _regex(self.pattern, "pattern").groupindex:
            raise ValueError(f"pattern needs a group (?P<answer>...), got '{self.pattern}'")
        return self


class RatersSection(_Section):
    """The ratings of several people, from which a report says how well people agree. Templates never see them, and
    nothing is trained on them."""

    fields: str | tuple[str, ...]
    """The field that lists all ratings of a row, or the fields with the rating of one person each. Values may be
    missing."""
    thresholds: tuple[float, ...] | None = None
    """Turns a rating into a score, as `gold.thresholds` does. null for those of `gold`; without these either, a rating
    is rounded to the nearest score, and a half is rounded up."""
    range: tuple[float, float] | None = None
    """The lowest and the highest rating; others are refused. null for `gold.range` where the thresholds are those of
    `gold`, and without it for the scale of the answer where ratings are rounded."""

    @property
    def named(self) -> tuple[str, ...]:
        """The fields that templates do not see."""
        return (self.fields,) if isinstance(self.fields, str) else self.fields

    @field_validator("fields")
    @classmethod
    def _some_and_different(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(value, str) and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError(f"fields is one field with a list, or at least two different fields, got {list(value)}")
        return value


class Example(_Section):
    """A worked example of the few-shot prompt."""

    fields: dict[str, Any]
    rationale: str
    answer: str | int | float
    """In the format that a response uses."""
    solution: str = ""
    """A worked solution, for hints that contain one."""


class HintSection(_Section):
    """The wordings of the hint by name (paper, Figure 1 and appendix C). They see `answer`, `solution` (if `gold` names
    one) and `option` (the text of the correct option, if there are options)."""

    variants: dict[str, str]
    default: str
    mentions: tuple[str, ...] = (r"\bhint\b",)
    """Case-insensitive regexes that detect rationales which mention the hint."""

    @model_validator(mode="after")
    def _default_is_known(self) -> "HintSection":
        if self.default not in self.variants:
            raise ValueError(f"default '{self.default}' is no variant; {nearest(self.default, self.variants)}")
        for pattern in self.mentions:
            _regex(pattern, "mentions")
        return self


class TaskFile(_Section):
    """The YAML file of a task, field by field."""

    name: str
    description: str = ""
    license: str = ""
    data: DataSection
    gold: GoldSection
    raters: RatersSection | None = Field(None, exclude_if=lambda value: value is None)
    options: OptionsSection | None = None
    answer: AnswerSpec
    system: str = ""
    """The system prompt, used verbatim."""
    parameters: dict[str, str] = {}
    """Templates of texts that `user` sees by name, for what differs between tasks that extend the same file. They see
    the fields of the row."""
    user: str
    """Jinja template of the question. Sees the row's fields, the parameters and `hint` (empty in plain prompts)."""
    completion: str = "{{ rationale }} Answer: {{ answer }}"
    """Jinja template of a full response, for the few-shot examples. Sees `rationale` and `answer`."""
    direct: str = "Answer: {{ answer }}"
    """Jinja template of a response without a rationale, for the answer-only baseline. Sees `answer`."""
    rationale_label: str = ""
    """The label that opens a rationale, such as `Evaluation`; not counted as part of it."""
    examples: tuple[Example, ...] = ()
    few_shot: FewShot = "both"
    """Which prompts contain the examples. `first`: the proposal's, until the policy has been trained once. `both`: the
    proposal's and the policy's. `proposal`: the proposal's in every iteration."""
    max_new_tokens: int = Field(512, ge=1)
    """Most tokens in a response; `engine.max_new_tokens` overrides it."""
    hint: HintSection

    @model_validator(mode="after")
    def _thresholds_fit(self) -> "TaskFile":
        given = {"gold": self.gold.thresholds, "raters": self.raters.thresholds if self.raters else None}
        for name, thresholds in given.items():
            if thresholds is None:
                continue
            if self.answer.type != "integer":
                raise ValueError(f"{name}.thresholds needs an integer answer, got {self.answer.type}")
            steps = self.answer.max - self.answer.min
            if len(thresholds) != steps or list(thresholds) != sorted(set(thresholds)):
                raise ValueError(f"{name}.thresholds needs {steps} rising thresholds, got {list(thresholds)}")
        if self.gold.range is not None and (self.gold.thresholds is None or self.gold.range[0] >= self.gold.range[1]):
            raise ValueError(f"gold.range is the lowest and highest rating for gold.thresholds, got {self.gold.range}")
        return self

    @model_validator(mode="after")
    def _raters_fit(self) -> "TaskFile":
        if self.raters is None:
            return self
        if self.answer.type not in ("integer", "choice", "text") or self.options is not None:
            kind = "multiple-choice options" if self.options is not None else f"{self.answer.type} answers"
            raise ValueError(f"raters is for integer, choice and text answers, got {kind}")
        if self.gold.field in self.raters.named:
            raise ValueError(f"raters.fields names {self.gold.field}, which is gold.field")
        limits = self.raters.range
        if limits is not None and (self.answer.type != "integer" or limits[0] >= limits[1]):
            raise ValueError(f"raters.range is the lowest and highest rating for integer answers, got {limits}")
        return self

    @model_validator(mode="after")
    def _one_generator(self) -> "TaskFile":
        generator = self.data.generator
        if generator is not None and self.answer.type == "reasoning_gym":
            made = generator.name if isinstance(generator, GymGenerator) else generator.type
            if made != self.answer.dataset:
                raise ValueError(f"data.generator makes {made}, but answer.dataset is {self.answer.dataset}")
        return self

    @model_validator(mode="after")
    def _options_are_letters(self) -> "TaskFile":
        if self.options is not None and self.answer.type != "choice":
            raise ValueError(f"options need a choice answer, got {self.answer.type}")
        return self


# Reading


def parse_task(text: str, source: str, folder: Path | None = None) -> TaskFile:
    """A task file from its YAML text.

    Args:
        source: names it in errors.
        folder: where to look for files that it extends.

    Raises:
        DataError: it is not a valid task, or extends a file that does not exist.
    """
    content = _extended(_mapping(text, source), source, folder, ())
    try:
        file = TaskFile.model_validate(content)
        for written in (
            file.user,
            *file.parameters.values(),
            file.completion,
            file.direct,
            *file.hint.variants.values(),
        ):
            template(written)
    except ValidationError as error:
        raise DataError(f"{source}: {one_line(error, TaskFile)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{source}: template: {error.message}") from error
    return file


def _mapping(text: str, source: str) -> dict[str, Any]:
    content = read_yaml(text, source, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{source}: a task file is a mapping, got {type(content).__name__}")
    return content


def _extended(content: dict[str, Any], source: str, folder: Path | None, through: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a task, merged with the file or built-in task that it `extends`. Mappings are merged key by key;
    any other value replaces the one in the extended file."""
    content = dict(content)
    base = content.pop("extends", None)
    if base is None:
        return content
    built_in = not Path(str(base)).suffix
    path = CATALOG / f"{base}.yaml" if built_in else ((folder or Path()) / str(base)).resolve()
    if path in through:
        raise DataError(f"{source}: extends {base}, which extends it")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        known = nearest(str(base), task_names()) if built_in else str(path)
        raise DataError(f"{source}: extends {base}: {reason}; {known}") from error
    below = _extended(_mapping(text, str(path)), str(path), path.parent, (*through, path))
    return _combined(_with_its_files(below, path.parent), content)


def _with_its_files(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a task with absolute paths to the files in its own folder, so that a file in another folder can
    extend it."""
    data = content.get("data")
    if not isinstance(data, dict):
        return content
    named = {key: data[key] for key in ("source", "test_source") if isinstance(data.get(key), str)}
    beside = {key: str((folder / name).resolve()) for key, name in named.items() if (folder / name).is_file()}
    return {**content, "data": {**data, **beside}}


def _combined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The content of a task merged with the one it extends. If it names its own rows, it inherits no keys that say
    where rows come from: splits on the hub mean nothing for a file."""
    data, own = below.get("data"), above.get("data")
    if isinstance(data, dict) and isinstance(own, dict) and {"source", "generator"} & set(own):
        below = {**below, "data": {key: value for key, value in data.items() if key not in ORIGIN}}
    return _merged(below, above)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}
