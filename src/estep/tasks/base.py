"""A task: where its questions come from, how it asks them, and how it judges the answers.

A task is a YAML file. It renders three prompts, and keeps them apart by method, so that no caller can mistake
one for another:

- `prompt`: what the policy is asked, in evaluation and in every training pair. Never hinted.
- `proposal_prompt`: what a proposal asks without the answer. Differs from `prompt` only in the few-shot examples,
  which `few_shot: proposal` leaves out of the policy's own prompt (as in STaR, which fine-tunes without them).
- `hinted_prompt`: the same with the correct answer as a hint (paper, Figure 1), in the examples too.

Templates never see the row's answer field, so a plain prompt cannot leak it.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from estep.errors import ConfigError, DataError, nearest
from estep.records import Message, Messages, Question, Status
from estep.tasks.answers import AnswerSpec, PythonAnswer
from estep.validation import one_line

FewShot = Literal["both", "proposal"]
OnBadRow = Literal["stop", "skip"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(_Section):
    """Where rows come from: a packaged data set's file, a local file, or a data set on the hub."""

    source: str
    """The training rows; also the test rows where neither `test_source` nor `test_split` is given."""
    test_source: str | None = None
    """Test rows, where they come from another file."""
    subset: str | None = None
    """The hub's configuration name."""
    split: str = "train"
    """The hub's split for the training rows."""
    test_split: str | None = None
    """The hub's split for the test rows."""
    id: str | None = None
    """The field that names a row; else rows are numbered."""


class GoldSection(_Section):
    """Which field holds the correct answer y*."""

    field: str
    cut: tuple[float, ...] | None = None
    """For integer answers: thresholds that turn a real rating into a score. A rating scores `min` plus the number
    of thresholds that it reaches."""


class Example(_Section):
    """A worked example of the few-shot prompt."""

    fields: dict[str, Any]
    rationale: str
    answer: str | int | float


class HintSection(_Section):
    """The hint's wordings by name (paper, Figure 1 and appendix C)."""

    variants: dict[str, str]
    default: str
    mentions: tuple[str, ...] = (r"\bhint\b",)
    """Regexes that betray a rationale which talks about the hint (any case)."""

    @model_validator(mode="after")
    def _default_is_known(self) -> "HintSection":
        if self.default not in self.variants:
            raise ValueError(f"default '{self.default}' is no variant; {nearest(self.default, self.variants)}")
        for pattern in self.mentions:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"mentions: '{pattern}' is no regular expression: {error}") from error
        return self


class TaskFile(_Section):
    """The YAML file of a task, field by field."""

    name: str
    description: str = ""
    licence: str = ""
    data: DataSection
    gold: GoldSection
    answer: AnswerSpec
    system: str = ""
    """The system prompt, as it is."""
    user: str
    """Jinja template of the question. Sees the row's fields and `hint` (empty in plain prompts)."""
    completion: str = "{{ rationale }} Answer: {{ answer }}"
    """Jinja template of a full response, for the few-shot examples. Sees `rationale` and `answer`."""
    direct: str = "Answer: {{ answer }}"
    """Jinja template of a response without a rationale, for the answer-only baseline. Sees `answer`."""
    rationale_label: str = ""
    """The label that opens a rationale, such as `Evaluation`; not counted as part of it."""
    examples: tuple[Example, ...] = ()
    few_shot: FewShot = "both"
    max_new_tokens: int = Field(512, ge=1)
    """Enough for a response; `engine.max_new_tokens` overrides it."""
    hint: HintSection

    @model_validator(mode="after")
    def _cut_fits(self) -> "TaskFile":
        if self.gold.cut is not None:
            if self.answer.type != "integer":
                raise ValueError(f"gold.cut needs an integer answer, got {self.answer.type}")
            if len(self.gold.cut) != self.answer.max - self.answer.min or list(self.gold.cut) != sorted(
                set(self.gold.cut)
            ):
                raise ValueError(
                    f"gold.cut needs {self.answer.max - self.answer.min} rising thresholds, got {list(self.gold.cut)}"
                )
        return self


class Judgement(NamedTuple):
    """What a text is worth as an answer to a question."""

    status: Status
    answer: str | None
    rationale: str
    hint_mentioned: bool


