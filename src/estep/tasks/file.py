"""The YAML file of a task, field by field, and how it is read."""

import functools
import re
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.sandbox
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from estep.config.validation import one_line
from estep.errors import DataError, nearest
from estep.tasks.answers import AnswerSpec

FewShot = Literal["first", "both", "proposal"]
CATALOG = Path(__file__).parent / "catalog"
"""Where the built-in tasks lie."""


def task_names() -> list[str]:
    """The names of the built-in tasks. A file whose name begins with `_` is there to be extended."""
    files = (path for path in CATALOG.rglob("*.yaml") if not path.name.startswith("_"))
    return sorted(str(path.relative_to(CATALOG).with_suffix("")) for path in files)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _regex(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{key}: '{pattern}' is no regular expression: {error}") from error


class GeneratorSection(_Section):
    """Rows that reasoning-gym makes."""

    name: str
    """Of one of its data sets, such as `leg_counting`."""
    size: int = Field(5000, ge=2)
    """Rows to make."""
    seed: int = Field(257, ge=0)
    """The rows depend on it and on the settings alone."""
    settings: dict[str, Any] = {}
    """Of the data set, such as `max_animals`."""


class DataSection(_Section):
    """Where rows come from: a packaged data set's file, a local file, a data set on the hub, or a generator. A field of
    a field is named with dots, as in `info.id`."""

    source: str | None = None
    """The training rows; also the test rows where neither `test_source` nor `test_split` is given. Without it (and
    without a generator) a run must name its own files."""
    test_source: str | None = None
    """Test rows, where they come from another file."""
    subset: str | None = None
    """The hub's configuration name."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    files: str | None = None
    """The files of a split on the hub, where they do not lie as the hub expects: a pattern with `{split}` in it."""
    split: str = "train"
    """The hub's split for the training rows."""
    test_split: str | None = None
    """The hub's split for the test rows."""
    generator: GeneratorSection | None = None
    """Makes the rows, in place of a source."""
    id: str | None = None
    """The field that names a row; else rows are numbered."""
    group: str | None = None
    """The field that rows on one document or prompt share: they are not split between training and test."""
    rename: dict[str, str] = {}
    """Fields that go by another name in some copies of the data: from theirs to ours."""
    required_fields: tuple[str, ...] = ()
    """Rows without a value in one of these fields are left out and counted."""

    @model_validator(mode="after")
    def _one_origin(self) -> "DataSection":
        if self.generator is not None and self.source is not None:
            raise ValueError("a generator and a source: only one can give the rows")
        if self.files is not None and "{split}" not in self.files:
            raise ValueError(f"files is a pattern with {{split}} in it, got '{self.files}'")
        return self


ORIGIN = frozenset({"source", "test_source", "generator", "subset", "revision", "files", "split", "test_split"})
"""The keys of a `DataSection` that say where rows come from, and nothing of what they are."""


class OptionsSection(_Section):
    """The options of a multiple-choice question. Templates see them as `options`, each with `letter` and `text`."""

    texts: str | tuple[str, ...]
    """A field that lists them, or a field for each."""
    labels: str | None = None
    """A field that lists what the gold field calls them; else they are called A, B, C and so on."""
    gold: Literal["label", "index", "text"] = "label"
    """What the gold field holds: the right option's label, its place from 0, or its text."""


class GoldSection(_Section):
    """Which field holds the correct answer y*. Templates never see it."""

    field: str
    thresholds: tuple[float, ...] | None = None
    """For integer answers: thresholds that turn a real rating into a score. A rating scores `min` plus the number
    of thresholds that it reaches."""
    remove: str | None = None
    """A regex of what is taken out of the field first."""
    pattern: str | None = None
    """A regex of the whole field with a group `answer`, and perhaps one `solution`."""
    solution: str | None = None
    """The field that holds a worked solution, which a hint may tell. Templates of questions never see it."""

    @model_validator(mode="after")
    def _patterns_are_regexes(self) -> "GoldSection":
        if self.remove is not None:
            _regex(self.remove, "remove")
        if self.pattern is not None and "answer" not in _regex(self.pattern, "pattern").groupindex:
            raise ValueError(f"pattern needs a group (?P<answer>...), got '{self.pattern}'")
        return self


class Example(_Section):
    """A worked example of the few-shot prompt."""

    fields: dict[str, Any]
    rationale: str
    answer: str | int | float
    """In the form that a response states it."""
    solution: str = ""
    """For hints that tell one."""


class HintSection(_Section):
    """The hint's wordings by name (paper, Figure 1 and appendix C). They see `answer`, `solution` (where `gold` says
    where it is) and `option` (the right option's text, where there are options)."""

    variants: dict[str, str]
    default: str
    mentions: tuple[str, ...] = (r"\bhint\b",)
    """Regexes that betray a rationale which talks about the hint (any case)."""

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
    options: OptionsSection | None = None
    answer: AnswerSpec
    system: str = ""
    """The system prompt, as it is."""
    parameters: dict[str, str] = {}
    """Templates of texts that `user` sees by name: what differs between tasks that extend one file. They see the row's
    fields."""
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
    """Whose prompts have the examples: `first`, the proposal's until the policy has been trained once; `both`, the
    proposal's and the policy's own; `proposal`, the proposal's in every iteration."""
    max_new_tokens: int = Field(512, ge=1)
    """Enough for a response; `engine.max_new_tokens` overrides it."""
    hint: HintSection

    @model_validator(mode="after")
    def _cut_fits(self) -> "TaskFile":
        if self.gold.thresholds is not None:
            if self.answer.type != "integer":
                raise ValueError(f"gold.thresholds needs an integer answer, got {self.answer.type}")
            if len(self.gold.thresholds) != self.answer.max - self.answer.min or list(self.gold.thresholds) != sorted(
                set(self.gold.thresholds)
            ):
                raise ValueError(
                    f"gold.thresholds needs {self.answer.max - self.answer.min} rising thresholds, "
                    f"got {list(self.gold.thresholds)}"
                )
        return self

    @model_validator(mode="after")
    def _one_generator(self) -> "TaskFile":
        made = self.data.generator
        if made is not None and self.answer.type == "reasoning_gym" and made.name != self.answer.dataset:
            raise ValueError(f"data.generator makes {made.name}, but answer.dataset is {self.answer.dataset}")
        return self

    @model_validator(mode="after")
    def _options_are_letters(self) -> "TaskFile":
        if self.options is not None and self.answer.type != "choice":
            raise ValueError(f"options need a choice answer, got {self.answer.type}")
        return self


# Reading


def parse_task(text: str, place: str, folder: Path | None = None) -> TaskFile:
    """A task file from its YAML text.

    Args:
        place: names it in errors.
        folder: where the files lie that it extends.

    Raises:
        DataError: it is no valid task, or extends a file that is not there.
    """
    content = _extended(_mapping(text, place), place, folder, ())
    try:
        file = TaskFile.model_validate(content)
        for source in (
            file.user,
            *file.parameters.values(),
            file.completion,
            file.direct,
            *file.hint.variants.values(),
        ):
            template(source)
    except ValidationError as error:
        raise DataError(f"{place}: {one_line(error, TaskFile)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{place}: template: {error.message}") from error
    return file


def _mapping(text: str, place: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{place}: a task file is a mapping, got {type(content).__name__}")
    return content


def _extended(content: dict[str, Any], place: str, folder: Path | None, through: tuple[Path, ...]) -> dict[str, Any]:
    """A task's content laid over the one that its key `extends` names, a file or a built-in task: mappings are merged,
    all else is replaced."""
    content = dict(content)
    base = content.pop("extends", None)
    if base is None:
        return content
    built_in = not Path(str(base)).suffix
    path = CATALOG / f"{base}.yaml" if built_in else ((folder or Path()) / str(base)).resolve()
    if path in through:
        raise DataError(f"{place}: extends {base}, which extends it")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        known = nearest(str(base), task_names()) if built_in else str(path)
        raise DataError(f"{place}: extends {base}: {reason}; {known}") from error
    below = _extended(_mapping(text, str(path)), str(path), path.parent, (*through, path))
    return _laid_over(_with_its_files(below, path.parent), content)


def _with_its_files(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task's content with the files that it names beside itself, wherever the file lies that extends it."""
    data = content.get("data")
    if not isinstance(data, dict):
        return content
    named = {key: data[key] for key in ("source", "test_source") if isinstance(data.get(key), str)}
    beside = {key: str((folder / name).resolve()) for key, name in named.items() if (folder / name).is_file()}
    return {**content, "data": {**data, **beside}}


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A task's content over the one it extends. One that names its own rows takes over nothing of where others come
    from: a hub's splits say nothing of a file."""
    data, own = below.get("data"), above.get("data")
    if isinstance(data, dict) and isinstance(own, dict) and {"source", "generator"} & set(own):
        below = {**below, "data": {key: value for key, value in data.items() if key not in ORIGIN}}
    return _merged(below, above)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


# Templates


def conversation(text: str) -> str:
    """A prompt whose turns HelpSteer2 parts by `<extra_id_1>User` and `<extra_id_1>Assistant`, as a conversation.

    >>> print(conversation("Hi<extra_id_1>Assistant\\nHello.\\n<extra_id_1>User\\nAnd now?"))
    User: Hi
    <BLANKLINE>
    Assistant: Hello.
    <BLANKLINE>
    User: And now?
    >>> conversation("One turn.")
    'One turn.'
    """
    first, *rest = re.split(r"\s*<extra_id_\d+>\s*(User|Assistant|System)\s*", text)
    if not rest:
        return text
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return "\n\n".join(f"{speaker}: {said.strip()}" for speaker, said in turns if said.strip())


JINJA = jinja2.sandbox.SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)
JINJA.filters["conversation"] = conversation


@functools.lru_cache(maxsize=256)
def template(source: str) -> jinja2.Template:
    """A compiled template."""
    return JINJA.from_string(source)