class BadRow(NamedTuple):
    """A row that cannot become a question."""

    place: str
    reason: str


class Rows(NamedTuple):
    """The questions of one source, and the rows left out of it."""

    questions: list[Question]
    bad: list[BadRow]


_JINJA = jinja2.sandbox.SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)
_HINT_RUN = 6
"""This many of the hint's words in a row count as a mention of it."""


@dataclass(frozen=True)
class Task:
    """A task file, ready to render prompts and judge texts.

    Example:
        >>> task = load_task("sentiment/movies")
        >>> question = task.question({"text": "A dull film."}, answer=-1.0)
        >>> task.judge(question, "Evaluation: It calls the film dull. Score: 1").status
        'correct'
    """

    file: TaskFile
    path: Path | None = None
    """Where the file lies; data paths are relative to its folder."""
    hint_variant: str | None = None
    """The hint's wording; None for the file's default."""
    few_shot: FewShot | None = None
    """Overrides the file's `few_shot`."""

    def __post_init__(self) -> None:
        if self.hint_variant is not None and self.hint_variant not in self.file.hint.variants:
            raise ConfigError(
                f"task {self.name} has no hint variant '{self.hint_variant}'; "
                + nearest(self.hint_variant, self.file.hint.variants)
            )

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def answers(self) -> tuple[str, ...]:
        """Every allowed answer in canonical form and in order; empty where there is no such list."""
        return self.file.answer.values

    @property
    def ordinal(self) -> bool:
        """Whether answers are integers, so that kappa and MAE mean something."""
        return self.file.answer.type == "integer"

    @property
    def policy_sees_examples(self) -> bool:
        return (self.few_shot or self.file.few_shot) == "both"

    # Prompts

    def prompt(self, question: Question) -> Messages:
        """What the policy is asked: the prompt of evaluation and of every training pair."""
        return self._messages(question, examples=self.policy_sees_examples, hinted=False)

    def proposal_prompt(self, question: Question) -> Messages:
        """What a proposal asks without the answer, always with the few-shot examples."""
        return self._messages(question, examples=True, hinted=False)

    def hinted_prompt(self, question: Question) -> Messages:
        """What a proposal asks with the correct answer as a hint: x and y* of q(z, y | x, y*)."""
        return self._messages(question, examples=True, hinted=True)

    def hint(self, answer: str) -> str:
        """The hint's text for one answer."""
        template = self.file.hint.variants[self.hint_variant or self.file.hint.default]
        return _render(template, {"answer": answer}, self.name)

    def full_completion(self, rationale: str, answer: str) -> str:
        """A response in the form that the prompt asks for."""
        return _render(self.file.completion, {"rationale": rationale, "answer": answer}, self.name)

    def direct_completion(self, question: Question) -> str:
        """The correct answer with no rationale before it, for the answer-only baseline."""
        return _render(self.file.direct, {"answer": question.answer}, self.name)

    def response_regex(self, max_new_tokens: int) -> str:
        """A regex of the responses that the prompt asks for: any rationale, then an allowed answer, then the end.

        The rationale has no colon, so that the label stands once, and at most `_CHARACTERS_A_TOKEN` characters for
        each token that the rest of the form leaves over.

        Raises:
            ConfigError: the answers are read by a function of the user's own, whose form is not known.
        """
        answer = self.file.answer.regex
        if answer is None:
            raise ConfigError(f"task {self.name}: engine.structured needs an answer spec other than python")
        form = self.full_completion(_RATIONALE, _ANSWER)
        label = len(form.replace(_RATIONALE, "").replace(_ANSWER, ""))
        longest = max(20, _CHARACTERS_A_TOKEN * max_new_tokens - label)
        parts = re.split(f"({_RATIONALE}|{_ANSWER})", form)
        inner = {_RATIONALE: f"[^:]{{1,{longest}}}", _ANSWER: answer}
        return "".join(inner.get(part) or re.escape(part) for part in parts)

    def _messages(self, question: Question, *, examples: bool, hinted: bool) -> Messages:
        messages: list[Message] = []
        if self.file.system:
            messages.append({"role": "system", "content": self.file.system.strip()})
        for example in self.file.examples if examples else ():
            answer = self._example_answer(example)
            messages.append(self._user(example.fields, self.hint(answer) if hinted else ""))
            messages.append({"role": "assistant", "content": self.full_completion(example.rationale, answer)})
        messages.append(self._user(question.fields, self.hint(question.answer) if hinted else ""))
        return tuple(messages)

    def _user(self, fields: dict[str, Any], hint: str) -> Message:
        return {"role": "user", "content": _render(self.file.user, {**fields, "hint": hint}, self.name)}

    def _example_answer(self, example: Example) -> str:
        answer = self.file.answer.canonical(example.answer)
        if answer is None:
            raise DataError(f"task {self.name}: the example's answer {example.answer!r} is none: {self._allowed()}")
        return answer

    # Judging

    def judge(self, question: Question, text: str) -> Judgement:
        """The verdict on a text: `r(ŷ, y*) = 1` exactly where the status is `correct`.

        A question whose own answer is not in canonical form never earns the reward: its status is `gold_invalid`.
        """
        spec = self.file.answer
        if isinstance(spec, PythonAnswer):
            try:
                verifier = spec.verifier()
            except ValueError as error:
                raise DataError(f"task {self.name}: {error}") from error
            try:
                stated, correct = verifier(text, question.answer)
            except Exception as error:
                raise DataError(
                    f"the verifier {spec.function} failed on question '{question.id}': {type(error).__name__}: {error}"
                ) from error
            start = len(text)
        else:
            parsed = spec.parse(text)
            stated, start = (parsed.answer, parsed.start) if parsed else (None, len(text))
            correct = stated == question.answer
        rationale = self._rationale(text[:start])
        status: Status
        if spec.canonical(question.answer) != question.answer:
            status = "gold_invalid"
        elif stated is None:
            status = "unparseable"
        else:
            status = "correct" if correct else "wrong"
        return Judgement(status, stated, rationale, self._mentions_hint(text, question))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Where the answer that a text states stands in it; None where it states none, or where only the task's own
        verifier knows."""
        if isinstance(self.file.answer, PythonAnswer):
            return None
        parsed = self.file.answer.parse(text)
        return parsed.span if parsed else None

    def _rationale(self, text: str) -> str:
        text = text.strip()
        if self.file.rationale_label:
            text = re.sub(rf"^[*_#\s]*(?i:{re.escape(self.file.rationale_label)})[*_]*\s*:[*_]*\s*", "", text)
        return text.strip()

    def _mentions_hint(self, text: str, question: Question) -> bool:
        if any(pattern.search(text) for pattern in self._hint_mentions):
            return True
        words = f" {' '.join(_words(text))} "
        hint = _words(self.hint(question.answer))
        runs = (hint[start : start + _HINT_RUN] for start in range(len(hint) - _HINT_RUN + 1))
        return any(f" {' '.join(run)} " in words for run in runs)

    @cached_property
    def _hint_mentions(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern, re.IGNORECASE) for pattern in self.file.hint.mentions]

    # Rows

    @cached_property
    def needed_fields(self) -> frozenset[str]:
        """The fields that a row must have for the prompt."""
        return frozenset(jinja2.meta.find_undeclared_variables(_JINJA.parse(self.file.user))) - {"hint"}

    def question(self, row: dict[str, Any], answer: Any = None, id: str = "") -> Question:
        """A question of a row, with its answer in canonical form where one is given.

        Raises:
            DataError: a field that the prompt needs is missing, or the answer is not allowed.
        """
        missing = sorted(field for field in self.needed_fields if row.get(field) is None)
        if missing:
            raise DataError(f"no value for {', '.join(missing)}; the row has {', '.join(map(str, row)) or 'no fields'}")
        fields = {key: value for key, value in row.items() if key != self.file.gold.field}
        return Question(id, fields, "" if answer is None else self._gold(answer))

    def _gold(self, value: Any) -> str:
        if self.file.gold.cut is not None and self.file.answer.type == "integer":
            try:
                rating = float(value)
            except (TypeError, ValueError):
                rating = float("nan")
            if not math.isfinite(rating) or isinstance(value, bool):
                raise DataError(f"{self.file.gold.field} = {value!r} is not a number")
            return str(self.file.answer.min + sum(rating >= threshold for threshold in self.file.gold.cut))
        answer = self.file.answer.canonical(value)
        if answer is None:
            raise DataError(f"{self.file.gold.field} = {value!r} is not allowed: {self._allowed()}")
        return answer

    def _allowed(self) -> str:
        spec = self.file.answer
        if spec.type == "integer":
            return f"an integer from {spec.min} to {spec.max}"
        if spec.type == "choice":
            return f"one of {', '.join(spec.choices)}"
        return {"number": "a number", "text": "some text", "python": "some text"}[spec.type]

    def rows(self, rows: list[tuple[str, dict[str, Any]]], prefix: str, on_bad_row: OnBadRow) -> Rows:
        """Questions of the rows of one source.

        Args:
            rows: each row's place (`file:line`) and fields.
            prefix: begins the ids of rows that have none of their own.
            on_bad_row: `stop` raises at the first row that cannot be used; `skip` lists them all.

        Raises:
            DataError: a bad row with `stop`; two rows with one id; nothing left.
        """
        gold, id_field = self.file.gold.field, self.file.data.id
        questions: dict[str, Question] = {}
        bad: list[BadRow] = []
        for number, (place, row) in enumerate(rows, 1):
            try:
                if row.get(gold) is None or str(row[gold]).strip() == "":
                    there = "is empty" if gold in row else f"is missing; the row has {', '.join(map(str, row))}"
                    raise DataError(f"no answer: field '{gold}' {there}")
                if id_field is not None and row.get(id_field) is None:
                    raise DataError(f"no id: field '{id_field}' is missing")
                id = str(row[id_field]) if id_field is not None else f"{prefix}-{number}"
                if id in questions:
                    raise DataError(f"a second row with the id '{id}'")
                questions[id] = self.question(row, row[gold], id)
            except DataError as error:
                if on_bad_row == "stop":
                    raise DataError(f"{place}: {error} (--on-bad-row skip leaves such rows out)") from error
                bad.append(BadRow(place, str(error)))
        if not questions:
            raise DataError(
                f"task {self.name}: no usable row among {len(rows)}; the first: {bad[0].place}: {bad[0].reason}"
            )
        return Rows(list(questions.values()), bad)


_RATIONALE, _ANSWER = "estepRATIONALE", "estepANSWER"
_CHARACTERS_A_TOKEN = 2  # fewer than in English prose, so that the answer is reached before the tokens run out


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _render(template: str, context: dict[str, Any], name: str) -> str:
    try:
        return _JINJA.from_string(template).render(context).strip()
    except Exception as error:
        raise DataError(f"task {name}: {error} in the template {template.strip()[:60]!r}") from error


# Catalogue

CATALOG = Path(__file__).parent / "catalog"


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return sorted(str(path.relative_to(CATALOG).with_suffix("")) for path in CATALOG.rglob("*.yaml"))


def load_task(name: str, hint: str | None = None, few_shot: FewShot | None = None) -> Task:
    """A built-in task by name, or a user's own by the path of its file.

    Args:
        name: such as `sentiment/movies`, or a path that ends in `.yaml` or `.yml`.
        hint: the hint's variant; None for the task's default.
        few_shot: whether the policy's own prompt has the examples; None for the task's default.

    Raises:
        ConfigError: no such task or variant.
        DataError: the file is not a valid task.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if name not in task_names():
            raise ConfigError(f"unknown task '{name}'; {nearest(name, task_names())}; or the path of a .yaml file")
        path = CATALOG / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"could not read the task file {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return Task(parse_task(text, str(path)), path.resolve(), hint, few_shot)


def parse_task(text: str, place: str) -> TaskFile:
    """A task file from its YAML text; `place` names it in errors."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{place}: a task file is a mapping, got {type(content).__name__}")
    try:
        file = TaskFile.model_validate(content)
        for template in (file.user, file.completion, file.direct, *file.hint.variants.values()):
            _JINJA.from_string(template)
    except ValidationError as error:
        raise DataError(f"{place}: {one_line(error, TaskFile)}") from error
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{place}: template: {error.message}") from error
    return file
